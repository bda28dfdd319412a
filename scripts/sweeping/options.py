"""The command line of ``scripts/sweep.py``. Imports nothing heavy."""

from __future__ import annotations

import argparse
import datetime
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.options import cores
from training.placement import Placement
from training.settings import EXACT, Config, check_at_least_one

from qailab.errors import InputError


@dataclass(frozen=True)
class Sweep:
    """What to compare, and where.

    Args:
        base: the settings that all trials share.
        grid: the values of each setting that differs.
        at_once: trials that run at the same time.
        actors: Ray actors that all trials share.
        address: address of a Ray cluster, or None for a local one.
        placement: where actors are, and what they take.
        folder: where results go.
    """

    base: Config
    grid: dict[str, list[Any]]
    at_once: int
    actors: int
    address: str | None
    placement: Placement
    folder: Path

    @property
    def num_trials(self) -> int:
        """How many combinations there are."""
        return len(list(itertools.product(*self.grid.values())))


def parse(arguments: Sequence[str] | None, manual: str) -> Sweep:
    """Read the command line.

    Raises:
        InputError: if a value is not valid, or the folder is taken.
    """
    known = _parser(manual).parse_args(arguments)
    grid = {
        "lr": _values("lr", known.lr, float),
        "reps": _values("reps", known.reps, int),
        "shots": _values("shots", known.shots, lambda text: text if text == EXACT else int(text)),
    }
    shared = {name: getattr(known, name) for name in ("epochs", "samples", "qubits", "seed")}
    base = Config(**{name: value for name, value in shared.items() if value is not None})
    for name, values in grid.items():
        for value in values:
            Config(**{name: value})  # a value that can never be right is reported at once
    for name in ("actors", "at_once"):
        check_at_least_one(name, getattr(known, name))
    placement = Placement.parse(known.placement or "")
    placement.check_backend(base.backend)
    name = known.name or f"digits-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    if Path(name).name != name:
        raise InputError(f"--name must be a plain folder name, got {name!r}")
    folder = Path(known.sweeps_dir, name)
    if folder.exists():
        raise InputError(f"there is already something at {folder}; give another --name")
    return Sweep(base, grid, known.at_once, known.actors, known.address, placement, folder)


def _values(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        values = [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--{name} must be numbers with commas between, got {text!r}") from None
    if len(set(values)) < len(values):
        raise InputError(f"--{name} has a value twice: {text!r}")
    return values


def _parser(manual: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sweep",
        description=manual,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_argument_group("what to compare: all combinations")
    for option, default, text in (
        ("--lr", "0.003,0.01,0.03", "learning rates"),
        ("--reps", "1,2", "repetitions of rotations and entanglement"),
        ("--shots", "256,1024", "shots for each row, or 'exact'"),
    ):
        group.add_argument(
            option, default=default, metavar="A,B,...", help=f"{text} (default: {default})"
        )
    group = parser.add_argument_group("what all share")
    group.add_argument("--epochs", type=int, default=3, metavar="N", help="epochs (default: 3)")
    group.add_argument(
        "--samples", type=int, metavar="N", help="use only the first N samples (default: all)"
    )
    group.add_argument("--qubits", type=int, metavar="N", help="qubits of the circuit (default: 6)")
    group.add_argument("--seed", type=int, metavar="N", help="seed of everything (default: 7)")
    group = parser.add_argument_group("where to run")
    group.add_argument(
        "--at-once", type=int, default=4, metavar="N", help="trials at the same time (default: 4)"
    )
    group.add_argument(
        "--actors",
        type=int,
        default=cores(),
        metavar="N",
        help=f"Ray actors that all trials share (default: one per core, {cores()})",
    )
    group.add_argument(
        "--address", help="address of a Ray cluster (default: RAY_ADDRESS, else a local Ray)"
    )
    group.add_argument("--placement", metavar="KEY=VALUE[,...]", help=Placement.help())
    group.add_argument("--name", help="name of the sweep (default: digits-<date>-<time>)")
    group.add_argument(
        "--sweeps-dir",
        default="sweeps",
        metavar="DIR",
        help="folder of all sweeps, which all nodes must reach (default: sweeps)",
    )
    return parser
