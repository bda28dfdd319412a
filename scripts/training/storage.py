"""Where a run outlives its machine: a directory, or files at a URI.

A directory that all nodes share is used as it is. At a URI (whatever pyarrow or fsspec can
open), the files of a run are copies of those in its folder, renewed whenever those are written.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from qailab.errors import InputError, QailabError


class StorageError(QailabError, OSError):
    """The storage stopped to work during a run."""


def directory(storage: str) -> Path | None:
    """The directory that a path or ``file://`` URI names, ready to be written; None for others.

    Raises:
        InputError: if it cannot be written.
    """
    if storage.startswith("file://"):
        path = Path(url2pathname(urlsplit(storage).path))
    elif "://" in storage:
        return None
    else:
        path = Path(storage)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"--storage {storage} cannot be written ({type(error).__name__}: {error}); give a "
            "directory that this user may write to, on every node"
        ) from error
    return path


@dataclass(frozen=True, eq=False)
class Mirror:
    """The files of one run at a URI.

    Args:
        filesystem: pyarrow's filesystem.
        path: the run's path there.
        shown: the URI, for messages.
    """

    filesystem: Any
    path: str
    shown: str

    @classmethod
    def open(cls, uri: str, name: str) -> Mirror:
        """Look whether files can be written and read there.

        Args:
            uri: where runs are.
            name: the run.

        Raises:
            InputError: if not.
        """
        shown = f"{uri.partition('?')[0].rstrip('/')}/{name}"
        try:
            filesystem, path = _resolve(uri)
            mirror = cls(filesystem, f"{path.rstrip('/')}/{name}", shown)
            probe = f"{mirror.path}/.probe"
            filesystem.create_dir(mirror.path, recursive=True)
            with filesystem.open_output_stream(probe) as file:
                file.write(b"qailab")
            with filesystem.open_input_stream(probe) as file:
                if file.read() != b"qailab":
                    raise OSError("what was written is not what can be read")
            filesystem.delete_file(probe)
        except Exception as error:  # filesystems promise no type
            raise InputError(
                f"--storage {shown} cannot be written ({type(error).__name__}: {error}); correct "
                "it, or the rights and credentials of this machine"
            ) from error
        return mirror

    def __str__(self) -> str:
        return self.shown

    def fetch(self, path: Path) -> bool:
        """Copy the file of this name here; False if there is none.

        Raises:
            StorageError: if that fails.
        """
        there = f"{self.path}/{path.name}"
        try:
            if not self.filesystem.get_file_info(there).is_file:
                return False
            with self.filesystem.open_input_stream(there) as file:
                content = file.read()
        except Exception as error:
            raise self._failed("read", error) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return True

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
            f"{self.shown} cannot be {what} any more ({type(error).__name__}: {error}); when it "
            "can, go on with --resume"
        )


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
