"""The pool: many launchers, each in a Ray actor, behind one ``submit``."""

from __future__ import annotations

import os
import threading
import uuid
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qailab.arguments import checked_integer
from qailab.backends.base import Backend
from qailab.backends.future import RowFuture
from qailab.distributed.chunks import ChunkRows
from qailab.distributed.connection import connect, disconnect
from qailab.errors import InputError, InputTypeError, PoolClosedError, PoolError
from qailab.gradients.batch import RowBatch
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray

if TYPE_CHECKING:  # Ray reads settings when it is first imported, which `connect` must come before
    from qailab.distributed.dispatcher import Dispatcher
    from qailab.distributed.traffic import PoolStats

_CLOSE_SECONDS = 10.0


class LauncherPool:
    """Ray actors that evaluate rows together, each with a backend of its own.

    A pool is used wherever a backend is, by any number of layers, models and threads at once. The
    same seed gives the same bits for any number of actors of one recipe, any chunk size and any
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
        max_in_flight: chunks an actor may have at once; two hide the way there and back.
        chunk_rows: rows sent at once; ``"auto"`` goes by the observed speed of each actor.
        actor_options: Ray options for all actors (``num_cpus``, ``resources``, ...); by default
            what each backend needs.

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
        max_in_flight: int = 2,
        chunk_rows: ChunkRows = "auto",
        actor_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._backends = _checked_backends(backends)
        self._options = _checked_options(actor_options)
        self._max_in_flight = checked_integer("max_in_flight", max_in_flight)
        self._chunk_rows: ChunkRows = (
            "auto"
            if chunk_rows == "auto"
            else checked_integer("chunk_rows", chunk_rows, hint=" or 'auto'")
        )
        self._name = f"qailab-{uuid.uuid4().hex[:12]}"
        self._lock = threading.Lock()
        self._dispatcher: Dispatcher | None = None
        self._closed = False
        self._owner = True
        self._generations = [0] * len(self._backends)
        needed = sum(self._options.get("num_cpus", b.resources.num_cpus) for b in self._backends)
        self._session = connect(address, needed)
        self._end: weakref.finalize[..., LauncherPool] = weakref.finalize(
            self, disconnect, self._session
        )
        try:
            self._recipes = _pickled(self._backends)
            self._running().wait_for_first_actor()
        except BaseException:
            self.close()
            raise

    @property
    def supports_exact(self) -> bool:
        """Whether all backends can give exact probabilities."""
        return all(backend.supports_exact for backend in self._backends)

    def validate(self, circuit: CanonicalCircuit, shots: int | None, num_rows: int = 1) -> None:
        """Raise a clear error if a backend cannot run rows of the circuit; nothing is run.

        Raises:
            BackendError: if a backend cannot.
            PoolClosedError: if the pool is closed.
        """
        self._check_open()
        for backend in self._distinct():
            backend.validate(circuit, shots, num_rows)

    def submit(self, circuit: CanonicalCircuit, batch: RowBatch) -> RowFuture:
        """Start evaluating a batch of rows.

        Args:
            circuit: the circuit; it is sent once for each pool, and compiled once by each actor.
            batch: the rows.

        Returns:
            A future of the answers, in row order: ``(n, K)``, or ``(n, 2)`` with vectors.

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
        future = self.submit(circuit, batch)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def stats(self) -> PoolStats:
        """Rows, chunks, retries, bytes and seconds so far, in all and for each actor."""
        from qailab.distributed.traffic import pool_stats

        dispatcher = self._running()
        return pool_stats(dispatcher.slots, dispatcher.traffic)

    def close(self) -> None:
        """End all actors, and the Ray that was started here. Safe to call twice."""
        with self._lock:
            self._closed = True
        self._end()

    def __enter__(self) -> LauncherPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        kinds = ", ".join(
            f"{sum(other is backend for other in self._backends)} x {backend!r}"
            for backend in self._distinct()
        )
        return f"LauncherPool({kinds}{', closed' if self._closed else ''})"

    def __deepcopy__(self, _: object) -> LauncherPool:
        return self  # a copy of a model uses the same actors

    def _distinct(self) -> list[Backend]:
        return list({id(backend): backend for backend in self._backends}.values())

    def __getstate__(self) -> dict[str, Any]:
        """A handle: the recipes, and the names of the actors that hold them."""
        dispatcher = self._dispatcher
        generations = [slot.generation for slot in dispatcher.slots] if dispatcher else None
        return {
            **self.__dict__,
            "_lock": None,
            "_dispatcher": None,
            "_owner": False,
            "_session": None,
            "_end": None,
            "_generations": generations or self._generations,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
        self._end = weakref.finalize(self, disconnect, None)

    def _running(self) -> Dispatcher:
        with self._lock:
            self._check_open()
            if self._dispatcher is None:  # a handle that is used for the first time
                self._attach()
            assert self._dispatcher is not None
            if self._pid != os.getpid():
                raise PoolError(
                    "a forked process cannot use its parent's pool: Ray does not survive a fork; "
                    "start the process with multiprocessing's 'spawn'"
                )
            return self._dispatcher

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosedError(
                "this pool is closed; make a new LauncherPool and assign it to layer.backend"
            )

    def _attach(self) -> None:
        import ray

        if not ray.is_initialized():
            raise PoolClosedError(
                "this is the handle of a pool of another process, and this process is not "
                "connected to its Ray; connect, or assign a new LauncherPool to layer.backend"
            )
        from qailab.distributed.actor import LauncherActor
        from qailab.distributed.dispatcher import Dispatcher
        from qailab.distributed.slots import Slot, actor_options

        for backend in self._backends:
            _check_options(ray.remote(LauncherActor), actor_options(backend, self._options))
        places = zip(self._backends, self._recipes, self._generations, strict=True)
        slots = [
            Slot(self._name, index, backend, recipe, self._owner, self._options, generation)
            for index, (backend, recipe, generation) in enumerate(places)
        ]
        self._dispatcher = Dispatcher(
            slots, max_in_flight=self._max_in_flight, chunk_rows=self._chunk_rows
        )
        self._pid = os.getpid()
        # Also when the pool is dropped without close(), and at exit, before Ray's own handler.
        self._end.detach()
        self._end = weakref.finalize(
            self, _end, self._dispatcher, self._pid, kill=self._owner, session=self._session
        )


def _checked_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    if options is not None and not isinstance(options, Mapping):
        raise InputTypeError(f"actor_options must be a mapping of Ray options, got {options!r}")
    checked = dict(options or {})
    cpus = checked.get("num_cpus", 0)
    if isinstance(cpus, bool) or not isinstance(cpus, int | float) or cpus < 0:
        raise InputTypeError(f"actor_options['num_cpus'] must be a number of CPUs, got {cpus!r}")
    return checked


def _checked_backends(backends: Sequence[Backend]) -> tuple[Backend, ...]:
    if not isinstance(backends, Sequence):
        raise InputTypeError(f"backends must be a list of backends, got {backends!r}")
    checked = tuple(backends)
    if not checked:
        raise InputError("a pool needs at least one backend, got none")
    for position, backend in enumerate(checked):
        if not isinstance(backend, Backend):
            raise InputError(
                f"backends[{position}] must be a qailab backend, got {type(backend).__name__}"
            )
    return checked


def _pickled(backends: Sequence[Backend]) -> tuple[bytes, ...]:
    """The recipes; by cloudpickle, which also takes classes that a script defines."""
    from ray import cloudpickle

    recipes: dict[int, bytes] = {}
    for backend in backends:
        if id(backend) not in recipes:
            try:
                recipes[id(backend)] = cloudpickle.dumps(backend)
            except Exception as error:
                raise InputError(f"{backend!r} cannot be sent to an actor: {error}") from error
    return tuple(recipes[id(backend)] for backend in backends)


def _check_options(actor_class: Any, options: Mapping[str, Any]) -> None:
    try:
        actor_class.options(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"actor_options are not valid for a Ray actor: {error}") from error


def _end(dispatcher: Dispatcher, pid: int, *, kill: bool, session: str | None) -> None:
    """Stop a pool's dispatcher and leave its Ray, in the process that they belong to."""
    if pid != os.getpid():
        return
    try:
        dispatcher.stop(_CLOSE_SECONDS, kill=kill)
    finally:
        disconnect(session)
