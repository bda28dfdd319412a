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

Pass = Literal["forward", "backward", "slopes"]
Pace = tuple[str, int | None, Pass]
"""What rows have in common that take the same time: circuit key, shots, and pass."""
State = Literal["starting", "ready", "quarantined"]

ACCOUNT_TOKEN = "QISKIT_IBM_TOKEN"
"""A variable that workers inherit from whoever started their Ray; simulators must not have it."""
KNOWN_CIRCUITS = 128
"""Circuits that an actor is taken to know; it keeps twice as many."""
_NEWEST_SHARE = 0.5  # of the newest chunk in the speed estimate: adapts within a few chunks


@dataclass
class Health:
    """The life of an actor, whose processes die and are replaced."""

    state: State = "starting"
    generation: int = 0  # how many processes it had before this one
    pid: int = 0  # the process's number on its machine; 0 if there is none
    node: str = ""  # the machine's address
    losses: int = 0  # processes lost since the last answer
    faults: int = 0  # transient faults since the last answer
    until: float = 0.0  # when it has cooled down, or its quarantine ends
    starts_at: float | None = None  # when to start the next process, if that waits
    starting_since: float = 0.0
    missing: bool = False  # looked for and not found, where another program starts it
    build_failed: bool = False  # its backend could not be built at the last try
    last_error: str = ""


@dataclass
class _Speed:
    first_seconds: float  # of the latest process's first chunk, for which it compiled
    rows_per_second: float | None = None  # beside the overhead of calls; of later chunks
    compiled: bool = True  # by the process that is there now


class Throughput:
    """How fast an actor answers, for each pace; ``overhead``: seconds of a call without rows."""

    def __init__(self, overhead: float) -> None:
        self.overhead = overhead
        self._speeds: OrderedDict[Pace, _Speed] = OrderedDict()

    def speed(self, pace: Pace) -> float | None:
        """Return rows a second beside the overhead of calls; None if not known."""
        known = self._speeds.get(pace)
        return None if known is None else known.rows_per_second

    def has_compiled(self, pace: Pace) -> bool:
        return pace in self._speeds and self._speeds[pace].compiled

    def first_seconds(self, pace: Pace) -> float:
        """Return what a process's first chunk took; 0 if not known."""
        return self._speeds[pace].first_seconds if pace in self._speeds else 0.0

    def learn(self, pace: Pace, calls: int, rows: int, seconds: float) -> None:
        """Take into account that rows were answered in some calls and seconds."""
        known = self._speeds.pop(pace, None)
        if known is None:  # compiling takes most of a first chunk's time
            known = _Speed(seconds)
        elif not known.compiled:
            known.first_seconds, known.compiled = seconds, True
        else:
            # At least a tenth of the time is the rows', as the overhead is only roughly known.
            newest = rows / max(seconds - calls * self.overhead, seconds / 10, 1e-6)
            old = known.rows_per_second or newest
            known.rows_per_second = (1 - _NEWEST_SHARE) * old + _NEWEST_SHARE * newest
        self._speeds[pace] = known
        if len(self._speeds) > KNOWN_CIRCUITS:
            self._speeds.popitem(last=False)

    def start_anew(self) -> None:
        """Forget what the process had compiled, as it is gone."""
        for known in self._speeds.values():
            known.compiled = False


@dataclass(eq=False)
class Crashes:
    """How many actors were lost in a row over rows that once were one chunk; all parts share it."""

    count: int = 0


@dataclass(eq=False)
class Chunk:
    """Consecutive rows of one evaluation that travel together."""

    evaluation: int
    start: int
    stop: int
    crashes: Crashes = field(default_factory=Crashes)
    faults: int = 0  # how often it failed for transient reasons, lost actors included
    sent: int = 0
    copies: int = 0  # how many actors have it now
    speculative: int = 0  # how often an idle actor was sent it although another one had it
    done: bool = False  # its answers have come

    def __str__(self) -> str:
        return f"rows {self.start} to {self.stop - 1}"

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    def halves(self, group: int) -> list[Chunk]:
        """Return two chunks with its rows, or itself if it has only ``group`` rows."""
        middle = self.start + self.num_rows // group // 2 * group
        if not self.start < middle < self.stop:
            return [self]
        return [replace(self, stop=middle), replace(self, start=middle)]


@dataclass(frozen=True, eq=False)
class Sent:
    """A chunk that was sent to an actor, where ``ticket`` is its name."""

    ticket: int
    chunk: Chunk
    pace: Pace
    calls: int  # to the backend


class InFlight:
    """What an actor was sent: chunks by ticket, in the order they run, and circuits."""

    def __init__(self) -> None:
        self.running_since = 0.0  # when the first chunk began to run, as far as is known
        self._sent: dict[int, Sent] = {}
        self._circuits: OrderedDict[str, None] = OrderedDict()  # the last used last

    def __len__(self) -> int:
        return len(self._sent)

    def __iter__(self) -> Iterator[Sent]:
        return iter(self._sent.values())

    def add(self, sent: Sent, now: float) -> None:
        if not self._sent:
            self.running_since = now
        self._sent[sent.ticket] = sent

    def remove(self, ticket: int, now: float) -> Sent:
        self.running_since = now
        return self._sent.pop(ticket)

    def take_all(self) -> list[Sent]:
        """Forget everything, as the process is gone; return the chunks."""
        lost, self._sent = list(self), {}
        self._circuits.clear()
        return lost

    def knows(self, key: str) -> bool:
        """Return whether the actor has a circuit; this counts as a use of it."""
        if key in self._circuits:
            self._circuits.move_to_end(key)
        return key in self._circuits

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

    def is_ready(self) -> bool:
        return self.health.state == "ready"


def average_speed(pace: Pace, actors: Sequence[Actor]) -> float | None:
    """Return rows a second of the actors that have answered such rows; None if none has."""
    speeds = [speed for a in actors if (speed := a.throughput.speed(pace)) is not None]
    return sum(speeds) / len(speeds) if speeds else None


def expected_seconds(
    actor: Actor, actors: Sequence[Actor], pace: Pace, calls: int, rows: int
) -> float | None:
    """Return how long an actor should take for calls of so many rows together.

    By its own speed, or that of the other ``actors``; None if nobody knows.
    """
    speed = actor.throughput.speed(pace) or average_speed(pace, actors)
    return None if speed is None else calls * actor.throughput.overhead + rows / speed
