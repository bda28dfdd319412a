"""What holds a job up: chunks that idle slots could answer sooner, and processes that hang.

Everything here is a function of the slots and the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from qailab.distributed.slots import Chunk, Pace, Parcel, Slot
from qailab.distributed.workers import Workers

RACE_FACTOR = 2.0
"""A second copy is worth it if the first would still take this many times as long."""
RACE_SECONDS = 0.05
"""And this much on top: a call takes milliseconds, and estimates are rough."""
MAX_RACES = 3
"""Second copies of one chunk: where these fail as well, it is left to the first."""
QUEUED_SECONDS = 0.5
"""Where nobody knows how long rows take: when to answer those that only wait behind others, ..."""
RUNNING_SECONDS = 5.0
"""... and those that run."""
HANG_FACTOR = 20.0
"""A chunk that takes this many times as long as expected is held to hang, ..."""
HANG_SECONDS = 30.0
"""... but never before this: machines stall, and a false alarm costs a process."""
UNKNOWN_SECONDS = 900.0
"""The same while nobody has answered such rows yet: large circuits take minutes to compile."""
INQUIRY_SECONDS = 10.0
"""A process that does not say what it is doing for this long hangs as a whole."""


Expected = Callable[[Slot, Pace, int, int], float | None]
"""Seconds that some rows should take on a slot, from (slot, pace, chunks, rows); None if nobody
has answered such rows yet."""


def remaining_seconds(slot: Slot, now: float, expected: Expected) -> Iterator[tuple[Parcel, float]]:
    """When a slot will have answered each parcel it has, as far as one can tell.

    A parcel that is overdue, or of which nothing is known, is expected to take as long again as it
    has taken already.

    Args:
        slot: the slot.
        now: the time.
        expected: how long rows should take.

    Yields:
        Parcel and seconds from now, in the order they run.
    """
    running = max(0.0, now - slot.head_since)
    ahead = 0.0
    for place, parcel in enumerate(slot.in_flight.values()):
        seconds = expected(slot, parcel.pace, len(parcel.chunks), parcel.num_rows)
        if place > 0:
            ahead += seconds or 0.0
        elif seconds is not None and running < seconds:
            ahead = seconds - running
        else:
            ahead = running
        yield parcel, ahead


def chunks_to_race(
    idle: Sequence[Slot], ready: Sequence[Slot], now: float, expected: Expected
) -> Iterator[tuple[Slot, Chunk]]:
    """Chunks that idle slots would answer much sooner than the slots that have them.

    Args:
        idle: slots without work.
        ready: all slots.
        now: the time.
        expected: how long rows should take.

    Yields:
        A chunk for each idle slot that can help: first those that are waited for longest.
    """
    helpers = [slot for slot in idle if slot.backend.traits.idempotent]
    if not helpers:
        return
    held = [
        (left, other, parcel, chunk)
        for other in ready
        if other.in_flight and other.backend.traits.idempotent
        for parcel, left in remaining_seconds(other, now, expected)
        if (chunk := _unfinished(parcel)) is not None
    ]
    held.sort(key=lambda one: (one[0], one[2] is not one[1].head), reverse=True)
    for left, other, parcel, chunk in held:
        own = expected(helpers[-1], parcel.pace, 1, chunk.num_rows)
        if own is not None:
            least = RACE_FACTOR * own + RACE_SECONDS
        else:
            least = RUNNING_SECONDS if parcel is other.head else QUEUED_SECONDS
        if left >= least:
            yield helpers.pop(), chunk
            if not helpers:
                return


def _unfinished(parcel: Parcel) -> Chunk | None:
    """A chunk of a parcel that nobody else has; the last, which is furthest from its turn."""
    for chunk in reversed(parcel.chunks):
        if not chunk.done and chunk.copies == 1 and chunk.races < MAX_RACES:
            return chunk
    return None


class HangWatch:
    """Finds processes that hang: those that take too long are asked, and given up.

    They are asked first because chunks of other programs that share the actors may be ahead.

    Args:
        slots: the slots.
        workers: the processes behind them.
        clock: the time in seconds.
        chunk_timeout: seconds that the user allows for a chunk; None to go by what was observed.
        expected: how long rows should take.
        give_up: takes a slot whose process hangs, and for how many seconds it has.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        workers: Workers,
        clock: Callable[[], float],
        chunk_timeout: float | None,
        expected: Expected,
        give_up: Callable[[Slot, float], None],
    ) -> None:
        self._slots = tuple(slots)
        self._workers = workers
        self._clock = clock
        self._chunk_timeout = chunk_timeout
        self._expected = expected
        self._give_up = give_up

    def look(self) -> None:
        """Ask who has taken too long; give up who does not answer."""
        now = self._clock()
        for slot in self._slots:
            if slot.state != "ready" or not slot.in_flight or not slot.backend.traits.detect_hangs:
                continue
            if slot.inquired is not None:
                # As long again: Aer holds Python's lock while it runs, and answers only then.
                if now - slot.inquired > max(INQUIRY_SECONDS, self._limit(slot)):
                    self._give_up(slot, now - slot.head_since)
                continue
            if slot.patient_until is None:
                slot.patient_until = slot.head_since + self._limit(slot)
            if now > slot.patient_until:
                slot.inquired = now
                self._workers.inquire(slot)

    def busy(self, slot: Slot, seconds: float, others: float) -> None:
        """A slot says how long its chunk has been running: ours, or another program's."""
        if slot.inquired is None or not slot.in_flight:
            return  # it has answered meanwhile
        slot.inquired = None
        limit = self._limit(slot)
        if seconds > limit or others > max(UNKNOWN_SECONDS, limit):
            self._give_up(slot, max(seconds, others))
        else:
            slot.patient_until = self._clock() + limit - seconds

    def _limit(self, slot: Slot) -> float:
        """How long one chunk of a slot's first parcel may take before the slot is held to hang."""
        if self._chunk_timeout is not None:
            return self._chunk_timeout
        head = slot.head
        rows = max(chunk.num_rows for chunk in head.chunks)
        seconds = self._expected(slot, head.pace, 1, rows)
        if seconds is not None and head.pace not in slot.compiled:
            first = max((other.firsts.get(head.pace, 0.0) for other in self._slots), default=0.0)
            seconds = seconds + first if first else None
        if seconds is None:
            return max(UNKNOWN_SECONDS, HANG_FACTOR * slot.backend.traits.call_overhead_seconds)
        return max(HANG_SECONDS, HANG_FACTOR * seconds)
