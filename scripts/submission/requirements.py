"""What a working directory needs to be installed, and what of it a cluster does not have."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qailab.errors import InputError

_EXTRA = "train"  # what scripts/train needs


@dataclass(frozen=True)
class Requirements:
    """What a working directory needs.

    Args:
        wanted: requirements as pip takes them, pinned where a version is known, by package.
        source: the file they are from, for messages.
        ignored: lines of it that are no requirements, such as ``-r other.txt``, as far as they can
            be shown.
    """

    wanted: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(cls, root: Path) -> Requirements:
        """Those of pyproject.toml, pinned by scripts/constraints.txt; else of requirements.txt.

        Raises:
            InputError: if a file cannot be understood.
        """
        project, pins = root / "pyproject.toml", root / "scripts" / "constraints.txt"
        if project.is_file():
            wanted, _ = _parse(_of_project(project), project)
            pinned, ignored = _parse(_lines(pins), pins) if pins.is_file() else ({}, [])
            for name in wanted.keys() & pinned.keys():  # extras and addresses stay
                wanted[name].specifier = pinned[name].specifier
            return cls._made(wanted, project, ignored)
        listed = root / "requirements.txt"
        if listed.is_file():
            wanted, ignored = _parse(_lines(listed), listed)
            return cls._made(wanted, listed, ignored)
        return cls()

    @classmethod
    def _made(cls, wanted: dict[str, Any], source: Path, ignored: list[str]) -> Requirements:
        wanted.pop("ray", None)  # a job cannot bring another Ray; see Cluster.check_versions
        return cls({k: str(v) for k, v in wanted.items()}, source.name, tuple(ignored))

    def differing(self, installed: Mapping[str, str | None]) -> dict[str, str]:
        """What is missing, of another version, or from an address: the requirement, by package."""
        from packaging.requirements import Requirement

        different = {}
        for name, line in self.wanted.items():
            requirement = Requirement(line)
            # What is installed does not say which address it was installed from.
            if requirement.url or not _fits(requirement.specifier, installed.get(name)):
                different[name] = line
        return different


def _fits(specifier: Any, installed: str | None) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        version = Version(installed or "")
    except InvalidVersion:
        return False  # none, or one that no specifier can be compared with
    # 2.13.0+cpu is 2.13.0 for this purpose: the same functions, built for the machine.
    text = str(version) if "+" in str(specifier) else version.public
    return bool(specifier.contains(text, prereleases=True))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _lines(path: Path) -> list[str]:
    """Its lines, of which one that ends in a backslash goes on in the next."""
    return _text(path).replace("\\\r\n", "  ").replace("\\\n", " ").splitlines()


def _of_project(project: Path) -> list[str]:
    try:
        table = tomllib.loads(_text(project)).get("project", {})
        needed = table.get("dependencies", [])
        more = table.get("optional-dependencies", {}).get(_EXTRA, [])
    except (tomllib.TOMLDecodeError, AttributeError) as error:
        raise InputError(f"{project}: {error}") from None
    for given in (needed, more):
        if not (isinstance(given, list) and all(isinstance(one, str) for one in given)):
            raise InputError(f"{project}: dependencies must be a list of strings, got {given!r}")
    return [*needed, *more]


def _parse(lines: list[str], source: Path) -> tuple[dict[str, Any], list[str]]:
    """Requirements by package, and the lines that are none."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    found, ignored = {}, []
    for line in lines:
        text = re.split(r"\s#", line)[0].strip()
        if text.startswith("-"):  # only the option: what follows may be an address with a password
            ignored.append(f"{source.name}: {re.split(r'[ =]', text)[0]}")
        if not text or text.startswith(("#", "-")):
            continue
        # A job is installed by version, without hashes: pip wants them of all packages, or none.
        text = re.split(r"\s--[a-z]", text)[0].strip()
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            shown = text.partition("://")[0]  # an address may have a password
            reason = str(error).partition("\n")[0]
            raise InputError(f"{source}: {shown!r} is no requirement: {reason}") from None
        if requirement.marker is None or requirement.marker.evaluate():
            name = str(canonicalize_name(requirement.name))
            requirement.name, requirement.marker = name, None
            found[name] = requirement
    return found, ignored
