"""The package that goes with a job: the files of `Walk`, of a size that every node can load.

Ray, given the excludes of the package, packs the same files: that is what the ``ray job submit``
line of ``--dry-run`` does.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qailab.errors import InputError
from submission.secrecy import Known
from submission.secret_files import FILES
from submission.walking import EXCLUDES, Walk

DEFAULT_LIMIT = 1 << 20
"""1 MiB: this repository packs to 0.6 MiB, and every node of a cluster loads the package."""
_COMPRESSION = 30  # text shrinks to a quarter; what is larger by this factor is not even tried
_SHOWN = 8
_DATE = (2000, 1, 1, 0, 0, 0)  # the same files make the same package, which Ray then has already


@dataclass(frozen=True)
class Package:
    """What goes.

    Args:
        root: the working directory.
        files: paths relative to it, sorted, and their sizes in bytes.
        secret: what was left out because it looks like a secret.
        skipped: symbolic links that were left out, to folders or to what does not go.
        unreadable: what was left out because it cannot be read.
        excludes: patterns that make Ray pack the same files.
    """

    root: Path
    files: dict[str, int]
    secret: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def largest(self, count: int = 4) -> list[tuple[str, int]]:
        """The largest files and their sizes."""
        return sorted(self.files.items(), key=lambda item: (-item[1], item[0]))[:count]

    def write(self, path: Path, limit: int, known: Known) -> int:
        """Write the zip file.

        Args:
            path: where to.
            limit: bytes that it may have.
            known: secrets that must not be in it.

        Returns:
            Its size in bytes.

        Raises:
            InputError: if it is larger than the limit, or a file has a secret in it.
        """
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name in self.files:
                file = self.root / name
                content = file.read_bytes()
                known.check(name, content)
                entry = zipfile.ZipInfo(name, _DATE)
                entry.external_attr = (file.stat().st_mode & 0o777) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, content)
        packed = path.stat().st_size
        if packed > limit:
            raise self._too_large(f"{size(packed)} packed", limit)
        return packed

    def check_total(self, limit: int) -> None:
        """Check that it may fit.

        Raises:
            InputError: if it is certainly larger than the limit, packed or not.
        """
        if self.total > limit * _COMPRESSION:
            raise self._too_large(f"{size(self.total)} before packing", limit)

    def _too_large(self, much: str, limit: int) -> InputError:
        lines = [f"  {size(count):>10}  {name}" for name, count in self.largest(_SHOWN)]
        folders: dict[str, int] = {}
        for name, count in self.files.items():
            if "/" in name:
                top = name.split("/")[0] + "/"
                folders[top] = folders.get(top, 0) + count
        big = sorted(folders.items(), key=lambda item: -item[1])[:3]
        lines += [f"  {size(count):>10}  {name} in all" for name, count in big]
        return InputError(
            f"{self.root} is too large to go with a job: {len(self.files)} files, {much}; at most "
            f"{size(limit)}. The largest:\n" + "\n".join(lines) + "\nLeave out what the job does "
            "not need with --exclude PATTERN or in .rayignore (patterns as in .gitignore), put "
            "data on storage that the nodes share, or allow more with --max-size 5MiB"
        )


def collect(root: Path, excludes: Sequence[str] = (), limit: int = DEFAULT_LIMIT) -> Package:
    """Decide what goes.

    Args:
        root: the working directory.
        excludes: more patterns of what is left out, as in .gitignore.
        limit: bytes that the package may have.

    Raises:
        InputError: if it is no directory that can be read, nothing is left, or far too much.
    """
    if not root.is_dir():
        raise InputError(f"--working-dir must be a directory, and {root} is none")
    root = root.resolve()
    walk = Walk(root, excludes)
    files = walk.files()
    Package(root, files).check_total(limit)  # before all of it is read
    files = walk.without_secrets(files)
    if not files:
        raise InputError(f"nothing is left to send of {root}: everything in it is excluded")
    named = [*walk.secret, *walk.skipped, *walk.unreadable, *walk.above]
    return Package(
        root,
        files,
        tuple(sorted(walk.secret)),
        tuple(sorted(walk.skipped)),
        tuple(sorted(walk.unreadable)),
        # The last that matches counts: names first, among which is `!*.py`.
        (*FILES, *EXCLUDES, *excludes, *map(_pattern, named)),
    )


def _pattern(name: str) -> str:
    """The pattern of .gitignore for this path and no other."""
    return "/" + re.sub(r"([\\*?\[\]!# ])", r"\\\1", name)


def size(count: int) -> str:
    """A number of bytes for people."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def parse_size(text: str) -> int:
    """A number of bytes, such as ``5MiB``, ``700k`` or ``2000000``.

    Raises:
        InputError: if it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)(?:i?b)?", text.strip().lower())
    factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    count = int(float(found[1]) * factor.get(found[2], 1)) if found else 0
    if count < 1:
        raise InputError(f"--max-size must be a size such as 5MiB, got {text!r}")
    return count
