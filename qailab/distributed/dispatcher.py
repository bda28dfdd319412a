"""The dispatcher: one thread that hands rows to actors and gathers their answers.

Everything that happens (a new job, an answer, a lost actor, a cancel) is an event in one queue, and
only this thread touches jobs and slots, so there are no locks. Ray's completion callbacks put
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
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import TaskCancelledError

from qailab.backends.future import RowFuture
from qailab.distributed.chunks import ChunkRows
from qailab.distributed.connection import available_resources
from qailab.distributed.faults import LOSSES, remote_error
from qailab.distributed.jobs import Job
from qailab.distributed.slots import Chunk, Slot
from qailab.distributed.traffic import Traffic
from qailab.distributed.wire import decode_answers, encode_batch
from qailab.errors import (
    BackendBuildError,
    EvaluationError,
    PoolClosedError,
    PoolError,
    PoolExhaustedError,
)
from qailab.gradients.batch import RowBatch
from qailab.gradients.canonical import CanonicalCircuit

logger = logging.getLogger("qailab.distributed")

MAXLOSSES = 3
"""Actors a slot may lose without one answer in between before it is set aside."""
MAX_ATTEMPTS = 4
"""Actors that may be lost over the same rows before the rows are held to be the cause."""
START_SECONDS = 60.0
"""How long work waits for a first actor; imports take 2 to 10 s on a busy machine."""
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
        self._first_ready: Future[None] = Future()
        self._max_in_flight = max_in_flight
        self._chunk_rows = chunk_rows
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._next_job = 0
        self._circuits: dict[str, Any] = {}  # object refs by content key
        self._stopped = False
        self._nobody_since = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="qailab-dispatcher", daemon=True)
        for slot in self.slots:
            self._events.put(partial(self._start, slot))
        self._thread.start()

    # Called from any thread.

    def submit(self, circuit: CanonicalCircuit, batch: RowBatch) -> RowFuture:
        """Start a job; its answers arrive in the future."""
        future = RowFuture(on_cancel=lambda: self._events.put(partial(self._cancel, future)))
        self._events.put(partial(self._add, circuit, batch, future))
        return future

    def stop(self, timeout: float, *, kill: bool) -> None:
        """Fail what is unfinished, let go of all actors (or kill them), end the thread."""
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
            raise self._starting_error() from None

    # Called in the dispatcher's thread only.

    def _loop(self) -> None:
        while not self._stopped:
            try:
                self._handle_events()
                if not self._stopped:
                    self._check_waiting()
                    self._assign()
            except Exception as error:  # whatever it is, nobody must wait for ever
                logger.exception("the dispatcher failed")
                self._fail_all(PoolError(f"the dispatcher failed: {error!r}"))

    def _handle_events(self) -> None:
        """Wait for something to happen, and handle all that has."""
        with suppress(queue.Empty):
            self._events.get(timeout=_TICK_SECONDS if self._jobs else None)()
            while True:
                self._events.get_nowait()()

    def _add(self, circuit: CanonicalCircuit, batch: RowBatch, future: RowFuture) -> None:
        if future.cancelled():
            return
        job = Job(self._next_job, circuit, batch, future, self._chunk_rows)
        self._next_job += 1
        self._jobs[job.number] = job
        if all(slot.state == "aside" for slot in self.slots):
            self._nobody_since = time.monotonic()
            for slot in self.slots:  # whatever was wrong may have been mended since
                slot.losses = 0
                self._start(slot)

    def _cancel(self, future: RowFuture) -> None:
        for job in list(self._jobs.values()):
            if job.future is future:
                del self._jobs[job.number]
                for slot in self.slots:
                    for ref, chunk in slot.in_flight.items():
                        if chunk.job == job.number:
                            ray.cancel(ref)  # ends calls that wait in the actor's queue

    def _stop(self, kill: bool) -> None:
        self._stopped = True
        self._fail_all(PoolClosedError("the pool was closed while rows were being evaluated"))
        for slot in self.slots:
            slot.retire(kill=kill)

    def _start(self, slot: Slot) -> None:
        generation = slot.generation
        slot.start().future().add_done_callback(
            lambda done: self._events.put(partial(self._opened, slot, generation, done))
        )

    def _opened(self, slot: Slot, generation: int, done: Future[None]) -> None:
        if slot.generation != generation or self._stopped:
            return
        error = done.exception()
        if error is None:
            slot.state = "ready"
            if not self._first_ready.done():
                self._first_ready.set_result(None)
        elif isinstance(error, LOSSES):
            self._lose(slot, error)
        else:  # the backend itself cannot be built there: another try would not change it
            slot.last_error = str(error)
            slot.retire()
            self._set_aside(slot)

    def _assign(self) -> None:
        sharing = [slot for slot in self.slots if slot.state != "aside"]
        ready = [slot for slot in sharing if slot.state == "ready"]
        for depth in range(self._max_in_flight):
            for slot in ready:
                if len(slot.in_flight) <= depth and slot.state == "ready":
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
        key = job.circuit.key
        if key not in self._circuits:
            self._circuits[key] = ray.put(pickle.dumps(job.circuit))
        if key not in slot.circuits:
            slot.actor.load.remote(key, self._circuits[key])
            slot.circuits.add(key)
        message = encode_batch(job.batch.part(chunk.start, chunk.stop))
        self.traffic.bytes_sent += len(message)
        generation = slot.generation
        ref = slot.actor.evaluate.remote(key, message)
        slot.in_flight[ref] = chunk
        ref.future().add_done_callback(
            lambda done: self._events.put(partial(self._answered, slot, generation, ref, done))
        )

    def _answered(self, slot: Slot, generation: int, ref: Any, done: Future[Any]) -> None:
        if slot.generation != generation:
            return  # the actor was retired, and its rows were given to others
        error = done.exception()
        if isinstance(error, LOSSES):
            self._lose(slot, error)
            return
        chunk = slot.in_flight.pop(ref)
        job = self._jobs.get(chunk.job)
        if error is None:
            message, seconds = done.result()
            self.traffic.bytes_received += len(message)
            if job is not None:
                slot.learn(job.circuit.key, chunk.stop - chunk.start, seconds)
                job.accept(chunk, decode_answers(message, chunk.stop - chunk.start))
                if job.complete:
                    del self._jobs[job.number]
                    job.finish()
        elif job is not None:
            if isinstance(error, TaskCancelledError):
                job.give_back(chunk)
            else:
                self._fail(job, remote_error(error, slot, chunk, job.batch.num_rows))

    def _lose(self, slot: Slot, error: BaseException) -> None:
        """An actor is gone: its rows go back, and it is replaced."""
        slot.last_error = f"{type(error).__name__}: {error}"
        slot.losses += 1
        slot.replaced += 1
        lost = slot.retire()
        logger.warning(
            "actor %d (%r) was lost with %d chunk(s) in flight and is replaced: %s",
            slot.index, slot.backend, len(lost), type(error).__name__,
        )  # fmt: skip
        for chunk in lost:
            job = self._jobs.get(chunk.job)
            if job is None:
                continue
            chunk.attempts += 1
            self.traffic.retries += 1
            if chunk.attempts >= MAX_ATTEMPTS:
                self._fail(
                    job,
                    EvaluationError(
                        f"rows {chunk.start} to {chunk.stop - 1} lost their actor "
                        f"{chunk.attempts} times, last on {slot.backend!r}: {slot.last_error}; "
                        "if actors run out of memory, use a smaller circuit or chunk_rows"
                    ),
                )
            else:
                job.give_back(chunk)
        if slot.losses >= MAXLOSSES:
            self._set_aside(slot)
        else:
            self._start(slot)

    def _set_aside(self, slot: Slot) -> None:
        slot.state = "aside"
        logger.warning("actor %d (%r) is set aside: %s", slot.index, slot.backend, slot.last_error)
        if any(other.state != "aside" for other in self.slots):
            return
        built = any(other.chunks for other in self.slots)
        answered = sum(job.answered for job in self._jobs.values())
        rows = sum(job.batch.num_rows for job in self._jobs.values())
        kind = PoolExhaustedError if built or slot.losses else BackendBuildError
        error = kind(
            f"no actor of {len(self.slots)} is left to run on ({answered} of {rows} rows are "
            f"done); the last failure was on {slot.backend!r}: {slot.last_error}\n"
            "Mend the cause and submit again: the pool will start its actors anew"
        )
        self._fail_all(error)

    def _starting_error(self) -> PoolError:
        needs = self.slots[0].backend.resources
        return PoolError(
            f"none of {len(self.slots)} actors could start within {START_SECONDS:.0f} s; each "
            f"needs {needs.num_cpus:g} CPU, {needs.num_gpus:g} GPU and {dict(needs.custom)} "
            f"(actor_options: {dict(self.slots[0].options)}), and the cluster has: "
            f"{available_resources()}; free some, or lower actor_options"
        )

    def _check_waiting(self) -> None:
        """Fail work that has waited too long for a first actor."""
        if not self._jobs or any(slot.state == "ready" for slot in self.slots):
            self._nobody_since = time.monotonic()
        elif time.monotonic() - self._nobody_since > START_SECONDS:
            self._fail_all(self._starting_error())

    def _fail(self, job: Job, error: BaseException) -> None:
        self._jobs.pop(job.number, None)
        job.fail(error)

    def _fail_all(self, error: BaseException) -> None:
        for job in list(self._jobs.values()):
            self._fail(job, error)
        if not self._first_ready.done():
            self._first_ready.set_exception(error)
