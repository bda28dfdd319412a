"""Connecting to Ray, or starting a local one.

Ray is imported inside functions here: some of its settings are read when it is first imported.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import socket
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from qailab.errors import PoolError

NAMESPACE = "qailab"
_LOCAL_ENVIRONMENT = {
    # Despite its name: with 0, Ray binds all its servers to 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Workers run at nice 15 by default, and lose to any other process on the machine.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_REACHABLE_SECONDS = 5.0
_OBJECT_STORE_BYTES = 512 << 20  # circuits and probabilities; Ray's default is 30 % of the memory


_lock = threading.Lock()
_users = 0  # pools on a connection that was made here; Ray has one connection for each process


def connect(address: str | None, num_cpus: float) -> bool:
    """Make sure that this process is connected to a Ray cluster.

    In order: the Ray this process already uses; the one at ``address`` or ``RAY_ADDRESS``; a new
    local one, which listens on 127.0.0.1 only, keeps token authentication on and has no dashboard.

    Args:
        address: where a cluster is, ``"local"`` for a new local one, or None.
        num_cpus: CPUs that a new local Ray must have at least.

    Returns:
        Whether the connection was made here; then `disconnect` is to be called once.

    Raises:
        PoolError: if there is no cluster at the address.
    """
    global _users
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    with _lock:
        if not _users and _already_connected():
            return False
        if not _users:
            _start_local(num_cpus) if where == "local" else _join(where)
        _users += 1
        return True


def disconnect() -> None:
    """Leave the cluster when the last pool does; a local one that was started here ends."""
    global _users
    import ray

    with _lock:
        _users -= 1
        if not _users:
            with contextlib.suppress(Exception):  # it may be gone already, which is what is wanted
                ray.shutdown()


def _already_connected() -> bool:
    if "ray" not in sys.modules:
        return False
    import ray

    return bool(ray.is_initialized())


def _join(where: str) -> None:
    import ray

    try:
        _check_reachable(where)
        ray.init(address=where, namespace=NAMESPACE, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise PoolError(
            f"no Ray cluster answers at {where!r} ({type(error).__name__}: {error}); start one, "
            "correct address or RAY_ADDRESS, or leave both out for a local Ray"
        ) from error


def _check_reachable(where: str) -> None:
    """Fail within seconds where nothing listens: Ray itself would try for minutes."""
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _REACHABLE_SECONDS).close()


def _start_local(num_cpus: float) -> None:
    with _environment(_LOCAL_ENVIRONMENT):
        import ray

        _keep_token_private()
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, math.ceil(num_cpus)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace=NAMESPACE,
            object_store_memory=_OBJECT_STORE_BYTES,
        )


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for what is started inside, where they are not set already."""
    added = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def available_resources() -> str:
    """The cluster's free and total resources, for messages."""
    import ray

    free, total = ray.available_resources(), ray.cluster_resources()
    names = sorted(name for name in total if name in ("CPU", "GPU") or name.islower())
    shown = [f"{name} {free.get(name, 0):g} of {total[name]:g} free" for name in names]
    return ", ".join(shown) or "none"


def _keep_token_private() -> None:
    """Ray would write its token file readable for everyone; make it, or keep it, the owner's."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            with contextlib.suppress(PermissionError):  # somebody else's file is theirs to keep
                path.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
