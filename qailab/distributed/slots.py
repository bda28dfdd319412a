"""Slots: the places of a pool, each held by one Ray actor after another."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from qailab.backends.base import Backend
from qailab.distributed.actor import LauncherActor
from qailab.distributed.connection import NAMESPACE

State = Literal["starting", "ready", "aside"]

_SPEED_MEMORY = 0.5  # weight of the newest chunk in the speed estimate: adapts within a few chunks
_GENERATIONS_AHEAD = 32  # a look-up takes about 1 ms
_CALL_SECONDS = 0.003  # what a chunk costs its actor whatever its rows (Aer's set-up of a run)


@dataclass(eq=False)
class Chunk:
    """Rows of one job that travel together.

    Args:
        job: the job's number.
        start: the number of the first row.
        stop: one past the number of the last row.
        attempts: how often an actor was lost while it had this chunk.
    """

    job: int
    start: int
    stop: int
    attempts: int = 0


@dataclass(eq=False)
class Slot:
    """One actor, its work, and what is known about it.

    Args:
        name: the name of the slot's actors, without their generation.
        index: the number of the slot in its pool.
        backend: the backend, as a description.
        recipe: the pickled backend, for the actor.
        owned: whether this process made the pool; others look its actors up.
        options: Ray options of the actor that override the backend's own needs.
    """

    name: str
    index: int
    backend: Backend
    recipe: bytes
    owned: bool
    options: Mapping[str, Any]
    generation: int = 0
    state: State = "starting"
    actor: Any = None
    in_flight: dict[Any, Chunk] = field(default_factory=dict)
    circuits: set[str] = field(default_factory=set)
    compiled: set[str] = field(default_factory=set)
    speeds: dict[str, float] = field(default_factory=dict)
    losses: int = 0  # actors lost since the last answer
    rest_until: float = 0.0
    last_error: str = ""
    rows: int = 0
    chunks: int = 0
    seconds: float = 0.0
    replaced: int = 0

    def start(self) -> Any:
        """Create the actor (or find the one another process has made); a ref of its opening."""
        self.state = "starting"
        self.circuits = set()
        self.compiled = set()
        if not self.owned and self._find():
            return self.actor.open.remote()
        named = {"name": self._actor_name(), "namespace": NAMESPACE, "get_if_exists": True}
        options = actor_options(self.backend, self.options) | named
        self.actor = ray.remote(LauncherActor).options(**options).remote(self.recipe)
        return self.actor.open.remote()

    def _actor_name(self) -> str:
        return f"{self.name}-{self.index}-{self.generation}"

    def _find(self) -> bool:
        """Find the slot's actor, which its owner may have replaced more often than we know."""
        known = self.generation
        for self.generation in range(known, known + _GENERATIONS_AHEAD):
            with suppress(ValueError):  # Ray's word for "no such actor"
                self.actor = ray.get_actor(self._actor_name(), NAMESPACE)
                return True
        self.generation = known
        return False

    def needs_in_words(self) -> str:
        """What the actor takes from its node, for messages."""
        options = actor_options(self.backend, self.options)
        custom = [f"{amount:g} {name}" for name, amount in (options["resources"] or {}).items()]
        return ", ".join([f"{options['num_cpus']:g} CPU", f"{options['num_gpus']:g} GPU", *custom])

    def retire(self, *, kill: bool = True) -> list[Chunk]:
        """Drop the actor; the chunks it had in flight."""
        lost = list(self.in_flight.values())
        self.in_flight = {}
        if kill and self.actor is not None:
            with suppress(Exception):  # it, or Ray, may be gone already
                ray.kill(self.actor)  # half-dead actors would answer later
        self.actor = None
        self.state = "starting"
        self.generation += 1
        return lost

    def learn(self, key: str, rows: int, seconds: float) -> None:
        """Note that rows of the circuit ``key`` were answered in some seconds."""
        self.rows += rows
        self.chunks += 1
        self.seconds += seconds
        self.losses = 0
        if key not in self.compiled:  # its first chunk was compiled for, and says little
            self.compiled.add(key)
            return
        newest = rows / max(seconds - _CALL_SECONDS, seconds / 10, 1e-6)
        known = self.speeds.get(key, newest)
        self.speeds[key] = (1 - _SPEED_MEMORY) * known + _SPEED_MEMORY * newest


def actor_options(backend: Backend, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Ray's options for an actor with a backend: its needs, and the user's overrides."""
    needs = backend.resources
    return {
        "num_cpus": needs.num_cpus,
        "num_gpus": needs.num_gpus,
        "resources": dict(needs.custom),
        # A lost actor is replaced by the pool, which knows what it was doing; Ray's own restarts
        # and retries would run rows again behind its back.
        "max_restarts": 0,
        "max_task_retries": 0,
        **overrides,
    }
