"""The dispatcher: the thread that a pool's scheduler lives in.

Everything that happens (new rows, a cancel, a reply, a lost actor) is a value in one queue, and
only this thread takes them out, so that the scheduler needs no locks. Ray's completion callbacks
put theirs into the queue; new work wakes the thread the same way, which ``ray.wait`` cannot.

::

    submit --> [queue] --> dispatcher: scheduler --> transport: actor.run(chunk)
                  ^                                            |
                  +-------------- replies, losses -------------+
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import Any, NamedTuple

from qailab.backends.base import RowFuture
from qailab.distributed.actors import Actor
from qailab.distributed.options import Settings
from qailab.distributed.ray_transport import RayTransport, ray_is_gone
from qailab.distributed.scheduler import Scheduler
from qailab.distributed.telemetry import PoolMetrics, PoolStats, Progress, Telemetry
from qailab.distributed.transport import Event
from qailab.errors import PoolClosedError, PoolError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import RowBatch

logger = logging.getLogger("qailab.distributed")

_IDLE_SECONDS = 5.0  # how often metrics are reported while nothing happens: Ray forgets a gauge
_POLL_SECONDS = 0.05  # while somebody waits for actors


class _Submitted(NamedTuple):
    circuit: CanonicalCircuit
    batch: RowBatch
    future: RowFuture


class _Cancelled(NamedTuple):
    future: RowFuture


class Dispatcher:
    """Runs a pool's scheduler until it is stopped; the arguments are those of `RayTransport`."""

    def __init__(
        self,
        pool: str,
        actors: Sequence[Actor],
        configs: Sequence[bytes],
        options: Sequence[Mapping[str, Any]],
        owned: bool,
        settings: Settings,
    ) -> None:
        self._actors = tuple(actors)
        # None ends the thread.
        self._events: queue.SimpleQueue[Event | _Submitted | _Cancelled | None]
        self._events = queue.SimpleQueue()
        self._transport = RayTransport(pool, configs, options, owned, self._events)
        metrics, progress = PoolMetrics(pool), Progress(settings.progress)
        self.telemetry = Telemetry(actors, time.monotonic(), metrics, progress)
        self._scheduler = Scheduler(actors, self._transport, settings, self.telemetry)
        self._accepting = threading.Lock()
        self._closing = self._stopped = False
        self._ended: float | None = None
        self._thread = threading.Thread(target=self._loop, name="qailab-dispatcher", daemon=True)
        self._thread.start()

    # Called from any thread.

    def submit(self, circuit: CanonicalCircuit, batch: RowBatch) -> RowFuture:
        """Start evaluating rows; their answers arrive in the future."""
        future = RowFuture(on_cancel=lambda: self._events.put(_Cancelled(future)))
        with self._accepting:  # what came after the stop would wait for ever
            if self._closing:
                raise PoolClosedError("the pool is closed")
            self._events.put(_Submitted(circuit, batch, future))
        return future

    def stop(self) -> None:
        """Fail what is unfinished, let go of all actors, end the thread."""
        with self._accepting:
            self._closing = True
            self._ended = self._ended or time.monotonic()
            self._events.put(None)
        if threading.current_thread() is not self._thread:
            slowest = max(actor.backend.traits.close_seconds for actor in self._actors)
            self._thread.join(2 * slowest)

    def wait_for_actors(self, count: int, timeout: float | None = None) -> None:
        """Wait until some actors are ready; raise if they are not in time, or cannot be.

        The time is what work waits for a first actor, if none is given.
        """
        began = time.monotonic()
        while sum(actor.is_ready() for actor in self._actors) < count:
            if not self._transport.connected:
                raise ray_is_gone()
            waited = time.monotonic() - began
            if (error := self._scheduler.too_few(count, waited, timeout)) is not None:
                raise error
            self._transport.wait_until_opened(_POLL_SECONDS)

    def stats(self) -> PoolStats:
        """Return what was done so far; after the end, what had been done by then."""
        return self.telemetry.stats(self._ended or time.monotonic())

    # Called in the dispatcher's thread only.

    def _loop(self) -> None:
        self._scheduler.start(time.monotonic())
        while not self._stopped:
            try:
                self._turn()
            except Exception as error:  # whatever it is, nobody must wait for ever
                logger.exception("the dispatcher failed")
                with suppress(Exception):
                    self._scheduler.fail_all(PoolError(f"the dispatcher failed: {error!r}"))

    def _turn(self) -> None:
        """Wait for something to happen, and handle all that has."""
        wait = self._scheduler.seconds_to_next_tick(time.monotonic())
        with suppress(queue.Empty):
            self._handle(self._events.get(timeout=min(wait, _IDLE_SECONDS)))
            while not self._stopped:
                self._handle(self._events.get_nowait())
        now = time.monotonic()
        if self._stopped:
            self._scheduler.end()
            if self._transport.connected:
                self.telemetry.end(self._scheduler.depth())
        elif not self._transport.connected:  # and nothing will be heard any more
            self._scheduler.fail_all(ray_is_gone())
        else:
            self._scheduler.tick(now)
            if self.telemetry.is_due(now):
                self.telemetry.report(self._scheduler.depth(), now)

    def _handle(self, event: Event | _Submitted | _Cancelled | None) -> None:
        match event:
            case None:
                self._stopped = True
            case _Cancelled(future):
                self._scheduler.cancel(future)
            case _Submitted(circuit, batch, future):
                try:
                    if not future.cancelled():
                        self._scheduler.add(circuit, batch, future, time.monotonic())
                except Exception as error:  # no memory for the answers, say
                    with suppress(InvalidStateError):
                        future.set_exception(error)
            case _:
                self._scheduler.handle(event, time.monotonic())
