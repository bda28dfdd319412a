"""`SharedState` that all processes of a Ray cluster see: one small Ray actor.

The actor is made by whoever needs it first, takes no CPU, and belongs to no driver: budgets are
shared by pools of several. It is pinned to the head node, whose loss ends the cluster, and writes
every value to its disk before it answers, so that it can be killed at any time: Ray starts it
again, and it reads them back. It ends by itself some time after the last pool.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qailab.distributed.connection import NAMESPACE
from qailab.errors import TransientBackendError

STATE_NAME = "shared-state"
_HEAD = "node:__internal_head__"  # the resource by which Ray tells its head node
_PATIENCE_SECONDS = 60.0  # a restart takes 1 to 3 s, on a busy machine more
_LOOK_SECONDS = 60.0


class RayState:
    """Values that all processes of the cluster agree on; see `qailab.backends.shared.SharedState`.

    Names belong to the cluster: who wants a value for one pool begins its name with ``group``.

    Args:
        group: the pool's name.
    """

    def __init__(self, group: str) -> None:
        self.group = group

    def get(self, name: str) -> tuple[int, bytes | None]:
        version, value = _ask("get", name)
        return version, value

    def put(self, name: str, version: int, value: bytes) -> bool:
        return bool(_ask("put", name, version, value, uuid.uuid4().hex))


def _ask(method: str, *arguments: Any) -> Any:
    """Call the actor, again if it ended meanwhile: both its methods may be repeated."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            call = getattr(_state_actor(), method).remote(*arguments)
            return ray.get(call, timeout=max(0.1, deadline - time.monotonic()))
        except (RayActorError, GetTimeoutError) as error:
            if "creation task" in str(error) or time.monotonic() > deadline:
                raise TransientBackendError(
                    "the actor that keeps budgets and sessions for all processes does not answer: "
                    f"{type(error).__name__}: {error}"
                ) from error
        time.sleep(0.2)


def _state_actor() -> Any:
    """Find the actor, or make it."""
    with suppress(ValueError):  # Ray's word for "no such actor"
        return ray.get_actor(STATE_NAME, NAMESPACE)
    head = next((n["NodeID"] for n in ray.nodes() if n["Alive"] and _HEAD in n["Resources"]), None)
    pinned = "DEFAULT" if head is None else NodeAffinitySchedulingStrategy(head, soft=False)
    options = {
        "name": STATE_NAME,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "scheduling_strategy": pinned,
    }
    return ray.remote(StateActor).options(**options).remote()


class StateActor:
    """Keeps the values of `RayState`, in memory and in a file of Ray's session folder.

    Args:
        path: the file.
        look_seconds: how often to see whether a pool is there; it ends when twice there was none.
    """

    def __init__(self, path: str | None = None, look_seconds: float = _LOOK_SECONDS) -> None:
        context = ray.get_runtime_context()
        folder = Path(context.get_temp_dir(), context.get_session_name())
        self._path = folder / "qailab-state.json" if path is None else Path(path)
        # By name: version, value in hexadecimal digits, and the call that wrote it.
        self._values: dict[str, tuple[int, str, str]] = {}
        if self._path.exists():
            self._values = json.loads(self._path.read_text())
        threading.Thread(target=self._end_after_pools, args=(look_seconds,), daemon=True).start()

    def get(self, name: str) -> tuple[int, bytes | None]:
        if name not in self._values:
            return 0, None
        version, value, _ = self._values[name]
        return version, bytes.fromhex(value)

    def put(self, name: str, version: int, value: bytes, call: str) -> bool:
        known, _, by = self._values.get(name, (0, "", ""))
        if known != version:
            return by == call  # it is repeated, as its answer was lost
        values = self._values | {name: (version + 1, value.hex(), call)}
        draft = self._path.with_suffix(".draft")
        with open(draft, "w") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self._path)  # that survives a kill, though perhaps not a power cut
        self._values = values
        return True

    def _end_after_pools(self, look_seconds: float) -> None:
        """End when no pool is left; the file stays, should there be another one."""
        looks = 0
        while looks < 2:
            time.sleep(look_seconds)
            named = ray.util.list_named_actors(all_namespaces=True)
            looks = 0 if any(each["name"].startswith("qailab-") for each in named) else looks + 1
        ray.kill(ray.get_runtime_context().current_actor)
