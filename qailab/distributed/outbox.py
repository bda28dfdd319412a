"""Handing out: which slot gets which rows next, and the second copies at the tail."""

from __future__ import annotations

import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qailab.distributed.books import Books
from qailab.distributed.chunks import MAX_INLINE_BYTES, PARCEL_SECONDS
from qailab.distributed.fleet import Fleet
from qailab.distributed.jobs import Job
from qailab.distributed.options import Settings
from qailab.distributed.slots import KNOWN_CIRCUITS, Chunk, Parcel, Slot
from qailab.distributed.tail import Expected, chunks_to_race
from qailab.distributed.wire import encode_batch
from qailab.distributed.workers import Workers
from qailab.errors import EvaluationError, PoolError, QailabError, TransientBackendError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import RowBatch

logger = logging.getLogger("qailab.distributed")

_RACE_INTERVAL = 0.01  # seconds; looking at all that is in flight for every answer would cost more
_PARCELS = 2  # a slot runs one, and has the next at hand: that hides the way there and back


@dataclass(frozen=True)
class Outcome:
    """Where the outbox turns when rows cannot be sent.

    Args:
        fail: takes a job and the error that ends it.
        returned: takes the chunks that could not be sent now, and why.
    """

    fail: Callable[[Job, QailabError], None]
    returned: Callable[[Slot, Sequence[Chunk], QailabError], None]


class Outbox:
    """Gives slots their next rows.

    Args:
        jobs: the unfinished jobs by number; the one that waits longest first.
        fleet: the slots, and who is ready.
        workers: the processes behind the slots.
        settings: how to schedule.
        books: where what happens is noted.
        clock: the time in seconds.
        expected: how long rows should take.
        outcome: where to turn when rows cannot be sent.
    """

    def __init__(
        self,
        jobs: dict[int, Job],
        fleet: Fleet,
        workers: Workers,
        settings: Settings,
        books: Books,
        clock: Callable[[], float],
        expected: Expected,
        outcome: Outcome,
    ) -> None:
        self._jobs = jobs
        self._fleet = fleet
        self._workers = workers
        self._settings = settings
        self._books = books
        self._clock = clock
        self._expected = expected
        self._outcome = outcome
        self._next_ticket = 0
        self._next_race = 0.0
        self._circuits: OrderedDict[str, bytes] = OrderedDict()

    def assign(self) -> None:
        """Hand out parcels: one to each slot, then the second to each, and so on."""
        sharing, ready = self._fleet.sharing, _queues_in_turn(self._fleet.ready)
        most = {slot.index: self._most_parcels(slot) for slot in ready}
        for depth in range(max(most.values(), default=0)):
            for slot in ready:
                if not len(slot.in_flight) <= depth < most[slot.index]:
                    continue
                if not self._fleet.can_work(slot):
                    continue
                taken = self._next_chunks(slot, sharing)
                if taken is None:
                    self._race(ready)
                    return
                self._send(slot, *taken)

    def _most_parcels(self, slot: Slot) -> int:
        return self._settings.max_in_flight or max(_PARCELS, slot.backend.traits.max_concurrency)

    def _next_chunks(self, slot: Slot, sharing: list[Slot]) -> tuple[Job, list[Chunk]] | None:
        """The next chunks for a slot, from each job in turn."""
        for number in list(self._jobs):
            job = self._jobs.pop(number)
            self._jobs[number] = job  # to the end of the line
            first = job.take(slot, sharing)
            if first is not None:
                return job, [first, *self._company(job, first, slot, sharing)]
        return None

    def _company(self, job: Job, first: Chunk, slot: Slot, sharing: list[Slot]) -> list[Chunk]:
        """Chunks that travel with the first: none unless chunks are short and many."""
        if self._settings.max_in_flight is not None or first.is_suspect:
            return []  # sent alone, so that it is clear what a lost process was doing
        seconds = self._expected(slot, job.pace, 1, first.num_rows)
        if seconds is None:
            return []
        by_time = PARCEL_SECONDS / seconds
        by_share = job.waiting_rows / first.num_rows / (2 * len(sharing))
        by_size = MAX_INLINE_BYTES / (job.answer_bytes * first.num_rows)
        company: list[Chunk] = []
        for _ in range(int(min(by_time, by_share, by_size)) - 1):
            following = job.take(slot, sharing)
            if following is None:
                break
            if following.is_suspect:
                job.give_back(following)
                break
            company.append(following)
        return company

    def _race(self, ready: list[Slot]) -> None:
        """Everything is handed out: let idle slots answer what others would take longer for."""
        now = self._clock()
        idle = [slot for slot in ready if not slot.in_flight and self._fleet.can_work(slot)]
        if not idle or now < self._next_race:
            return
        self._next_race = now + _RACE_INTERVAL
        for slot, chunk in list(chunks_to_race(idle, ready, now, self._expected)):
            job = self._jobs.get(chunk.job)
            if job is not None:
                chunk.races += 1
                self._send(slot, job, [chunk])

    def _send(self, slot: Slot, job: Job, chunks: list[Chunk]) -> None:
        key = job.circuit.key
        parcel = Parcel(self._next_ticket, key, job.pace, chunks)
        self._next_ticket += len(chunks)
        try:
            messages = [encode_batch(_part(job, chunk)) for chunk in chunks]
            circuits = {} if slot.knows(key) else {key: self._pickled(job.circuit)}
            self._workers.send(slot, parcel, circuits, messages)
        except PoolError as error:
            self._outcome.fail(job, error)
        except TransientBackendError as error:
            self._outcome.returned(slot, chunks, error)
        except Exception as error:  # rows without a form on the wire, say
            logger.exception("rows %d to %d could not be sent", chunks[0].start, chunks[-1].stop)
            text = f"rows could not be sent to an actor: {error!r}"
            self._outcome.fail(job, EvaluationError(text))
        else:
            slot.note_circuit(key)
            slot.put_in_flight(parcel, self._clock())
            self._books.sent(slot, chunks, sum(map(len, messages)))
            for chunk in chunks:
                chunk.copies += 1
                chunk.sent += 1

    def _pickled(self, circuit: CanonicalCircuit) -> bytes:
        key = circuit.key
        if key not in self._circuits:
            self._circuits[key] = pickle.dumps(circuit)
            if len(self._circuits) > KNOWN_CIRCUITS:
                self._circuits.popitem(last=False)
        return self._circuits[key]


def _queues_in_turn(slots: list[Slot]) -> list[Slot]:
    """The slots, so that each device comes once before one comes a second time."""
    if not any(slot.backend.traits.queue_name for slot in slots):
        return slots
    seen: dict[object, int] = {}
    turns = []
    for slot in slots:
        queue = slot.backend.traits.queue_name or slot.index
        turns.append(seen.get(queue, 0))
        seen[queue] = turns[-1] + 1
    return [slot for _, slot in sorted(zip(turns, slots, strict=True), key=lambda one: one[0])]


def _part(job: Job, chunk: Chunk) -> RowBatch:
    """A chunk's rows, and what tells them from others that are alike."""
    part = job.batch.part(chunk.start, chunk.stop)
    return replace(part, resent=chunk.sent > 0, evaluation=job.name)
