"""Whether Ray is usable: the cluster, its nodes, and one gradient through an actor."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qailab.checks import Check, Finding, message_of
from qailab.distributed.connection import connect, current_session, disconnect
from qailab.errors import QailabError

_SHARED_MEMORY = Path("/dev/shm")
_PROBED_NODES = 32  # one task each; enough to see that nodes differ
_NODE_SECONDS = 40.0  # a node's first worker takes 1 to 10 s to start on a busy machine
_GRADIENT_SECONDS = 60.0
_TOLERANCE = 1e-9
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0"


class RayCheckup:
    """Checks of one Ray; the later ones need the first.

    Args:
        address: the cluster's address, or None for ``RAY_ADDRESS`` or else a local one.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._session: str | None = None
        self._connected = False

    def checks(self) -> list[Check]:
        """The checks, in order."""
        network = "see that the head node runs and that its ports can be reached from here"
        target = self._address or os.environ.get("RAY_ADDRESS") or ""
        if target.startswith(("127.", "localhost")):
            # Ray takes a loopback address for this machine's address on the network.
            network += "; where Ray listens on 127.0.0.1 only, set " + _LOOPBACK + " here, too"
        return [
            Check("Ray", self.cluster, 60, network),
            Check("Ray's nodes", self.nodes, _NODE_SECONDS + 20, network),
            # A pool waits 60 s for its first actor, and then says what is missing.
            Check("gradient", self.gradient, _GRADIENT_SECONDS + 80, "see the rows about Ray"),
            Check("leaving Ray", self.leave, 30, "look for Ray processes that were left running"),
        ]

    def cluster(self) -> Iterator[Finding]:
        """Connect, and say what is there."""
        where = self._origin()
        try:
            self._session = connect(self._address, 1)
        except QailabError as error:
            yield Finding("Ray", where, message_of(error), _after_no_connection(str(error)))
            return
        self._connected = True
        import ray

        address = ray.get_runtime_context().gcs_address
        yield Finding("Ray", f"{ray.__version__} at {address}: {where}")
        nodes = ray.nodes()
        alive = [node for node in nodes if node["Alive"]]
        dead = f", {len(nodes) - len(alive)} gone" if len(nodes) > len(alive) else ""
        yield Finding("nodes", f"{len(alive)}{dead}")
        yield from _resources(ray.cluster_resources(), ray.available_resources())
        here = ray.get_runtime_context().get_node_id()
        yield _object_store(alive, here)

    def nodes(self) -> Iterator[Finding]:
        """Compare the versions on the nodes with those here."""
        if not self._connected:
            return
        import ray

        alive = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
        names = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        here, on_node = _version_probe()
        expected = here()
        pending = {on_node(node): node for node in alive[:_PROBED_NODES]}
        ready, late = ray.wait(list(pending), num_returns=len(pending), timeout=_NODE_SECONDS)
        same = 0
        for answer in ready:
            finding = _compared(names[pending[answer]], expected, answer)
            same += not finding.problem
            if finding.problem:
                yield finding
        for answer in late:
            ray.cancel(answer, force=True)
            yield Finding(
                "node versions",
                f"{names[pending[answer]]}: no answer within {_NODE_SECONDS:g} s",
                "no worker process starts there",
                "look at that node's load and at its Ray logs",
            )
        if same:
            versions = ", ".join(f"{name} {version}" for name, version in expected.items())
            of = f"{same} of {len(alive)} nodes" if same < len(alive) else "all nodes"
            yield Finding("node versions", f"as here on {of}: {versions}")

    def gradient(self) -> Iterator[Finding]:
        """One gradient through an actor, compared with the derivative taken by hand."""
        if not self._connected:
            yield Finding("gradient", "not run", "there is no Ray to run on", "see the row Ray")
            return
        try:
            error = _gradient_error()
        except (QailabError, TimeoutError) as failure:
            yield Finding(
                "gradient",
                "no answer from an actor",
                message_of(failure),
                "install the same qailab on all nodes; free a CPU for the actor",
            )
            return
        found = f"through one actor, {error:.0e} off the derivative taken by hand"
        if error <= _TOLERANCE:
            yield Finding("gradient", found)
        else:
            yield Finding(
                "gradient",
                found,
                f"more than {_TOLERANCE:g} off: it is not the gradient",
                "reinstall qiskit and qiskit-aer on all nodes; report it if that does not help",
            )

    def leave(self) -> Iterator[Finding]:
        """Leave the cluster; a Ray that was started here ends."""
        disconnect(self._session)
        self._session = None
        self._connected = False
        yield from ()

    def _origin(self) -> str:
        if self._address is not None:
            return f"{self._address}, from --address"
        if current_session() is not None:
            return "the one that this process uses"
        if os.environ.get("RAY_ADDRESS"):
            return f"{os.environ['RAY_ADDRESS']}, from RAY_ADDRESS"
        return "a local one, started for this check"


def _after_no_connection(message: str) -> str:
    if "ersion mismatch" in message:
        return "use the Python and the Ray of the cluster here, or the other way round"
    # Ray says so on stderr only if the token is wrong; but something listens at the address.
    if "uthenticat" in message or "Failed to connect to Ray cluster" in message:
        return (
            "if that is a Ray with tokens (the default of ray.init): set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH to its token file"
        )
    return (
        "start the cluster (ray start --head), correct --address or RAY_ADDRESS, or leave both "
        "out for a local Ray"
    )


def _resources(total: dict[str, float], free: dict[str, float]) -> Iterator[Finding]:
    cpus = f"{total.get('CPU', 0):g}, {free.get('CPU', 0):g} free"
    if total.get("CPU", 0) < 1:
        yield Finding("CPUs", cpus, "simulator actors take one each", "add nodes with CPUs")
    elif free.get("CPU", 0) < 1:
        to_do = "close what holds them, or use actor_options={'num_cpus': 0.5}"
        yield Finding("CPUs", cpus, "none is free for an actor", to_do, warning=True)
    else:
        yield Finding("CPUs", cpus)
    yield Finding("GPUs", f"{total.get('GPU', 0):g}")
    yield Finding("qpu_session", f"{total.get('qpu_session', 0):g}")


def _object_store(nodes: list[dict[str, Any]], here: str) -> Finding:
    sizes = {node["NodeID"]: node["Resources"].get("object_store_memory", 0) for node in nodes}
    found = f"{_mib(sum(sizes.values()))} in all"
    if not _SHARED_MEMORY.is_dir():
        return Finding("object store", f"{found}; no {_SHARED_MEMORY} here")
    shared = os.statvfs(_SHARED_MEMORY)
    size = shared.f_frsize * shared.f_blocks
    found += (
        f"; {_SHARED_MEMORY} here: {_mib(size)}, {_mib(shared.f_frsize * shared.f_bavail)} free"
    )
    if size >= sizes.get(here, 0):
        return Finding("object store", found)
    return Finding(
        "object store",
        found,
        f"{_SHARED_MEMORY} is smaller than this node's object store: Ray uses the disk instead",
        "give the container a larger --shm-size",
        warning=True,
    )


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _version_probe() -> tuple[Any, Any]:
    """What gives versions: here, and as a Ray task on a node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def versions() -> dict[str, str]:
        # Ray pickles a nested function by its code: it also runs where qailab is not installed.
        import importlib
        import platform
        from importlib import metadata

        found = {"Python": platform.python_version()}
        try:
            found["qailab"] = importlib.import_module("qailab").__version__
        except ImportError:
            found["qailab"] = "missing"
        for name in ("ray", "qiskit", "qiskit-aer"):
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = "missing"
        return found

    task = ray.remote(num_cpus=0, max_retries=0)(versions)

    def on_node(node: str) -> Any:
        return task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, False)
        ).remote()

    return versions, on_node


def _compared(node: str, expected: dict[str, str], answer: Any) -> Finding:
    import ray

    check = "node versions"
    same = "install the same versions on all nodes as here"
    try:
        found = ray.get(answer, timeout=_NODE_SECONDS)
    except Exception as error:  # a lost node, another Python that cannot read the function, ...
        return Finding(check, f"{node}: a task failed there", message_of(error), same)
    other = {name: version for name, version in expected.items() if found[name] != version}
    if not other:
        return Finding(check, node)
    return Finding(
        check,
        f"{node}: " + ", ".join(f"{name} {found[name]}" for name in other),
        "here: " + ", ".join(f"{name} {version}" for name, version in other.items()),
        same,
        # Other minor versions of the libraries work together, but may round differently.
        warning="missing" not in found.values() and not {"Python", "ray", "qailab"} & set(other),
    )


def _gradient_error() -> float:
    """How far a gradient through an actor is from ``p(11) = sin(x/2)**2 * sin(w/2)**2``'s."""
    import numpy as np
    from qiskit.circuit import Parameter, QuantumCircuit

    from qailab.backends import AerBackend
    from qailab.distributed.pool import LauncherPool
    from qailab.launchers import BackwardPass, CircuitProblem, QuantumLauncher

    x, w = 0.7, -1.9
    circuit = QuantumCircuit(2)
    circuit.ry(Parameter("input"), 0)
    circuit.ry(Parameter("weight"), 1)
    circuit.measure_all()
    with LauncherPool([AerBackend()]) as pool:
        launcher = QuantumLauncher(CircuitProblem(circuit), BackwardPass(shots=None), pool)
        of_11 = np.array([[0.0, 0.0, 0.0, 1.0]])
        handle = launcher.submit_backward(np.array([[x]]), np.array([w]), of_11)
        gradient = handle.result(_GRADIENT_SECONDS)
    assert gradient.inputs is not None
    assert gradient.weights is not None
    by_hand_x = math.sin(x) / 2 * math.sin(w / 2) ** 2
    by_hand_w = math.sin(w) / 2 * math.sin(x / 2) ** 2
    return max(
        abs(float(gradient.inputs[0, 0]) - by_hand_x),
        abs(float(gradient.weights[0]) - by_hand_w),
    )
