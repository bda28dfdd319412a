"""Two hosts with addresses of their own, in network namespaces of this machine.

::

    with two_hosts(directory) as (first, second):
        first.run("ray", "start", "--head", environment=...)

A cable joins them, and nothing else: each has its own ports and its own 127.0.0.1. Their processes
do not see each other, so that ``ray stop`` ends what runs on its own host only. Files they share,
but for the folder that is `private`. A host ends, with all that runs there, when its block does, or
when this process is gone. Needs root, and the programs ip, unshare and nsenter.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

ADDRESSES = ("192.0.2.10", "192.0.2.11")  # of documentation, as in the files of cluster/
_SECONDS = 180.0  # `ray start` takes 5 s, or 100 on a machine that has much else to do

# The first process of the host: whatever runs there ends with it, and it ends with its input.
_FIRST = """
mount --make-rprivate / && mount -t proc proc /proc && ip link set lo up || exit 1
mkdir -p "$1" "$2" && mount --bind "$1" "$2" || exit 1
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
        capture_output=True, text=True, timeout=_SECONDS,
    )  # fmt: skip
    return "" if tried.returncode == 0 else f"no network namespaces: {tried.stderr.strip()}"


class Host:
    """One host.

    Args:
        address: its address, once there is a cable.
        own: where the files of its private folder are.
        private: that folder.
    """

    def __init__(self, address: str, own: Path, private: Path) -> None:
        self.address = address
        self._first = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
            + ["bash", "-c", _FIRST, "host", str(own), str(private)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._first.stdout is not None
        ready = self._first.stdout.readline()
        assert ready == "ready\n", f"the host {address} did not start"

    @property
    def network(self) -> Path:
        """The file that stands for its network."""
        return Path(f"/proc/{self._first.pid}/ns/net")

    def command(self, *words: str) -> list[str]:
        """The command that runs a command there."""
        pid = self._first.pid
        child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        return [
            "nsenter", f"--net={self.network}", f"--mount=/proc/{child}/ns/mnt",
            f"--pid=/proc/{pid}/ns/pid_for_children", "--", *words,
        ]  # fmt: skip

    def run(
        self, *words: str, environment: Mapping[str, str], seconds: float = _SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there, with its output; it must not fail."""
        done = subprocess.run(
            self.command(*words), env=dict(environment), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def kill_all(self) -> None:
        """Kill at once all that runs there. (Without the host, its cable would be gone, too.)"""
        subprocess.run(self.command("bash", "-c", "kill -9 -1"), timeout=_SECONDS)

    def end(self) -> None:
        """End the host, with all that runs there."""
        for stream in (self._first.stdin, self._first.stdout):
            if stream is not None:
                stream.close()
        self._first.wait(_SECONDS)


@contextmanager
def two_hosts(directory: Path, private: Path) -> Iterator[list[Host]]:
    """Two hosts and the cable between them, with a private folder each, below `directory`."""
    hosts: list[Host] = []
    try:
        for address in ADDRESSES:
            hosts.append(Host(address, directory / address, private))
        cable = ["link", "add", "eth0", "type", "veth", "peer", "name", "eth0"]
        _ip(hosts[0], *cable, "netns", str(hosts[1].network))
        for host in hosts:
            _ip(host, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip(host, "link", "set", "eth0", "up")
            # Programs find their own address as the one from which the world is reached.
            _ip(host, "route", "add", "default", "dev", "eth0")
        yield hosts
    finally:
        for host in hosts:
            host.end()
        shutil.rmtree(private, ignore_errors=True)


def _ip(host: Host, *words: str) -> None:
    # Not with the host's mounts: the name of the other's network is in the /proc of this machine.
    command = ["nsenter", f"--net={host.network}", "ip", *words]
    subprocess.run(command, check=True, timeout=_SECONDS)
