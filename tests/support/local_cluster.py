"""A real Ray cluster on this machine: a head with dashboard and token, and nodes that join it.

::

    with LocalCluster(cpus=1) as cluster:              # ready: jobs can be submitted
        second = cluster.add_node(cpus=1, resources={"qpu_session": 2})
        subprocess.run([..., "--address", cluster.dashboard], env=cluster.environment)
        second.kill()                                  # as if its power were cut

All of it listens on 127.0.0.1 only, in a temporary directory. Each process of a node carries a mark
in its environment, jobs and workers too: that is how a node is ended, and only what it started. A
keeper process ends the cluster when the process that began it is gone, however that happened.
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
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

MARK = "QAILAB_TEST_NODE"
SECONDS = 180.0
_STORE_BYTES = 80 << 20
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
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
    """One node's processes, told from others by its name.

    Args:
        name: ends with a slash.
        command: what starts it, and stays in the foreground.
        environment: environment variables of all its processes.
        log: where what it prints is written.
    """

    def __init__(
        self, name: str, command: list[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name, self._log = name, log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, env={**environment, MARK: name}, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True, cwd=log.parent,
            )  # fmt: skip

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Fail, with what it printed, if it ends before that or takes too long."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            late = time.monotonic() > deadline or self._process.poll() is not None
            assert not late, f"node {self.name}:\n{self._log.read_text()[-4000:]}"
            time.sleep(0.1)

    def runs(self, command: str) -> bool:
        """Whether a process of it has this in its command line."""
        with suppress(psutil.NoSuchProcess):
            return any(command in " ".join(process.cmdline()) for process in marked(self.name))
        return False

    def kill(self) -> None:
        """End all its processes at once, without a word to the others."""
        end_marked(self.name)
        self._process.wait(10)


class LocalCluster:
    """A head with these CPUs, and the nodes that `add_node` joins to it. A context manager."""

    def __init__(self, *, cpus: float = 2) -> None:
        self.name = f"qailab-{secrets.token_hex(6)}/"
        # Ray's sockets lie below, and their paths must be shorter than 108 characters.
        self.directory = Path(tempfile.mkdtemp(prefix="qlc", dir="/tmp"))
        self.token, token_file = secrets.token_hex(32), self.directory / "token"
        token_file.touch(0o600)
        token_file.write_text(self.token)
        (self.directory / "home").mkdir()
        port, dashboard, client = free_ports(3)
        self._address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST"))}
        python = Path(sys.executable).parent
        self.environment = clean | {
            "HOME": str(self.directory / "home"),
            "NO_PROXY": "127.0.0.1",
            "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",  # jobs run its `python`
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # everything on 127.0.0.1
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "OMP_NUM_THREADS": "1",
        }
        """Of the nodes, and of a user's program that may use this cluster."""
        self.nodes: list[Node] = []
        self._keeper = subprocess.Popen(
            [sys.executable, __file__, self.name, str(self.directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        head = [
            str(python / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={port}", f"--num-cpus={cpus:g}", "--num-gpus=0",
            f"--object-store-memory={_STORE_BYTES}", f"--temp-dir={self.directory / 'ray'}",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", "--min-worker-port=0", "--max-worker-port=0",
            f"--ray-client-server-port={client}", "--dashboard-agent-listen-port=0",
        ]  # fmt: skip
        try:
            self._start("head", head, {}).wait_until(self._ready)
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
        """Join a node; it is ready on return."""
        before = self.alive_nodes()
        # A directory of its own, as on another machine: a node unpacks a job's files there anew,
        # under the feet of those that run from it.
        directory = str(self.directory / f"ray{len(self.nodes)}")
        given = (self._address, directory, cpus, dict(resources or {}), _STORE_BYTES)
        command = [sys.executable, "-c", _JOIN, repr(given)]
        node = self._start(f"node{len(self.nodes)}", command, environment or {})
        node.wait_until(lambda: self.alive_nodes() - before)
        return node

    def alive_nodes(self) -> set[str]:
        """The nodes that the head believes to be alive; it notices a dead one after a while."""
        answer = self.get("/nodes?view=summary")
        raylets = [one["raylet"] for one in answer["data"]["summary"]]
        return {raylet["nodeId"] for raylet in raylets if raylet.get("state") == "ALIVE"}

    def get(self, path: str) -> Any:
        """What the dashboard answers, with the token: JSON, or text that is none."""
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.dashboard + path, headers=headers)
        with _DIRECT.open(request, timeout=20) as answer:
            text = answer.read().decode(errors="replace")
        try:
            return json.loads(text)
        except ValueError:
            return text

    def close(self) -> None:
        """End everything and remove the directory."""
        end_marked(self.name)
        for node in self.nodes:
            node.kill()
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(60)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, name: str, command: list[str], more: Mapping[str, str]) -> Node:
        log = self.directory / f"{name}.log"
        self.nodes.append(Node(f"{self.name}{name}/", command, self.environment | dict(more), log))
        return self.nodes[-1]

    def _ready(self) -> bool:
        """Whether jobs can be submitted: the head's agent, which starts them, comes last."""
        try:
            return bool(self.alive_nodes()) and self.get("/api/jobs/") is not None
        except (OSError, KeyError, TypeError):
            return False


def free_ports(count: int) -> set[int]:
    """Ports that nobody listens at, above those that Ray gives to workers by default."""
    found: set[int] = set()
    while len(found) < count:
        port = 20000 + secrets.randbelow(12000)  # below those that the kernel gives to clients
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.add(port)
    return found


def marked(name: str) -> list[psutil.Process]:
    """Living processes whose mark begins with this name, and what descends from them.

    Ray's agents write their titles over their environment. Without their raylet they would keep a
    core busy for a minute, with calls to a cluster that is gone.
    """
    found: dict[int, psutil.Process] = {}
    for one in psutil.process_iter(["environ"]):
        if (one.info["environ"] or {}).get(MARK, "").startswith(name):
            with suppress(psutil.NoSuchProcess):
                found |= {each.pid: each for each in (one, *one.children(recursive=True))}
    return list(found.values())


def end_marked(name: str) -> None:
    """Kill the processes with this mark, until there is none: a dying one may start others."""
    deadline = time.monotonic() + 20
    while processes := marked(name):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert time.monotonic() < deadline, f"processes of {name} do not end: {processes}"
        time.sleep(0.02)


if __name__ == "__main__":  # the keeper
    for received in (signal.SIGINT, signal.SIGTERM):
        signal.signal(received, signal.SIG_IGN)
    sys.stdin.read()  # ends when the process that began the cluster does
    end_marked(sys.argv[1])
    for _ in range(50):  # the last threads of killed processes may still write there
        shutil.rmtree(sys.argv[2], ignore_errors=True)
        if not os.path.exists(sys.argv[2]):
            break
        time.sleep(0.1)
