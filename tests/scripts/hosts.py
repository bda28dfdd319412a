"""Two hosts with addresses of their own, in network namespaces of this machine.

::

    with TwoHosts(directory) as (first, second):
        first.run("ray", "start", "--head", environment=...)

A cable joins them, and nothing else: each has its own ports and its own 127.0.0.1. Their processes
do not see each other, so that ``ray stop`` ends what runs on its own host only. Files they share,
but for the folders that are `private`. A host ends, with all that runs there, when its block does,
or when this process is gone. Needs root, and the programs ip, unshare and nsenter.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType

ADDRESSES = ("192.0.2.10", "192.0.2.11")  # of documentation, as in the files of cluster/
_SECONDS = 60.0

# The first process of the host: whatever runs there ends with it, and it ends with its input.
_FIRST = """
mount --make-rprivate / && mount -t proc proc /proc && ip link set lo up || exit 1
while [ $# -gt 1 ]; do mkdir -p "$1" && mount --bind "$1" "$2" || exit 1; shift 2; done
echo ready
read -r _
"""


@cache
def unavailable() -> str:
    """Why there can be no such hosts here; empty if there can."""
    if missing := [name for name in ("ip", "unshare", "nsenter") if not shutil.which(name)]:
        return f"programs that are not installed: {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "ip", "link", "set", "lo", "up"],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    return "" if tried.returncode == 0 else f"no network namespaces: {tried.stderr.strip()}"


class Host:
    """One host. A context manager.

    Args:
        address: its address, once there is a cable.
        private: folders that are its own; where each one's files are.
    """

    def __init__(self, address: str, private: Mapping[Path, Path]) -> None:
        self.address = address
        pairs = [str(path) for seen, own in private.items() for path in (own, seen)]
        self._first = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
            + ["bash", "-c", _FIRST, "host", *pairs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._first.stdout is not None
        ready = self._first.stdout.readline()
        assert ready == "ready\n", f"the host {address} did not start"

    @property
    def network(self) -> Path:
        """The file that stands for its network."""
        return Path(f"/proc/{self._first.pid}/ns/net")

    def command(self, *words: str) -> list[str]:
        """The command that runs a command there."""
        spaces = self.network.parent
        return [
            "nsenter", f"--net={self.network}", f"--mount=/proc/{self._child()}/ns/mnt",
            f"--pid={spaces / 'pid_for_children'}", "--", *words,
        ]  # fmt: skip

    def run(
        self, *words: str, environment: Mapping[str, str], seconds: float = _SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there, with its output.

        Raises:
            AssertionError: if it fails.
        """
        done = subprocess.run(
            self.command(*words),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def _child(self) -> int:
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children")
        return int(children.read_text().split()[0])

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._first.stdin, self._first.stdout):
            if stream is not None:
                stream.close()
        self._first.wait(_SECONDS)


class TwoHosts:
    """Two hosts and the cable between them. A context manager that gives both.

    Args:
        directory: where their own files are.
        private: folders of which each has its own.
    """

    def __init__(self, directory: Path, private: Sequence[Path] = ()) -> None:
        self._directory, self._private = directory, private
        self._ends = ExitStack()

    def __enter__(self) -> tuple[Host, Host]:
        with ExitStack() as ends:
            for folder in self._private:
                folder.mkdir(parents=True)
                ends.callback(shutil.rmtree, folder, ignore_errors=True)
            first, second = (
                ends.enter_context(Host(address, self._folders(address))) for address in ADDRESSES
            )
            cable = ["link", "add", "eth0", "type", "veth", "peer", "name", "eth0"]
            _ip(first, *cable, "netns", str(second.network))
            for host in (first, second):
                _ip(host, "address", "add", f"{host.address}/24", "dev", "eth0")
                _ip(host, "link", "set", "eth0", "up")
                # Programs find their own address as the one from which the world is reached.
                _ip(host, "route", "add", "default", "dev", "eth0")
            self._ends = ends.pop_all()
        return first, second

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ends.__exit__(kind, error, traceback)

    def _folders(self, address: str) -> dict[Path, Path]:
        own = self._directory / address
        return {folder: own / str(number) for number, folder in enumerate(self._private)}


def _ip(host: Host, *words: str) -> None:
    # Not with the host's mounts: the name of the other's network is in the /proc of this machine.
    subprocess.run(
        ["nsenter", f"--net={host.network}", "ip", *words],
        env=dict(os.environ),
        check=True,
        timeout=_SECONDS,
    )
