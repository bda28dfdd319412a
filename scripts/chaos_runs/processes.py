"""The processes of this machine that are ours: everything that descends from this one.

A process whose parent dies would go to init, and out of sight; after `keep_orphans` it comes to
this process instead. So what descends from here is all that was started here, and nothing else.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_STATE, _PARENT, _BEGAN = 0, 1, 19  # fields of /proc/PID/stat after the name; see proc(5)
_ACTOR_TITLE = "ray::LauncherActor"  # what `ps` shows for a pool's actor


@dataclass(frozen=True)
class Process:
    """A process; a later one with the same number is another.

    Args:
        pid: its number.
        began: when it began, in ticks since boot.
    """

    pid: int
    began: int

    @property
    def alive(self) -> bool:
        """Whether it is there; one that ended and was not waited for is not."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[_BEGAN]) == self.began and fields[_STATE] != "Z"

    @property
    def title(self) -> str:
        """Its command line."""
        with suppress(OSError):
            text = Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ")
            return text.decode(errors="replace").strip()
        return ""

    def send(self, number: signal.Signals) -> bool:
        """Send a signal, if it is still there; whether it was."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
                return True
        return False


def keep_orphans() -> None:
    """Become the parent of those descendants whose own parents die."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def descendants(of: int | None = None) -> list[Process]:
    """All living processes that a process started, directly or through others.

    Args:
        of: its number; None for this process.
    """
    children: dict[int, list[Process]] = defaultdict(list)
    for entry in os.listdir("/proc"):
        fields = _stat(int(entry)) if entry.isdigit() else None
        if fields is not None:
            children[int(fields[_PARENT])].append(Process(int(entry), int(fields[_BEGAN])))
    found: list[Process] = []
    parents = [os.getpid() if of is None else of]
    while parents:
        mine = children.pop(parents.pop(), [])
        found += mine
        parents += [process.pid for process in mine]
    return [process for process in found if process.alive]


def actors(of: int | None = None) -> list[Process]:
    """The actors of pools among `descendants`."""
    return [process for process in descendants(of) if process.title.startswith(_ACTOR_TITLE)]


def wait_until_gone(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Wait for processes to end; those that did not."""
    deadline = time.monotonic() + seconds
    left = [process for process in processes if process.alive]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [process for process in left if process.alive]
    return left


def end_descendants(spare: Collection[Process], seconds: float = 20.0) -> None:
    """Kill everything that this process started.

    Args:
        spare: what is to live.
        seconds: how long to try.

    Raises:
        RuntimeError: if something does not end.
    """
    deadline = time.monotonic() + seconds
    while left := [process for process in descendants() if process not in spare]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"these do not end: {', '.join(str(p.pid) for p in left)}")
        for process in left:  # again, as they may have started others meanwhile
            process.send(signal.SIGKILL)
        wait_until_gone(left, 1.0)


def _stat(pid: int) -> list[str] | None:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None
