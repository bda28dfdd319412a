"""`Workers` as Ray actors: one owner starts and replaces them, handles look them up.

The process that made the pool owns its actors. It watches them all, the idle ones too, and replaces
those that die. A handle in another process finds them by name, which ends with a number that each
replacement counts up; when one is gone it waits for the owner to replace it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import ray

from qailab.distributed.actor import CONCURRENCY_GROUPS, LauncherActor
from qailab.distributed.connection import NAMESPACE, available_resources, current_session
from qailab.distributed.faults import FULL, LOSSES, call_error, ray_is_gone, readable
from qailab.distributed.slots import Parcel, Slot
from qailab.distributed.workers import Events, NoRoom
from qailab.errors import QailabError, TransientBackendError

logger = logging.getLogger("qailab.distributed")

Post = Callable[[Callable[[], None]], None]

_LOOK_SECONDS = 0.2  # how long a list of Ray's actors is good for


class RayWorkers:
    """Ray actors behind slots.

    Args:
        pool: the pool's name, which its actors' names begin with.
        recipes: each slot's pickled backend.
        options: Ray options of each slot's actor.
        owned: whether this process made the pool.
        numbers: how many actors each slot is known to have had.
        post: hands a function to the scheduler's thread; for Ray's callbacks.
    """

    def __init__(
        self,
        pool: str,
        recipes: Sequence[bytes],
        options: Sequence[Mapping[str, Any]],
        *,
        owned: bool,
        numbers: Sequence[int],
        post: Post,
    ) -> None:
        self.numbers = list(numbers)
        self._pool = pool
        self._recipes = tuple(recipes)
        self._owned = owned
        self._post = post
        self._client = uuid.uuid4().hex
        self._session = current_session()
        self._events: Events
        self._actors: dict[int, Any] = {}
        self._named: list[dict[str, str]] = []
        self._looked = -math.inf
        self._opening: dict[int, Any] = {}
        self._closing: list[tuple[Any, float]] = []  # of actors that are let go gently
        self._class = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(LauncherActor)
        self._options = tuple(options)
        for each in options:
            self._class.options(**each)  # what Ray does not know is found before anything starts

    def listen(self, events: Events) -> None:
        """Say who is told what happens; before anything else."""
        self._events = events

    @property
    def connected(self) -> bool:
        """Whether Ray is still the one of this pool; a call would start another one unasked."""
        return current_session() == self._session

    def start(self, slot: Slot) -> None:
        if not self.connected:
            raise ray_is_gone()
        if self._owned:
            self.numbers[slot.index] += 1
            options = {**self._options[slot.index], **self._name(slot, self.numbers[slot.index])}
            actor = self._class.options(**options).remote(self._recipes[slot.index], self._pool)
            self._when_done(actor.watch.remote(), partial(self._unwatched, slot, slot.generation))
        else:
            actor = self._find(slot)
            if actor is None:
                self._post(partial(self._events.missing, slot))
                return
        self._actors[slot.index] = actor
        opened = actor.open.remote()
        self._opening[slot.index] = opened
        self._when_done(opened, partial(self._opened, slot, slot.generation))

    def send(
        self,
        slot: Slot,
        parcel: Parcel,
        circuits: Mapping[str, bytes],
        messages: Sequence[bytes],
    ) -> None:
        if not self.connected:
            raise ray_is_gone()
        chunks = list(enumerate(messages, start=parcel.number))
        try:
            ref = self._actors[slot.index].run.remote(self._client, parcel.key, circuits, chunks)
        except FULL as error:
            raise NoRoom(f"Ray has no room: {readable(error)}") from error
        self._when_done(ref, partial(self._answered, slot, slot.generation, parcel))

    def cancel(self, slot: Slot, tickets: Sequence[int]) -> None:
        with _unless_it_fails("cancel", slot):
            if self.connected:
                _forget(self._actors[slot.index].cancel.remote(self._client, list(tickets)))

    def inquire(self, slot: Slot) -> None:
        with _unless_it_fails("ask", slot):
            if self.connected:
                asked = self._actors[slot.index].running_seconds.remote(self._client)
                self._when_done(asked, partial(self._busy, slot, slot.generation))

    def stop(self, slot: Slot, *, hangs: bool = False, gently: bool = False) -> None:
        actor = self._actors.pop(slot.index, None)
        self._opening.pop(slot.index, None)
        if gently and actor is not None and self._owned and self.connected:
            with _unless_it_fails("close", slot):
                self._close_and_end(actor, slot.backend.traits.close_seconds)
                return
        if actor is not None and (self._owned or hangs) and self.connected:
            with _unless_it_fails("end", slot):
                ray.kill(actor)  # half-dead actors would answer later

    def _close_and_end(self, actor: Any, seconds: float) -> None:
        """Have an actor close its backend, in its own time, and end it then."""
        closed = actor.close.remote()
        self._closing.append((closed, seconds))
        end = threading.Timer(seconds, self._post, [partial(_kill, actor)])
        end.daemon = True
        end.start()

        def ended(done: Future[Any]) -> None:
            done.exception()
            end.cancel()
            self._post(partial(_kill, actor))

        closed.future().add_done_callback(ended)

    def end(self, slots: Sequence[Slot]) -> None:
        if not self._owned or not self.connected:
            return
        # Nothing in an actor runs when it is killed: a session would stay open.
        closing = [closed for closed, _ in self._closing]
        patience = [seconds for _, seconds in self._closing]
        for slot in slots:
            with _unless_it_fails("close", slot):
                closing.append(self._actors[slot.index].close.remote())
                patience.append(slot.backend.traits.close_seconds)
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=max(patience))
            for ref in closing:
                _forget(ref)

    def free_resources(self, needs: str) -> str:
        return available_resources(needs) if self.connected else "shut down"

    def wait_for_one(self, timeout: float) -> None:
        """Wait until an actor may have opened, in a way that Ray knows of.

        A Ray task that waits like this lends its CPU to others: to the actor it waits for, too.
        """
        opening = list(self._opening.values())
        if opening and self.connected:
            with suppress(Exception):
                ray.wait(opening, timeout=timeout)

    def _name(self, slot: Slot, number: int) -> dict[str, str]:
        return {"name": f"{self._pool}-{slot.index}-{number}", "namespace": NAMESPACE}

    def _find(self, slot: Slot) -> Any:
        """The slot's latest actor: its owner may have replaced it more often than we know."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:  # once for all slots
            self._named = ray.util.list_named_actors(all_namespaces=True)
            self._looked = time.monotonic()
        start = f"{self._pool}-{slot.index}-"
        names = [actor["name"] for actor in self._named if actor["name"].startswith(start)]
        if names:
            number = max(int(name.removeprefix(start)) for name in names)
            with suppress(ValueError):  # Ray's word for "no such actor": it is gone meanwhile
                actor = ray.get_actor(**self._name(slot, number))
                self.numbers[slot.index] = number
                return actor
        return None

    def _when_done(self, ref: Any, then: Callable[[Future[Any]], None]) -> None:
        ref.future().add_done_callback(lambda done: self._post(partial(then, done)))

    # In the scheduler's thread, with what has come of a call.

    def _opened(self, slot: Slot, generation: int, done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            self._events.opened(slot, generation, done.result())
        elif isinstance(getattr(error, "cause", None), TransientBackendError) or (
            isinstance(error, LOSSES) and "creation task" not in str(error)
        ):
            self._events.lost(slot, generation, readable(error))
        else:  # it cannot be built there, and another try would not change that
            cause = getattr(error, "cause", None)
            reason = readable(error)
            if isinstance(cause, QailabError):  # what it says, before where that came from
                reason = f"{cause}\n{reason}"
            self._events.unbuildable(slot, generation, reason)

    def _unwatched(self, slot: Slot, generation: int, done: Future[Any]) -> None:
        error = done.exception()
        if isinstance(error, LOSSES) and "creation task" not in str(error):
            self._events.lost(slot, generation, readable(error))

    def _answered(self, slot: Slot, generation: int, parcel: Parcel, done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            self._events.answered(slot, generation, parcel, done.result())
        elif isinstance(error, LOSSES):
            self._events.lost(slot, generation, readable(error))
        else:
            self._events.refused(slot, generation, parcel, call_error(error))

    def _busy(self, slot: Slot, generation: int, done: Future[Any]) -> None:
        if done.exception() is None:  # a lost actor is heard of in other ways
            self._events.busy(slot, generation, *done.result())


def _kill(actor: Any) -> None:
    with suppress(Exception):  # it, or Ray, is gone already
        ray.kill(actor)


@contextmanager
def _unless_it_fails(what: str, slot: Slot) -> Iterator[None]:
    """For calls that help, and that nothing depends on: the actor, or Ray, may be gone already."""
    try:
        yield
    except Exception:
        logger.debug("could not %s actor %d", what, slot.index, exc_info=True)


def _forget(ref: Any) -> None:
    """Take whatever comes of a call, or Ray would print its error."""
    ref.future().add_done_callback(lambda done: done.exception())
