"""Where a journal's file is: what can be said of a path before SQLite looks at it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from qailab.errors import InputTypeError, JournalError


def checked_path(path: str | os.PathLike[str], *, create: bool) -> str:
    """The absolute path of a file that can be used; made if there is none and it may be.

    Raises:
        JournalError: if it cannot be used.
        InputTypeError: if it is no path at all.
    """
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(name, str) or "\0" in name:
        raise InputTypeError(f"a journal's path must be text or a path, got {path!r}")
    full = os.path.abspath(name)  # it must mean the same after a chdir
    folder = os.path.dirname(full)
    wrong = f"expected a journal's file at {full}, but "
    if create and not os.path.isdir(folder):
        raise JournalError(f"{wrong}there is no folder {folder}; make it, or give another path")
    try:
        kind = os.stat(full).st_mode
    except FileNotFoundError:
        if not create:
            raise JournalError(
                f"{wrong}there is no such file; see where the training put it"
            ) from None
        _create(full, folder, wrong)
        return full
    except OSError as error:
        raise JournalError(f"{wrong}{error.strerror}; give another path") from error
    if stat.S_ISDIR(kind):
        raise JournalError(f"{wrong}that is a folder; give the path of a file in it")
    if not stat.S_ISREG(kind):
        raise JournalError(f"{wrong}that is no regular file; give another path")
    if not os.access(full, os.R_OK) or (create and not os.access(full, os.W_OK)):
        doing = "written" if os.access(full, os.R_OK) else "read"
        raise JournalError(f"{wrong}it cannot be {doing}; change its permissions (chmod u+rw)")
    if create and not os.access(folder, os.W_OK):
        raise JournalError(
            f"{wrong}its folder cannot be written, where SQLite keeps what it needs to undo a "
            f"transaction; change its permissions (chmod u+w {folder})"
        )
    return full


def _create(path: str, folder: str, wrong: str) -> None:
    """An empty file for this user only; what ran where is nobody else's business."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600))
    except FileExistsError:
        return  # another process was faster
    except OSError as error:
        raise JournalError(
            f"{wrong}it cannot be made there ({error.strerror}); give a path that can be written"
        ) from error
    with suppress(OSError):  # some file systems cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
