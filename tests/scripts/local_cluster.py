"""A real Ray cluster on this machine: a head with dashboard and token, and nodes that join it.

::

    with LocalCluster(cpus=1) as cluster:              # ready: the dashboard answers
        second = cluster.add_node(cpus=1, resources={"qpu_session": 2})
        subprocess.run([..., "--address", cluster.dashboard], env=cluster.client_environment())
        second.kill()                                  # as if its power were cut

Every node is a process group of its own, on ports of its own; all of them listen on 127.0.0.1
only, in a temporary directory and with a home directory of their own. Each process of a node
carries a mark in its environment, also those that leave the group (jobs, workers): that is how a
node is ended, and only what it started. A keeper process ends the cluster when the process that
began it is gone, however that happened.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MARK = "QAILAB_TEST_NODE"
START_SECONDS = 120.0
_STORE_BYTES = 80 << 20
_SHORT = "/tmp"  # Ray's sockets lie below, and their paths must be shorter than 108 characters

_JOIN = """
import sys, time
from ray._private.node import Node
from ray._private.parameter import RayParams

# As ray.cluster_utils has it: `ray start --address` refuses clusters on loopback.
address, directory, cpus, resources, store = eval(sys.argv[1])
parameters = RayParams(
    gcs_address=address, temp_dir=directory, num_cpus=cpus, num_gpus=0, resources=resources,
    object_store_memory=store, node_ip_address="127.0.0.1", node_manager_port=0,
    min_worker_port=0, max_worker_port=0,
)
node = Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
while not node.dead_processes():
    time.sleep(1)
"""


class Node:
    """One node's processes.

    Args:
        name: tells its processes from those of others.
        command: what starts it, and stays in the foreground.
        environment: environment variables of all its processes.
        log: where what it prints is written.
    """

    def __init__(
        self, name: str, command: list[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                env={**environment, MARK: name},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=log.parent,
            )

    def pids(self) -> list[int]:
        """All its processes that live, with its jobs and workers."""
        return marked(self.name)

    def check_alive(self) -> None:
        """Fail, with what it printed, if it has ended."""
        if self._process.poll() is not None:
            raise AssertionError(f"node {self.name} has ended:\n{self._log.read_text()[-4000:]}")

    def kill(self) -> None:
        """End all its processes at once, without a word to the others."""
        end_marked(self.name)
        self._process.wait(10)


class LocalCluster:
    """A head, and the nodes that `add_node` joins to it. A context manager.

    Args:
        cpus: CPUs of the head, which jobs and actors share.
        resources: custom resources of the head.
        environment: more environment variables for all processes of the head.
    """

    def __init__(
        self,
        *,
        cpus: float = 2,
        resources: Mapping[str, float] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = f"qailab-{secrets.token_hex(6)}/"
        self.directory = Path(tempfile.mkdtemp(prefix="qlc", dir=_SHORT))
        self.token = secrets.token_hex(32)
        self.token_file = self.directory / "token"
        self.token_file.touch(0o600)
        self.token_file.write_text(self.token)
        home = self.directory / "home"
        home.mkdir()
        port, dashboard, client = free_ports(3)
        self.address = f"127.0.0.1:{port}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST"))}
        python = Path(sys.executable).parent
        self._environment = clean | {
            "HOME": str(home),
            "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",  # jobs run its `python`
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # everything on 127.0.0.1
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "OMP_NUM_THREADS": "1",
        }
        self.nodes: list[Node] = []
        self._keeper = subprocess.Popen(
            [sys.executable, __file__, self.name, str(self.directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        head = [
            str(python / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={port}", f"--num-cpus={cpus:g}", "--num-gpus=0",
            f"--resources={json.dumps(dict(resources or {}))}",
            f"--object-store-memory={_STORE_BYTES}", f"--temp-dir={self.directory / 'ray'}",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", "--min-worker-port=0", "--max-worker-port=0",
            f"--ray-client-server-port={client}", "--dashboard-agent-listen-port=0",
        ]  # fmt: skip
        try:
            self.head = self._start("head", head, environment or {})
            self._wait_until(self._ready, "the dashboard to answer")
        except BaseException:
            self.close()
            raise

    def add_node(
        self,
        *,
        cpus: float = 1,
        resources: Mapping[str, float] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Node:
        """Join a node, with its own CPUs and custom resources; it is ready on return."""
        before = self.alive_nodes()
        # A directory of its own, as on another machine: a node unpacks a job's files there anew,
        # under the feet of those that run from it.
        directory = str(self.directory / f"ray{len(self.nodes)}")
        given = (self.address, directory, cpus, dict(resources or {}))
        node = self._start(
            f"node{len(self.nodes)}",
            [sys.executable, "-c", _JOIN, repr((*given, _STORE_BYTES))],
            environment or {},
        )
        self._wait_until(lambda: self.alive_nodes() - before, "the node to join")
        return node

    def alive_nodes(self) -> set[str]:
        """The nodes that the head believes to be alive; it notices a dead one after a while."""
        answer = self.get("/nodes?view=summary")
        raylets = [one["raylet"] for one in answer["data"]["summary"]]
        return {raylet["nodeId"] for raylet in raylets if raylet.get("state") == "ALIVE"}

    def get(self, path: str) -> Any:
        """What the dashboard answers, with the token: JSON, or text that is none."""
        request = urllib.request.Request(
            self.dashboard + path, headers={"Authorization": f"Bearer {self.token}"}
        )
        with _DIRECT.open(request, timeout=20) as answer:
            text = answer.read().decode(errors="replace")
        try:
            return json.loads(text)
        except ValueError:
            return text

    def client_environment(self, **more: str) -> dict[str, str]:
        """The environment of a user's program that may use this cluster."""
        return self._environment | {"PYTHONUNBUFFERED": "1"} | more

    def close(self) -> None:
        """End everything and remove the directory."""
        end_marked(self.name)
        for node in self.nodes:
            node.kill()
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()
        self._keeper.wait(60)
        remove(self.directory)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, name: str, command: list[str], more: Mapping[str, str]) -> Node:
        log = self.directory / f"{name}.log"
        node = Node(f"{self.name}{name}/", command, self._environment | dict(more), log)
        self.nodes.append(node)
        return node

    def _ready(self) -> bool:
        """Whether jobs can be submitted: the head's agent, which starts them, comes last."""
        try:
            return bool(self.alive_nodes()) and self.get("/api/jobs/") is not None
        except (OSError, KeyError, TypeError, urllib.error.HTTPError):
            return False

    def _wait_until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            self.nodes[-1].check_alive()
            assert time.monotonic() < deadline, f"waited {START_SECONDS:.0f} s for {what}"
            time.sleep(0.1)


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, above those that Ray gives to workers by default."""
    found: set[int] = set()
    while len(found) < count:
        port = 20000 + secrets.randbelow(12000)  # below those that the kernel gives to clients
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.add(port)
    return list(found)


def marked(name: str) -> list[int]:
    """Living processes whose mark begins with this name, which ends with a slash."""
    wanted = f"{MARK}={name}".encode()
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if wanted in Path("/proc", entry, "environ").read_bytes():
                found.append(int(entry))
        except OSError:  # gone, or somebody else's
            continue
    return found


def end_marked(name: str) -> None:
    """Kill the processes with this mark, until there is none: a dying one may start others."""
    deadline = time.monotonic() + 20
    while pids := marked(name):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        assert time.monotonic() < deadline, f"processes of {name} do not end: {pids}"
        time.sleep(0.02)


def remove(directory: Path) -> None:
    """Remove a directory, although the last threads of killed processes may still write there."""
    for _ in range(50):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)


if __name__ == "__main__":  # the keeper
    for received in (signal.SIGINT, signal.SIGTERM):
        signal.signal(received, signal.SIG_IGN)
    sys.stdin.read()  # ends when the process that began the cluster does
    end_marked(sys.argv[1])
    remove(Path(sys.argv[2]))
