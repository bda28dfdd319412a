"""The command line of ``scripts/submit.py``."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from qailab.errors import InputError
from submission.packing import DEFAULT_LIMIT, parse_size, size
from submission.probe import PREFIX
from submission.secrecy import check_environment
from submission.variables import assignment, is_variable, read_environment

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("status", "logs", "stop", "list")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


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
        allowed: names of variables and options that look like secrets, and are none.
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
    allowed: frozenset[str]
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
    parser = _parser(manual)
    known, unknown = parser.parse_known_args(own)
    if unknown:
        _explain(parser, unknown, own)
    if not words:
        raise InputError("what is to run? Give it after --: submit -- scripts/train.py --epochs 3")
    if known.name is not None and not _NAME.fullmatch(known.name):
        raise InputError(
            f"--name must be letters, digits and _.- , at most 100 of them, got {known.name!r}"
        )
    if known.name is not None and known.name.startswith(PREFIX):
        raise InputError(f"--name {known.name}: names that begin with {PREFIX} are submit's own")
    for name in known.allow_env:
        if not is_variable(name.lstrip("-").replace("-", "_")):
            raise InputError(f"--allow-env must be the name of a variable or option, got {name!r}")
    allowed = frozenset(name.lstrip("-") for name in known.allow_env)
    variables = read_environment(Path(known.env_file)) if known.env_file else {}
    for item in known.env:
        variables |= [assignment(item, "--env")]
    check_environment(variables, allowed)
    return Submission(
        place=_place(known),
        words=tuple(words),
        name=known.name,
        working_dir=Path(known.working_dir),
        excludes=tuple(known.exclude),
        limit=parse_size(known.max_size),
        variables=variables,
        allowed=allowed,
        pip=known.pip,
        python=known.python,
        any_version=known.any_version,
        wait=known.wait,
        dry_run=known.dry_run,
    )


def _explain(parser: argparse.ArgumentParser, unknown: list[str], own: list[str]) -> NoReturn:
    """Tell what is wrong with arguments that the options have no use for."""
    first = unknown[0]
    if first in COMMANDS:
        rest = [word for word in own if word != first]
        raise InputError(f"the command comes first: submit {first} {' '.join(rest)}")
    if not first.startswith("-"):
        near = difflib.get_close_matches(first, COMMANDS, 1)
        if near and first.isalpha():
            raise InputError(f"there is no command {first!r}; did you mean submit {near[0]}?")
        raise InputError(
            f"put the program after --, with its options: submit [options] -- {first} ..."
        )
    parser.error(f"unknown here: {first}. Options of the program come after --")


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
        _place(known),
        command,
        getattr(known, "job", None),
        getattr(known, "follow", False),
    )


def _place(known: argparse.Namespace) -> Place:
    if known.ca_file is not None and not Path(known.ca_file).exists():
        raise InputError(f"--ca-file must be a file of certificates, and {known.ca_file} is none")
    return Place(known.address, known.ca_file)


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
        "--allow-env",
        action="append",
        default=[],
        metavar="NAME",
        help="this variable, or option of the program, looks like a secret and is none; may be "
        "given several times",
    )
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
        help="only tell what would go, and the `ray job submit` line that sends the same files",
    )
    return parser
