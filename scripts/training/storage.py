"""Where a run outlives its machine: a directory, or files at a URI.

A directory that all nodes share is used as it is. At a URI (whatever pyarrow or fsspec can
open), the files of a run are copies of those in its folder, renewed whenever those are written.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from urllib.request import url2pathname

from qailab.errors import InputError, QailabError

_PASSWORD = re.compile(r"^[^/@:]*:(?!\d*/)[^@]*@")
"""Before a host; a password may have slashes, and what follows a port is none."""
_SECRET = re.compile(r"key|secret|token|passw|pwd|^sig|signature|credential", re.IGNORECASE)


class StorageError(QailabError, OSError):
    """The storage stopped to work during a run."""


def check_storage(storage: str) -> None:
    """Check what can be seen without looking there.

    Raises:
        InputError: if it is nothing, does not outlive a process, or everybody would see a secret.
    """
    if not storage:
        raise InputError("--storage must be a directory or a URI, got nothing")
    if directory(storage) is not None:
        return
    scheme, _, rest = storage.partition("://")
    if scheme.rpartition("::")[2] == "memory":
        raise InputError(
            f"--storage {shown(storage)} ends with each process: nothing could go on from there; "
            "give a directory or the URI of a store"
        )
    place, _, query = rest.partition("?")
    keys = [key for key, _ in parse_qsl(query, keep_blank_values=True) if _SECRET.search(key)]
    if _PASSWORD.match(place) or keys:
        what = f"the value of {keys[0]}" if keys else "a user or password (USER:PASSWORD@)"
        raise InputError(
            f"--storage must not hold {what}: everybody sees command lines. Put credentials where "
            "the storage's own client looks for them on the nodes"
        )


def shown(storage: str) -> str:
    """The storage as it may be printed: what comes after a URI's ? may be secret."""
    before, mark, _ = storage.partition("?")
    return f"{before}?..." if mark and "://" in before else storage


def directory(storage: str) -> Path | None:
    """The directory that a path or ``file:`` URI names; None for other URIs.

    Raises:
        InputError: if it names none.
    """
    if storage.startswith("file:"):
        parts = urlsplit(storage)
        if parts.netloc not in ("", "localhost") or parts.path[:1] != "/":
            named = f"{parts.netloc}{parts.path}"
            raise InputError(
                f"--storage {shown(storage)} must be file:/// and an absolute path, and files of "
                f"other machines cannot be reached so; give --storage {named or 'PATH'} for a "
                "path from here"
            )
        if parts.query or parts.fragment:
            raise InputError(
                f"--storage {shown(storage)}: in a file URI, ? is written %3F and # is written %23"
            )
        return Path(url2pathname(parts.path))
    if "://" in storage:
        return None
    try:
        return Path(storage).expanduser()
    except RuntimeError as error:  # nobody's home
        raise InputError(f"--storage {storage}: {error}; give the whole path") from error


@dataclass(frozen=True, eq=False)
class Mirror:
    """The files of one run at a URI.

    Args:
        filesystem: pyarrow's filesystem.
        path: the run's path there.
        shown: the URI, for messages.
        secret: what must be in no message.
    """

    filesystem: Any
    path: str
    shown: str
    secret: str = ""

    @classmethod
    def open(cls, uri: str, name: str) -> Mirror:
        """Reach it; nothing is changed there.

        Args:
            uri: where runs are.
            name: the run.

        Raises:
            InputError: if it cannot be reached.
        """
        before, _, query = uri.partition("?")
        mirror = cls(None, "", f"{before.rstrip('/')}/{name}", query)
        try:
            filesystem, path = _resolve(uri)
            mirror = cls(filesystem, f"{path.rstrip('/')}/{name}", mirror.shown, query)
            filesystem.get_file_info(mirror.path)
        except Exception as error:  # filesystems promise no type
            raise mirror._refused("reached", error) from error
        return mirror

    def probe(self) -> None:
        """Look whether files can be written and read there.

        Raises:
            InputError: if not.
        """
        probe = f"{self.path}/.probe-{uuid.uuid4().hex[:12]}"
        try:
            self.filesystem.create_dir(self.path, recursive=True)
            with self.filesystem.open_output_stream(probe) as file:
                file.write(b"qailab")
            with self.filesystem.open_input_stream(probe) as file:
                if file.read() != b"qailab":
                    raise OSError("what was written is not what can be read")
            self.filesystem.delete_file(probe)
        except Exception as error:
            raise self._refused("written", error) from error

    def __str__(self) -> str:
        return self.shown

    def read(self, name: str) -> bytes | None:
        """What is in the file of this name; None if there is none.

        Raises:
            StorageError: if that fails.
        """
        there = f"{self.path}/{name}"
        try:
            if not self.filesystem.get_file_info(there).is_file:
                return None
            with self.filesystem.open_input_stream(there) as file:
                content: bytes = file.read()
        except Exception as error:
            raise self._failed("read", error) from error
        return content

    def push(self, *paths: Path) -> None:
        """Copy these files there, each all or nothing.

        Raises:
            StorageError: if that fails.
        """
        try:
            for path in paths:
                beside = f"{self.path}/.{path.name}.new"
                with self.filesystem.open_output_stream(beside) as file:
                    file.write(path.read_bytes())
                self.filesystem.move(beside, f"{self.path}/{path.name}")
        except Exception as error:
            raise self._failed("written", error) from error

    def _failed(self, what: str, error: Exception) -> StorageError:
        return StorageError(
            f"{self.shown} cannot be {what} any more ({self._words(error)}); when it can, go on "
            "with --resume"
        )

    def _refused(self, what: str, error: Exception) -> InputError:
        return InputError(
            f"--storage {self.shown} cannot be {what} ({self._words(error)}); correct it, or the "
            "rights and credentials of this machine"
        )

    def _words(self, error: Exception) -> str:
        text = f"{type(error).__name__}: {error}"
        return text.replace(self.secret, "...") if self.secret else text


def remove(filesystem: Any, path: str) -> None:
    """Remove a directory with all that is in it, if it is there."""
    from pyarrow.fs import FileType

    if filesystem.get_file_info(path).type != FileType.NotFound:
        filesystem.delete_dir(path)


def _resolve(uri: str) -> tuple[Any, str]:
    try:
        from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem
    except ImportError:
        raise InputError("it needs pyarrow: pip install 'ray[train]'") from None
    from pyarrow.lib import ArrowInvalid

    try:
        return FileSystem.from_uri(uri)
    except ArrowInvalid:  # a scheme that is none of pyarrow's own
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(uri)
        return PyFileSystem(FSSpecHandler(filesystem)), path
