"""The command line, and the settings that a run's weights depend on. Imports nothing heavy."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from qailab.errors import InputError

EXACT = "exact"
"""Instead of a number of shots: exact probabilities."""
ON_HARDWARE: dict[str, Any] = {"epochs": 1, "batch_size": 20, "shots": 128, "samples": 50}
"""Other defaults with ``--backend ibm``: about 100 QPU seconds, a sixth of a month's open plan."""


def number_or_exact(text: str) -> int | str:
    """Read a number of shots; its name, and the next one's, are in argparse's errors."""
    return text if text == EXACT else int(text)


def JSON(text: str) -> Any:
    """Read JSON."""
    return json.loads(text)


def _setting(default: Any, help: str, *allowed: Any, kind: Any = None) -> Any:
    """A field with its help, and what is allowed: the least and perhaps most number, or choices."""
    known = {"kind": kind or type(default), "help": help, "allowed": allowed}
    return field(default=default, metadata=known)


@dataclass(frozen=True)
class Settings:
    """What a run's weights depend on.

    Raises:
        InputError: if a value is out of its range.
    """

    epochs: int = _setting(10, "how often each sample is used", 1)
    batch_size: int = _setting(32, "samples of each step", 1)
    lr: float = _setting(0.01, "learning rate of Adam in the first epoch", 1e-9, 10.0)
    # Also of runs that were saved before there was a choice. Test accuracy with the statevector
    # backend and seeds 7, 1, 2, 3: 96.9, 95.3, 97.2, 95.8 %; with z 88.6, 88.0, 93.0, 92.8 %.
    output: str = _setting(
        "probabilities", "of the circuit: probabilities, or z (<Z> of each qubit)",
        "probabilities", "z",
    )  # fmt: skip
    # With probabilities the layer behind the circuit has 2**qubits inputs: 2.6 MB at 16.
    qubits: int = _setting(6, "qubits of the circuit", 1, 16)
    reps: int = _setting(2, "repetitions of its rotations and entanglement", 1)
    shots: int | str = _setting(1024, "shots of each row, or 'exact'", 1, kind=number_or_exact)
    gradient: str = _setting(
        "auto", "auto, param_shift, adjoint (exact), spsa (cheap and noisy)",
        "auto", "param_shift", "adjoint", "spsa",
    )  # fmt: skip
    backend: str = _setting(
        "aer", "aer, statevector (5 to 10 times as fast), aer-noisy or ibm",
        "aer", "statevector", "aer-noisy", "ibm",
    )  # fmt: skip
    seed: int = _setting(7, "seed of weights, order of samples and shot noise", 0, 2**63 - 1)
    # A fifth is for testing, and all ten digits must be in both parts.
    samples: int | None = _setting(None, "use the first N samples only", 50, 1797, kind=int)
    dtype: str = _setting("float32", "float32 or float64", "float32", "float64")

    def __post_init__(self) -> None:
        for each in fields(self):
            value, allowed = getattr(self, each.name), each.metadata["allowed"]
            if isinstance(allowed[0], str):
                right, must = value in allowed, f"one of {', '.join(allowed)}"
            else:
                least, most = (*allowed, math.inf)[:2]
                right = value in (None, EXACT) or least <= value <= most
                must = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            if not right:
                raise InputError(f"{option(each.name)} must be {must}, got {value}")

    @property
    def num_shots(self) -> int | None:
        """Shots of each row; None for exact probabilities."""
        return None if self.shots == EXACT else int(self.shots)


def parse(arguments: Sequence[str] | None, manual: str) -> Namespace:
    """Read the command line; ends the process with one line if it cannot be understood.

    Args:
        arguments: the arguments; by default the process's own.
        manual: the text above the options in ``--help``.

    Returns:
        The options by name; and ``given``, the settings that were given, ``settings``, those of a
        new run, and ``again``, the command that goes on with the run.

    Raises:
        InputError: if a value is out of its range, or there are two names.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = Parser("train", manual)
    parser.add_settings()
    add = parser.add_places()
    add("--workers", "N", "processes that train together, with Ray Train (1)", type=positive)
    add(
        "--async",
        "LANES",
        "batches on their way at once (with --lr 0.01 / LANES)",
        type=positive,
        dest="lanes",
    )
    add("--backend-options", "JSON", "keywords of the backend", type=JSON)
    add("--devices", "NAME,NAME", "IBM's devices (the least busy one)", type=_several(str))
    add("--budget-seconds", "S", "QPU seconds to spend at most; ibm needs it", type=float)
    parser.add_name("runs", "of a run; with the same settings and storage again, it goes on")
    parser.add_argument("--estimate", action="store_true", help="only tell its cost on hardware")
    text = "draw its test loss beside this run's, by seconds and QPU seconds"
    parser.add_argument("--compare", metavar="RUN", help=text)
    options = parser.parse(arguments)
    again = options.resume
    take_name(options)
    again = ["--resume", again or options.name, *_nameless(arguments)]
    options.again = shlex.join(["scripts/train", *again])
    on_hardware = options.given.get("backend") == "ibm"
    options.settings = Settings(**((ON_HARDWARE if on_hardware else {}) | options.given))
    return options


def check_places(options: Namespace) -> None:
    """Raise an `InputError` if an option is not for the backend of the settings."""
    kind = options.settings.backend
    for name in ("actors", "workers") if kind == "ibm" else ("devices", "budget_seconds"):
        if getattr(options, name) is not None:
            raise InputError(f"{option(name)} is not for --backend {kind}")
    if options.lanes and options.workers:
        raise InputError("give --async or --workers, not both")


def take_name(options: Namespace) -> None:
    """Make ``--name``, ``--resume`` (also of a folder) and the default one ``options.name``.

    Raises:
        InputError: if two are given, or it is not the name of a folder.
    """
    if options.name and options.resume:
        raise InputError("give --name (a new one) or --resume, not both")
    if options.resume:
        options.storage, options.resume = storage_and_name(options.resume, options.storage)
    name = options.name or options.resume or f"digits-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    if Path(name).name != name or name == "..":
        raise InputError(f"--name must be a plain folder name, got {name!r}; see --storage")
    options.name = name


def storage_and_name(run: str, storage: str) -> tuple[str, str]:
    """Where a run is, and its name, if it is given by its name in the storage or by its folder."""
    parent, slash, name = run.rstrip("/").rpartition("/")
    return (parent, name) if slash else (storage, run)


class Parser(argparse.ArgumentParser):
    """Shows its options on one screen, and errors in one line. What is not given is None."""

    def __init__(self, program: str, manual: str) -> None:
        super().__init__(
            prog=program,
            usage=f"scripts/{program} [OPTION ...]",
            description=manual,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                prog, max_help_position=32, width=100
            ),
        )

    def add_settings(
        self, defaults: Mapping[str, Any] | None = None, without: Sequence[str] = ()
    ) -> None:
        """Add the options of the settings; those whose default is a list take several values."""
        group = self.add_argument_group("what to train, with defaults; smaller ones on hardware")
        for each in fields(Settings):
            if each.name in without:
                continue
            kind, default = each.metadata["kind"], (defaults or {}).get(each.name, each.default)
            metavar = "N" if kind in (int, number_or_exact) else "X"
            if isinstance(default, list):
                kind, metavar, default = _several(kind), "A,B", ",".join(map(str, default))
            text = f"{each.metadata['help']} ({'all' if default is None else default})"
            group.add_argument(option(each.name), type=kind, metavar=metavar, help=text)

    def add_places(self) -> Any:
        """Add the options about where to run; what adds more of them."""
        group = self.add_argument_group("where to run")

        def add(name: str, metavar: str, text: str, **more: Any) -> None:
            group.add_argument(name, metavar=metavar, help=text, **more)

        text = f"simulators, with an actor each (one per core: {cores()})"
        add("--actors", "N", text, type=positive)
        add("--address", "HOST:PORT", "a Ray cluster (RAY_ADDRESS, else a local Ray)")
        add("--actor-options", "JSON", "Ray's options of actors: '{\"num_cpus\": 0.5}'", type=JSON)
        return add

    def add_name(self, storage: str, text: str) -> None:
        """Add the options that name a run, or a sweep, and say where all are."""
        group = self.add_argument_group("its name and place")
        group.add_argument("--name", help=text)
        group.add_argument("--resume", metavar="NAME", help="go on with what stopped")
        group.add_argument("--storage", metavar="DIR", default=storage,
                           help=f"directory or URI of all ({storage})")  # fmt: skip

    def parse(self, arguments: Sequence[str] | None) -> Namespace:
        """Read the command line; ``given`` are the settings that were given."""
        options = self.parse_args(arguments)
        given = ((each.name, getattr(options, each.name, None)) for each in fields(Settings))
        options.given = {name: value for name, value in given if value is not None}
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see scripts/{self.prog} --help\n")


def positive(text: str) -> int:
    """Read a number from 1 on."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def option(name: str) -> str:
    """How a name is written on the command line."""
    return f"--{name.replace('_', '-')}"


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _several(kind: Any) -> Any:
    return lambda text: [kind(value) for value in text.split(",")]


def _nameless(arguments: Sequence[str]) -> list[str]:
    """The arguments without the run's name."""
    names = ("--name", "--resume")
    pairs = zip(["", *arguments], arguments, strict=False)
    return [b for a, b in pairs if a not in names and b.partition("=")[0] not in names]
