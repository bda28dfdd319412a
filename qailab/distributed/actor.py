"""What runs in a Ray actor: one backend, and the circuits it was given.

This module never imports torch: it would double the memory of an actor and its start-up time.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import TypeVar

import ray

from qailab.backends.base import NOTHING_USED, Backend
from qailab.distributed.slots import KNOWN_CIRCUITS
from qailab.distributed.wire import decode_batch, encode_answers
from qailab.distributed.workers import Cancelled, Place, Reply, UnknownCircuit
from qailab.errors import EvaluationError, QailabError, plain
from qailab.gradients.canonical import CanonicalCircuit

Ticket = tuple[str, int]
"""A chunk's name: who sent it, and its number there. Several programs may share an actor."""

CONCURRENCY_GROUPS = {"control": 1, "watch": 1}
"""Threads beside the one that evaluates: what they do need not wait for it."""
_REMEMBERED_CANCELS = 10_000
_STOP_SECONDS = 2.0  # how long `close` waits for what runs

Method = TypeVar("Method", bound=Callable[..., object])


def _apart(group: str) -> Callable[[Method], Method]:
    """Methods that run in a thread of this group (Ray's decorator has no types)."""
    return ray.method(concurrency_group=group)  # type: ignore[no-any-return]


class LauncherActor:
    """One backend behind Ray calls.

    Args:
        recipe: the pickled backend; nothing live, and no secret.
    """

    def __init__(self, recipe: bytes) -> None:
        # Nothing here may fail: an error while an actor is created kills it without a trace.
        self._recipe = recipe
        self._circuits: OrderedDict[str, CanonicalCircuit] = OrderedDict()
        self._backend: Backend | None = None
        self._lock = threading.Lock()  # between the thread that evaluates and the others
        self._running: Ticket | None = None
        self._began = 0.0
        self._stop = threading.Event()
        self._closing = False
        self._cancelled: OrderedDict[Ticket, None] = OrderedDict()

    def open(self) -> Place:
        """Build the backend, once. Its errors reach the caller as they are."""
        if self._backend is None:
            backend: Backend = pickle.loads(self._recipe)
            try:
                backend.open()
            except QailabError as error:
                raise plain(error) from error
            self._backend = backend
        return Place(os.getpid(), ray.util.get_node_ip_address())

    def run(
        self,
        client: str,
        key: str,
        circuits: Mapping[str, bytes],
        chunks: Sequence[tuple[int, bytes]],
    ) -> list[Reply]:
        """Evaluate chunks, one after the other.

        Args:
            client: who asks.
            key: the content key of the chunks' circuit.
            circuits: pickled circuits to keep, by key.
            chunks: each chunk's number and encoded rows.
        """
        for name, circuit in circuits.items():
            self._circuits[name] = pickle.loads(circuit)
        while len(self._circuits) > 2 * KNOWN_CIRCUITS:
            self._circuits.popitem(last=False)
        if key not in self._circuits:
            unknown = Reply(error=UnknownCircuit(f"circuit {key} is not known here"))
            return [unknown] * len(chunks)
        self._circuits.move_to_end(key)
        return [self._evaluate(key, (client, number), rows) for number, rows in chunks]

    @_apart("control")
    def cancel(self, client: str, numbers: Sequence[int]) -> None:
        """Skip these chunks if they wait, stop them if they run."""
        with self._lock:
            for number in numbers:
                self._cancelled[client, number] = None
                if self._running == (client, number):
                    self._stop.set()
            while len(self._cancelled) > _REMEMBERED_CANCELS:
                self._cancelled.popitem(last=False)

    @_apart("control")
    def running_seconds(self, client: str) -> tuple[float, float]:
        """How long the chunk that runs has been running: if it is this client's, and if not.

        Args:
            client: who asks.
        """
        with self._lock:
            if self._running is None:
                return 0.0, 0.0
            seconds = time.perf_counter() - self._began
            return (seconds, 0.0) if self._running[0] == client else (0.0, seconds)

    @_apart("control")
    def close(self) -> None:
        """Stop what runs, if it can be stopped soon, and close the backend."""
        with self._lock:
            self._closing = True
            self._stop.set()
        deadline = time.monotonic() + _STOP_SECONDS
        while self._running is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._backend is not None:
            self._backend.close()

    @_apart("watch")
    def watch(self) -> None:
        """Never return: the caller hears of this process's death at once, also when it is idle."""
        threading.Event().wait()

    def _evaluate(self, key: str, ticket: Ticket, message: bytes) -> Reply:
        assert self._backend is not None, "open() comes first"
        with self._lock:
            if ticket in self._cancelled or self._closing:
                return Reply(error=Cancelled("cancelled before it began"))
            self._running, self._began = ticket, time.perf_counter()
            self._stop = threading.Event()
        answer: bytes | None = None
        error: QailabError | None = None
        trace, usage = "", NOTHING_USED
        try:
            before = self._backend.usage
            try:
                rows = decode_batch(message)
                answers = self._backend.answer(self._circuits[key], rows, self._stop)
            finally:
                usage = self._backend.usage.since(before)
            answer = encode_answers(answers)
        except CancelledError:
            error = Cancelled("cancelled while it ran")
        except QailabError as known:
            error, trace = plain(known), traceback.format_exc()
        except Exception as unexpected:  # our own: a message that cannot be decoded, say
            trace = traceback.format_exc()
            error = EvaluationError(f"{type(unexpected).__name__}: {unexpected}")
        finally:
            with self._lock:
                self._running = None
        return Reply(answer, error, trace, time.perf_counter() - self._began, usage)
