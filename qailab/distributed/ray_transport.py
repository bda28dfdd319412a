"""`Transport` to Ray actors: one owner starts and replaces them, handles look them up.

The process that made the pool owns its actors. It watches them all, the idle ones too, and replaces
those that die. A handle in another process finds them by name, which ends with the actor's
generation; when one is gone, it waits for the owner to replace it.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

import ray
from ray import exceptions

from qailab.distributed import transport as events
from qailab.distributed.actor import CONCURRENCY_GROUPS, LauncherActor
from qailab.distributed.actors import Actor
from qailab.distributed.connection import NAMESPACE, available_resources, current_session
from qailab.distributed.transport import Call, Event, NoRoom, Reply
from qailab.errors import EvaluationError, PoolError, QailabError, TransientBackendError, plain

logger = logging.getLogger("qailab.distributed")
backend_logger = logging.getLogger("qailab.backends")

_LOSSES = (
    exceptions.RayActorError,
    exceptions.OutOfMemoryError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
)
"""Ray's errors that say something about the machine, not about the rows: the same rows run again
elsewhere. A node's death first shows as `ActorUnavailableError`, a memory kill as
`OutOfMemoryError`, which is no `RayActorError`."""
_FULL = (
    exceptions.ObjectStoreFullError,
    exceptions.OutOfDiskError,
    exceptions.PendingCallsLimitExceeded,
)
"""Ray's errors that pass when others have let go of what they hold."""
_OWNER_DIED = "its owner has died"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # Ray colours its tracebacks, also in files
_LOOK_SECONDS = 0.2  # how long a list of Ray's actors is good for


class RayTransport:
    """Ray actors.

    Args:
        pool: the pool's name, which its actors' names begin with.
        configs: each actor's pickled backend.
        options: Ray options of each actor; Ray raises a TypeError or ValueError if one is wrong.
        owned: this process made the pool.
        events: where what happens is put.
    """

    def __init__(
        self,
        pool: str,
        configs: Sequence[bytes],
        options: Sequence[Mapping[str, Any]],
        owned: bool,
        events: SimpleQueue[Any],
    ) -> None:
        self._pool = pool
        self._configs = tuple(configs)
        self._options = tuple(options)
        self._owned = owned
        self._events = events
        self._client = uuid.uuid4().hex
        self._session = current_session()
        self._actors: dict[int, Any] = {}
        self._opening: dict[int, Any] = {}
        self._closing: list[threading.Thread] = []
        self._named: list[dict[str, str]] = []
        self._looked = -math.inf
        total, free = ray.cluster_resources(), ray.available_resources()
        self._held = {name: amount - free.get(name, 0.0) for name, amount in total.items()}
        self._class = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(LauncherActor)
        for each in options:
            self._class.options(**each)  # raises before anything starts

    @property
    def connected(self) -> bool:
        """Whether Ray is still the one of this pool; a call would start another one unasked."""
        return current_session() == self._session

    def start(self, actor: Actor) -> None:
        self._check_connected()
        index, generation = actor.index, actor.health.generation
        if self._owned:
            name = f"{self._pool}-{index}-{generation}"
            options = {**self._options[index], "name": name, "namespace": NAMESPACE}
            handle = self._class.options(**options).remote(self._configs[index], self._pool)
            self._actors[index] = handle
            self._when_done(handle.watch.remote(), actor, _watched)
        else:
            handle = self._find(index)
            if handle is None:
                self._events.put(events.Missing(index, generation))
                return
            self._actors[index] = handle
        self._opening[index] = handle.open.remote()
        self._when_done(self._opening[index], actor, _opened if self._owned else _found)

    def send(self, actor: Actor, call: Call) -> None:
        try:
            ref = self._handle(actor).run.remote(self._client, call)
        except _FULL as error:
            raise NoRoom(f"Ray has no room: {_readable(error)}") from error

        def replied(index: int, generation: int, done: Future[Any]) -> Event:
            error = done.exception()
            if isinstance(error, _LOSSES):
                return events.Lost(index, generation, _readable(error))
            reply = done.result() if error is None else Reply(error=_call_error(error))
            return events.Replied(index, generation, call.ticket, reply)

        self._when_done(ref, actor, replied)

    def cancel(self, actor: Actor, tickets: Sequence[int]) -> None:
        with _unless_it_fails("cancel", actor):
            _forget(self._handle(actor).cancel.remote(self._client, list(tickets)))

    def inquire(self, actor: Actor) -> None:
        with _unless_it_fails("ask", actor):
            ref = self._handle(actor).running_seconds.remote(self._client)
            self._when_done(ref, actor, _busy)

    def stop(self, actor: Actor, *, hangs: bool = False, gently: bool = False) -> None:
        handle = self._actors.pop(actor.index, None)
        self._opening.pop(actor.index, None)
        if handle is None or not self.connected or not (self._owned or hangs):
            return
        with _unless_it_fails("end", actor):
            if not (gently and self._owned):
                ray.kill(handle)  # half-dead actors would answer later
                return
            thread = threading.Thread(target=_close_and_kill, args=(handle, actor), daemon=True)
            self._closing.append(thread)
            thread.start()

    def close(self, actors: Sequence[Actor]) -> None:
        if not self._owned:
            return
        # Nothing in an actor runs when it is killed: a session would stay open.
        closing = {}
        for actor in actors:
            with _unless_it_fails("close", actor):
                ref = self._handle(actor).close.remote()
                closing[ref] = actor
                _forget(ref)
        if closing and self.connected:
            slowest = max(actor.backend.traits.close_seconds for actor in actors)
            ray.wait(list(closing), num_returns=len(closing), timeout=slowest)
            for ref, actor in closing.items():
                _tell_of_close(ref, actor)
        for thread in self._closing:
            thread.join()

    def has_room(self, actor: Actor) -> bool:
        """Return whether a machine is large enough, and others leave an actor its part.

        What is held now may be what Ray holds for the actor while a process starts, so it goes by
        what was held when the pool came.
        """
        if not (self._owned and self.connected):
            return False
        options, total = self._options[actor.index], ray.cluster_resources()
        needs = {"CPU": options["num_cpus"], "GPU": options["num_gpus"]}
        needs |= options["resources"] or {}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return all(
            total.get(name, 0.0) - self._held.get(name, 0.0) >= amount
            and any(machine.get(name, 0.0) >= amount for machine in machines)
            for name, amount in needs.items()
            if amount
        )

    def free_resources(self, needs: str) -> str:
        return available_resources(needs) if self.connected else "shut down"

    def wait_until_opened(self, timeout: float) -> None:
        """Wait until an actor may have opened, in a way that Ray knows of.

        A Ray task that waits like this lends its CPU to others: to the actor it waits for, too.
        """
        opening = list(self._opening.values())
        if opening and self.connected:
            with suppress(Exception):
                ray.wait(opening, num_returns=len(opening), timeout=timeout)
        time.sleep(0.001 if opening else timeout)

    def _check_connected(self) -> None:
        if not self.connected:
            raise ray_is_gone()

    def _handle(self, actor: Actor) -> Any:
        self._check_connected()
        return self._actors[actor.index]

    def _find(self, index: int) -> Any:
        """Find the latest actor: its owner may have replaced it more often than we know."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:  # once for all actors
            self._named = ray.util.list_named_actors(all_namespaces=True)
            self._looked = time.monotonic()
        start = f"{self._pool}-{index}-"
        names = [actor["name"] for actor in self._named if actor["name"].startswith(start)]
        with suppress(ValueError):  # there is no name, or Ray's word for "no such actor"
            latest = max(names, key=lambda name: int(name.removeprefix(start)))
            return ray.get_actor(latest, NAMESPACE)
        return None

    def _when_done(
        self, ref: Any, actor: Actor, event_of: Callable[[int, int, Future[Any]], Event | None]
    ) -> None:
        """Put what has come of a call into the queue, from a thread of Ray's."""
        index, generation = actor.index, actor.health.generation

        def done(future: Future[Any]) -> None:
            if self._owned and _OWNER_DIED in str(future.exception()):
                return  # we live: it is Ray that is being shut down, which the next turn sees
            if (event := event_of(index, generation, future)) is not None:
                self._events.put(event)

        ref.future().add_done_callback(done)


@contextmanager
def _unless_it_fails(what: str, actor: Actor) -> Iterator[None]:
    """Wrap calls that help, and that nothing depends on: actor or Ray may be gone already."""
    try:
        yield
    except Exception:
        logger.debug("could not %s %s", what, actor, exc_info=True)


def _opened(index: int, generation: int, done: Future[Any]) -> Event:
    error = done.exception()
    if error is None:
        return events.Opened(index, generation, *done.result())
    cause, reason = getattr(error, "cause", None), _readable(error)
    if _is_loss(error) or isinstance(cause, TransientBackendError):
        return events.Lost(index, generation, reason)
    if isinstance(cause, QailabError):  # what it says, before where that came from
        reason = f"{cause}\n{reason}"
    return events.BuildFailed(index, generation, reason)


def _found(index: int, generation: int, done: Future[Any]) -> Event:
    if _is_loss(done.exception()):  # it was just being replaced, or its owner is gone
        return events.Missing(index, generation)
    return _opened(index, generation, done)


def _watched(index: int, generation: int, done: Future[Any]) -> Event | None:
    error = done.exception()
    return events.Lost(index, generation, _readable(error)) if error and _is_loss(error) else None


def _busy(index: int, generation: int, done: Future[Any]) -> Event | None:
    # A lost actor is heard of in other ways.
    return None if done.exception() else events.Busy(index, generation, *done.result())


def _is_loss(error: BaseException | None) -> bool:
    return isinstance(error, _LOSSES) and "creation task" not in str(error)


def _close_and_kill(handle: Any, actor: Actor) -> None:
    """Have an actor close its backend, in its own time, and kill it then."""
    with suppress(Exception):  # it, or Ray, may be gone already
        closed = handle.close.remote()
        ray.wait([closed], timeout=actor.backend.traits.close_seconds)
        _forget(closed)
        _tell_of_close(closed, actor)
        ray.kill(handle)


def _tell_of_close(closed: Any, actor: Actor) -> None:
    """Log what a backend warned of when it was closed, or that a device's was not."""
    try:
        texts = ray.get(closed, timeout=0)
    except Exception as error:  # it is dead, or stopped, or still at it
        texts = (
            f"{actor.backend!r} was not closed ({type(error).__name__}): a session that it had "
            "opened may cost until its max_time; python -m qailab.journal lists those of a journal",
        )
        texts = texts if actor.backend.traits.packs_jobs else ()
    for text in texts:
        backend_logger.warning("%s [actor %d]", text, actor.index)


def ray_is_gone() -> PoolError:
    """Return the error of a pool whose Ray was shut down by somebody else."""
    return PoolError("Ray was shut down, or started anew, under this pool; make a new LauncherPool")


def _call_error(error: BaseException) -> QailabError:
    """Return the error of a call that reached its actor, or could not be made, as one of ours."""
    cause = getattr(error, "cause", error)
    if isinstance(error, _FULL) or isinstance(cause, _FULL):
        return NoRoom(f"Ray has no room: {_readable(error)}")
    if isinstance(cause, QailabError):
        return plain(cause, _readable(error))
    return EvaluationError(_readable(error))


def _readable(error: BaseException) -> str:
    """Return an error with its remote traceback, as plain text."""
    return _COLOURS.sub("", f"{type(error).__name__}: {error}").strip()


def _forget(ref: Any) -> None:
    """Take whatever comes of a call, or Ray would print its error."""
    ref.future().add_done_callback(lambda done: done.exception())
