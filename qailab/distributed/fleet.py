"""The fleet: the life and death of the processes behind the slots.

A slot is *starting*, *ready*, or set *aside*: its backend cannot be built there, it lost one
process after the other, or it failed again and again, without an answer in between.

    starting --opened--> ready --lost--> starting (after a pause, from the second time on)
        |                  |
        +--unbuildable-----+--too often--> aside --rested--> starting
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from qailab.distributed.slots import Parcel, Slot
from qailab.distributed.workers import Place, Workers
from qailab.errors import BackendBuildError, PoolError, PoolExhaustedError, QailabError

logger = logging.getLogger("qailab.distributed")

MAX_LOSSES = 5
"""Processes a slot may lose, without one answer in between, before it is set aside."""
MAX_LOST_STARTS = 8
"""The same for processes that were lost before they were ready: until Ray notices that a node is
gone, which takes up to 12 s, it starts them there."""
PAUSE_SECONDS = 0.5
"""The pause before a slot's second replacement in a row; it doubles with each further one."""
MAX_FAULTS = 8
"""Transient faults of a slot, without one answer in between, before it is set aside."""
MAX_FAULTS_OF_DEVICES = 2
"""The same where the backend has already tried again by itself, for as long as it is patient."""
BACK_OFF_SECONDS = 0.1
"""The pause of a slot after a transient fault; it doubles with each further one."""
_LONGEST_BACK_OFF = 5.0
REST_SECONDS = 30.0
"""How long a slot that failed too often is left aside before it gets another chance."""
REST_OF_UNBUILDABLE_SECONDS = 600.0
"""The same where the backend cannot be built, which only a change of the machine mends."""
LOOK_AGAIN_SECONDS = 0.5
"""How often a handle looks for a process that its owner replaces."""
MISSING_SECONDS = 15.0
"""How long it does so while it finds none at all."""
_LOG_CHARACTERS = 120
SLOW_START_SECONDS = 20.0
"""After this time a log line says what a process is waiting for; imports take 2 to 10 s."""


class Fleet:
    """Starts processes, replaces lost ones, sets hopeless slots aside.

    Args:
        slots: the slots.
        workers: who carries it out.
        clock: the time in seconds.
        start_timeout: seconds that work waits for a first process.
        give_back: takes the parcels that a process had in flight, and whether it died of them.
        give_up: takes the error when no process is left, or none could start in time.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        workers: Workers,
        *,
        clock: Callable[[], float],
        start_timeout: float,
        give_back: Callable[[Slot, list[Parcel], bool], None],
        give_up: Callable[[QailabError], None],
    ) -> None:
        self.slots = tuple(slots)
        self._workers = workers
        self._clock = clock
        self._start_timeout = start_timeout
        self._give_back = give_back
        self._give_up = give_up
        self._nobody_since = clock()

    @property
    def sharing(self) -> list[Slot]:
        """The slots that work is shared among, those that are starting included."""
        return [slot for slot in self.slots if slot.state != "aside"]

    @property
    def ready(self) -> list[Slot]:
        """The slots that can be given work now."""
        return [slot for slot in self.slots if self.can_work(slot)]

    def can_work(self, slot: Slot) -> bool:
        """Whether a slot can be given work now."""
        return slot.state == "ready" and slot.resting_until <= self._clock()

    def start(self, slot: Slot) -> None:
        """Start a slot's process, which builds its backend."""
        slot.state = "starting"
        slot.starts_at = None
        slot.starting_since = self._clock()
        slot.warned = False
        try:
            self._workers.start(slot)
        except Exception as error:  # options that Ray refuses, a lost connection
            self._set_aside(slot, f"{type(error).__name__}: {error}", REST_SECONDS)

    def opened(self, slot: Slot, place: Place) -> None:
        """A slot's backend is built."""
        if slot.replaced:
            logger.info("actor %d (%r) is replaced, on %s", slot.index, slot.backend, place.node)
        slot.state = "ready"
        slot.missing = False
        slot.pid, slot.node = place.pid, place.node
        slot.ready_since = self._clock()

    def unbuildable(self, slot: Slot, reason: str) -> None:
        """A slot's backend cannot be built, and another try would not change that."""
        self._retire(slot)
        self._set_aside(slot, reason, REST_OF_UNBUILDABLE_SECONDS)

    def missing(self, slot: Slot) -> None:
        """A slot's process is not to be found; its owner may be replacing it."""
        slot.missing = True
        slot.starts_at = self._clock() + LOOK_AGAIN_SECONDS

    def lose(self, slot: Slot, reason: str, *, hangs: bool = False) -> None:
        """A process is gone, or does not answer: its rows go back, and it is replaced."""
        most = MAX_LOSSES if slot.state == "ready" else MAX_LOST_STARTS
        lost = self._retire(slot, hangs=hangs)
        slot.replaced += 1
        slot.losses += 1
        slot.last_error = reason
        hopeless = slot.losses >= most
        logger.warning(
            "actor %d (%r) was lost with %d chunk(s) in flight%s: %s",
            slot.index,
            slot.backend,
            sum(len(parcel.chunks) for parcel in lost),
            "" if hopeless else " and is replaced",
            _last_line(reason),
        )
        self._give_back(slot, lost, True)
        if hopeless:
            self._set_aside(slot, reason, REST_SECONDS)
        elif slot.losses == 1:
            self.start(slot)
        else:
            slot.starts_at = self._clock() + PAUSE_SECONDS * 2 ** (slot.losses - 2)

    def fault(self, slot: Slot, reason: str, *, full: bool = False) -> None:
        """A slot failed for a transient reason: it pauses, or is set aside.

        Args:
            slot: the slot.
            reason: what happened.
            full: a machine had no room, which is not the slot's fault: it only pauses.
        """
        if slot.state != "ready":
            return
        slot.faults += 1
        slot.last_error = reason
        most = MAX_FAULTS_OF_DEVICES if slot.backend.traits.packs_jobs else MAX_FAULTS
        if slot.faults < most or full:
            pause = min(_LONGEST_BACK_OFF, BACK_OFF_SECONDS * 2 ** (slot.faults - 1))
            slot.resting_until = self._clock() + pause
            return
        self._give_back(slot, self._retire(slot, gently=slot.backend.traits.packs_jobs), False)
        self._set_aside(slot, reason, REST_SECONDS)

    def tick(self, *, waiting: bool) -> None:
        """Start what is due; give up on work that has waited too long for a first process."""
        now = self._clock()
        for slot in self.slots:
            if slot.state == "starting":
                if slot.starts_at is not None and slot.starts_at <= now:
                    self.start(slot)
            elif slot.state == "aside" and waiting and slot.resting_until <= now:
                self._revive(slot)
        self._warn_of_slow_starts(now)
        if not waiting or any(slot.state == "ready" for slot in self.slots):
            self._nobody_since = now
        elif now - self._nobody_since > self._patience:
            self._nobody_since = now
            self._give_up(self.starting_error())

    def next_start(self) -> float | None:
        """When `tick` or work is next due for a slot that pauses; None if none does."""
        now = self._clock()
        times = [slot.starts_at for slot in self.slots if slot.starts_at is not None]
        times += [slot.resting_until for slot in self.slots if slot.resting_until > now]
        return min(times, default=None)

    @property
    def _patience(self) -> float:
        missing = all(slot.missing for slot in self.slots)
        return min(self._start_timeout, MISSING_SECONDS) if missing else self._start_timeout

    def work_came(self) -> None:
        """Give slots that were set aside another chance, if none other is left."""
        if not self.sharing:
            self._nobody_since = self._clock()
            for slot in self.slots:
                self._revive(slot)

    def starting_error(self, count: int = 1, timeout: float | None = None) -> PoolError:
        """Why there are not enough processes yet, in words.

        Args:
            count: how many were wanted.
            timeout: how long was waited for them, in seconds.
        """
        if all(slot.missing for slot in self.slots):
            return PoolError(
                "none of its actors is to be found: the process that made this pool has closed it, "
                "or has ended; make a new LauncherPool and assign it to layer.backend"
            )
        ready = sum(slot.state == "ready" for slot in self.slots)
        slot = next((slot for slot in self.slots if slot.state != "ready"), self.slots[0])
        waited = self._start_timeout if timeout is None else timeout
        wanted = "none" if count == 1 else f"{ready}, not {count},"
        trouble = f" Last trouble: {slot.last_error}" if slot.last_error else ""
        return PoolError(
            f"{wanted} of {len(self.slots)} actors could start within {waited:g} s; "
            f"{slot.backend!r} needs {slot.needs}, and the cluster has: "
            f"{self._workers.free_resources(slot.needs)}. Close what holds them, or ask for less: "
            "actor_options={'num_cpus': 0.5}; where machines take longer to come up, raise "
            f"start_timeout.{trouble}"
        )

    def end(self) -> None:
        """Let go of all processes, after their backends were closed."""
        self._workers.end([slot for slot in self.slots if self._has_something_to_close(slot)])
        for slot in self.slots:
            self._retire(slot)

    def _has_something_to_close(self, slot: Slot) -> bool:
        """Whether a slot's process is ready, or replaces one that may have left a session open."""
        if slot.state == "ready":
            return True
        queue = slot.backend.traits.queue_name
        heir = slot.state == "starting" and slot.starts_at is None and slot.replaced > 0
        others = [other.backend.traits.queue_name for other in self.slots if other.state == "ready"]
        return heir and queue is not None and queue not in others

    def _retire(self, slot: Slot, *, hangs: bool = False, gently: bool = False) -> list[Parcel]:
        if slot.state == "ready":
            slot.ready_seconds += self._clock() - slot.ready_since
        self._workers.stop(slot, hangs=hangs, gently=gently)
        return slot.retire()

    def _revive(self, slot: Slot) -> None:
        slot.losses = slot.faults = 0
        slot.resting_until = 0.0
        self.start(slot)

    def _set_aside(self, slot: Slot, reason: str, rest_seconds: float) -> None:
        slot.state = "aside"
        slot.last_error = reason
        slot.resting_until = self._clock() + rest_seconds
        logger.warning(
            "actor %d (%r) is set aside: %s", slot.index, slot.backend, _last_line(reason)
        )
        if self.sharing:
            return
        worked = any(other.chunks or other.losses or other.faults for other in self.slots)
        kind = PoolExhaustedError if worked else BackendBuildError
        self._give_up(
            kind(
                f"no actor of {len(self.slots)} is left to run on; the last failure was on "
                f"{slot.backend!r}: {reason}"
            )
        )

    def _warn_of_slow_starts(self, now: float) -> None:
        """One line for all that have been starting for long, once for each process."""
        slow = [
            slot
            for slot in self.slots
            if slot.state == "starting" and slot.starts_at is None and not slot.warned
            and now - slot.starting_since > SLOW_START_SECONDS
        ]  # fmt: skip
        if not slow:
            return
        for slot in slow:
            slot.warned = True
        logger.warning(
            "%d of %d actors have been starting for %.0f s, such as actor %d (%r); it needs %s, "
            "and the cluster has: %s",
            len(slow),
            len(self.slots),
            SLOW_START_SECONDS,
            slow[0].index,
            slow[0].backend,
            slow[0].needs,
            self._workers.free_resources(slow[0].needs),
        )


def _last_line(reason: str) -> str:
    """The line that says what happened, cut to what fits one."""
    line = reason.strip().splitlines()[-1].strip() if reason.strip() else "no reason given"
    return line if len(line) <= _LOG_CHARACTERS else line[:_LOG_CHARACTERS] + " ..."
