"""Slots: the places of a pool, each held by one process after another; and what they are given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from qailab.backends.base import Backend

Pace = tuple[str, int | None, bool]
"""What rows have in common that take the same time: circuit key, shots, and whether probabilities
are wanted."""
State = Literal["starting", "ready", "aside"]

KNOWN_CIRCUITS = 128
"""Circuits that a slot is held to know; its process keeps twice as many."""
_SPEED_MEMORY = 0.5  # weight of the newest chunk in the speed estimate: adapts within a few chunks


@dataclass
class Suspicion:
    """Whether some rows are what kills processes; shared by the parts of what was one chunk.

    Args:
        kills: processes that were lost over them since any of them was answered.
        losses_before: processes that the pool had lost before the first of these.
        answered_before: rows of their job that had been answered before it.
    """

    kills: int = 0
    losses_before: int = 0
    answered_before: int = 0


@dataclass(eq=False)
class Chunk:
    """Rows of one job that are answered together.

    Args:
        job: the job's number.
        start: the number of the first row.
        stop: one past the number of the last row.
        suspicion: whether its rows may be what kills processes.
        faults: how often it failed for transient reasons.
        copies: how many processes have it now.
        races: how often a second copy was sent.
        sent: how often it was sent.
        done: whether its answers have come.
    """

    job: int
    start: int
    stop: int
    suspicion: Suspicion = field(default_factory=Suspicion)
    faults: int = 0
    copies: int = 0
    races: int = 0
    sent: int = 0
    done: bool = False

    @property
    def num_rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start

    @property
    def is_suspect(self) -> bool:
        """Whether it is to be sent alone, to see whether it is what kills processes."""
        return self.suspicion.kills > 1

    def halves(self, group: int) -> list[Chunk]:
        """Two chunks in place of this one, if it has more than one group of rows.

        Args:
            group: rows that belong together.
        """
        middle = self.start + self.num_rows // group // 2 * group
        if not self.start < middle < self.stop:
            return [self]
        first = Chunk(self.job, self.start, middle, self.suspicion, self.faults, sent=self.sent)
        return [first, replace(first, start=middle, stop=self.stop)]


@dataclass(eq=False)
class Parcel:
    """Chunks of one job that travel together; a call for each would cost more than short chunks.

    Args:
        number: the ticket of its first chunk; the others' follow.
        key: the circuit's content key.
        pace: what its speed is known by.
        chunks: the chunks, in the order they run.
    """

    number: int
    key: str
    pace: Pace
    chunks: list[Chunk]

    @property
    def num_rows(self) -> int:
        """How many rows it has in all."""
        return sum(chunk.num_rows for chunk in self.chunks)

    def ticket(self, chunk: Chunk) -> int:
        """What the chunk is called in `Workers.cancel`."""
        return self.number + self.chunks.index(chunk)


@dataclass(eq=False)
class Slot:
    """One process at a time, its work, and what is known about it.

    Args:
        index: the number of the slot in its pool.
        backend: the backend, as a description.
        needs: what its processes take from their machines, in words.
        generation: how many processes the slot had before this one.
        state: *starting*, *ready*, or set *aside*.
        pid: the process's number on its machine.
        node: the machine's address.
        in_flight: parcels by number, in the order they run.
        head_since: when the first of them began to run, as far as is known.
        patient_until: when to ask the process what it is doing; None if that is not known yet.
        inquired: when it was asked; None if no answer is outstanding.
        circuits: keys of circuits it knows, the last used last.
        compiled: what its process has answered rows of.
        speeds: rows a second beside the fixed time of a call.
        guessed: which speeds are of a first chunk.
        firsts: seconds that the first chunk took, in any process of the slot.
        losses: processes lost since the last answer.
        faults: transient faults since the last answer.
        resting_until: no work before this time.
        starts_at: when to start the next process, if that waits.
        starting_since: when the process was started.
        missing: whether it was looked for and not found, where another process starts it.
        warned: whether it was said that this takes long.
        ready_since: when its backend was built.
        last_error: the latest trouble.
    """

    index: int
    backend: Backend
    needs: str = ""
    generation: int = 0
    state: State = "starting"
    pid: int = 0
    node: str = ""
    in_flight: dict[int, Parcel] = field(default_factory=dict)
    head_since: float = 0.0
    patient_until: float | None = None
    inquired: float | None = None
    circuits: OrderedDict[str, None] = field(default_factory=OrderedDict)
    compiled: set[Pace] = field(default_factory=set)
    speeds: dict[Pace, float] = field(default_factory=dict)
    guessed: set[Pace] = field(default_factory=set)
    firsts: dict[Pace, float] = field(default_factory=dict)
    losses: int = 0
    faults: int = 0
    resting_until: float = 0.0
    starts_at: float | None = None
    starting_since: float = 0.0
    missing: bool = False
    warned: bool = False
    ready_since: float = 0.0
    last_error: str = ""
    # Totals, for `pool.stats()`.
    rows: int = 0
    chunks: int = 0
    seconds: float = 0.0
    ready_seconds: float = 0.0
    replaced: int = 0

    def retire(self) -> list[Parcel]:
        """Forget the process; the parcels it had in flight, the one that ran first."""
        lost = list(self.in_flight.values())
        self.in_flight = {}
        self.circuits.clear()
        self.compiled.clear()
        self.patient_until = self.inquired = None
        self.starts_at = None
        self.pid, self.node = 0, ""
        self.state = "starting"
        self.generation += 1
        return lost

    @property
    def head(self) -> Parcel:
        """The parcel that runs; there must be one in flight."""
        return next(iter(self.in_flight.values()))

    @property
    def chunks_in_flight(self) -> int:
        """How many chunks its process has."""
        return sum(len(parcel.chunks) for parcel in self.in_flight.values())

    def put_in_flight(self, parcel: Parcel, now: float) -> None:
        """Note that a parcel was sent."""
        if not self.in_flight:
            self._new_head(now)
        self.in_flight[parcel.number] = parcel

    def take_down(self, parcel: Parcel, now: float) -> None:
        """Note that a parcel is back."""
        del self.in_flight[parcel.number]
        self._new_head(now)

    def _new_head(self, now: float) -> None:
        self.head_since = now
        self.patient_until = self.inquired = None

    def knows(self, key: str) -> bool:
        """Whether its process has the circuit; counts as a use of it."""
        if key not in self.circuits:
            return False
        self.circuits.move_to_end(key)
        return True

    def note_circuit(self, key: str) -> None:
        """Note that its process has the circuit."""
        self.circuits[key] = None
        if len(self.circuits) > KNOWN_CIRCUITS:
            self.circuits.popitem(last=False)

    def learn(self, pace: Pace, rows: int, seconds: float) -> None:
        """Note that rows were answered in some seconds."""
        self.losses = self.faults = 0
        if pace not in self.compiled:  # its first chunk was compiled for, and says little
            self.compiled.add(pace)
            self.firsts[pace] = seconds
            if pace not in self.speeds:
                self.speeds[pace] = rows / max(seconds, 1e-6)
                self.guessed.add(pace)
            self._forget_old_paces()
            return
        # Beside the fixed time; at least a tenth, as the fixed time is only roughly known.
        newest = rows / max(seconds - self.backend.traits.call_overhead_seconds, seconds / 10, 1e-6)
        known = self.speeds.pop(pace, newest)
        if pace in self.guessed:
            self.guessed.discard(pace)
            known = newest
        self.speeds[pace] = (1 - _SPEED_MEMORY) * known + _SPEED_MEMORY * newest

    def _forget_old_paces(self) -> None:
        while len(self.speeds) > KNOWN_CIRCUITS:
            oldest = next(iter(self.speeds))
            del self.speeds[oldest]
            self.firsts.pop(oldest, None)
            self.guessed.discard(oldest)
            self.compiled.discard(oldest)


def average_speed(pace: Pace, slots: Sequence[Slot]) -> float | None:
    """Rows a second of the slots that have answered such rows; None if none has."""
    speeds = [slot.speeds[pace] for slot in slots if pace in slot.speeds]
    return sum(speeds) / len(speeds) if speeds else None
