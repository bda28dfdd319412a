"""Environment variables of a job, from options and files."""

from __future__ import annotations

import re
from pathlib import Path

from qailab.errors import InputError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = re.compile(r"""(['"])(.*?)\1\s*(#.*)?""")


def read_environment(path: Path) -> dict[str, str]:
    """Variables of a file of lines ``KEY=VALUE``; comments, ``export`` and quotes are understood.

    Raises:
        InputError: if it cannot be read, or a line is none; without what is in the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Notepad's begin with a mark
    except (OSError, ValueError) as error:
        raise InputError(f"--env-file {path} cannot be read: {type(error).__name__}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("export ").strip()
        if text and not text.startswith("#"):
            found |= [assignment(text, f"{path}, line {number}")]
    return found


def assignment(text: str, where: str) -> tuple[str, str]:
    """Name and value of ``KEY=VALUE``.

    Raises:
        InputError: if it is none; without what it is.
    """
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not is_variable(name):
        raise InputError(f"{where} must be KEY=VALUE, with a KEY of letters, digits and _")
    quoted = _QUOTED.fullmatch(value)
    return name, quoted[2] if quoted else value


def is_variable(name: str) -> bool:
    """Whether this can be the name of a variable."""
    return _VARIABLE.fullmatch(name) is not None
