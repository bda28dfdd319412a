"""The fleet: the slots of a pool, and the life and death of their actors.

Used in the dispatcher's thread only. A slot is *starting*, *ready*, or set *aside*: its backend
cannot be built there, or it lost one actor after the other without an answer in between.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import ray

from qailab.distributed.connection import available_resources
from qailab.distributed.faults import LOSSES, last_line, readable
from qailab.distributed.slots import Chunk, Slot
from qailab.errors import BackendBuildError, PoolError, PoolExhaustedError

logger = logging.getLogger("qailab.distributed")

MAX_LOSSES = 5
"""Actors a slot may lose, without one answer in between, before it is set aside."""
PAUSE_SECONDS = 0.5
"""The pause before a slot's second replacement in a row; it doubles with each further one."""
REST_SECONDS = 30.0
"""How long a slot that lost its actors is left aside before new work gives it another chance."""
REST_OF_UNBUILDABLE_SECONDS = 600.0
"""The same where the backend cannot be built, which only a change of the machine mends."""
START_SECONDS = 60.0
"""How long work waits for a first actor; imports take 2 to 10 s on a busy machine."""
_CLOSE_SECONDS = 5.0  # a busy actor closes its backend when its chunk is done, or not at all


class Fleet:
    """Starts actors, replaces lost ones, sets hopeless slots aside.

    Args:
        slots: the slots.
        connected: whether Ray is still the one of this pool.
        post: puts an event into the dispatcher's queue; for Ray's callbacks.
        give_back: takes the chunks that a lost actor had in flight.
        give_up: takes the error when no actor is left, or none could start in time.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        *,
        connected: Callable[[], bool],
        post: Callable[[Callable[[], None]], None],
        give_back: Callable[[Slot, list[Chunk]], None],
        give_up: Callable[[PoolError | BackendBuildError], None],
    ) -> None:
        self.slots = tuple(slots)
        self._connected = connected
        self._post = post
        self._give_back = give_back
        self._give_up = give_up
        self._nobody_since = time.monotonic()

    @property
    def sharing(self) -> list[Slot]:
        """The slots that work is shared among, those that are starting included."""
        return [slot for slot in self.slots if slot.state != "aside"]

    def start(self, slot: Slot) -> None:
        """Create a slot's actor and build its backend there."""
        if not self._connected():  # Ray would start another one unasked
            self._set_aside(slot, "Ray was shut down under this pool", REST_SECONDS)
            return
        generation = slot.generation
        try:
            opened = slot.start().future()
        except Exception as error:  # Ray itself refuses: options, a lost connection
            self._set_aside(slot, f"{type(error).__name__}: {error}", REST_SECONDS)
            return
        opened.add_done_callback(
            lambda done: self._post(partial(self._opened, slot, generation, done))
        )

    def revive(self) -> None:
        """Give slots that were set aside another chance, if it is time, or if none is left."""
        left = self.sharing
        now = time.monotonic()
        if not left:
            self._nobody_since = now
        for slot in self.slots:
            if slot.state == "aside" and (not left or now >= slot.rest_until):
                slot.losses = 0
                self.start(slot)

    def lose(self, slot: Slot, error: BaseException) -> None:
        """An actor is gone: its rows go back, and it is replaced."""
        lost = slot.retire()
        slot.replaced += 1
        slot.losses += 1
        slot.last_error = readable(error)
        hopeless = slot.losses >= MAX_LOSSES
        logger.warning(
            "actor %d (%r) was lost with %d chunk(s) in flight%s: %s",
            slot.index,
            slot.backend,
            len(lost),
            "" if hopeless else " and is replaced",
            last_line(error),
        )
        self._give_back(slot, lost)
        if hopeless:
            self._set_aside(slot, slot.last_error, REST_SECONDS)
        elif slot.losses == 1:
            self.start(slot)
        else:
            self._start_later(slot, PAUSE_SECONDS * 2 ** (slot.losses - 2))

    def check_patience(self, *, waiting: bool) -> None:
        """Give up on work that has waited too long for a first actor."""
        if not waiting or any(slot.state == "ready" for slot in self.slots):
            self._nobody_since = time.monotonic()
        elif time.monotonic() - self._nobody_since > START_SECONDS:
            self._give_up(self.starting_error())

    def starting_error(self) -> PoolError:
        """Why there is no actor yet, in words."""
        first = self.slots[0]
        return PoolError(
            f"none of {len(self.slots)} actors could start within {START_SECONDS:.0f} s; each "
            f"needs {first.needs_in_words()}, and the cluster has: "
            f"{available_resources() if self._connected() else 'shut down'}. Close what holds "
            "them, or ask for less: actor_options={'num_cpus': 0.5}"
        )

    def end(self, *, kill: bool) -> None:
        """Let go of all actors; close their backends and kill them, if they are ours."""
        if kill:
            ready = [slot for slot in self.slots if slot.state == "ready"]
            # Nothing in an actor runs when it is killed: a session would stay open.
            closing = [slot.actor.close.remote() for slot in ready]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for slot in self.slots:
            slot.retire(kill=kill)

    def _opened(self, slot: Slot, generation: int, done: Future[Any]) -> None:
        if slot.generation != generation:
            return
        error = done.exception()
        if error is None:
            slot.state = "ready"
        elif isinstance(error, LOSSES) and "creation task" not in str(error):
            self.lose(slot, error)
        else:  # it cannot be built there, and another try would not change that
            slot.retire()
            self._set_aside(slot, readable(error), REST_OF_UNBUILDABLE_SECONDS)

    def _start_later(self, slot: Slot, seconds: float) -> None:
        generation = slot.generation

        def start() -> None:
            if slot.generation == generation:
                self.start(slot)

        timer = threading.Timer(seconds, lambda: self._post(start))
        timer.daemon = True
        timer.start()

    def _set_aside(self, slot: Slot, reason: str, rest_seconds: float) -> None:
        slot.state = "aside"
        slot.last_error = reason
        slot.rest_until = time.monotonic() + rest_seconds
        logger.warning(
            "actor %d (%r) is set aside: %s", slot.index, slot.backend, reason.splitlines()[-1]
        )
        if self.sharing:
            return
        worked = any(other.chunks or other.losses for other in self.slots)
        kind = PoolExhaustedError if worked else BackendBuildError
        self._give_up(
            kind(
                f"no actor of {len(self.slots)} is left to run on; the last failure was on "
                f"{slot.backend!r}: {reason}"
            )
        )
