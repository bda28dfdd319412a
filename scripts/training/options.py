"""The command line, and the settings that a run's weights depend on. Imports nothing heavy."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shlex
from collections.abc import Callable, Sequence
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
_PLACES = ("actors", "address", "workers", "actor_options", "backend_options", "devices",
           "budget_seconds")  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a run's weights depend on; ``--help`` says what each setting is.

    Raises:
        InputError: if a number is out of its range.
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
                raise InputError(f"--{name.replace('_', '-')} must be {limits}, got {value}")

    @property
    def num_shots(self) -> int | None:
        """Shots of each row; None for exact probabilities."""
        return None if self.shots == EXACT else int(self.shots)


@dataclass(frozen=True)
class Options:
    """The command line.

    Args:
        given: the settings that were given, by name.
        name: the run, new or not.
        resume: whether it must be there; settings that were not given are then its own.
        storage: the directory or URI of all runs.
        places: the options that were given about where to run, by name, as they were written.
        estimate: whether to tell only what the run costs on hardware.
    """

    given: dict[str, Any]
    name: str
    resume: bool
    storage: str
    places: dict[str, str]
    estimate: bool

    @property
    def settings(self) -> Settings:
        """The settings of a new run."""
        small = ON_HARDWARE if self.given.get("backend") == "ibm" else {}
        return Settings(**(small | self.given))

    @property
    def actors(self) -> int:
        """How many actors with simulators."""
        return int(self.places.get("actors", cores()))

    @property
    def workers(self) -> int:
        """How many processes train together."""
        return int(self.places.get("workers", 1))

    @property
    def devices(self) -> list[str | None]:
        """Devices by name; None is the least busy one."""
        return list(self.places["devices"].split(",")) if "devices" in self.places else [None]

    def json(self, name: str) -> Any:
        """The value of ``actor_options`` or ``backend_options``; None if not given."""
        return json.loads(self.places.get(name, "null"))

    def check_places(self, backend: str) -> None:
        """Raise an `InputError` if an option is not for this kind of backend."""
        others = ("actors", "workers") if backend == "ibm" else ("devices", "budget_seconds")
        for name in set(others) & set(self.places):
            raise InputError(f"--{name.replace('_', '-')} is not for --backend {backend}")

    def resume_command(self) -> str:
        """The command that goes on with the run."""
        command = ["scripts/train", "--resume", self.name]
        if self.storage != "runs":
            command += ["--storage", self.storage]
        for name, value in self.places.items():
            command += [f"--{name.replace('_', '-')}", value]
        return shlex.join(command)


def parse(arguments: Sequence[str] | None, manual: str) -> Options:
    """Read the command line; ends the process with one line if it cannot be understood.

    Args:
        arguments: the arguments; by default the process's own.
        manual: the text above the options in ``--help``.

    Raises:
        InputError: if a value is out of its range, or options do not fit each other.
    """
    parser = Parser("train", manual)
    add_settings(parser)
    add_places(parser)
    run = parser.add_argument_group("the run")
    run.add_argument("--name", help="with the same name, settings and storage again, it goes on")
    run.add_argument("--resume", metavar="NAME", help="go on with a run; --epochs may grow")
    run.add_argument("--storage", metavar="DIR|URI", default="runs", help="of all runs (runs)")
    run.add_argument("--estimate", action="store_true", help="only tell its cost on hardware")
    known = vars(parser.parse_args(arguments))
    name, resume, storage = known["name"], known["resume"], known["storage"]
    if name and resume:
        raise InputError("give --name (a new run, or the same again) or --resume, not both")
    if resume and "/" in resume:  # its folder
        storage, _, resume = resume.rstrip("/").rpartition("/")
    name = name or resume or f"digits-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    check_name(name)
    options = Options(
        given={f.name: known[f.name] for f in fields(Settings) if f.name in known},
        name=name,
        resume=resume is not None,
        storage=storage,
        places={name: known[name] for name in _PLACES if name in known},
        estimate=known["estimate"],
    )
    settings = options.settings
    if not resume or "backend" in options.given:  # else the run to go on with knows it
        options.check_places(settings.backend)
    return options


def add_settings(parser: argparse.ArgumentParser, compared: Sequence[str] = ()) -> None:
    """Add the options of the settings; those that are compared take several values."""
    group = parser.add_argument_group("what to train (with defaults; smaller with --backend ibm)")

    def add(name: str, kind: Callable[[str], Any], text: str, **more: Any) -> None:
        if name in compared:
            kind, text, more = _many(kind), f"{text}, or several: A,B", {"metavar": "A"}
        default = getattr(Settings, name) or "all"
        # No defaults here: a run that is resumed must know what was given.
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, default=argparse.SUPPRESS,
                           help=f"{text} ({default})", **({"metavar": "N"} | more))  # fmt: skip

    add("epochs", int, "how often each sample is used")
    add("batch_size", int, "samples of each step")
    add("lr", float, "learning rate of Adam in the first epoch", metavar="RATE")
    add("qubits", int, "qubits of the circuit")
    add("reps", int, "repetitions of its rotations and entanglement")
    add("shots", _shots, "shots of each row, or 'exact'")
    methods, precisions = ("param_shift", "spsa"), ("float32", "float64")
    add("gradient", str, "spsa is cheap, and noisy", choices=methods, metavar="METHOD")
    kinds = ("aer", "aer-noisy", "ibm")
    add("backend", str, "aer, aer-noisy or ibm", choices=kinds, metavar="KIND")
    add("seed", int, "seed of weights, order of samples and shot noise")
    add("samples", int, "use the first N samples only")
    add("dtype", str, "float32 or float64", choices=precisions, metavar="TYPE")


def add_places(parser: argparse.ArgumentParser, names: Sequence[str] = _PLACES) -> None:
    """Add the options about where to run, which the weights do not depend on."""
    group = parser.add_argument_group("where to run")
    known: dict[str, tuple[Callable[[str], Any], str, str]] = {
        "actors": (int, "N", f"actors with a simulator each (one per core: {cores()})"),
        "address": (str, "HOST:PORT", "a Ray cluster (RAY_ADDRESS, else a local Ray)"),
        "workers": (int, "N", "processes that train together, with Ray Train (1)"),
        "actor_options": (json.loads, "JSON", "Ray's options of actors: '{\"num_cpus\": 0.5}'"),
        "backend_options": (json.loads, "JSON", "AerBackend's or IBMBackend's keywords"),
        "devices": (str, "NAME,NAME", "IBM's devices, an actor for each (the least busy one)"),
        "budget_seconds": (float, "S", "QPU seconds to spend at most; needed for ibm"),
    }
    for name in names:
        kind, metavar, text = known[name]
        group.add_argument(f"--{name.replace('_', '-')}", type=_checked(kind, metavar),
                           metavar=metavar, default=argparse.SUPPRESS, help=text)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Shows its options on one screen, and errors in one line."""

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

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see scripts/{self.prog} --help\n")


def check_name(name: str) -> None:
    """Raise an `InputError` unless the name can be a folder's."""
    if Path(name).name != name or name == "..":
        raise InputError(f"--name must be a plain folder name, got {name!r}; see --storage")


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shots(text: str) -> int | str:
    return text if text == EXACT else int(text)


def _checked(kind: Callable[[str], Any], what: str) -> Callable[[str], str]:
    """Check an option, and keep it as it was written, to be written again."""

    def check(text: str) -> str:
        try:
            if kind in (int, float) and not 0 < kind(text) < math.inf:
                raise ValueError("must be positive")
            kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r} ({error})") from None
        return text

    return check


def _many(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def values(text: str) -> list[Any]:
        return list(dict.fromkeys(kind(part.strip()) for part in text.split(",")))

    return values
