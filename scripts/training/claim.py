"""One program at a time is at a run: who has the lock on a file in the run's folder.

The kernel frees a lock when its process ends, however it ends. It holds for all who reach the
folder, on other hosts too where the file system locks between them, as NFS does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from qailab.errors import InputError

LOCK = ".lock"
_PATIENCE_SECONDS = 30.0
"""For a cluster to end a job that it killed, and for NFS to free the locks of a lost machine."""
_TOLD_SECONDS, _POLL_SECONDS = 2.0, 0.2
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextlib.contextmanager
def claim(folder: Path, check: Callable[[], None], *, wait: bool = True) -> Iterator[None]:
    """Be the only program that is at a run; its folder is made if there is none.

    A folder in which nothing but the lock is left at the end is removed.

    Args:
        folder: the run's folder.
        check: called while it waits.
        wait: whether to wait for a program that is at it, which may just be ending.

    Raises:
        InputError: if another program is at it, or the folder cannot be written.
    """
    try:
        file = _acquire(folder / LOCK, check, _PATIENCE_SECONDS if wait else 0.0)
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if it is empty
        raise InputError(
            f"the run's folder {folder} cannot be written ({type(error).__name__}: {error}); give "
            "a --storage or --runs-dir that this user may write to"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if [*folder.iterdir()] == [folder / LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()
        os.close(file)  # not earlier: what is removed must be ours


def _acquire(lock: Path, check: Callable[[], None], patience: float) -> int:
    began, told = time.monotonic(), False
    while (file := _try(lock)) is None:
        waited = time.monotonic() - began
        if waited >= patience:
            raise InputError(
                f"{_holder(lock)} is training {lock.parent}; wait for it or stop it, or give "
                "another --name"
            )
        if waited >= _TOLD_SECONDS and not told:
            print(
                f"waiting for {_holder(lock)}, which is at the run {lock.parent}",
                file=sys.stderr,
                flush=True,
            )
            told = True
        time.sleep(_POLL_SECONDS)
        check()
    return file


def _try(lock: Path) -> int | None:
    """The open file, locked; None if another program has the lock."""
    lock.parent.mkdir(parents=True, exist_ok=True)  # who had it may just have removed the folder
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_there(file, lock):
            with contextlib.suppress(OSError):  # it is only for messages
                os.ftruncate(file, 0)
                os.write(file, f"{socket.gethostname()} {os.getpid()}\n".encode())
            return file
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno in _NO_LOCKS:
            print(
                f"the file system of {lock.parent} has no locks ({error}): see to it yourself that "
                "no other program trains this run",
                file=sys.stderr,
                flush=True,
            )
            return file
        os.close(file)
        raise
    os.close(file)
    return None


def _is_there(file: int, lock: Path) -> bool:
    """Whether the file still has its name: who had the lock may have removed it."""
    try:
        with lock.open("rb") as there:  # opened, since NFS may answer a stat from memory
            return os.path.samestat(os.fstat(file), os.fstat(there.fileno()))
    except FileNotFoundError:
        return False


def _holder(lock: Path) -> str:
    try:
        host, pid = lock.read_text().split()
    except (OSError, ValueError):  # it has only begun
        return "another program"
    return f"another program (pid {pid} on {host})"
