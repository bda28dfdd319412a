"""Which files of the working directory go.

Left out are `EXCLUDES`, what looks like a secret, what .gitignore and .rayignore name (as in git,
also those of the folders above, up to the repository's, and .git/info/exclude), what cannot be
read, and symbolic links to folders or to files that do not go themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qailab.errors import InputError
from submission.secret_files import FILES, has_secret

EXCLUDES = (
    ".git", ".venv", "venv", "/env/", ".tox", "node_modules", "__pycache__", "*.py[cod]",
    "*.egg-info", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".cache",
    ".ipynb_checkpoints", ".coverage", ".DS_Store", ".idea", ".vscode", "/build/", "/dist/",
    "/data/", "/datasets/", "/runs/", "/sweeps/", "/logs/", "/checkpoints/", "*.pt",
    "*.pth", "*.sqlite*",
)  # fmt: skip
"""What no job needs, as patterns of .gitignore: large, made by programs, or somebody's own."""


class Walk:
    """One walk through a working directory.

    Args:
        root: the directory, without links in its path.
        excludes: more patterns of what is left out.
    """

    def __init__(self, root: Path, excludes: Sequence[str]) -> None:
        self.secret: list[str] = []
        self.skipped: list[str] = []
        self.unreadable: list[str] = []
        self.above: list[str] = []
        """What ignore files above the directory name."""
        self._root = root
        self._excludes = _spec([*EXCLUDES, *excludes])
        self._secrets = _spec(FILES)
        self._links: dict[str, str] = {}
        self._above = list(_ignored_above(root))

    def files(self) -> dict[str, int]:
        """Paths relative to the root, and sizes in bytes.

        Raises:
            InputError: if an ignore file cannot be read or understood, or a name cannot be sent.
        """
        found = dict(self._below(self._root, []))
        # A link is what it leads to: nothing that does not go by its own name.
        for link, target in self._links.items():
            if target in found:
                found[link] = found[target]
            else:
                self.skipped.append(link)
        return dict(sorted(found.items()))

    def without_secrets(self, files: dict[str, int]) -> dict[str, int]:
        """Those files that have no secret in them."""
        kept = {}
        for name, count in files.items():
            try:
                content = (self._root / name).read_bytes()
            except OSError:
                self.unreadable.append(name)
                continue
            if has_secret(content):
                self.secret.append(name)
            else:
                kept[name] = count
        return kept

    def _below(self, folder: Path, ignored: list[tuple[Path, Any]]) -> Iterator[tuple[str, int]]:
        for name in (".gitignore", ".rayignore"):
            if (folder / name).is_file():
                ignored = [*ignored, (folder, _read(folder / name))]
        try:
            paths = sorted(folder.iterdir())
        except OSError:
            self.unreadable.append(self._inside(folder) + "/")
            return
        for path in paths:
            inside = self._inside(path)
            try:
                is_folder = path.is_dir()
                if not self._goes(path, inside + "/" * is_folder, ignored):
                    continue
                if path.is_symlink():
                    target = path.resolve()
                    if not is_folder and target.is_relative_to(self._root):
                        self._links[inside] = self._inside(target)
                    else:
                        self.skipped.append(inside)
                elif is_folder:
                    yield from self._below(path, ignored)
                elif path.is_file() and os.access(path, os.R_OK):
                    yield inside, path.stat().st_size
                else:
                    self.unreadable.append(inside)
            except (OSError, RuntimeError):  # links in a circle, too
                self.unreadable.append(inside)

    def _goes(self, path: Path, inside: str, ignored: list[tuple[Path, Any]]) -> bool:
        is_folder = inside.endswith("/")
        if self._excludes.match_file(inside):
            return False
        is_package = is_folder and (path / "__init__.py").is_file()
        if self._secrets.match_file(inside.lower()) and not is_package:
            self.secret.append(inside)
            return False
        if _matches(path, is_folder, ignored):
            return False
        if _matches(path, is_folder, self._above):
            self.above.append(inside)
            return False
        try:
            inside.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{inside!a}: this name is not UTF-8, and cannot go with a job. Rename it, or "
                "leave it out with --exclude or in .rayignore"
            ) from None
        return True

    def _inside(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _matches(path: Path, is_folder: bool, ignored: Iterable[tuple[Path, Any]]) -> bool:
    # A folder is left out as a whole only where no `!pattern` can take a part back.
    return any(
        spec.match_file(path.relative_to(base).as_posix() + "/" * is_folder)
        for base, spec in ignored
        if not (is_folder and any(pattern.include is False for pattern in spec.patterns))
    )


def _ignored_above(root: Path) -> Iterator[tuple[Path, Any]]:
    """What git has for a folder from above it; nothing if the folder is itself ignored."""
    parents = [root, *root.parents]
    tops = [n for n, folder in enumerate(parents) if (folder / ".git").exists()]
    if not tops:
        return
    top = parents[tops[0]]
    files = [(top, top / ".git" / "info" / "exclude")]
    files += [(folder, folder / ".gitignore") for folder in parents[1 : tops[0] + 1]]
    found = [(base, _read(file)) for base, file in files if file.is_file()]
    if not _matches(root, True, [(base, spec) for base, spec in found if base != root]):
        yield from found


def _read(file: Path) -> Any:
    try:
        lines = file.read_text(errors="surrogateescape").splitlines()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    return _spec(lines, file)


def _spec(patterns: Sequence[str], file: Path | None = None) -> Any:
    # Ray's own, so that what is shown here is what Ray would do.
    from ray._private.thirdparty.pathspec import PathSpec

    for number, pattern in enumerate(patterns, 1):
        try:
            PathSpec.from_lines("gitwildmatch", [pattern])
        except (ValueError, IndexError, re.error) as error:
            where = f"{file}, line {number}" if file else "--exclude"
            raise InputError(f"{where}: {pattern!r} is no pattern of .gitignore: {error}") from None
    return PathSpec.from_lines("gitwildmatch", patterns)
