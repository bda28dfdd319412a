"""The command line of ``scripts/submit.py``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qailab.errors import InputError
from submission.packing import DEFAULT_LIMIT, parse_size, size
from submission.secrecy import check_environment

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("status", "logs", "stop", "list")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Place:
    """Where the cluster is.

    Args:
        address: as given, or None.
        ca_file: certificates for https, or None.
    """

    address: str | None
    ca_file: str | None


@dataclass(frozen=True)
class Submission:
    """What to submit.

    Args:
        place: where to.
        words: the program and its arguments.
        name: id of the job, or None for one that is made.
        working_dir: the directory that goes.
        excludes: patterns of what does not.
        limit: bytes that the package may have.
        variables: environment variables of the job.
        pip: whether requirements go: True, False, or None to ask the cluster.
        python: the command that runs programs there.
        any_version: whether other versions of Ray and Python are fine.
        wait: whether to follow the job.
        dry_run: whether only to tell.
    """

    place: Place
    words: tuple[str, ...]
    name: str | None
    working_dir: Path
    excludes: tuple[str, ...]
    limit: int
    variables: dict[str, str]
    pip: bool | None
    python: str
    any_version: bool
    wait: bool
    dry_run: bool


@dataclass(frozen=True)
class Question:
    """Something about jobs that were submitted.

    Args:
        place: where.
        command: one of `COMMANDS`.
        job: id of the job, or None for the latest.
        follow: for logs, whether to go on until the job ends.
    """

    place: Place
    command: str
    job: str | None
    follow: bool


def parse(arguments: Sequence[str], manual: str) -> Submission | Question:
    """Read the command line.

    Args:
        arguments: the arguments.
        manual: the text above the options in ``--help``.

    Raises:
        InputError: if a value is not usable.
    """
    own, words = _split(list(arguments))
    if own and own[0] in COMMANDS:
        if words:
            raise InputError(f"{own[0]} takes no program after --")
        return _question(own)
    known = _parser(manual).parse_args(own)
    if not words:
        raise InputError("what is to run? Give it after --: submit -- scripts/train.py --epochs 3")
    if known.name is not None and not _NAME.fullmatch(known.name):
        raise InputError(f"--name must be letters, digits and _.- , got {known.name!r}")
    variables = read_environment(Path(known.env_file)) if known.env_file else {}
    for item in known.env:
        variables |= [_assignment(item, "--env")]
    check_environment(variables)
    return Submission(
        place=Place(known.address, known.ca_file),
        words=tuple(words),
        name=known.name,
        working_dir=Path(known.working_dir),
        excludes=tuple(known.exclude),
        limit=parse_size(known.max_size),
        variables=variables,
        pip=known.pip,
        python=known.python,
        any_version=known.any_version,
        wait=known.wait,
        dry_run=known.dry_run,
    )


def read_environment(path: Path) -> dict[str, str]:
    """Variables of a file of lines ``KEY=VALUE``; comments, ``export`` and quotes are understood.

    Raises:
        InputError: if it cannot be read, or a line is none; without what is in the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"--env-file {path} cannot be read: {type(error).__name__}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("export ").strip()
        if text and not text.startswith("#"):
            found |= [_assignment(text, f"{path}, line {number}")]
    return found


def _assignment(text: str, where: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not _VARIABLE.fullmatch(name):
        raise InputError(f"{where} must be KEY=VALUE, with a KEY of letters, digits and _")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return name, value


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _question(arguments: list[str]) -> Question:
    command = arguments[0]
    parser = argparse.ArgumentParser(prog=f"submit {command}", allow_abbrev=False)
    _add_place(parser)
    if command != "list":
        needed = None if command == "stop" else "?"  # the latest may be somebody else's
        which = "its id" if command == "stop" else "its id (default: the latest job)"
        parser.add_argument("job", nargs=needed, metavar="ID", help=which)
    if command == "logs":
        parser.add_argument("--follow", action="store_true", help="go on until the job ends")
    known = parser.parse_args(arguments[1:])
    return Question(
        Place(known.address, known.ca_file),
        command,
        getattr(known, "job", None),
        getattr(known, "follow", False),
    )


def _add_place(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the dashboard, http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS)",
    )
    parser.add_argument(
        "--ca-file", metavar="FILE", help="certificates to trust for https (default: the system's)"
    )


def _parser(manual: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="submit",
        usage="submit [options] -- PROGRAM [arguments]\n       submit status|logs|stop|list [ID]",
        description=manual,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("the cluster").add_argument
    _add_place(parser._action_groups[-1])
    add("--python", default="python", metavar="PATH", help="what runs programs (default: python)")
    add("--any-version", action="store_true", help="do not mind other versions of Ray and Python")

    add = parser.add_argument_group("the job").add_argument
    add("--name", metavar="ID", help="id of the job (default: program-date-time-random)")
    add(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="follow the job until it ends (default), or leave it alone",
    )
    add("--env", action="append", default=[], metavar="KEY=VALUE", help="a variable; no secrets")
    add("--env-file", metavar="FILE", help="a file of lines KEY=VALUE; no secrets")
    add(
        "--pip",
        action=argparse.BooleanOptionalAction,
        help="install the requirements for the job, or not (default: ask the cluster what it has)",
    )

    add = parser.add_argument_group("what goes").add_argument
    add("--working-dir", default=ROOT, metavar="DIR", help="default: the repository")
    add(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave this out too, as in .gitignore; may be given several times",
    )
    add(
        "--max-size",
        default=str(DEFAULT_LIMIT),
        metavar="SIZE",
        help=f"bytes that the package may have, such as 5MiB (default: {size(DEFAULT_LIMIT)})",
    )
    add(
        "--dry-run",
        action="store_true",
        help="only tell what would go, and the `ray job submit` line that does the same",
    )
    return parser
