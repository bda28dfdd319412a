"""Who sends a job: a process, named so that others can tell whether it is still there."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path

_UNKNOWN = "-"


def this_owner() -> str:
    """The name of this process: ``host/machine/boot/namespace/pid/start``.

    Each part is there because the ones before do not tell enough: hosts of one name are told by
    their machine id (hashed), a restarted host by its boot, containers on one host by their
    namespace of process ids, and a process whose id was used again by when it started. What a
    system does not tell is ``-``.
    """
    host = socket.gethostname().replace("/", "_") or _UNKNOWN
    ids = (_hashed("/etc/machine-id"), _hashed("/proc/sys/kernel/random/boot_id"), _namespace())
    pid = os.getpid()
    return "/".join((host, *ids, str(pid), _started(pid) or _UNKNOWN))


def owner_alive(owner: str) -> bool | None:
    """Whether the process of that name is still there.

    Returns:
        None if that cannot be told from here: another host or container, or no such name at all.
    """
    theirs, here = owner.split("/"), this_owner().split("/")
    if len(theirs) != len(here) or not theirs[4].isdecimal() or theirs[:2] != here[:2]:
        return None
    _, machine, boot, namespace, pid, started = theirs
    if boot != here[2]:
        # Without machine ids it may be another machine of the same name.
        return False if _UNKNOWN not in (machine, boot, here[2]) else None
    if namespace != here[3]:
        return None
    return _exists(int(pid)) if started == _UNKNOWN else _started(int(pid)) == started


def _hashed(path: str) -> str:
    with suppress(OSError):
        if text := Path(path).read_text().strip():
            return hashlib.sha256(f"qailab {text}".encode()).hexdigest()[:8]
    return _UNKNOWN


def _namespace() -> str:
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    return _UNKNOWN


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None if there is none, or no /proc."""
    with suppress(OSError):
        # The second field is the program's name in brackets, which may itself hold blanks and such.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A zombie is dead, and only waits for its parent to hear of it.
        return None if fields[0] in "ZX" else fields[19]
    return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True
