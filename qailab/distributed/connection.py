"""Connecting to Ray, or starting a local one.

Ray is imported inside functions here: some of its settings are read when it is first imported.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
from pathlib import Path

from qailab.errors import PoolError

NAMESPACE = "qailab"
_OBJECT_STORE_BYTES = 512 << 20  # circuits and probabilities; Ray's default is 30 % of the memory


def connect(address: str | None, num_cpus: float) -> bool:
    """Make sure that this process is connected to a Ray cluster.

    In order: the Ray this process already uses; the one at ``address`` or ``RAY_ADDRESS``; a new
    local one, which listens on 127.0.0.1 only, keeps token authentication on and has no dashboard.

    Args:
        address: where a cluster is, or None.
        num_cpus: CPUs that a new local Ray must have at least.

    Returns:
        Whether the connection was made here, and so is to be ended by `disconnect`.

    Raises:
        PoolError: if there is no cluster at the address.
    """
    local = address in (None, "local") and (address == "local" or not os.environ.get("RAY_ADDRESS"))
    if local:
        # Read when ray is imported: a local Ray must not listen on the network's interfaces.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return False
    if not local:
        try:
            ray.init(address=address, namespace=NAMESPACE, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = address or os.environ["RAY_ADDRESS"]
            raise PoolError(
                f"no Ray cluster answers at {where!r} ({type(error).__name__}: {error}); start "
                "one, correct address or RAY_ADDRESS, or leave both out for a local Ray"
            ) from error
        return True
    _keep_token_private()
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, -int(-num_cpus // 1)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace=NAMESPACE,
        object_store_memory=_OBJECT_STORE_BYTES,
    )
    return True


def disconnect() -> None:
    """Leave the cluster; a local one that was started here ends."""
    import ray

    with contextlib.suppress(Exception):  # it may be gone already, which is what is wanted
        ray.shutdown()


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
