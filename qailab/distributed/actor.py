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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import ray

from qailab.backends.base import Backend, Usage, evaluate
from qailab.distributed.shared_log import LoggedState
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
_REMEMBERED_WARNINGS = 100
_OPEN_SECONDS = 15.0
_SHARE_OF_CLOSE = 0.4  # how much of the time that `close` may take it waits for what runs

Method = TypeVar("Method", bound=Callable[..., object])


def _apart(group: str) -> Callable[[Method], Method]:
    """Methods that run in a thread of this group (Ray's decorator has no types)."""
    return ray.method(concurrency_group=group)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Run:
    """A chunk that is being evaluated.

    Args:
        began: when it began.
        stop: set to end it.
    """

    began: float = field(default_factory=time.perf_counter)
    stop: threading.Event = field(default_factory=threading.Event)


class _Warnings(logging.Handler):
    """Keeps what backends warn of, as nobody reads an actor's log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: deque[str] = deque(maxlen=_REMEMBERED_WARNINGS)

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())

    def taken(self) -> tuple[str, ...]:
        """What there was since the last time."""
        texts: list[str] = []
        with suppress(IndexError):
            while True:
                texts.append(self._texts.popleft())
        return tuple(texts)


class LauncherActor:
    """One backend behind Ray calls.

    Args:
        recipe: the pickled backend; nothing live, and no secret.
        pool: the pool's name.
    """

    def __init__(self, recipe: bytes, pool: str) -> None:
        # Nothing here may fail: an error while an actor is created kills it without a trace.
        self._recipe = recipe
        self._pool = pool
        self._circuits: OrderedDict[str, CanonicalCircuit] = OrderedDict()
        self._backend: Backend | None = None
        self._tried_to_open = threading.Event()
        self._lock = threading.Lock()  # between the threads that evaluate and the others
        self._running: dict[Ticket, _Run] = {}
        self._warnings = _Warnings()
        logging.getLogger("qailab.backends").addHandler(self._warnings)
        self._closing = False
        self._cancelled: OrderedDict[Ticket, None] = OrderedDict()

    def open(self) -> Place:
        """Build the backend, once. Its errors reach the caller as they are."""
        if self._backend is None:
            try:
                backend: Backend = pickle.loads(self._recipe)
                backend.share(LoggedState(self._pool))
                backend.open()
                self._backend = backend
            except QailabError as error:
                raise plain(error) from error
            finally:
                self._tried_to_open.set()
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
        with self._lock:
            for name, known in circuits.items():
                self._circuits[name] = pickle.loads(known)
            while len(self._circuits) > 2 * KNOWN_CIRCUITS:
                self._circuits.popitem(last=False)
            circuit = self._circuits.get(key)
            if circuit is not None:
                self._circuits.move_to_end(key)
        if circuit is None:
            unknown = Reply(error=UnknownCircuit(f"circuit {key} is not known here"))
            return [unknown] * len(chunks)
        return [self._evaluate(circuit, (client, number), rows) for number, rows in chunks]

    @_apart("control")
    def cancel(self, client: str, numbers: Sequence[int]) -> None:
        """Skip these chunks if they wait, stop them if they run."""
        with self._lock:
            for number in numbers:
                self._cancelled[client, number] = None
                if (client, number) in self._running:
                    self._running[client, number].stop.set()
            while len(self._cancelled) > _REMEMBERED_CANCELS:
                self._cancelled.popitem(last=False)

    @_apart("control")
    def running_seconds(self, client: str) -> tuple[float, float]:
        """How long the oldest chunk that runs has: if one is this client's, and if none is.

        Args:
            client: who asks.
        """
        with self._lock:
            now = time.perf_counter()
            running = {ticket: now - run.began for ticket, run in self._running.items()}
        mine = [seconds for ticket, seconds in running.items() if ticket[0] == client]
        others = [seconds for ticket, seconds in running.items() if ticket[0] != client]
        return (max(mine), 0.0) if mine else (0.0, max(others, default=0.0))

    @_apart("control")
    def close(self) -> None:
        """Stop what runs, if it can be stopped soon, and close the backend."""
        with self._lock:
            self._closing = True
            for run in self._running.values():
                run.stop.set()
        # One that is just starting may be the only one left to close what its predecessor opened.
        self._tried_to_open.wait(_OPEN_SECONDS)
        if self._backend is None:
            return
        deadline = time.monotonic() + _SHARE_OF_CLOSE * self._backend.traits.close_seconds
        while self._running and time.monotonic() < deadline:
            time.sleep(0.01)
        self._backend.close()

    @_apart("watch")
    def watch(self) -> None:
        """Never return: the caller hears of this process's death at once, also when it is idle."""
        threading.Event().wait()

    def _evaluate(self, circuit: CanonicalCircuit, ticket: Ticket, message: bytes) -> Reply:
        assert self._backend is not None, "open() comes first"
        run = _Run()
        with self._lock:
            if ticket in self._cancelled or self._closing:
                return Reply(error=Cancelled("cancelled before it began"))
            self._running[ticket] = run
        answer: bytes | None = None
        error: QailabError | None = None
        trace = ""
        usage = Usage()
        try:
            answers, usage = evaluate(self._backend, circuit, decode_batch(message), run.stop)
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
                del self._running[ticket]
        seconds = time.perf_counter() - run.began
        return Reply(answer, error, trace, seconds, usage, self._warnings.taken())
