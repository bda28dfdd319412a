"""``python -m qailab.doctor [--address A] [--ibm]``: what of qailab works on this machine.

It shows what was found, what is wrong, and what to do: versions, Aer, Ray and its nodes, one
gradient through an actor, from which size on a pool pays, and with ``--ibm`` the IBM Quantum
account (nothing runs there). The exit code is 0 if nothing is wrong (warnings do not count), 1 if
something is, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import os
import platform
import re
import signal
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_ACCOUNT = Path("~/.qiskit/qiskit-ibm.json")
_NODE_SECONDS = 40.0  # for all nodes; a first worker takes 1 to 10 s to start on a busy machine
_GRADIENT_SECONDS = 25.0  # from the first actor on, for which the pool itself waits a minute
_TOLERANCE = 1e-9
_TIMED_ACTORS = 2
_SAMPLES = 1, 24  # 60 and 1440 rows of 6 qubits: about 5 and 100 ms on one core
_LEAST_GAIN = 1.1
_TIMED_RUNS = 10  # of which the quickest counts: others may use the machine
_SECRET_PART = 8  # characters in a row that give a secret away; IBM's API keys have 44
_LONGEST = 360  # of a message; remote tracebacks have thousands of characters
_COMPARED = ("Python", "qailab", "ray", "qiskit", "qiskit-aer")

Look = Callable[[], Iterable["Finding"]]


@dataclass(frozen=True)
class Finding:
    """What a check found, what is wrong with it if anything is, and what to do about that.

    Work goes on in spite of a ``warning``.
    """

    check: str
    found: str
    problem: str = ""
    to_do: str = ""
    warning: bool = False

    def text(self, secrets: Iterable[str]) -> str:
        """Format it as lines of at most 100 characters, without any part of these secrets."""
        kind = "OK" if not self.problem else "warning" if self.warning else "WRONG"
        parts = {
            secret[start : start + _SECRET_PART]
            for secret in secrets
            for start in range(len(secret) - _SECRET_PART + 1)
        }
        lines, begin = [], f"{kind:9}{self.check:19} "
        for text in (self.found, *((self.problem, f"-> {self.to_do}") if self.problem else ())):
            if any(part in begin + text for part in parts):
                begin, text = f"{kind:29}", "(not shown: a part of a secret is in it)"
            lines.append(textwrap.fill(begin + text, 100, subsequent_indent=" " * 29))
            begin = " " * 29
        return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, show what they find, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m qailab.doctor", description="Check what of qailab works on this machine."
    )
    parser.add_argument(
        "--address", help="a Ray cluster; by default RAY_ADDRESS, or a local Ray for the check"
    )
    parser.add_argument("--ibm", action="store_true", help="check the IBM Quantum account, too")
    options = parser.parse_args(arguments)
    checks: dict[str, Look] = {
        "versions": _versions,
        "Aer": _aer,
        "Ray": lambda: _ray(options.address),
        **({"IBM account": _ibm} if options.ibm else {}),
    }
    secrets = list(_secrets())
    wrong = warned = 0
    sys.stdout.write(f"looking at {', '.join(checks)}\n")
    for finding in findings_of(checks):
        wrong += bool(finding.problem) and not finding.warning
        warned += bool(finding.problem) and finding.warning
        sys.stdout.write(f"{finding.text(secrets)}\n")
    counted = f"{warned or 'no'} warning{'s' * (warned != 1)}"
    sys.stdout.write(f"{wrong or 'nothing'} wrong, {counted}\n")
    return 1 if wrong else 0


def findings_of(checks: Mapping[str, Look], seconds: float = 90.0) -> Iterator[Finding]:
    """Run the checks one after the other: none can raise, and each finding has this deadline.

    IBM's client, and a Ray that is half dead, may wait for ever: an alarm interrupts them.
    """
    late = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal late
        late = True
        raise KeyboardInterrupt  # what no library keeps to itself, nor Ray's own waiting

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for name, look in checks.items():
            late = False
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
            try:
                for finding in look():
                    yield finding
                    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
            except (Exception, SystemExit) as error:  # no check ends the others
                to_do = "install it again, into a fresh environment: pip install ."
                yield Finding(name, "the check failed", message_of(error), to_do)
            except KeyboardInterrupt:
                if not late:
                    raise
                found = f"no answer within {seconds:g} s"
                to_do = "see whether what it looks at can be reached: network, ports, proxy"
                yield Finding(name, found, "it takes too long", to_do)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def message_of(error: BaseException) -> str:
    """Format an error as one printable line, the middle left out if it is long."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).split())
    text = "".join(character for character in text if character.isprintable())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _secrets() -> Iterator[str]:
    """Find the secrets that this process could use, to keep them out of what it shows."""
    yield os.environ.get("QISKIT_IBM_TOKEN", "").strip()
    yield os.environ.get("RAY_AUTH_TOKEN", "").strip()
    for file in (os.environ.get("RAY_AUTH_TOKEN_PATH", os.devnull), "~/.ray/auth_token", _ACCOUNT):
        try:
            text = Path(file).expanduser().read_text().strip()
            accounts = json.loads(text) if file is _ACCOUNT else {"": {"token": text}}
            yield from (str(account.get("token", "")).strip() for account in accounts.values())
        except (OSError, ValueError, AttributeError):  # whoever needs the file says what is wrong
            continue


def installed() -> dict[str, str]:
    """Return the versions of Python and of all packages, here or as a task on a node."""
    found = reversed(list(metadata.distributions()))  # of two copies, the first is imported
    packages = {one.name.lower().replace("_", "-"): one.version for one in found}
    return {"Python": platform.python_version(), **packages}


def _versions() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    here, version = installed(), importlib.import_module("qailab").__version__
    yield Finding("Python", here["Python"])
    problem = "" if here.get("qailab") == version else "another copy, or none, is installed"
    where = f"{version} in {Path(__file__).parent}"
    yield Finding("qailab", where, problem, "pip install . in its folder", warning=True)
    for text in (metadata.requires("qailab") if "qailab" in here else None) or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = here.get(requirement.name.lower())
        fits = found is not None and requirement.specifier.contains(found, prereleases=True)
        problem = "" if fits else f"qailab needs {requirement.specifier}"
        to_do = f"pip install '{text.partition(';')[0].strip()}'"
        yield Finding(requirement.name, found or "not installed", problem, to_do)
    importlib.import_module("qailab.torch")  # what is installed may still be broken


def _aer() -> Iterator[Finding]:
    from qiskit_aer import AerSimulator

    simulator = AerSimulator()
    methods = ", ".join(simulator.available_methods())
    yield Finding("Aer", f"on {', '.join(simulator.available_devices())}: {methods}")


def _ray(address: str | None) -> Iterator[Finding]:
    """Look at Ray, its nodes, and a gradient; a local Ray ends with the thread that started it."""
    from qailab.distributed.connection import connect, disconnect
    from qailab.errors import QailabError

    where = address or os.environ.get("RAY_ADDRESS") or "a local one, started for this check"
    try:
        session = connect(address, 1)
    except QailabError as error:
        to_do = "start the cluster (ray start --head), or correct --address or RAY_ADDRESS"
        yield Finding("Ray", where, message_of(error), to_do)
        return
    try:
        import ray

        yield Finding("Ray", f"{ray.__version__}, {where}")
        total, free = ray.cluster_resources(), ray.available_resources()
        problem = "" if free.get("CPU", 0) >= 1 else "no CPU is free for an actor"
        to_do = "add nodes, close what holds CPUs, or use actor_options={'num_cpus': 0.5}"
        shown = ", ".join(
            f"{total.get(name, 0):g} {name} ({free.get(name, 0):g} free)"
            for name in ("CPU", "GPU", "qpu_session")
        )
        yield Finding("resources", shown, problem, to_do, warning=True)
        yield from _nodes()
        yield from _pool(min(_TIMED_ACTORS, len(os.sched_getaffinity(0)), int(free.get("CPU", 0))))
    finally:
        disconnect(session)


def _nodes() -> Iterator[Finding]:
    """Compare the versions on all nodes with those here."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    here, probe = installed(), ray.remote(num_cpus=0, max_retries=0)(installed)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    asked = {probe.options(scheduling_strategy=On(node, False)).remote(): node for node in nodes}
    end = time.monotonic() + _NODE_SECONDS
    for answer, node in asked.items():
        try:
            there = ray.get(answer, timeout=max(0.1, end - time.monotonic()))
        except Exception as error:  # a lost node, no qailab, another Python, no worker in time, ...
            ray.cancel(answer, force=True)
            to_do = "install there what is here; look at the node's load and at its Ray logs"
            yield Finding("node", f"{nodes[node]} does not answer", message_of(error), to_do)
            continue
        yield node_finding(nodes[node], here, there)


def node_finding(name: str, here: dict[str, str], there: dict[str, str]) -> Finding:
    """Compare a node's versions with those here."""
    other = [one for one in _COMPARED if here.get(one) != there.get(one)]
    shown = ", ".join(f"{one} {there.get(one, 'missing')}" for one in other or _COMPARED)
    wanted = ", ".join(f"{one} {here.get(one, 'missing')}" for one in other)
    # Others of the libraries work together, but may round differently.
    warning = not {"Python", "ray", "qailab"} & set(other)
    problem = f"here: {wanted}" if other else ""
    return Finding("node", f"{name}: {shown}", problem, "install the same on all nodes", warning)


def _pool(actors: int) -> Iterator[Finding]:
    """Look at a gradient of one or two actors; with two, from which size on they pay."""
    from qailab.backends import AerBackend
    from qailab.distributed import LauncherPool
    from qailab.errors import QailabError

    try:
        with LauncherPool([AerBackend()] * max(actors, 1), progress=False) as pool:
            yield _gradient(pool)
            if actors == _TIMED_ACTORS:
                pool.wait(timeout=_GRADIENT_SECONDS)
                yield pool_finding(_seconds(AerBackend()), _seconds(pool))
    except (QailabError, TimeoutError) as failure:
        to_do = "install the same qailab on all nodes; free a CPU for each actor"
        yield Finding("pool", "no answer from an actor", message_of(failure), to_do)


def _gradient(pool: Any) -> Finding:
    """Compare the derivative of ``p(1) = sin(x/2)**2``, by an actor, with the one by hand."""
    import numpy as np
    from qiskit.circuit import Parameter, QuantumCircuit

    from qailab.launchers import BackwardPass, CircuitProblem, QuantumLauncher

    x = 0.7
    circuit = QuantumCircuit(1)
    circuit.ry(Parameter("input"), 0)
    circuit.measure_all()
    launcher = QuantumLauncher(CircuitProblem(circuit), BackwardPass(shots=None), pool)
    handle = launcher.submit_backward(np.array([[x]]), np.array([]), np.array([[0.0, 1.0]]))
    gradient = handle.result(_GRADIENT_SECONDS).inputs
    assert gradient is not None
    error = abs(float(gradient[0, 0]) - math.sin(x) / 2)
    problem = "" if error <= _TOLERANCE else f"more than {_TOLERANCE:g} off: not the gradient"
    to_do = "reinstall qiskit and qiskit-aer on all nodes; report it if that does not help"
    return Finding("gradient", f"by an actor, {error:.0e} off the one by hand", problem, to_do)


def _seconds(backend: Any) -> list[float]:
    """Seconds of a small and of a large backward pass."""
    import numpy as np

    from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
    from qailab.launchers import BackwardPass, CircuitProblem, QuantumLauncher

    blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=3)]
    problem = CircuitProblem(build_circuit(6, blocks))
    launcher = QuantumLauncher(problem, BackwardPass(), backend)
    passes = []
    for samples in _SAMPLES:
        shapes = (samples, 6), (problem.num_weights,), (samples, 64)
        arrays, times = [np.ones(shape) for shape in shapes], []
        for _ in range(_TIMED_RUNS):
            began = time.perf_counter()
            launcher.run(*arrays)
            times.append(time.perf_counter() - began)
        passes.append(min(times))
    return passes


def pool_finding(here: Sequence[float], pool: Sequence[float]) -> Finding:
    """Say from which size on a pool is quicker than this process.

    Args:
        here: seconds of a small and of a large pass in this process.
        pool: the same on two actors; the small one runs on one of them.
    """
    way = max(pool[0] - here[0], 1e-4)
    gain = here[1] / max(pool[1] - way, 1e-9)
    found = f"{_TIMED_ACTORS} actors do {gain:.1f} times the work of one process, {1e3 * way:.1f} "
    found += "ms away"
    if gain < _LEAST_GAIN:
        to_do = "use the backend without a pool here, or machines whose cores are idle"
        return Finding("pool", found, "a pool of this size does not pay now", to_do, warning=True)
    least = 1e3 * way * gain / (gain - 1)
    return Finding("pool", f"{found}: a pool pays for passes that take {least:.0f} ms or more here")


def _ibm() -> Iterator[Finding]:
    """Look at the IBM Quantum account, where IBM's client looks for it."""
    token, saved = os.environ.get("QISKIT_IBM_TOKEN"), _ACCOUNT.expanduser()
    # Asked without an account, IBM's client would make an empty file.
    if not token and not saved.is_file():
        to_do = "set QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE, or save the account once: "
        to_do += "QiskitRuntimeService.save_account (qiskit_ibm_runtime)"
        problem = f"neither QISKIT_IBM_TOKEN nor {_ACCOUNT} is there"
        yield Finding("IBM account", "none", problem, to_do)
        return
    if not token and saved.stat().st_mode & 0o077:
        problem, to_do = "others on this machine can read it", f"chmod 600 {_ACCOUNT}"
        yield Finding("IBM account", str(_ACCOUNT), problem, to_do, warning=True)
    try:
        from qailab.backends import IBMTimeouts
        from qailab.backends.ibm.account import Account

        service = Account(IBMTimeouts(request_seconds=20.0, retry_seconds=5.0)).service
        yield Finding("IBM account", "from QISKIT_IBM_TOKEN" if token else f"of {_ACCOUNT}")
        yield from _instances(service)
        for device in sorted(service.backends(), key=lambda one: str(one.name)):
            yield _device(device)
    except Exception as error:
        to_do = "make an API key at quantum.cloud.ibm.com, and set or save that; or check the way "
        to_do += "there and to iam.cloud.ibm.com: network, HTTPS_PROXY, QISKIT_IBM_URL"
        yield Finding("IBM account", "it cannot be used", message_of(error), to_do)


def _instances(service: Any) -> Iterator[Finding]:
    active = service.active_instance()
    for one in service.instances():
        used = ", in use" if one["crn"] == active else ""
        yield Finding("IBM instance", f"{one['name']} (plan {one['plan']}{used})")
    usage = service.usage()
    left = usage.get("usage_remaining_seconds")
    found = f"{usage.get('usage_consumed_seconds', 0):g} s used"
    found += "" if left is None else f", {left:g} s left"
    reached = usage.get("usage_limit_reached")
    problem = "the instance's limit is reached: jobs do not run" if reached else ""
    yield Finding("IBM usage", found, problem, "wait for the next period, or use another instance")


def _device(device: Any) -> Finding:
    problem = ""
    try:
        status = device.status()
        qubits = device.configuration().n_qubits  # num_qubits would download the calibration
        found = f"{qubits} qubits, {status.pending_jobs} jobs waiting"
        if not status.operational:
            problem = "it is not in operation"
        elif status.status_msg != "active":
            problem = f"it takes jobs, but runs none now: {status.status_msg}"
    except Exception as error:  # the next one may answer
        found, problem = "no answer", message_of(error)
    return Finding(device.name, found, problem, "use another backend, or wait", warning=True)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    logging.disable(logging.CRITICAL)  # what other libraries log could quote anything
    warnings.simplefilter("ignore")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
