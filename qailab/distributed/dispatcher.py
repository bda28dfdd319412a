"""The dispatcher: the thread that a pool's scheduler lives in.

Everything that happens (a new job, an answer, a lost actor, a cancel) is a function in one queue,
and only this thread calls them, so that the scheduler needs no locks. Ray's completion callbacks
put theirs into the queue; new work wakes the thread the same way, which ``ray.wait`` cannot.

::

    submit --> [queue] --> dispatcher: scheduler --> workers: actor.run(chunks)
                  ^                                            |
                  +------------- answers, losses --------------+
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any

from qailab.backends.base import RowFuture
from qailab.distributed.books import Books
from qailab.distributed.faults import ray_is_gone
from qailab.distributed.jobs import Job
from qailab.distributed.metrics import PoolMetrics
from qailab.distributed.options import Settings
from qailab.distributed.progress import Progress
from qailab.distributed.ray_workers import RayWorkers
from qailab.distributed.scheduler import Scheduler
from qailab.distributed.slots import Slot
from qailab.errors import BackendBuildError, PoolClosedError, PoolError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import RowBatch

logger = logging.getLogger("qailab.distributed")

_REPORT_SECONDS = 1.0  # how often metrics go to Ray
_IDLE_SECONDS = 5.0  # the same while nothing happens: Ray forgets a gauge after 20 s


class Dispatcher:
    """Runs a pool's scheduler until it is stopped.

    Args:
        pool: the pool's name.
        slots: where rows run; their actors are started here.
        recipes: each slot's pickled backend.
        options: Ray options of each slot's actor.
        owned: whether this process made the pool.
        numbers: how many actors each slot is known to have had.
        settings: how to schedule.
        progress: whether to show progress.
    """

    def __init__(
        self,
        pool: str,
        slots: Sequence[Slot],
        recipes: Sequence[bytes],
        options: Sequence[Mapping[str, Any]],
        *,
        owned: bool,
        numbers: Sequence[int],
        settings: Settings,
        progress: bool,
    ) -> None:
        self.slots = tuple(slots)
        self._settings = settings
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._metrics = PoolMetrics(pool)
        self._progress = Progress(wanted=progress)
        self.books = Books(time.monotonic, self._metrics)
        self._workers = RayWorkers(
            pool, recipes, options, owned=owned, numbers=numbers, post=self._events.put
        )
        self._scheduler = Scheduler(slots, self._workers, settings, self.books, time.monotonic)
        self._workers.listen(self._scheduler)
        self._accepting = threading.Lock()
        self._closing = False
        self._stopped = False
        self._reported = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="qailab-dispatcher", daemon=True)
        self._events.put(self._scheduler.start)
        self._thread.start()

    # Called from any thread.

    @property
    def numbers(self) -> list[int]:
        """How many actors each slot has had, for handles to find the latest."""
        return list(self._workers.numbers)

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

    def stop(self, timeout: float) -> None:
        """Fail what is unfinished, let go of all actors, end the thread."""
        with self._accepting:
            self._closing = True
            self._events.put(self._stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def wait_for_actors(self, count: int, timeout: float) -> None:
        """Wait until some actors are ready.

        Args:
            count: how many.
            timeout: seconds to wait at most.

        Raises:
            PoolError: if they are not in time.
            BackendBuildError: if no backend can be built in its actor.
        """
        deadline = time.monotonic() + timeout
        first = self._scheduler.first_ready
        while sum(slot.state == "ready" for slot in self.slots) < count:
            aside = [slot for slot in self.slots if slot.state == "aside"]
            if first.done() and len(aside) == len(self.slots):
                first.result()
            if count > 1 and len(self.slots) - len(aside) < count:
                raise BackendBuildError(
                    f"{len(aside)} of {len(self.slots)} actors are set aside, the last of them on "
                    f"{aside[-1].backend!r}: {aside[-1].last_error}"
                )
            if time.monotonic() > deadline:
                raise self._scheduler.starting_error(count, timeout)
            if first.done():
                time.sleep(0.01)
            else:
                self._workers.wait_for_one(0.1)
                with suppress(TimeoutError):
                    first.result(0.05)

    # Called in the dispatcher's thread only.

    def _loop(self) -> None:
        while not self._stopped:
            try:
                if self._handle_events() and not self._workers.connected:
                    self._abandon()
                if not self._stopped:
                    self._scheduler.tick()
                    self._report()
            except Exception as error:  # whatever it is, nobody must wait for ever
                logger.exception("the dispatcher failed")
                with suppress(Exception):
                    self._scheduler.fail_all(PoolError(f"the dispatcher failed: {error!r}"))
        self._progress.close()

    def _handle_events(self) -> bool:
        """Wait for something to happen, and handle all that has; whether nothing did in time."""
        try:
            wait = self._scheduler.seconds_to_next_tick()
            self._events.get(timeout=_IDLE_SECONDS if wait is None else min(wait, _IDLE_SECONDS))()
        except queue.Empty:
            return True
        with suppress(queue.Empty):
            while not self._stopped:
                self._events.get_nowait()()
        return False

    def _abandon(self) -> None:
        """Ray is gone, and no callback will come any more."""
        for slot in self.slots:
            slot.retire()
            slot.state = "aside"
        self._scheduler.fail_all(ray_is_gone())

    def _add(self, circuit: CanonicalCircuit, batch: RowBatch, future: RowFuture) -> None:
        if future.cancelled():
            return
        try:
            if not self._workers.connected:
                raise ray_is_gone()
            self._scheduler.add(
                lambda number, now: Job(
                    number, circuit, batch, future, self._settings.chunk_rows, now
                )
            )
        except Exception as error:  # no memory for the answers, say: the job's own affair
            with suppress(InvalidStateError):
                future.set_exception(error)

    def _cancel(self, future: RowFuture) -> None:
        self._scheduler.cancel(future)

    def _stop(self) -> None:
        self._stopped = True
        self._scheduler.end()
        if self._workers.connected:
            self._metrics.flush()

    def _report(self) -> None:
        """Show progress, and tell metrics: often enough to watch, too seldom to cost."""
        now = time.monotonic()
        jobs = self._scheduler.jobs
        try:
            self._progress.show(jobs.values(), self.slots, self.books.retries, now)
        except Exception:  # watching must not cost rows
            logger.debug("progress cannot be shown", exc_info=True)
            self._progress = Progress(wanted=False)
        if now - self._reported < _REPORT_SECONDS or not self._workers.connected:
            return
        self._reported = now
        self._metrics.depth(
            waiting_rows=sum(job.waiting_rows for job in jobs.values()),
            chunks_in_flight=sum(slot.chunks_in_flight for slot in self.slots),
            actors_ready=sum(slot.state == "ready" for slot in self.slots),
            actors=len(self.slots),
        )
        self._metrics.flush()
