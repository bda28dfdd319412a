"""The scheduler: which rows go where, and what becomes of them.

It reacts to `Events` of the workers and to the time, and waits for nothing, so that it runs in any
thread, or in simulated time. Work is pulled: a slot gets its next rows when it has room for them.

::

    add(job) --> assign: job -> chunks -> parcels --> workers.send
                    ^                                     |
                    +--- answered, lost, refused, tick ---+
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from qailab.backends.base import RowFuture
from qailab.distributed.books import Books
from qailab.distributed.fleet import Fleet
from qailab.distributed.jobs import Job
from qailab.distributed.options import Settings
from qailab.distributed.outbox import Outbox, Outcome
from qailab.distributed.retries import Retries
from qailab.distributed.slots import Chunk, Pace, Parcel, Slot, average_speed
from qailab.distributed.tail import HangWatch
from qailab.distributed.wire import decode_answers
from qailab.distributed.workers import NoRoom, Place, Reply, Workers
from qailab.errors import (
    EvaluationError,
    PoolClosedError,
    PoolError,
    QailabError,
)

backend_logger = logging.getLogger("qailab.backends")

_TICK_SECONDS = 1.0  # how often waiting work is looked at when nothing happens
_TAIL_TICK_SECONDS = 0.05  # the same where idle slots may help out


class Scheduler:
    """Runs jobs on slots. Not thread-safe: one thread calls it.

    Args:
        slots: where rows run.
        workers: the processes behind the slots.
        settings: how to schedule.
        books: where everything that happens is noted.
        clock: the time in seconds.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        workers: Workers,
        settings: Settings,
        books: Books,
        clock: Callable[[], float],
    ) -> None:
        self.slots = tuple(slots)
        self.jobs: dict[int, Job] = {}
        self.first_ready: Future[None] = Future()
        self._workers = workers
        self._settings = settings
        self._books = books
        self._clock = clock
        self._fleet = Fleet(
            slots,
            workers,
            clock=clock,
            start_timeout=settings.start_timeout,
            give_back=lambda slot, lost, guilty: self._retries.give_back(slot, lost, guilty),
            give_up=self._give_up,
        )
        self._retries = Retries(self.jobs, books, self._fail)
        self._hangs = HangWatch(
            slots, workers, clock, settings.chunk_timeout, self._expected, self._give_up_hanging
        )
        self._outbox = Outbox(
            self.jobs,
            self._fleet,
            workers,
            settings,
            books,
            clock,
            self._expected,
            Outcome(self._fail, self._returned),
        )
        self._next_job = 0

    # What others want.

    def start(self) -> None:
        """Start all processes."""
        for slot in self.slots:
            self._fleet.start(slot)

    def add(self, job_of: Callable[[int, float], Job]) -> None:
        """Take on a job, made from its number and the time."""
        job = job_of(self._next_job, self._clock())
        self._next_job += 1
        if job.complete:
            job.finish()
            return
        self._fleet.tick(waiting=bool(self.jobs))
        self.jobs[job.number] = job
        self._fleet.work_came()

    def cancel(self, future: RowFuture) -> None:
        """Stop the job with this future, also what is in flight."""
        for job in [job for job in self.jobs.values() if job.future is future]:
            self._drop(job)

    def fail_all(self, error: QailabError) -> None:
        """Deliver an error to everybody who waits."""
        for job in self.jobs.values():
            job.fail(error)
        if not self.first_ready.done():
            self.first_ready.set_exception(error)
        for job in list(self.jobs.values()):
            self._drop(job)

    def end(self) -> None:
        """Fail what is unfinished and let go of all processes."""
        self.fail_all(PoolClosedError("the pool was closed while rows were being evaluated"))
        self._fleet.end()

    def starting_error(self, count: int, timeout: float) -> PoolError:
        """Why there are not ``count`` processes ready after so many seconds, in words."""
        return self._fleet.starting_error(count, timeout)

    # Time.

    def tick(self) -> None:
        """Do what is due now, and hand out work."""
        self._fleet.tick(waiting=bool(self.jobs))
        self._hangs.look()
        if self.jobs:
            self._outbox.assign()

    def seconds_to_next_tick(self) -> float | None:
        """When `tick` has something to do although nothing happens; None if never."""
        due = self._fleet.next_start()
        wait = None if due is None else max(0.0, due - self._clock())
        if self.jobs:
            idle = any(slot.state == "ready" and not slot.in_flight for slot in self.slots)
            tick = _TAIL_TICK_SECONDS if idle else _TICK_SECONDS
            wait = tick if wait is None else min(wait, tick)
        return wait

    # What the workers tell.

    def opened(self, slot: Slot, generation: int, place: Place) -> None:
        if slot.generation == generation:
            self._fleet.opened(slot, place)
            if not self.first_ready.done():
                self.first_ready.set_result(None)

    def unbuildable(self, slot: Slot, generation: int, reason: str) -> None:
        if slot.generation == generation:
            self._fleet.unbuildable(slot, reason)

    def missing(self, slot: Slot) -> None:
        self._fleet.missing(slot)

    def lost(self, slot: Slot, generation: int, reason: str) -> None:
        if slot.generation == generation:
            self._books.lost(slot, reason)
            self._fleet.lose(slot, reason)

    def answered(
        self, slot: Slot, generation: int, parcel: Parcel, replies: Sequence[Reply]
    ) -> None:
        if not self._take_down(slot, generation, parcel):
            return
        self._books.back(slot, parcel, replies)
        faults: list[QailabError] = []
        for chunk, reply in zip(parcel.chunks, replies, strict=True):
            for text in reply.warnings:
                backend_logger.warning("%s [actor %d]", text, slot.index)
            if reply.answer is not None:
                slot.learn(parcel.pace, chunk.num_rows, reply.seconds)
                faults = []
            job = self.jobs.get(chunk.job)
            if job is None or chunk.done:
                continue
            if reply.error is None:
                self._accept(slot, job, chunk, reply)
            elif self._retries.settle(slot, chunk, reply.error, reply.traceback):
                faults.append(reply.error)
            self._fail_if_doomed(job)
        self._note_fault(slot, faults)

    def refused(self, slot: Slot, generation: int, parcel: Parcel, error: QailabError) -> None:
        if self._take_down(slot, generation, parcel):
            self._returned(slot, parcel.chunks, error)

    def busy(self, slot: Slot, generation: int, seconds: float, others: float) -> None:
        if slot.generation == generation:
            self._hangs.busy(slot, seconds, others)

    # Taking in.

    def _take_down(self, slot: Slot, generation: int, parcel: Parcel) -> bool:
        """Note that a parcel is back; False if its process was given up meanwhile."""
        if slot.generation != generation:
            return False
        slot.take_down(parcel, self._clock())
        for chunk in parcel.chunks:
            chunk.copies -= 1
        return True

    def _returned(self, slot: Slot, chunks: Sequence[Chunk], error: QailabError) -> None:
        """Chunks could not be dealt with as a whole, for one reason."""
        transient = [self._retries.settle(slot, chunk, error) for chunk in chunks]
        self._note_fault(slot, [error] if any(transient) else [])

    def _note_fault(self, slot: Slot, faults: Sequence[QailabError]) -> None:
        """However many chunks of a parcel failed at its end, that is one fault of the slot."""
        if faults:
            self._fleet.fault(slot, str(faults[-1]), full=isinstance(faults[-1], NoRoom))

    def _accept(self, slot: Slot, job: Job, chunk: Chunk, reply: Reply) -> None:
        assert reply.answer is not None
        try:
            job.accept(chunk, decode_answers(reply.answer, chunk.num_rows))
        except ValueError as error:
            self._fail(job, EvaluationError(f"{slot.backend!r} answered in another form: {error}"))
            return
        self._books.accepted(slot, chunk, reply.seconds)
        if chunk.copies:
            self._cancel_copies([chunk])
        if job.complete:
            self.jobs.pop(job.number, None)
            job.finish()

    def _give_up_hanging(self, slot: Slot, seconds: float) -> None:
        reason = f"it hangs: no answer for {seconds:.1f} s"
        self._books.lost(slot, reason)
        self._fleet.lose(slot, reason, hangs=True)

    def _expected(self, slot: Slot, pace: Pace, chunks: int, rows: int) -> float | None:
        speed = slot.speeds.get(pace) or average_speed(pace, self.slots)
        return (
            None
            if speed is None
            else chunks * slot.backend.traits.call_overhead_seconds + rows / speed
        )

    # Ending.

    def _drop(self, job: Job) -> None:
        """Forget a job, and stop what is in flight of it."""
        self.jobs.pop(job.number, None)
        self._cancel_copies(
            [
                chunk
                for slot in self.slots
                for parcel in slot.in_flight.values()
                for chunk in parcel.chunks
                if chunk.job == job.number
            ]
        )

    def _cancel_copies(self, chunks: list[Chunk]) -> None:
        unwanted = set(map(id, chunks))
        for slot in self.slots:
            tickets = [
                parcel.number + place
                for parcel in slot.in_flight.values()
                for place, chunk in enumerate(parcel.chunks)
                if id(chunk) in unwanted
            ]
            if tickets:
                self._workers.cancel(slot, tickets)

    def _fail(self, job: Job, error: BaseException) -> None:
        job.fail(error)
        self._drop(job)

    def _fail_if_doomed(self, job: Job) -> None:
        """End a job that cannot go on, once nothing of it is in flight that is paid for."""
        if job.doomed_by is not None and job.number in self.jobs and not self._in_flight(job):
            self._fail(job, job.doomed_by)

    def _in_flight(self, job: Job) -> bool:
        return any(
            chunk.job == job.number and not chunk.done
            for slot in self.slots
            for parcel in slot.in_flight.values()
            for chunk in parcel.chunks
        )

    def _give_up(self, error: QailabError) -> None:
        """Nobody is left to run on."""
        rows = sum(job.batch.num_rows for job in self.jobs.values())
        if rows:
            done = sum(job.answered for job in self.jobs.values())
            error = type(error)(
                f"{error}\n{done} of {rows} rows were done. Mend the cause and submit again: the "
                "pool starts its actors anew"
            )
        self.fail_all(error)
