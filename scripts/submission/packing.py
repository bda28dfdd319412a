"""Which files of the working directory go, and the package they go in.

Left out are `EXCLUDES`, what looks like a secret, what .gitignore and .rayignore name, and
symbolic links that leave the directory. Ray, given the same excludes, packs the same files: that
is what the ``ray job submit`` line of ``--dry-run`` does.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qailab.errors import InputError
from submission.secrecy import FILES, Known

EXCLUDES = (
    ".git", ".venv", "venv", "/env/", ".tox", "node_modules", "__pycache__", "*.py[cod]",
    "*.egg-info", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".cache",
    ".ipynb_checkpoints", ".coverage", ".DS_Store", ".idea", ".vscode", "/build/", "/dist/",
    "/data/", "/datasets/", "/runs/", "/logs/", "/checkpoints/", "*.pt", "*.pth", "*.sqlite*",
)  # fmt: skip
"""What no job needs, as patterns of .gitignore: large, made by programs, or somebody's own."""

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
        skipped: symbolic links that were left out.
    """

    root: Path
    files: dict[str, int]
    secret: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

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
        if self.total > limit * _COMPRESSION:
            raise self._too_large(f"{size(self.total)} before packing", limit)
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


def collect(root: Path, excludes: Sequence[str] = ()) -> Package:
    """Decide what goes.

    Args:
        root: the working directory.
        excludes: more patterns of what is left out, as in .gitignore.

    Raises:
        InputError: if it is no directory that can be read, or nothing is left.
    """
    if not root.is_dir():
        raise InputError(f"--working-dir must be a directory, and {root} is none")
    root = root.resolve()
    walk = _Walk(root, _spec([*EXCLUDES, *excludes]), _spec(FILES))
    files = dict(sorted(walk.files()))
    if not files:
        raise InputError(f"nothing is left to send of {root}: everything in it is excluded")
    return Package(root, files, tuple(sorted(walk.secret)), tuple(sorted(walk.skipped)))


def all_excludes(excludes: Sequence[str] = ()) -> list[str]:
    """The patterns that make Ray pack the same files."""
    return [*EXCLUDES, *excludes, *FILES]


class _Walk:
    """One walk through the working directory."""

    def __init__(self, root: Path, excludes: Any, secrets: Any) -> None:
        self.secret: list[str] = []
        self.skipped: list[str] = []
        self._root, self._excludes, self._secrets = root, excludes, secrets

    def files(self) -> Iterator[tuple[str, int]]:
        """Paths relative to the root, and sizes."""
        yield from self._below(self._root, [])

    def _below(self, folder: Path, ignored: list[tuple[Path, Any]]) -> Iterator[tuple[str, int]]:
        for name in (".gitignore", ".rayignore"):
            if (folder / name).is_file():
                lines = (folder / name).read_text(errors="replace").splitlines()
                ignored = [*ignored, (folder, _spec(lines))]
        for path in sorted(folder.iterdir()):
            inside = path.relative_to(self._root).as_posix()
            is_folder = path.is_dir()
            tail = "/" if is_folder else ""
            if self._excludes.match_file(inside + tail):
                continue
            if self._secrets.match_file(inside + tail):
                self.secret.append(inside + tail)
                continue
            relative = [(path.relative_to(base).as_posix(), spec) for base, spec in ignored]
            # A folder is left out as a whole only where no `!pattern` can take a part back.
            if any(
                spec.match_file(name + tail)
                for name, spec in relative
                if not (is_folder and any(pattern.include is False for pattern in spec.patterns))
            ):
                continue
            if path.is_symlink() and (is_folder or not self._is_inside(path)):
                self.skipped.append(inside)
            elif is_folder:
                yield from self._below(path, ignored)
            elif path.is_file() and os.access(path, os.R_OK):
                yield inside, path.stat().st_size

    def _is_inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._root)


def _spec(patterns: Sequence[str]) -> Any:
    # Ray's own, so that what is shown here is what Ray would do.
    from ray._private.thirdparty.pathspec import PathSpec

    return PathSpec.from_lines("gitwildmatch", patterns)


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
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(number[-1:], 1)
    try:
        count = int(float(number.rstrip("kmg")) * factor)
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise InputError(f"--max-size must be a size such as 5MiB, got {text!r}")
    return count
