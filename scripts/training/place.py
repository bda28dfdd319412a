"""The Ray that a run is on: connected to before it is known what fits on its nodes."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import training
from qailab.distributed import LauncherPool
from qailab.distributed.connection import NAMESPACE, connect, disconnect
from qailab.errors import BackendBuildError, InputError, QailabError
from training.interrupts import Interrupts

_DEVICES_SECONDS = 120.0
"""For all devices to be connected to: a connection is tried for 30 s, and processes start first."""
_TOLD_SECONDS, _FREED_SECONDS = 2.0, 30.0
"""For a cluster to notice that the program that had a run before is gone."""


@contextlib.contextmanager
def connected(address: str | None, cpus: float) -> Iterator[None]:
    """Be connected to Ray.

    Args:
        address: of a cluster; by default RAY_ADDRESS, else a local one.
        cpus: that a local one must have.

    Raises:
        PoolError: if there is no cluster at the address.
    """
    session = connect(address, cpus)
    try:
        yield
    finally:
        disconnect(session)


def here() -> Any:
    """Ray's scheduling strategy for what shares this program's fate: on its node, or nowhere."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class Post:
    """An actor that has the last checkpoint of some workers, and holds a run's name.

    When it dies it is made again, empty; calls then wait and are repeated.
    """

    def __init__(self) -> None:
        self._content: bytes | None = None
        self._version = 0
        self._error: Exception | None = None
        self._troubles: list[str] = []

    def note(self, trouble: str) -> None:
        """Leave what ended a worker, if Ray Train is to start it again."""
        self._troubles.append(trouble)

    def put(self, content: bytes) -> None:
        """Leave a checkpoint."""
        # At random: an actor that was made again must not repeat what its predecessor has used.
        self._content, self._version = content, secrets.randbits(63)

    def fail(self, error: Exception) -> None:
        """Leave what ends the run."""
        self._error = self._error or error

    def get(self, seen: int) -> tuple[int, bytes | None, Exception | None, list[str]]:
        """The last checkpoint, if it is not the one that was seen, its version, and troubles.

        What was noted is told once.
        """
        newer = self._content if self._version != seen else None
        troubles, self._troubles = self._troubles, []
        return self._version, newer, self._error, troubles


@contextlib.contextmanager
def open_post(run: str | None, check: Callable[[], None]) -> Iterator[Any]:
    """The actor, which ends with this program however that ends.

    Args:
        run: what no two programs of the cluster may be at at once; None for nothing.
        check: called while it waits.

    Raises:
        InputError: if another program is at it.
    """
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(training)  # other nodes need not have these files
    options: dict[str, Any] = {
        "num_cpus": 0,
        "scheduling_strategy": here(),
        "max_restarts": -1,
        "max_task_retries": -1,
    }
    if run is not None:
        digest = hashlib.sha256(run.encode()).hexdigest()[:24]
        options |= {"name": f"qailab-run-{digest}", "namespace": NAMESPACE}
    began, told = time.monotonic(), False
    while True:
        try:
            post = ray.remote(Post).options(**options).remote()
            break
        except ValueError as error:
            if (waited := time.monotonic() - began) > _FREED_SECONDS:
                raise InputError(
                    f"another program on this cluster is training {run}; wait for it or stop it, "
                    "or give another --name"
                ) from error
        if waited > _TOLD_SECONDS and not told:
            print(f"waiting for another program, which is at {run}", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.5)
        check()
    try:
        yield post
    finally:
        with contextlib.suppress(Exception):  # Ray may be gone
            ray.kill(post)


def wait_for_devices(pool: LauncherPool, interrupts: Interrupts) -> None:
    """Wait for all devices: which of them get which rows must not depend on who was faster.

    Raises:
        BackendBuildError: if one cannot be used.
        PoolError: if one is not ready in time.
    """
    end = time.monotonic() + _DEVICES_SECONDS
    while any(actor["state"] != "ready" for actor in pool.stats()["actors"]):
        if time.monotonic() > end:
            pool.wait(timeout=0)  # says why not
        for actor in pool.stats()["actors"]:
            if actor["state"] == "aside":
                raise BackendBuildError(
                    f"{actor['backend']} cannot be used: {_last_trouble(pool)}; mend that, or "
                    "leave it out of --devices"
                )
        time.sleep(0.05)
        interrupts.check()


def _last_trouble(pool: LauncherPool) -> str:
    """Why an actor was set aside, which a pool says when it is waited for."""
    try:
        pool.wait(timeout=0)
    except QailabError as error:
        return str(error).splitlines()[-1]
    return "it was not ready"
