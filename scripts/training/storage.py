"""The folder of a run, in a directory or at a URI that pyarrow writes: s3, gs, hdfs, fsspec+...

::

    runs/<name>/config.json      settings, to be read by people
                checkpoint.pt    everything that the rest of the run depends on
                metrics.jsonl    one line for each finished epoch
                curves.png, confusion.png, and compared.png with --compare
                journal.sqlite   with --backend ibm: jobs on hardware, and their results
                checkpoint_*/    with --workers: what Ray Train restores workers from
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from qailab.errors import InputError


class RunFolder:
    """The files of one run, each written all or nothing.

    `filesystem` is pyarrow's, and `parent` the path of all runs there.

    Raises:
        InputError: if the storage cannot be reached.
    """

    def __init__(self, storage: str, name: str) -> None:
        from pyarrow.fs import FileSystem

        shown = storage.partition("?")[0].rstrip("/")  # what comes after it may be secret
        self.name, self._shown = name, f"{shown}/{name}"
        try:
            uri = storage if "://" in storage else os.path.abspath(os.path.expanduser(storage))
            self.filesystem, self.parent = FileSystem.from_uri(uri)
            self._path = f"{self.parent.rstrip('/')}/{name}"
            self.filesystem.get_file_info(self._path)
        except Exception as error:  # filesystems promise no type
            words = f"{type(error).__name__}: {error}".replace(storage, shown)
            raise InputError(f"--storage {shown} cannot be reached ({words})") from error
        self._is_local = self.filesystem.type_name == "local"

    @property
    def journal(self) -> Path:
        """The record of jobs on hardware.

        Raises:
            InputError: if the run is at a URI, where SQLite cannot write.
        """
        if not self._is_local:
            raise InputError("--backend ibm keeps a journal: --storage must be a directory")
        return Path(self._path, "journal.sqlite")

    def read(self, file: str) -> bytes | None:
        """What is in a file; None if there is none."""
        path = f"{self._path}/{file}"
        if not self.filesystem.get_file_info(path).is_file:
            return None
        with self.filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())

    def write(self, file: str, content: bytes) -> None:
        """Write a file under a new name, which then takes its place."""
        new = f"{self._path}/.{file}.{uuid.uuid4().hex[:8]}"
        self.filesystem.create_dir(self._path, recursive=True)
        with self.filesystem.open_output_stream(new) as stream:
            stream.write(content)
        if self._is_local:
            with open(new, "rb") as written:
                os.fsync(written)  # a power cut must not leave the new name with old blocks
        self.filesystem.move(new, f"{self._path}/{file}")

    def __str__(self) -> str:
        return self._shown
