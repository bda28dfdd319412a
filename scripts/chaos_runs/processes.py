"""The processes of this machine that are ours: everything that descends from this one.

A process whose parent dies goes to init, and out of sight; with `adopt_orphans` it comes to this
process instead. So what descends from here is all that was started here, and nothing else.
"""

from __future__ import annotations

import ctypes
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_ACTOR_TITLE = "ray::LauncherActor"  # what `ps` shows for a pool's actor


def adopt_orphans(adopt: bool) -> None:
    """Become the parent of those descendants whose own parents die, or leave them to init."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def descendants(of: int | None = None) -> list[psutil.Process]:
    """All living processes that a process started, directly or through others; None: this one."""
    with suppress(psutil.Error):
        return [each for each in psutil.Process(of).children(recursive=True) if alive(each)]
    return []


def actors(of: int | None = None) -> list[psutil.Process]:
    """The actors of pools among `descendants`."""
    return [each for each in descendants(of) if title(each).startswith(_ACTOR_TITLE)]


def alive(process: psutil.Process) -> bool:
    """Whether it is there; one that ended and was not waited for is not."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def title(process: psutil.Process) -> str:
    """Its command line."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def send(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal, if the process is still there; whether it was."""
    with suppress(psutil.Error):
        process.send_signal(number)
        return True
    return False


def wait_until_gone(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for processes to end; those that did not."""
    deadline = time.monotonic() + seconds
    while (left := [each for each in processes if alive(each)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def end_descendants(spare: Collection[psutil.Process], seconds: float = 20.0) -> None:
    """Kill everything that this process started, except ``spare``.

    Raises:
        RuntimeError: if something does not end within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while left := [each for each in descendants() if each not in spare]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"these do not end: {left}")
        for process in left:  # again, as they may have started others meanwhile
            send(process, signal.SIGKILL)
        wait_until_gone(left, 1.0)
