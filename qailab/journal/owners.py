"""Who sends a job: a process, named so that others can tell whether it is still there."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

_UNKNOWN = "-"
_FIELDS = 6


def this_owner() -> str:
    """The name of this process: ``host/machine/boot/namespace/pid/start``.

    Each part is there because the ones before do not tell enough: hosts of one name are told by
    their machine id (hashed), a restarted host by its boot, containers on one host by their
    namespace of process ids, and a process whose id was used again by when it started. What a
    system does not tell is ``-``.
    """
    host = socket.gethostname().replace("/", "_") or _UNKNOWN
    machine = _hashed("/etc/machine-id")
    boot = _hashed("/proc/sys/kernel/random/boot_id")
    started = _started(os.getpid()) or _UNKNOWN
    return "/".join((host, machine, boot, _namespace(), str(os.getpid()), started))


def owner_alive(owner: str) -> bool | None:
    """Whether the process of that name is still there.

    Args:
        owner: what `this_owner` returned there.

    Returns:
        None if that cannot be told from here: another host or container, or no such name at all.
    """
    theirs = owner.split("/")
    if len(theirs) != _FIELDS or not theirs[4].isdecimal():
        return None
    host, machine, boot, namespace, pid, started = theirs
    here = this_owner().split("/")
    if [host, machine] != here[:2]:
        return None
    if boot != here[2]:
        # Without machine ids it may be another machine of the same name.
        return False if _UNKNOWN not in (machine, boot, here[2]) else None
    if namespace != here[3]:
        return None
    if started == _UNKNOWN:
        return _exists(int(pid))
    return _started(int(pid)) == started


def _hashed(path: str) -> str:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return _UNKNOWN
    return hashlib.sha256(f"qailab {text}".encode()).hexdigest()[:8] if text else _UNKNOWN


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return _UNKNOWN


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None if there is none, or no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in brackets, which may itself hold blanks and brackets.
    fields = stat.rpartition(")")[2].split()
    # A zombie is dead, and only waits for its parent to hear of it.
    return None if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True
