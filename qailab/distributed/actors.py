"""What the driver knows of each actor: its health, its speed, and what it was sent.

Each part is written from one place: `Health` by the supervisor, `Throughput` and `InFlight` by the
scheduler.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from qailab.backends.base import Backend

Pace = tuple[str, int | None, bool]
"""What rows have in common that take the same time: circuit key, shots, and whether probabilities
are wanted."""
State = Literal["starting", "ready", "quarantined"]

KNOWN_CIRCUITS = 128
"""Circuits that an actor is taken to know; it keeps twice as many."""
_NEWEST_SHARE = 0.5  # of the newest chunk in the speed estimate: adapts within a few chunks


@dataclass
class Health:
    """The life of an actor, which dies and is replaced.

    Args:
        state: *starting*, *ready*, or *quarantined*: it failed too often.
        generation: how many processes the actor had before this one.
        pid: the process's number on its machine; 0 if there is none.
        node: the machine's address.
        losses: processes lost since the last answer.
        faults: transient faults since the last answer.
        until: when it has cooled down, or its quarantine ends.
        starts_at: when to start the next process, if that waits.
        starting_since: when the process was started.
        missing: it was looked for and not found, where another program starts it.
        build_failed: its backend could not be built at the last try.
        warned: it was logged that this takes long.
        last_error: the latest trouble.
    """

    state: State = "starting"
    generation: int = 0
    pid: int = 0
    node: str = ""
    losses: int = 0
    faults: int = 0
    until: float = 0.0
    starts_at: float | None = None
    starting_since: float = 0.0
    missing: bool = False
    build_failed: bool = False
    warned: bool = False
    last_error: str = ""


@dataclass
class _Speed:
    rows_per_second: float  # beside the overhead of calls
    first_seconds: float  # of the latest process's first chunk, for which it compiled
    guessed: bool = True  # from a first chunk
    compiled: bool = True  # by the process that is there now


class Throughput:
    """How fast an actor answers, for each pace.

    Args:
        overhead: seconds of a call whatever its rows.
    """

    def __init__(self, overhead: float) -> None:
        self._overhead = overhead
        self._speeds: OrderedDict[Pace, _Speed] = OrderedDict()

    def speed(self, pace: Pace) -> float | None:
        """Return rows a second beside the overhead of calls; None if not known."""
        known = self._speeds.get(pace)
        return None if known is None else known.rows_per_second

    def has_compiled(self, pace: Pace) -> bool:
        """Return whether the process that is there now has answered such rows."""
        return pace in self._speeds and self._speeds[pace].compiled

    def first_seconds(self, pace: Pace) -> float:
        """Return what a process's first chunk took; 0 if not known."""
        return self._speeds[pace].first_seconds if pace in self._speeds else 0.0

    def learn(self, pace: Pace, calls: int, rows: int, seconds: float) -> None:
        """Take into account that rows were answered in some calls and seconds."""
        known = self._speeds.pop(pace, None)
        if known is None:  # a first chunk is compiled for as well, and says little
            known = _Speed(rows / max(seconds, 1e-6), seconds)
        elif not known.compiled:
            known.first_seconds, known.compiled = seconds, True
        else:
            # At least a tenth of the time is the rows', as the overhead is only roughly known.
            newest = rows / max(seconds - calls * self._overhead, seconds / 10, 1e-6)
            old = newest if known.guessed else known.rows_per_second
            known.rows_per_second = (1 - _NEWEST_SHARE) * old + _NEWEST_SHARE * newest
            known.guessed = False
        self._speeds[pace] = known
        if len(self._speeds) > KNOWN_CIRCUITS:
            self._speeds.popitem(last=False)

    def start_anew(self) -> None:
        """The process is gone: the next one has compiled nothing."""
        for known in self._speeds.values():
            known.compiled = False


@dataclass(eq=False)
class Chunk:
    """Consecutive rows of one evaluation that travel together.

    Args:
        evaluation: the evaluation's number.
        start: the number of the first row.
        stop: one past the number of the last row.
        crashes: actors that were lost while they ran these rows.
        faults: how often it failed for transient reasons.
        sent: how often it was sent.
        copies: how many actors have it now.
        speculative: how often it was sent to an idle actor although another one had it.
        done: its answers have come.
    """

    evaluation: int
    start: int
    stop: int
    crashes: int = 0
    faults: int = 0
    sent: int = 0
    copies: int = 0
    speculative: int = 0
    done: bool = False

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    def contains(self, other: Chunk) -> bool:
        """Return whether all rows of another chunk are in this one."""
        return (
            self.evaluation == other.evaluation
            and self.start <= other.start
            and other.stop <= self.stop
        )

    def halves(self, group: int) -> list[Chunk]:
        """Return two chunks with its rows, or itself if it has only ``group`` rows."""
        middle = self.start + self.num_rows // group // 2 * group
        if not self.start < middle < self.stop:
            return [self]
        return [replace(self, stop=middle), replace(self, start=middle)]


@dataclass(frozen=True, eq=False)
class Sent:
    """A chunk that was sent to an actor.

    Args:
        ticket: its name there.
        chunk: the chunk.
        pace: what its speed is known by.
        calls: calls to the backend that it takes.
    """

    ticket: int
    chunk: Chunk
    pace: Pace
    calls: int


class InFlight:
    """What an actor was sent: chunks, in the order they run, and circuits."""

    def __init__(self) -> None:
        self.running_since = 0.0  # when the first chunk began to run, as far as is known
        self._sent: dict[int, Sent] = {}
        self._circuits: OrderedDict[str, None] = OrderedDict()  # the last used last

    def __len__(self) -> int:
        return len(self._sent)

    def __iter__(self) -> Iterator[Sent]:
        return iter(self._sent.values())

    @property
    def running(self) -> Sent | None:
        """The chunk that runs, the first that was sent."""
        return next(iter(self._sent.values()), None)

    def add(self, sent: Sent, now: float) -> None:
        if not self._sent:
            self.running_since = now
        self._sent[sent.ticket] = sent

    def remove(self, ticket: int, now: float) -> Sent:
        self.running_since = now
        return self._sent.pop(ticket)

    def clear(self) -> list[Sent]:
        """Forget everything, as the process is gone; return the chunks, in the order they ran."""
        lost = list(self._sent.values())
        self._sent = {}
        self._circuits.clear()
        return lost

    def knows(self, key: str) -> bool:
        """Return whether the actor has a circuit; this counts as a use of it."""
        if key not in self._circuits:
            return False
        self._circuits.move_to_end(key)
        return True

    def note_circuit(self, key: str) -> None:
        self._circuits[key] = None
        if len(self._circuits) > KNOWN_CIRCUITS:
            self._circuits.popitem(last=False)

    def forget_circuit(self, key: str) -> None:
        self._circuits.pop(key, None)


@dataclass(eq=False)
class Actor:
    """One actor of a pool: one process after the other that hold the same backend.

    Args:
        index: its number in the pool.
        backend: the backend's config.
        needs: what it takes from its machine, in words.
    """

    index: int
    backend: Backend
    needs: str = ""
    health: Health = field(default_factory=Health)
    in_flight: InFlight = field(default_factory=InFlight)
    throughput: Throughput = field(init=False)

    def __post_init__(self) -> None:
        self.throughput = Throughput(self.backend.traits.call_overhead_seconds)

    def __str__(self) -> str:
        return f"actor {self.index} ({self.backend!r})"


def average_speed(pace: Pace, actors: Sequence[Actor]) -> float | None:
    """Return rows a second of the actors that have answered such rows; None if none has."""
    speeds = [speed for a in actors if (speed := a.throughput.speed(pace)) is not None]
    return sum(speeds) / len(speeds) if speeds else None


def expected_seconds(
    actor: Actor, actors: Sequence[Actor], pace: Pace, calls: int, rows: int
) -> float | None:
    """Return how long an actor should take, by its own speed or that of others.

    Args:
        actor: who evaluates.
        actors: the others.
        pace: of the rows.
        calls: calls to the backend.
        rows: rows of all calls together.
    """
    speed = actor.throughput.speed(pace) or average_speed(pace, actors)
    if speed is None:
        return None
    return calls * actor.backend.traits.call_overhead_seconds + rows / speed
