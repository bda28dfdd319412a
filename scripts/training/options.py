"""What a run is: its settings, and the command line they come from.

Imports nothing heavy, so that ``--help`` and a wrong option answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qailab.errors import CheckpointError, InputError
from training.hardware import Hardware, add_options

BackendKind = Literal["aer", "aer-noisy", "ibm"]

MAX_QUBITS = 16
"""The linear layer behind the circuit has 2**qubits inputs: 2.6 MB of weights at 16."""
MIN_SAMPLES = 50
"""A fifth is for testing, and each of ten digits must be in both parts."""
_SEED_LIMIT = 2**63


@dataclass(frozen=True)
class Config:
    """Everything that a run's weights depend on.

    Args:
        qubits: qubits of the circuit, which are also the features it takes.
        reps: repetitions of rotations and entanglement in the circuit.
        shots: shots for each row.
        batch_size: samples for each step.
        lr: learning rate of Adam in the first epoch.
        backend: what the actors hold: a kind of simulator, or a device.
        seed: seed of the initial weights, the order of samples and the shot noise.
        samples: how many of the samples are used; None for all.
        epochs: how often every training sample is used.

    Raises:
        InputError: if a value is out of its range.
    """

    qubits: int = 6
    reps: int = 2
    shots: int = 1024
    batch_size: int = 32
    lr: float = 0.01
    backend: BackendKind = "aer"
    seed: int = 7
    samples: int | None = None
    epochs: int = 10

    def __post_init__(self) -> None:
        for name in ("qubits", "reps", "shots", "batch_size", "epochs"):
            _check_at_least_one(name, getattr(self, name))
        if self.qubits > MAX_QUBITS:
            raise InputError(
                f"--qubits must be at most {MAX_QUBITS}, got {self.qubits}: the layer behind the "
                f"circuit would have 2**{self.qubits} inputs"
            )
        if not 0.0 < self.lr < math.inf:
            raise InputError(f"--lr must be positive and finite, got {self.lr}")
        if not 0 <= self.seed < _SEED_LIMIT:
            raise InputError(f"--seed must be in [0, 2**63), got {self.seed}")
        if self.backend not in get_args(BackendKind):
            raise InputError(
                f"--backend must be one of {', '.join(get_args(BackendKind))}; got {self.backend!r}"
            )
        if self.samples is not None and self.samples < MIN_SAMPLES:
            raise InputError(f"--samples must be at least {MIN_SAMPLES}, got {self.samples}")

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Config:
        """The config in a file of a run.

        Args:
            values: what the file holds.
            where: the file, for messages.

        Raises:
            CheckpointError: if it does not hold a config of this program.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != expected:
            got = sorted(map(str, values)) if isinstance(values, dict) else repr(values)
            raise CheckpointError(
                f"{where} must hold the settings {sorted(expected)}, got {got}; it was written by "
                "another version of this program, or edited"
            )
        try:
            return cls(**values)
        except (InputError, TypeError) as error:
            raise CheckpointError(f"{where} holds a setting that is not valid: {error}") from error

    def check_same(self, other: dict[str, Any], *, mine: str, theirs: str) -> None:
        """Check that nothing which the weights depend on differs; ``epochs`` may.

        Args:
            other: settings by name; those that are left out or None are not compared.
            mine: where the settings of this config come from, for messages.
            theirs: where the other settings come from, for messages.

        Raises:
            CheckpointError: if a setting differs; it names both values of each that does.
        """
        own = dataclasses.asdict(self)
        different = [
            f"{name} is {own[name]} in {mine}, but {value} in {theirs}"
            for name, value in other.items()
            if name != "epochs" and value is not None and own[name] != value
        ]
        if different:
            raise CheckpointError(
                f"{'; '.join(different)}. A run goes on with the settings it began with: leave "
                "the option out, or start a new run without --resume"
            )


@dataclass(frozen=True)
class Options:
    """The command line.

    Args:
        given: the settings of `Config` that were given explicitly, by name.
        name: name of the new run, or None for one made of date and time.
        resume: the run to go on with, or None for a new one.
        actors: number of Ray actors with simulators, or None for one for each core.
        address: address of a Ray cluster, or None for a local one.
        hardware: the options of ``--backend ibm``.
        runs_dir: the folder of all runs.
        estimate: whether only to tell what the run costs on hardware.
    """

    given: dict[str, Any]
    name: str | None
    resume: str | None
    actors: int | None
    address: str | None
    hardware: Hardware
    runs_dir: Path
    estimate: bool

    @property
    def place(self) -> tuple[str, ...]:
        """The options given about where to run, to be given again when resuming."""
        given = {"--actors": self.actors, "--address": self.address, **self.hardware.arguments}
        return tuple(
            text
            for name, value in given.items()
            if value is not None
            for text in (name, str(value))
        )

    def check_backend(self, kind: BackendKind) -> None:
        """Check that the options are of this kind of backend.

        Raises:
            InputError: if some are of another kind.
        """
        if kind == "ibm" and self.actors is not None:
            raise InputError(
                "--actors is for simulators; with --backend ibm there is one actor for each of "
                "--devices NAME,NAME"
            )
        if kind != "ibm" and self.hardware.arguments:
            raise InputError(
                f"{', '.join(self.hardware.arguments)}: only for --backend ibm, and the backend is "
                f"{kind}"
            )


def parse(arguments: Sequence[str] | None, manual: str) -> Options:
    """Read the command line.

    Args:
        arguments: the arguments, by default those of the process.
        manual: the text above the options in ``--help``.

    Raises:
        InputError: if a value is out of its range.
    """
    known = _parser(manual).parse_args(arguments)
    settings = {field.name for field in dataclasses.fields(Config)}
    given = {k: v for k, v in vars(known).items() if k in settings and v is not None}
    Config(**given)  # a value that can never be right is reported before anything is looked up
    if known.actors is not None:
        _check_at_least_one("actors", known.actors)
    if known.name is not None:
        if known.resume is not None:
            raise InputError("give either --name (a new run) or --resume (an old one), not both")
        if Path(known.name).name != known.name or known.name in ("", ".", ".."):
            raise InputError(
                f"--name must be a plain folder name, got {known.name!r}; use --runs-dir to put "
                "runs elsewhere"
            )
    options = Options(
        given=given,
        name=known.name,
        resume=known.resume,
        actors=known.actors,
        address=known.address,
        hardware=Hardware.of(known),
        runs_dir=Path(known.runs_dir),
        estimate=known.estimate,
    )
    if known.resume is None or "backend" in given:  # else the run to go on with knows it
        options.check_backend(given.get("backend", Config.backend))
    return options


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def _parser(manual: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train",
        description=manual,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def setting(option: str, kind: Any, text: str, **more: Any) -> None:
        # No defaults here: a resumed run must know which options were given.
        default = getattr(Config, option[2:].replace("-", "_"))
        shown = "all" if default is None else default
        group.add_argument(option, type=kind, help=f"{text} (default: {shown})", **more)

    group = parser.add_argument_group("what to train")
    setting("--epochs", int, "how often every training sample is used", metavar="N")
    setting("--batch-size", int, "samples for each step", metavar="N")
    setting("--lr", float, "learning rate of Adam in the first epoch", metavar="RATE")
    setting("--qubits", int, "qubits of the circuit", metavar="N")
    setting("--reps", int, "repetitions of rotations and entanglement", metavar="N")
    setting("--shots", int, "shots for each row", metavar="N")
    setting(
        "--backend",
        str,
        "what each actor has: aer, a simulator without noise; aer-noisy, one with noisy gates and "
        "readout; ibm, a device of IBM Quantum",
        choices=get_args(BackendKind),
    )
    setting("--seed", int, "seed of weights, sample order and shot noise", metavar="N")
    setting("--samples", int, "use only the first N samples, for a quick look", metavar="N")

    group = parser.add_argument_group("where to run (the weights do not depend on it)")
    group.add_argument(
        "--actors",
        type=int,
        metavar="N",
        help=f"Ray actors, each with a simulator of one core (default: one per core, {cores()}); "
        "not with --backend ibm, see --devices",
    )
    group.add_argument(
        "--address", help="address of a Ray cluster (default: RAY_ADDRESS, else a local Ray)"
    )

    add_options(
        parser.add_argument_group(
            "only for --backend ibm (all may differ when a run is resumed)",
            "The account is the IBM client's own, of the machine that runs the actors:\n"
            "QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE, or a saved account.",
        )
    )

    group = parser.add_argument_group("the run")
    group.add_argument("--name", help="name of the new run (default: digits-<date>-<time>)")
    group.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run: its name or its folder; its settings are kept, --epochs may grow",
    )
    group.add_argument(
        "--runs-dir", default="runs", metavar="DIR", help="folder of all runs (default: runs)"
    )
    group.add_argument(
        "--estimate",
        action="store_true",
        help="only tell the rows, jobs, executions and QPU seconds that the run, or the rest of "
        "it, takes on hardware; nothing is sent",
    )
    return parser
