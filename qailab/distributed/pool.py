"""The pool: many backends, each in a Ray actor, behind one ``submit``."""

from __future__ import annotations

import atexit
import os
import threading
import uuid
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qailab.arguments import checked_integer
from qailab.backends.base import Backend, RowFuture
from qailab.distributed import options as checks
from qailab.distributed.actors import Actor
from qailab.distributed.connection import connect, disconnect, may_have_gpus, undeclared
from qailab.distributed.options import START_SECONDS, ActorOptions, Auto, Settings
from qailab.errors import InputError, PoolClosedError, PoolError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray, RowBatch

if TYPE_CHECKING:  # Ray reads settings when it is first imported, which `connect` must come before
    from qailab.distributed.dispatcher import Dispatcher
    from qailab.distributed.telemetry import PoolStats


class LauncherPool:
    """Ray actors that evaluate rows together, each with a backend of its own.

    A pool is used wherever a backend is, by any number of layers, models and threads at once. The
    same seed gives the same bits for any number of actors of one backend, any chunk size and any
    order of completion, and after any actor's death: lost actors are replaced, and only the rows
    they had in flight run again.

    It connects to the Ray of this process, of ``address`` or of ``RAY_ADDRESS``, in that order, or
    starts a local one that listens on 127.0.0.1 only, with token authentication, without
    dashboard, which ends with the pool. (For a dashboard, call ``ray.init`` yourself first.)

    A pickled pool is a handle of the same actors, for other processes of the cluster. Connecting
    to Ray replaces the process's SIGTERM handler; a program that has its own sets it afterwards.

    Args:
        backends: one backend for each actor.
        address: a Ray cluster's address, or ``"local"`` for a new local one.
        max_in_flight: chunks an actor may have at once; ``"auto"``: one that runs and one that
            waits, each made larger where ``chunk_rows`` is small.
        chunk_rows: rows evaluated at once; ``"auto"`` goes by the observed speed of each actor.
        actor_options: Ray options (``num_cpus``, ``num_gpus``, ``resources``,
            ``scheduling_strategy``, ...) for all actors, or a list with those of each; what is not
            given is what the backend needs.
        chunk_timeout: seconds after which ``chunk_rows`` are taken to hang, and the actor is
            replaced; ``"auto"``: 20 times what a chunk should take by observed speed, at least
            30 s, and 15 minutes while there is none. Backends with deadlines of their own are only
            replaced when they do not respond. The first chunk of a circuit is compiled as well.
        start_timeout: seconds that work waits for a first actor; three times that where there is
            room for it, so that processes may be killed while they start.
        progress: show a bar for evaluations of more than 2 s (in a terminal or notebook).

    Raises:
        InputError: if an option is not valid.
        BackendBuildError: if no backend can be built in its actor; the remote cause is shown.
        PoolError: if there is no cluster at the address, or no actor can start.

    >>> from qailab.backends import AerBackend
    >>> with LauncherPool([AerBackend()] * 2) as pool:  # doctest: +SKIP
    ...     layer = QLayer(circuit, backend=pool)
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        address: str | None = None,
        max_in_flight: int | Auto = "auto",
        chunk_rows: int | Auto = "auto",
        actor_options: ActorOptions = None,
        chunk_timeout: float | Auto = "auto",
        start_timeout: float = START_SECONDS,
        progress: bool = True,
    ) -> None:
        self._backends = checks.checked_backends(backends)
        options = checks.checked_actor_options(actor_options, self._backends)
        self._settings = Settings(
            chunk_rows=chunk_rows,
            max_in_flight=max_in_flight,
            chunk_timeout=chunk_timeout,
            start_timeout=start_timeout,
            progress=progress,
        )
        self._name = f"qailab-{uuid.uuid4().hex[:12]}"
        self._lock = threading.Lock()
        self._dispatcher: Dispatcher | None = None
        self._closed, self._owner = False, True
        needs = checks.custom_needs(options, self._backends)
        self._session = connect(address, sum(each["num_cpus"] for each in options), needs)
        self._end: weakref.finalize[..., LauncherPool]
        self._end = weakref.finalize(self, disconnect, self._session)
        try:
            error = checks.no_gpu(options, self._backends)
            if error is not None and not may_have_gpus():
                raise error
            missing = undeclared(needs)
            self._options = checks.with_custom_needs(options, self._backends, without=missing)
            self._configs = _pickled(self._backends)
            self._running().wait_for_actors(1)
        except BaseException:
            self.close()
            raise

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The backend of each actor."""
        return tuple(self._backends)

    @property
    def supports_exact(self) -> bool:
        """Whether all backends can give exact probabilities."""
        return all(backend.traits.supports_exact for backend in self._backends)

    @property
    def supports_adjoint(self) -> bool:
        """Whether all backends answer `SlopeRows`."""
        return all(backend.traits.supports_adjoint for backend in self._backends)

    @property
    def noiseless(self) -> bool:
        """Whether probabilities of all backends are those of the circuit itself."""
        return all(backend.traits.noiseless for backend in self._backends)

    def validate(self, circuit: CanonicalCircuit, shots: int | None) -> None:
        """Raise a `BackendError` if a backend cannot run rows of the circuit."""
        self._check_open()
        for backend in {id(backend): backend for backend in self._backends}.values():
            backend.validate(circuit, shots)

    def submit(self, circuit: CanonicalCircuit, batch: RowBatch) -> RowFuture:
        """Start evaluating a batch of rows.

        Returns:
            A future of the answers, in row order: ``(n, K)``, or ``(n, 2)`` with cotangents.

        Raises:
            PoolClosedError: if the pool is closed.
        """
        return self._running().submit(circuit, batch)

    def run(self, circuit: CanonicalCircuit, batch: RowBatch) -> FloatArray:
        """``submit(...).result()``; Ctrl-C cancels what is in flight.

        Raises:
            PoolClosedError: if the pool is closed.
            EvaluationError: if a backend failed on rows.
            PoolExhaustedError: if no actor is left.
        """
        return self.submit(circuit, batch).result()

    def wait(self, actors: int | None = None, *, timeout: float = 300.0) -> None:
        """Wait until some actors, or all, are ready; work does not need it, measurements do.

        Raises:
            PoolError: if they are not ready in ``timeout`` seconds.
        """
        most = len(self._backends)
        count = most if actors is None else checked_integer("actors", actors, most=most)
        self._running().wait_for_actors(count, timeout)

    def stats(self) -> PoolStats:
        """Return rows, chunks, retries, bytes and seconds so far, in all and for each actor."""
        return self._running(or_closed=True).stats()

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file of what each actor did when, for https://ui.perfetto.dev."""
        self._running(or_closed=True).telemetry.write_trace(path)

    def close(self) -> None:
        """End all actors, and the Ray that was started here. Safe to call twice."""
        with self._lock:
            self._closed = True
        self._end()
        atexit.unregister(self._end)

    def __enter__(self) -> LauncherPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        ids = [id(backend) for backend in self._backends]
        distinct = {id(backend): backend for backend in self._backends}
        kinds = [f"{ids.count(number)} x {backend!r}" for number, backend in distinct.items()]
        return f"LauncherPool({', '.join(kinds)}{', closed' if self._closed else ''})"

    def __deepcopy__(self, _: object) -> LauncherPool:
        return self  # a copy of a model uses the same actors

    def __getstate__(self) -> dict[str, Any]:
        """A handle: the backends, and the name by which their actors are found."""
        own = dict.fromkeys(("_lock", "_dispatcher", "_session", "_end"))
        return {**self.__dict__, **own, "_owner": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
        self._end = weakref.finalize(self, disconnect, None)

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosedError(
                "this pool is closed; make a new LauncherPool and assign it to layer.backend"
            )

    def _running(self, *, or_closed: bool = False) -> Dispatcher:
        with self._lock:
            if self._closed and or_closed and self._dispatcher is not None:
                return self._dispatcher
            self._check_open()
            if self._dispatcher is None:  # a handle that is used for the first time
                self._dispatcher, self._pid = self._dispatch(), os.getpid()
            if self._pid != os.getpid():
                raise PoolError(
                    "a forked process cannot use its parent's pool: Ray does not survive a fork; "
                    "start the process with multiprocessing's 'spawn'"
                )
            return self._dispatcher

    def _dispatch(self) -> Dispatcher:
        import ray

        if not ray.is_initialized():
            raise PoolClosedError(
                "this is the handle of a pool of another process, and this process is not "
                "connected to its Ray; connect, or assign a new LauncherPool to layer.backend"
            )
        from qailab.distributed.dispatcher import Dispatcher

        needs = map(checks.needs_in_words, self._options)
        actors = list(map(Actor, range(len(self._backends)), self._backends, needs))
        try:
            dispatcher = Dispatcher(
                self._name, actors, self._configs, self._options, self._owner, self._settings
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"actor_options are not valid for a Ray actor: {error}") from error
        # Also when the pool is dropped without close(), and at exit.
        self._end.detach()
        self._end = weakref.finalize(self, _end, dispatcher, os.getpid(), self._session)
        # What is registered last runs first at exit, and Ray has registered its own end by now.
        atexit.register(self._end)
        return dispatcher


def _pickled(backends: Sequence[Backend]) -> tuple[bytes, ...]:
    """Pickle the backends; by cloudpickle, which also takes classes that a script defines."""
    from ray import cloudpickle

    configs: dict[int, bytes] = {}
    for backend in backends:
        try:
            configs[id(backend)] = configs.get(id(backend)) or cloudpickle.dumps(backend)
        except Exception as error:
            raise InputError(f"{backend!r} cannot be sent to an actor: {error}") from error
    return tuple(configs[id(backend)] for backend in backends)


def _end(dispatcher: Dispatcher, pid: int, session: str | None) -> None:
    """Stop a pool's dispatcher and leave its Ray, in the process that they belong to."""
    if pid == os.getpid():
        try:
            dispatcher.stop()
        finally:
            disconnect(session)
