"""Connecting to Ray, or starting a local one.

Ray is imported inside functions here: some of its settings are read when it is first imported.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from qailab.errors import InputError, InputTypeError, PoolError

logger = logging.getLogger("qailab.distributed")

NAMESPACE = "qailab"
_QUIET = {
    # What a pool says in one line of its own, or means to do. Read when ray is first imported.
    "RAY_DEDUP_LOGS_SKIP_REGEX": (
        "worker processes have been started on node|A worker died or was killed while executing"
    ),
}
_LOCAL_ENVIRONMENT = {
    **_QUIET,
    # Despite its name: with 0, Ray binds all its servers to 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Workers run at nice 15 by default, and lose to any other process on the machine.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_REACHABLE_SECONDS = 5.0
_OBJECT_STORE_BYTES = 512 << 20  # circuits and probabilities; Ray's default is 30 % of the memory

_lock = threading.RLock()  # a dropped pool is ended by whoever collects garbage
_users: dict[str, int] = {}  # pools by the session that was begun for them; Ray has one at a time


def connect(
    address: str | None, num_cpus: float, resources: Mapping[str, float] | None = None
) -> str | None:
    """Make sure that this process is connected to a Ray cluster.

    In order: the Ray this process already uses; the one at ``address`` or ``RAY_ADDRESS``; a new
    local one, which listens on 127.0.0.1 only, keeps token authentication on and has no dashboard.

    Args:
        address: where a cluster is, ``"local"`` for a new local one, or None.
        num_cpus: CPUs that a new local Ray has at least.
        resources: its custom resources.

    Returns:
        The session, for `disconnect`, if it was begun for pools, else None.

    Raises:
        PoolError: if there is no cluster at the address.
        InputError: if this process is connected to another cluster than the address says.
    """
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    if not isinstance(where, str) or where.isdigit():
        raise InputTypeError(f"address must be 'HOST:PORT', as '127.0.0.1:{where}', got {where!r}")
    if where.startswith("http"):
        raise InputError(
            f"address {where!r} (or RAY_ADDRESS) is that of a dashboard, to which programs are "
            f"submitted: scripts/submit --address {where} -- PROGRAM; a pool joins a cluster at "
            "'HOST:6379', or 'auto' on one of its machines"
        )
    with _lock, _own_sigterm():
        session = current_session()
        if session is None:
            _start_local(num_cpus, resources or {}) if where == "local" else _join(where)
            session = current_session()
            assert session is not None
            _users[session] = 0
        elif address is not None:
            _check_same_cluster(address)
        if session not in _users:
            return None
        _users[session] += 1
        return session


def disconnect(session: str | None) -> None:
    """Leave the cluster when the last pool does; a local one that was started here ends."""
    if session is None:
        return
    with _lock:
        _users[session] -= 1
        if _users[session] == 0:
            del _users[session]
            if current_session() == session:
                import ray

                ray.shutdown()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Put the program's answer to SIGTERM back in place of Ray's, or an exit with status 143.

    Ray's exits with status 15; and below Python's handlers it sets one (of absl) that aborts what
    has not ended 3 s later, which closing a session may take. Only the main thread may set one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    rays = getattr(before, "__module__", "").startswith("ray.")
    own = _exit if rays or before in (None, signal.SIG_DFL) else before
    try:
        yield
    except SystemExit as ended:  # while Ray starts, only its handler is there
        if ended.code == signal.SIGTERM and callable(own):
            own(signal.SIGTERM, None)
        raise
    finally:
        # Not in a Ray worker, whose SIGTERM is Ray's own matter.
        if current_session() and sys.modules["ray"].get_runtime_context().get_task_id() is None:
            signal.signal(signal.SIGTERM, own)


def _exit(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # another one must not interrupt the closing
    sys.exit(128 + number)  # as shells have it; pools are closed at exit


def current_session() -> str | None:
    """Return what tells this connection to Ray from an earlier or later one; None if none."""
    if "ray" not in sys.modules:
        return None
    import ray

    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return f"{context.get_node_id()}/{context.get_job_id()}"


def _check_same_cluster(address: str) -> None:
    import ray

    here = ray.get_runtime_context().gcs_address
    if address not in ("auto", "local", here) and not address.startswith("ray://"):
        raise InputError(
            f"this process is connected to the Ray at {here}, not at {address!r}; leave address "
            "out, or call ray.shutdown() first"
        )


def _join(where: str) -> None:
    with _environment(_QUIET):
        import ray

    try:
        host, _, port = where.removeprefix("ray://").rpartition(":")
        if host and port.isdigit():  # fail within seconds: Ray itself would try for minutes
            place = host.strip("[]"), int(port)
            socket.create_connection(place, _REACHABLE_SECONDS).close()
        ray.init(address=where, namespace=NAMESPACE, logging_level=logging.ERROR)
    except ray.exceptions.AuthenticationError as error:  # it is thrown before anybody is asked
        raise PoolError(f"the Ray cluster at {where!r} cannot be joined: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise refusal(where, error) from error


def refusal(where: str, error: Exception) -> PoolError:
    """Return what to say of an address where nothing listens, or Ray did not get on with it."""
    if "ersion mismatch" in str(error):
        numbers = " ".join(str(error).split()).removeprefix("Version mismatch: ")
        return PoolError(
            f"the Ray cluster at {where!r} and this program have different versions: {numbers} "
            "Use the cluster's versions here, or submit this program to it as a job"
        )
    if str(error).startswith("Failed to connect to Ray cluster"):
        return PoolError(
            f"something listens at {where!r}, but it does not let this program in as a part of "
            "its Ray cluster. Give what the cluster was started with: its token (RAY_AUTH_MODE, "
            "and RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token) and its TLS settings (RAY_USE_TLS, "
            f"RAY_TLS_*); or correct address. Ray says: {error}"
        )
    return PoolError(
        f"no Ray cluster answers at {where!r} ({type(error).__name__}: {error}); start one, "
        "correct address or RAY_ADDRESS, or leave both out for a local Ray"
    )


def _start_local(num_cpus: float, resources: Mapping[str, float]) -> None:
    with _environment(_LOCAL_ENVIRONMENT):
        import ray

        # There is no public way to say this once ray is imported (see _LOCAL_ENVIRONMENT), and
        # without it, Ray would listen on the network.
        from ray._private import ray_constants

        _keep_token_private()
        listen_everywhere = ray_constants.ENABLE_RAY_CLUSTER
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            for attempt in (1, 2):
                try:
                    ray.init(
                        address="local",
                        num_cpus=max(os.cpu_count() or 1, math.ceil(num_cpus)),
                        resources=dict(resources),
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        namespace=NAMESPACE,
                        object_store_memory=_OBJECT_STORE_BYTES,
                    )
                    return
                except BaseException as error:  # Ctrl-C: what has started already must not stay
                    ray.shutdown()
                    if "timed out during startup" not in str(error):
                        raise
                    _log_slow_start(attempt, error)
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = listen_everywhere


def _log_slow_start(attempt: int, error: BaseException) -> None:
    """Say that Ray did not start within its own 30 s; the second time, raise."""
    busy = f"{os.getloadavg()[0]:.1f} processes want one of its {os.cpu_count()} cores"
    if attempt > 1:
        raise PoolError(
            f"Ray did not start within 30 s, twice: this machine is busy ({busy}); try again later"
        ) from error
    logger.warning("Ray did not start within 30 s (%s); trying once more", busy)


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables for what is started inside, where they are not set already."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def undeclared(resources: Iterable[str]) -> set[str]:
    """Return which of these resources a Ray that this process started by itself does not have.

    Such a Ray is one machine: where nobody said which nodes have the resource, this one has it. In
    a cluster that was joined, some node has to declare it.
    """
    import ray

    # A session's name ends with the number of the process that started it.
    starter = ray.get_runtime_context().get_session_name().rpartition("_")[2]
    return set(resources) - set(ray.cluster_resources()) if starter == str(os.getpid()) else set()


def may_have_gpus() -> bool:
    """Return whether a machine has a GPU, or an autoscaler may start one that has.

    Autoscalers label their machines with the group that they are of.
    """
    import ray

    return any(
        node["Resources"].get("GPU") or "ray.io/node-group" in node["Labels"]
        for node in ray.nodes()
        if node["Alive"]
    )


def available_resources(needs: str) -> str:
    """Return the cluster's free and total resources in words, and which of ``needs`` it lacks.

    Nothing if no machine is left.
    """
    import ray

    free, total = ray.available_resources(), ray.cluster_resources()
    if not total:
        return ""
    # Not what Ray keeps account of by itself: memory, nodes, parts of placement groups.
    known = ("memory", "object_store_memory", "node:", "CPU_group_", "GPU_group_", "bundle_group_")
    names = sorted(name for name in total if not name.startswith(known))
    shown = [f"{name} {free.get(name, 0):g} of {total[name]:g} free" for name in names]
    shown += [
        f"no {name} on any node (one that has it needs ray start --resources='{{\"{name}\": 1}}')"
        for name in sorted(set(re.findall(r"[\d.]+ (\w+)", needs)) - {"CPU", "GPU"} - set(total))
    ]
    return ", ".join(shown) or "none"


def _keep_token_private() -> None:
    """Ray would write its token file readable for everyone; make it, or keep it, the owner's."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if given or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"auth_token-{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    try:
        os.link(draft, path)  # complete, or not at all: another process may be starting as well
    except FileExistsError:
        with contextlib.suppress(PermissionError):  # somebody else's file is theirs to keep
            path.chmod(0o600)
    finally:
        draft.unlink()
