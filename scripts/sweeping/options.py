"""The command line of ``scripts/sweep.py``. Imports nothing heavy."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.options import cores
from training.placement import Placement
from training.settings import EXACT, Config, check_at_least_one

from qailab.errors import InputError
from sweeping.settings import COMPARED, FILE, Settings

_BASE = ("epochs", "samples", "qubits", "seed")
_EPOCHS = 3
_GRID: dict[str, list[Any]] = {"lr": [0.003, 0.01, 0.03], "reps": [1, 2], "shots": [256, 1024]}
_KINDS: dict[str, Callable[[str], Any]] = {
    "lr": float,
    "reps": int,
    "shots": lambda text: text if text == EXACT else int(text),
}
_SWEEPS_DIR = "sweeps"


@dataclass(frozen=True)
class Sweep:
    """What to compare, and where.

    Args:
        settings: what decides the results.
        at_once: trials that run at the same time.
        actors: Ray actors that all trials share.
        address: address of a Ray cluster, or None for a local one.
        placement: where actors are, and what they and trials take.
        folder: where results go.
        resumed: whether the sweep was begun before.
        place: the options about where to run, to be given again when resuming.
    """

    settings: Settings
    at_once: int
    actors: int
    address: str | None
    placement: Placement
    folder: Path
    resumed: bool
    place: tuple[str, ...]


def parse(arguments: Sequence[str] | None, manual: str) -> Sweep:
    """Read the command line, and with ``--resume`` the sweep's settings.

    Raises:
        InputError: if a value is not valid, the name is taken, or there is no such sweep.
        CheckpointError: if the sweep's settings cannot be read.
    """
    parser = _parser(manual)
    known = parser.parse_args(arguments)
    given = {name: getattr(known, name) for name in _BASE if getattr(known, name) is not None}
    for name, kind in _KINDS.items():
        if getattr(known, name) is not None:
            given[name] = _values(name, getattr(known, name), kind)
    # Also when resuming: a value that can never be right is reported as that.
    settings = Settings(
        Config(**({"epochs": _EPOCHS} | {k: v for k, v in given.items() if k in _BASE})),
        {name: given.get(name, _GRID[name]) for name in COMPARED},
    )
    for name in ("actors", "at_once"):
        check_at_least_one(name, getattr(known, name))
    placement = Placement.parse(known.placement or "")
    if known.resume is None:
        folder = _new(known)
    else:
        folder = _found(known)
        settings = Settings.load(folder)
        settings.check_same(given, folder)
    placement.check_backend(settings.base.backend)
    place = [] if folder.parent == Path(_SWEEPS_DIR) else ["--sweeps-dir", str(folder.parent)]
    for name in ("at_once", "actors", "address", "placement"):
        value = getattr(known, name)
        if value != parser.get_default(name):
            place += [f"--{name.replace('_', '-')}", str(value)]
    return Sweep(
        settings=settings,
        at_once=known.at_once,
        actors=known.actors,
        address=known.address,
        placement=placement,
        folder=folder,
        resumed=known.resume is not None,
        place=tuple(place),
    )


def taken(folder: Path) -> InputError:
    """What is said when there is something at the place of a new sweep."""
    return InputError(
        f"there is already something at {folder}; give another --name, or go on with that sweep: "
        f"--resume {folder.name}"
    )


def _new(known: argparse.Namespace) -> Path:
    name = known.name
    if name is None:
        name = f"digits-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    if Path(name).name != name or name in ("", ".", ".."):
        raise InputError(
            f"--name must be a plain folder name, got {name!r}; use --sweeps-dir to put sweeps "
            "elsewhere"
        )
    folder = Path(known.sweeps_dir, name)
    if folder.exists():
        raise taken(folder)
    return folder


def _found(known: argparse.Namespace) -> Path:
    if known.name is not None:
        raise InputError("give either --name (a new sweep) or --resume (an old one), not both")
    for folder in (Path(known.sweeps_dir, known.resume), Path(known.resume)):
        if (folder / FILE).is_file():
            return folder
    there = sorted(path.parent.name for path in Path(known.sweeps_dir).glob(f"*/{FILE}"))
    raise InputError(
        f"there is no sweep {known.resume!r}, neither a folder of that name nor one in "
        f"{known.sweeps_dir}; sweeps there: {', '.join(there) or 'none'}"
    )


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
    # No defaults for what decides the results: a resumed sweep must know what was given.
    group = parser.add_argument_group("what to compare: all combinations")
    for name, text in (
        ("lr", "learning rates"),
        ("reps", "repetitions of rotations and entanglement"),
        ("shots", f"shots for each row, or '{EXACT}' for exact probabilities"),
    ):
        default = ",".join(map(str, _GRID[name]))
        group.add_argument(f"--{name}", metavar="A,B,...", help=f"{text} (default: {default})")
    group = parser.add_argument_group("what all share")
    for name, text in (
        ("epochs", f"epochs (default: {_EPOCHS})"),
        ("samples", "use only the first N samples (default: all)"),
        ("qubits", f"qubits of the circuit (default: {Config.qubits})"),
        ("seed", f"seed of everything (default: {Config.seed})"),
    ):
        group.add_argument(f"--{name}", type=int, metavar="N", help=text)
    group = parser.add_argument_group("where to run (may differ when a sweep is resumed)")
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
    group.add_argument(
        "--placement",
        metavar="KEY=VALUE[,...]",
        help=f"{Placement.help()}; here a worker is a trial",
    )
    group = parser.add_argument_group("the sweep")
    group.add_argument("--name", help="name of the new sweep (default: digits-<date>-<time>)")
    group.add_argument(
        "--resume",
        metavar="SWEEP",
        help="go on with a sweep: its name or its folder; its settings are kept",
    )
    group.add_argument(
        "--sweeps-dir",
        default=_SWEEPS_DIR,
        metavar="DIR",
        help=f"folder of all sweeps, which all nodes must reach (default: {_SWEEPS_DIR})",
    )
    return parser
