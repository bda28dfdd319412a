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
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from qailab.errors import InputError

EXACT = "exact"
"""Instead of a number of shots: exact probabilities."""
ON_HARDWARE: dict[str, Any] = {"epochs": 1, "batch_size": 20, "shots": 128, "samples": 50}
"""Other defaults with ``--backend ibm``: about 100 QPU seconds, a sixth of a month's open plan."""

_RANGES = {
    "epochs": (1, math.inf),
    "batch_size": (1, math.inf),
    "lr": (1e-9, 10.0),
    "qubits": (1, 16),  # the layer behind the circuit has 2**qubits inputs: 2.6 MB at 16
    "reps": (1, math.inf),
    "shots": (1, math.inf),
    "seed": (0, 2**63 - 1),
    "samples": (50, 1797),  # a fifth is for testing, and all ten digits must be in both parts
}
_CHOICES = {
    "gradient": ("param_shift", "spsa"),
    "backend": ("aer", "aer-noisy", "ibm"),
    "dtype": ("float32", "float64"),
}


@dataclass(frozen=True)
class Settings:
    """What a run's weights depend on; ``--help`` says what each setting is.

    Raises:
        InputError: if a value is out of its range.
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float = 0.01
    qubits: int = 6
    reps: int = 2
    shots: int | str = 1024
    gradient: str = "param_shift"
    backend: str = "aer"
    seed: int = 7
    samples: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value not in (None, EXACT) and not least <= value <= most:
                limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
                raise InputError(f"{option(name)} must be {limits}, got {value}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                known = ", ".join(choices)
                raise InputError(
                    f"{option(name)} must be one of {known}, got {getattr(self, name)}"
                )

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
        InputError: if a value is out of its range, or options do not fit each other.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = Parser("train", manual)
    parser.add_settings()
    parser.add("where to run", "actors", "address", "actor_options", "workers", "backend_options",
               "devices", "budget_seconds")  # fmt: skip
    run = parser.add("the run", "name", "resume", "storage")
    run.add_argument("--estimate", action="store_true", help="only tell its cost on hardware")
    options = parser.parse_args(arguments)
    found, storage = options.resume, options.storage or "runs"
    options.name, options.storage = name_and_storage(options.name, options.resume, storage)
    again = ["--resume", found or options.name, *_nameless(arguments)]
    options.again = shlex.join(["scripts/train", *again])
    options.given = given_settings(options)
    on_hardware = options.given.get("backend") == "ibm"
    options.settings = Settings(**((ON_HARDWARE if on_hardware else {}) | options.given))
    if not options.resume or "backend" in options.given:  # else the run knows it
        check_backend(options, options.settings)
    return options


def check_backend(options: Namespace, settings: Settings) -> None:
    """Raise an `InputError` if an option is not for this kind of backend."""
    others = ("actors", "workers") if settings.backend == "ibm" else ("devices", "budget_seconds")
    for name in others:
        if getattr(options, name) is not None:
            raise InputError(f"{option(name)} is not for --backend {settings.backend}")


def given_settings(options: Namespace) -> dict[str, Any]:
    """The settings that were given, by name."""
    known = vars(options)
    return {f.name: known[f.name] for f in fields(Settings) if known[f.name] is not None}


def name_and_storage(name: str | None, resume: str | None, storage: str) -> tuple[str, str]:
    """The run's name, which is a new one if none is given, and where it is.

    Raises:
        InputError: if two names are given, or it is not the name of a folder.
    """
    if name and resume:
        raise InputError("give --name (a new one) or --resume, not both")
    if resume and "/" in resume:  # a folder
        storage, _, resume = resume.rstrip("/").rpartition("/")
    name = name or resume or f"digits-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    if Path(name).name != name or name == "..":
        raise InputError(f"--name must be a plain folder name, got {name!r}; see --storage")
    return name, storage


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

    def add(self, title: str, *names: str) -> Any:
        """Add a group of options; the group."""
        group = self.add_argument_group(title)
        for name in names:
            kind, metavar, text = _PLACES[name]
            group.add_argument(option(name), type=kind, metavar=metavar, help=text)
        return group

    def add_settings(self, compared: Sequence[str] = ()) -> None:
        """Add the options of the settings; those that are compared take several values."""
        group = self.add_argument_group("what to train (with defaults; smaller on hardware)")
        for name, (kind, metavar, text) in _SETTINGS.items():
            text = f"{text} ({getattr(Settings, name) or 'all'})"
            if name in compared:
                kind, metavar, text = _several(kind), "A,B", f"several {name} to compare"
            group.add_argument(option(name), type=kind, metavar=metavar, help=text)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see scripts/{self.prog} --help\n")


def option(name: str) -> str:
    """How a name is written on the command line."""
    return f"--{name.replace('_', '-')}"


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def number_or_exact(text: str) -> int | str:
    """Read a number of shots; its name, and the next one's, are in argparse's errors."""
    return text if text == EXACT else int(text)


def JSON(text: str) -> Any:
    """Read JSON."""
    return json.loads(text)


def _several(kind: Any) -> Any:
    return lambda text: [kind(value) for value in text.split(",")]


_SETTINGS: dict[str, tuple[Any, str, str]] = {
    "epochs": (int, "N", "how often each sample is used"),
    "batch_size": (int, "N", "samples of each step"),
    "lr": (float, "RATE", "learning rate of Adam in the first epoch"),
    "qubits": (int, "N", "qubits of the circuit"),
    "reps": (int, "N", "repetitions of its rotations and entanglement"),
    "shots": (number_or_exact, "N", "shots of each row, or 'exact'"),
    "gradient": (str, "METHOD", "param_shift, or spsa: cheap and noisy"),
    "backend": (str, "KIND", "aer, aer-noisy or ibm"),
    "seed": (int, "N", "seed of weights, order of samples and shot noise"),
    "samples": (int, "N", "use the first N samples only"),
    "dtype": (str, "TYPE", "float32 or float64"),
}
_PLACES: dict[str, tuple[Any, str, str]] = {
    "actors": (_positive, "N", f"actors with a simulator each (one per core: {cores()})"),
    "address": (str, "HOST:PORT", "a Ray cluster (RAY_ADDRESS, else a local Ray)"),
    "actor_options": (JSON, "JSON", "Ray's options of actors: '{\"num_cpus\": 0.5}'"),
    "workers": (_positive, "N", "processes that train together, with Ray Train"),
    "backend_options": (JSON, "JSON", "keywords of AerBackend or IBMBackend"),
    "devices": (
        _several(str),
        "NAME,NAME",
        "IBM's devices, an actor for each (the least busy one)",
    ),
    "budget_seconds": (float, "S", "QPU seconds to spend at most; --backend ibm needs it"),
    "at_once": (_positive, "N", "trials at a time (4)"),
    "name": (str, "NAME", "the same name, settings and storage again go on with it"),
    "resume": (str, "NAME", "go on with what stopped"),
    "storage": (str, "DIR|URI", "where all are kept (runs, sweeps)"),
}


def _nameless(arguments: Sequence[str]) -> list[str]:
    """The arguments without the run's name."""
    kept, names = [], ("--name", "--resume")
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before not in names and word.partition("=")[0] not in names:
            kept.append(word)
    return kept
