"""The dispatcher: one thread that hands rows to actors and gathers their answers.

Everything that happens (a new job, an answer, a lost actor, a cancel) is an event in one queue, and
only this thread changes jobs and slots, so they need no locks. Ray's completion callbacks put
answers into the queue; new work wakes it the same way, which ``ray.wait`` cannot.

::

    submit --> [queue] --> dispatcher: job -> chunks --> actor.evaluate(key, bytes)
                  ^                                            |
                  +------------- answers, losses --------------+
"""

from __future__ import annotations

import logging
import pickle
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any

import ray

from qailab.backends.future import RowFuture
from qailab.distributed.chunks import ChunkRows
from qailab.distributed.connection import current_session
from qailab.distributed.faults import LOSSES, ray_is_gone, remote_error
from qailab.distributed.fleet import START_SECONDS, Fleet
from qailab.distributed.jobs import Job
from qailab.distributed.slots import Chunk, Slot
from qailab.distributed.traffic import Traffic
from qailab.distributed.wire import decode_answers, encode_batch
from qailab.errors import EvaluationError, PoolClosedError, PoolError, QailabError
from qailab.gradients.batch import RowBatch
from qailab.gradients.canonical import CanonicalCircuit

logger = logging.getLogger("qailab.distributed")

MAX_ATTEMPTS = 3
"""Actors that may be lost over the same rows before the rows are held to be the cause; fewer than
a slot may lose, so that they do not take the pool down."""
_TICK_SECONDS = 1.0  # how often waiting work is looked at when nothing happens


class Dispatcher:
    """Runs jobs on slots until it is stopped.

    Args:
        slots: where rows run; their actors are started here.
        max_in_flight: chunks that a slot may have at once.
        chunk_rows: a fixed chunk size, or ``"auto"``.
    """

    def __init__(self, slots: Sequence[Slot], *, max_in_flight: int, chunk_rows: ChunkRows) -> None:
        self.slots = tuple(slots)
        self.traffic = Traffic()
        self._max_in_flight = max_in_flight
        self._chunk_rows = chunk_rows
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._fleet = Fleet(
            slots,
            connected=self._connected,
            post=self._events.put,
            give_back=self._give_back,
            give_up=self._give_up,
        )
        self._jobs: dict[int, Job] = {}
        self._next_job = 0
        self._circuits: dict[str, Any] = {}  # object refs by content key
        self._session = current_session()
        self._first_ready: Future[None] = Future()
        self._accepting = threading.Lock()
        self._closing = False
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="qailab-dispatcher", daemon=True)
        for slot in self.slots:
            self._events.put(partial(self._fleet.start, slot))
        self._thread.start()

    # Called from any thread.

    def submit(self, circuit: CanonicalCircuit, batch: RowBatch) -> RowFuture:
        """Start a job; its answers arrive in the future.

        Raises:
            PoolClosedError: if the dispatcher is being stopped.
        """
        future = RowFuture(on_cancel=lambda: self._events.put(partial(self._cancel, future)))
        with self._accepting:  # a job that came after the stop would wait for ever
            if self._closing:
                raise PoolClosedError("the pool is closed")
            self._events.put(partial(self._add, circuit, batch, future))
        return future

    def stop(self, timeout: float, *, kill: bool) -> None:
        """Fail what is unfinished, let go of all actors (or kill them), end the thread."""
        with self._accepting:
            self._closing = True
            self._events.put(partial(self._stop, kill))
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def wait_for_first_actor(self) -> None:
        """Wait until one actor is ready.

        Raises:
            PoolError: if none is in time.
            BackendBuildError: if no backend can be built in its actor.
        """
        try:
            self._first_ready.result(START_SECONDS)
        except TimeoutError:
            raise self._fleet.starting_error() from None

    # Called in the dispatcher's thread only.

    def _loop(self) -> None:
        while not self._stopped:
            try:
                if self._handle_events() and not self._connected():
                    self._abandon()
                if not self._stopped:
                    self._fleet.check_patience(waiting=bool(self._jobs))
                    self._assign()
            except Exception as error:  # whatever it is, nobody must wait for ever
                logger.exception("the dispatcher failed")
                self._fail_all(PoolError(f"the dispatcher failed: {error!r}"))

    def _handle_events(self) -> bool:
        """Wait for something to happen, and handle all that has; whether nothing did in time."""
        try:
            self._events.get(timeout=_TICK_SECONDS if self._jobs else None)()
        except queue.Empty:
            return True
        with suppress(queue.Empty):
            while not self._stopped:
                self._events.get_nowait()()
        return False

    def _connected(self) -> bool:
        """Whether Ray is still the one of this pool; a call would start another one unasked."""
        return current_session() == self._session

    def _abandon(self) -> None:
        """Ray is gone, and no callback will come any more."""
        for slot in self.slots:
            slot.retire(kill=False)
        self._fail_all(ray_is_gone())

    def _add(self, circuit: CanonicalCircuit, batch: RowBatch, future: RowFuture) -> None:
        if future.cancelled():
            return
        try:
            if not self._connected():
                raise ray_is_gone()
            job = Job(self._next_job, circuit, batch, future, self._chunk_rows)
        except Exception as error:  # no memory for the answers, say: the job's own affair
            with suppress(InvalidStateError):
                future.set_exception(error)
            return
        if job.complete:
            job.finish()
            return
        self._next_job += 1
        self._fleet.check_patience(waiting=bool(self._jobs))
        self._jobs[job.number] = job
        self._fleet.revive()

    def _cancel(self, future: RowFuture) -> None:
        for job in list(self._jobs.values()):
            if job.future is future:
                self._drop(job)

    def _stop(self, kill: bool) -> None:
        self._stopped = True
        self._fail_all(PoolClosedError("the pool was closed while rows were being evaluated"))
        self._fleet.end(kill=kill and self._connected())

    def _assign(self) -> None:
        """Hand out chunks: one to each slot, then the second to each, and so on."""
        sharing = self._fleet.sharing
        ready = [slot for slot in sharing if slot.state == "ready"]
        if ready and not self._first_ready.done():
            self._first_ready.set_result(None)
        for depth in range(self._max_in_flight):
            for slot in ready:
                if len(slot.in_flight) <= depth:
                    taken = self._take(slot, sharing)
                    if taken is None:
                        return
                    self._send(slot, *taken)

    def _take(self, slot: Slot, sharing: list[Slot]) -> tuple[Job, Chunk] | None:
        """The next chunk, from each job in turn."""
        for number in list(self._jobs):
            job = self._jobs.pop(number)
            self._jobs[number] = job  # to the end of the line
            chunk = job.take(slot, sharing)
            if chunk is not None:
                return job, chunk
        return None

    def _send(self, slot: Slot, job: Job, chunk: Chunk) -> None:
        try:
            if not self._connected():
                raise ray_is_gone()
            message = encode_batch(job.batch.part(chunk.start, chunk.stop))
            ref = self._call(slot, job.circuit, message)
        except PoolError as error:
            self._fail(job, error)
            return
        except Exception as error:  # rows without a form on the wire, a full object store
            logger.exception("rows %d to %d could not be sent", chunk.start, chunk.stop - 1)
            self._fail(job, EvaluationError(f"rows could not be sent to an actor: {error!r}"))
            return
        self.traffic.bytes_sent += len(message)
        slot.in_flight[ref] = chunk
        generation = slot.generation
        ref.future().add_done_callback(
            lambda done: self._events.put(partial(self._answered, slot, generation, ref, done))
        )

    def _call(self, slot: Slot, circuit: CanonicalCircuit, message: bytes) -> Any:
        key = circuit.key
        if key not in self._circuits:
            self._circuits[key] = ray.put(pickle.dumps(circuit))
        if key not in slot.circuits:
            slot.actor.load.remote(key, self._circuits[key])  # calls of an actor keep their order
            slot.circuits.add(key)
        return slot.actor.evaluate.remote(key, message)

    def _answered(self, slot: Slot, generation: int, ref: Any, done: Future[Any]) -> None:
        if slot.generation != generation:
            return  # the actor was retired, and its rows were given to others
        error = done.exception()
        if isinstance(error, LOSSES):
            self._fleet.lose(slot, error)
            return
        chunk = slot.in_flight.pop(ref)
        job = self._jobs.get(chunk.job)
        if error is None:
            message, seconds = done.result()
            self.traffic.bytes_received += len(message)
            if job is not None:
                self._accept(slot, job, chunk, message, seconds)
        elif job is not None:
            self._fail(job, remote_error(error, slot, chunk, job.batch.num_rows))

    def _accept(self, slot: Slot, job: Job, chunk: Chunk, message: bytes, seconds: float) -> None:
        rows = chunk.stop - chunk.start
        slot.learn(job.circuit.key, rows, seconds)
        try:
            job.accept(chunk, decode_answers(message, rows))
        except ValueError as error:
            self._fail(job, EvaluationError(f"{slot.backend!r} answered in another form: {error}"))
        if job.complete:
            self._jobs.pop(job.number, None)
            job.finish()

    def _give_back(self, slot: Slot, lost: list[Chunk]) -> None:
        """Chunks of a lost actor go to others, unless they seem to be what kills actors."""
        for place, chunk in enumerate(lost):
            job = self._jobs.get(chunk.job)
            if job is None:
                continue
            chunk.attempts += place == 0  # it ran; the others only waited behind it
            self.traffic.retries += 1
            if chunk.attempts < MAX_ATTEMPTS:
                job.give_back(chunk)
                continue
            self._fail(
                job,
                EvaluationError(
                    f"rows {chunk.start} to {chunk.stop - 1} lost their actor {chunk.attempts} "
                    f"times, last on {slot.backend!r}: {slot.last_error}; if actors run out of "
                    "memory, use a smaller circuit or chunk_rows"
                ),
            )

    def _drop(self, job: Job) -> None:
        """Forget a job; its calls that still wait in an actor's queue are cancelled."""
        self._jobs.pop(job.number, None)
        calls = [
            ref
            for slot in self.slots
            for ref, chunk in slot.in_flight.items()
            if chunk.job == job.number
        ]
        if calls and self._connected():
            for ref in calls:
                ray.cancel(ref)

    def _fail(self, job: Job, error: BaseException) -> None:
        job.fail(error)
        self._drop(job)

    def _give_up(self, error: QailabError) -> None:
        """Nobody is left to run on."""
        rows = sum(job.batch.num_rows for job in self._jobs.values())
        if rows:
            done = sum(job.answered for job in self._jobs.values())
            error = type(error)(
                f"{error}\n{done} of {rows} rows were done. Mend the cause and submit again: the "
                "pool starts its actors anew"
            )
        self._fail_all(error)

    def _fail_all(self, error: QailabError) -> None:
        for job in list(self._jobs.values()):
            self._fail(job, error)
        if not self._first_ready.done():
            self._first_ready.set_exception(error)
