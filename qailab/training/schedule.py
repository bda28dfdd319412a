"""Which batch a lane takes next, and what becomes of each gradient: a state machine without clock.

::

    take() -> Task --lane--> arrive(task) ... next_entry() -> Entry: applied, or dropped
                       |---> lose(task), doubt(task): the batch is taken again

`LiveSchedule` decides as gradients arrive; `ReplaySchedule` repeats what a log says.

References:
    Maranjyan, Tyurin, Richtarik, Ringmaster ASGD, ICML 2025, arXiv:2501.16168: dropping.
    Zhang, Gupta, Lian, Liu, Staleness-aware async-SGD, IJCAI 2016, arXiv:1511.05950: scaling.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from qailab.errors import InputError
from qailab.training.log import Entry

Staleness = Literal["drop", "scale"]


class Task(NamedTuple):
    """A batch to be computed at a version of the weights; see `Entry`.

    Noise and data are a function of ``(batch, attempt)``, whichever lane takes it.
    """

    batch: int
    attempt: int
    version: int


class Schedule(ABC):
    """What is taken, applied and dropped.

    Attributes:
        version: how many gradients were applied.
        finished: all batches with smaller numbers were applied.
    """

    def __init__(self) -> None:
        self.version = self.finished = 0
        self._done: set[int] = set()  # others that were applied
        # Tasks that lanes have, and whether their gradients are still waited for.
        self._in_flight: dict[Task, bool] = {}

    @abstractmethod
    def take(self) -> Task | None:
        """The next task; None if there is nothing to be done now."""

    @abstractmethod
    def arrive(self, task: Task, lane: int, weight: float = 1.0) -> None:
        """A gradient is there; ``weight`` multiplies its step."""

    @abstractmethod
    def next_entry(self) -> Entry | None:
        """What becomes of the next gradient, which counts from now on; None if none is there."""

    @abstractmethod
    def _again(self, task: Task, *, fresh: bool) -> None:
        """Have the batch of a task taken again, with fresh noise if its gradient may be seen."""

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Whether all is done."""

    @property
    @abstractmethod
    def needed(self) -> set[int]:
        """The versions of weights that gradients are computed at which are not applied yet."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Plain data that `restore` reads; what is in flight will be taken once more as it was."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""

    def lose(self, task: Task) -> None:
        """The gradient of a task will never arrive."""
        if self._in_flight.pop(task, False) and not self.is_done(task.batch):
            self._again(task, fresh=False)

    def doubt(self, task: Task) -> None:
        """Do not wait for a gradient any more; it may still arrive."""
        if self._in_flight.get(task):
            self._in_flight[task] = False
            if not self.is_done(task.batch):
                self._again(task, fresh=True)

    def is_done(self, batch: int) -> bool:
        """Whether a gradient of the batch was applied."""
        return batch < self.finished or batch in self._done

    def _apply(self, batch: int) -> None:
        self.version += 1
        self._done.add(batch)
        while self.finished in self._done:
            self._done.remove(self.finished)
            self.finished += 1


class LiveSchedule(Schedule):
    """Decides as gradients arrive.

    Args:
        max_staleness: the most versions that a gradient may be behind the weights.
        staleness: whether an older gradient is dropped, and its batch taken again, or its step is
            divided by ``1 + staleness``.
    """

    def __init__(self, max_staleness: int, staleness: Staleness = "drop") -> None:
        super().__init__()
        self.batches = 0  # of the whole training
        self._max, self._drops = max_staleness, staleness == "drop"
        self._next = 0  # the first batch that nobody has taken
        self._retakes: set[int] = set()  # batches that have to be taken again
        self._attempts: dict[int, int] = {}  # of batches that were taken and are not done
        self._promised: list[Task] = []  # in flight when the state was saved
        self._arrivals: deque[tuple[Task, int, float]] = deque()

    def take(self) -> Task | None:
        if self._promised:
            task = self._promised.pop(0)
        else:
            if self._retakes:
                batch = min(self._retakes)
                self._retakes.remove(batch)
            elif self._next < self.batches:
                batch = self._next
                self._next += 1
            else:
                return None
            attempt = self._attempts.get(batch, 0)
            self._attempts[batch] = attempt + 1
            task = Task(batch, attempt, self.version)
        self._in_flight[task] = True
        return task

    def arrive(self, task: Task, lane: int, weight: float = 1.0) -> None:
        self._arrivals.append((task, lane, weight))

    def next_entry(self) -> Entry | None:
        if not self._arrivals:
            return None
        task, lane, weight = self._arrivals.popleft()
        waited_for = self._in_flight.pop(task)
        staleness = self.version - task.version
        too_old = staleness > self._max
        applied = not self.is_done(task.batch) and not (too_old and self._drops)
        scale = weight / (1 + staleness) if too_old and not self._drops else weight
        if applied:
            self._apply(task.batch)
            self._retakes.discard(task.batch)
            del self._attempts[task.batch]
            for other in [other for other in self._in_flight if self._is_hopeless(other)]:
                self.doubt(other)
        elif waited_for and not self.is_done(task.batch):
            self._again(task, fresh=True)
        return Entry(lane, *task, applied, scale)

    def _is_hopeless(self, task: Task) -> bool:
        """Whether it will be dropped, whenever it arrives: its batch need not wait for that."""
        return self._drops and self.version - task.version > self._max

    def _again(self, task: Task, *, fresh: bool) -> None:
        self._retakes.add(task.batch)
        if not fresh and self._attempts[task.batch] == task.attempt + 1:
            self._attempts[task.batch] = task.attempt

    @property
    def is_over(self) -> bool:
        return self.finished >= self.batches

    @property
    def needed(self) -> set[int]:
        return {task.version for task in self._waited_for()}

    def _waited_for(self) -> list[Task]:
        return self._promised + [task for task, waited in self._in_flight.items() if waited]

    def state(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "finished": self.finished,
            "done": sorted(self._done),
            "next": self._next,
            "retakes": sorted(self._retakes),
            "attempts": sorted(self._attempts.items()),
            "promised": sorted(map(tuple, self._waited_for())),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.version, self.finished = state["version"], state["finished"]
        self._done, self._next = set(state["done"]), state["next"]
        self._retakes, self._attempts = set(state["retakes"]), dict(state["attempts"])
        self._promised = [Task(*task) for task in state["promised"]]
        self._in_flight.clear()
        self._arrivals.clear()


class ReplaySchedule(Schedule):
    """Repeats a log: what was applied is computed at the same versions, and applied in its order.

    What was dropped is not computed.

    Raises:
        InputError: if no run can have been like this.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        super().__init__()
        self._entries = entries
        self._place = 0  # of the next entry
        self._of_version: dict[int, list[tuple[int, Task]]] = {}
        self._ready: list[tuple[int, Task]] = []  # a heap, in the order of the log
        self._arrived: set[Task] = set()
        version, batches = 0, set()
        for place, entry in enumerate(entries):
            if not 0 <= entry.version <= version or (entry.applied and entry.batch in batches):
                raise InputError(f"entry {place} of the log contradicts those before it: {entry}")
            if entry.applied:
                task = Task(entry.batch, entry.attempt, entry.version)
                self._of_version.setdefault(entry.version, []).append((place, task))
                batches.add(entry.batch)
                version += 1
        self._place_of = {task: place for each in self._of_version.values() for place, task in each}
        self._release()

    def _release(self) -> None:
        """What is computed at the weights that there are now."""
        for each in self._of_version.pop(self.version, []):
            heapq.heappush(self._ready, each)

    def take(self) -> Task | None:
        if not self._ready:
            return None
        _, task = heapq.heappop(self._ready)
        self._in_flight[task] = True
        return task

    def arrive(self, task: Task, lane: int, weight: float = 1.0) -> None:
        self._in_flight.pop(task, None)
        if not self.is_done(task.batch):
            self._arrived.add(task)

    def _again(self, task: Task, *, fresh: bool) -> None:
        if task not in self._arrived:
            heapq.heappush(self._ready, (self._place_of[task], task))

    def next_entry(self) -> Entry | None:
        if self.is_over:
            return None
        entry = self._entries[self._place]
        if entry.applied:
            task = Task(entry.batch, entry.attempt, entry.version)
            if task not in self._arrived:
                return None
            self._arrived.remove(task)
            self._apply(entry.batch)
            self._release()
        self._place += 1
        return entry

    @property
    def is_over(self) -> bool:
        return self._place == len(self._entries)

    @property
    def needed(self) -> set[int]:
        waiting = {task.version for _, task in self._ready}
        return waiting | {task.version for task in (*self._in_flight, *self._arrived)}

    def state(self) -> dict[str, Any]:
        return {"place": self._place}

    def restore(self, state: dict[str, Any]) -> None:
        ReplaySchedule.__init__(self, self._entries)
        for entry in self._entries[: state["place"]]:
            if entry.applied:
                self._apply(entry.batch)
                self._release()
        self._place = state["place"]
        self._ready = [each for each in self._ready if each[0] >= self._place]
        heapq.heapify(self._ready)
