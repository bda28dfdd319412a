"""Where the rows run: in this process, and on pools of Ray actors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.memory import launcher_actors
from qailab.backends import AerBackend
from qailab.distributed import LauncherPool
from qailab.distributed.connection import connect, disconnect
from qailab.launchers import RowEvaluator

IN_PROCESS = "in-process"
_READY_SECONDS = 60.0  # an actor's imports take 2 to 10 s on a busy machine


@dataclass(frozen=True)
class Mode:
    """One way to run rows.

    Args:
        name: what the report calls it.
        backend: where a layer is told to run.
        actors: the actors' process ids.
    """

    name: str
    backend: RowEvaluator
    actors: frozenset[int] = frozenset()

    @property
    def num_actors(self) -> int:
        """How many actors share the rows; 0 in this process."""
        return len(self.actors)

    def wire_bytes(self) -> int:
        """Bytes sent to and received from actors so far."""
        if not isinstance(self.backend, LauncherPool):
            return 0
        stats = self.backend.stats()
        return stats["bytes_sent"] + stats["bytes_received"]


def actors_name(count: int) -> str:
    """What the report calls a pool of that many actors."""
    return f"{count} actor{'' if count == 1 else 's'}"


def open_modes(actor_counts: Sequence[int], stack: ExitStack) -> tuple[Mode, ...]:
    """Start one pool for each count, on one local Ray; they end with the stack.

    All pools live at once, so that every mode can have its turn in every round of a measurement.
    """
    modes = [Mode(IN_PROCESS, AerBackend())]
    stack.callback(disconnect, connect("local", sum(actor_counts)))
    for count in actor_counts:
        before = launcher_actors()
        pool = stack.enter_context(LauncherPool([AerBackend()] * count))
        _wait_until_ready(pool)
        modes.append(Mode(actors_name(count), pool, launcher_actors() - before))
    return tuple(modes)


def _wait_until_ready(pool: LauncherPool) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while any(actor["state"] != "ready" for actor in pool.stats()["actors"]):
        if time.monotonic() > deadline:
            raise SystemExit(f"not all actors of {pool!r} were ready in {_READY_SECONDS:.0f} s")
        time.sleep(0.05)
