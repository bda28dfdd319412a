"""What runs in a Ray actor: one backend, and the circuits it was given.

This module never imports torch: it would double the memory of an actor and its start-up time.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import TypeVar

import numpy as np
import ray

from qailab.backends.answers import NOTHING_USED, Evaluation
from qailab.backends.base import Backend, evaluate
from qailab.distributed.actors import ACCOUNT_TOKEN, KNOWN_CIRCUITS
from qailab.distributed.shared_state import RayState
from qailab.distributed.transport import Call, Cancelled, Reply, UnknownCircuit
from qailab.distributed.wire import decode_batch, encode_answers
from qailab.errors import EvaluationError, QailabError, plain
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import RowBatch

CONCURRENCY_GROUPS = {"control": 1, "watch": 1}
"""Threads beside the one that evaluates: what they do need not wait for it."""
_REMEMBERED_CANCELS = 10_000
_REMEMBERED_WARNINGS = 100
_OPEN_SECONDS = 15.0
_SHARE_OF_CLOSE = 0.4  # how much of the time that `close` may take it waits for what runs

Method = TypeVar("Method", bound=Callable[..., object])


def _in_thread(group: str) -> Callable[[Method], Method]:
    """Mark methods that run in a thread of this group (Ray's decorator has no types)."""
    return ray.method(concurrency_group=group)  # type: ignore[no-any-return]


class _Warnings(logging.Handler):
    """Keeps what backends warn of, as nobody reads an actor's log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: deque[str] = deque(maxlen=_REMEMBERED_WARNINGS)

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())

    def take(self) -> tuple[str, ...]:
        return tuple(self._texts.popleft() for _ in range(len(self._texts)))


class LauncherActor:
    """One backend behind Ray calls. Several programs may share it, each with a name of its own.

    Args:
        config: the pickled backend; nothing live, and no secret.
        pool: the pool's name.
    """

    def __init__(self, config: bytes, pool: str) -> None:
        # Nothing here may fail: an error while an actor is created kills it without a trace.
        self._config = config
        self._pool = pool
        self._circuits: OrderedDict[str, CanonicalCircuit] = OrderedDict()
        self._backend: Backend | None = None
        self._tried_to_open = threading.Event()
        self._lock = threading.Lock()  # between the threads that evaluate and the others
        # By client and ticket: when it began, and what stops it.
        self._running: dict[tuple[str, int], tuple[float, threading.Event]] = {}
        self._cancelled: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._closing = False
        self._warnings = _Warnings()
        logging.getLogger("qailab.backends").addHandler(self._warnings)

    def open(self) -> tuple[int, str]:
        """Build the backend, once; return process number and node. Its errors reach the caller."""
        if self._backend is None:
            try:
                backend: Backend = pickle.loads(self._config)
                backend.share(RayState(self._pool))
                backend.open()
                if backend.traits.supports_exact:  # a simulator, which needs no account
                    os.environ.pop(ACCOUNT_TOKEN, None)
                self._backend = backend
            except QailabError as error:
                raise plain(error) from error
            finally:
                self._tried_to_open.set()
        return os.getpid(), ray.util.get_node_ip_address()

    def run(self, client: str, call: Call) -> Reply:
        """Evaluate a chunk for a client."""
        began, stop, name = time.perf_counter(), threading.Event(), (client, call.ticket)
        with self._lock:
            circuit = self._circuit(call)
            if circuit is None:
                return Reply(error=UnknownCircuit(f"circuit {call.key} is not known here"))
            if name in self._cancelled or self._closing:
                return Reply(error=Cancelled("cancelled before it began"))
            self._running[name] = began, stop
        answer, usage, trace = None, NOTHING_USED, ""
        error: QailabError | None = None
        try:
            batch = decode_batch(call.message)
            step = call.rows_per_call or batch.num_rows
            answers, usage = self._evaluate(circuit, batch, step, stop)
            answer = encode_answers(answers, batch.shots)
        except CancelledError:
            error = Cancelled("cancelled while it ran")
        except QailabError as known:
            error, trace = plain(known), traceback.format_exc()
        except Exception as unexpected:  # our own: a message that cannot be decoded, say
            trace = traceback.format_exc()
            error = EvaluationError(f"{type(unexpected).__name__}: {unexpected}")
        finally:
            with self._lock:
                del self._running[name]
        seconds = time.perf_counter() - began
        return Reply(answer, error, trace, seconds, usage, self._warnings.take())

    def _circuit(self, call: Call) -> CanonicalCircuit | None:
        if call.circuit is not None:
            self._circuits[call.key] = pickle.loads(call.circuit)
            if len(self._circuits) > 2 * KNOWN_CIRCUITS:
                self._circuits.popitem(last=False)
        elif call.key in self._circuits:
            self._circuits.move_to_end(call.key)
        return self._circuits.get(call.key)

    def _evaluate(
        self, circuit: CanonicalCircuit, batch: RowBatch, step: int, stop: threading.Event
    ) -> Evaluation:
        assert self._backend is not None, "open() comes first"
        rows = batch.rows
        done = [
            evaluate(self._backend, circuit, batch.part(start, min(start + step, rows.stop)), stop)
            for start in range(rows.start, rows.stop, step)
        ]
        usage = sum((part.usage for part in done), NOTHING_USED)
        return Evaluation(np.concatenate([part.answers for part in done]), usage)

    @_in_thread("control")
    def cancel(self, client: str, tickets: Sequence[int]) -> None:
        """Skip these chunks if they wait, stop them if they run."""
        with self._lock:
            for name in [(client, ticket) for ticket in tickets]:
                self._cancelled[name] = None
                if name in self._running:
                    self._running[name][1].set()
            while len(self._cancelled) > _REMEMBERED_CANCELS:
                self._cancelled.popitem(last=False)

    @_in_thread("control")
    def running_seconds(self, client: str) -> tuple[float, float]:
        """Return how long the oldest call has run: this client's, or another's if it has none."""
        with self._lock:
            now = time.perf_counter()
            mine = [now - began for name, (began, _) in self._running.items() if name[0] == client]
            everybody = [now - began for began, _ in self._running.values()]
        return (max(mine), 0.0) if mine else (0.0, max(everybody, default=0.0))

    @_in_thread("control")
    def close(self) -> tuple[str, ...]:
        """Stop what runs, if it can be stopped soon, and close the backend; return its warnings."""
        with self._lock:
            self._closing = True
            for _, stop in self._running.values():
                stop.set()
        # One that is just starting may be the only one left to close what its predecessor opened.
        self._tried_to_open.wait(_OPEN_SECONDS)
        if self._backend is None:
            return ()
        deadline = time.monotonic() + _SHARE_OF_CLOSE * self._backend.traits.close_seconds
        while self._running and time.monotonic() < deadline:
            time.sleep(0.01)
        self._backend.close()
        return self._warnings.take()

    @_in_thread("watch")
    def watch(self) -> None:
        """Never return: the caller hears of this process's death at once, also when it is idle."""
        threading.Event().wait()
