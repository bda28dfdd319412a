"""Memory of processes, from ``/proc``: resident now, and at its peak since it was last reset.

Elsewhere than on Linux there is no ``/proc``; every answer is then None, or empty.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def launcher_actors() -> frozenset[int]:
    """The process ids of the pools' actors that descend from this process."""
    if not _PROC.is_dir():
        return frozenset()
    parents: dict[int, int] = {}
    titled: set[int] = set()
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # processes come and go
            # The name, in parentheses, may hold anything; the parent is the second field after it.
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
            if (entry / "cmdline").read_bytes().startswith(b"ray::LauncherActor"):
                titled.add(int(entry.name))
    return frozenset(pid for pid in titled if _descends(pid, os.getpid(), parents))


def resident_mib(pid: int) -> float | None:
    """Resident memory of a process, in MiB."""
    return _status(pid, "VmRSS")


def peak_mib(pids: Iterable[int]) -> float | None:
    """The largest peak of some processes' resident memory, in MiB."""
    peaks = [peak for pid in pids if (peak := _status(pid, "VmHWM")) is not None]
    return max(peaks, default=None)


def reset_peaks(pids: Iterable[int]) -> None:
    """Let the peaks begin anew; where the kernel does not let us, they go on from the start."""
    for pid in pids:
        with suppress(OSError):
            (_PROC / str(pid) / "clear_refs").write_text("5")  # proc_pid_clear_refs(5)


def has_loaded(pid: int, library: str) -> bool | None:
    """Whether a process has mapped a library with this name."""
    try:
        return library in (_PROC / str(pid) / "maps").read_text()
    except OSError:
        return None


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        if pid == ancestor:
            return True
        pid = parents[pid]
    return False


def _status(pid: int, field: str) -> float | None:
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return None
