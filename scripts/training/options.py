"""What a run is: its settings, and the command line they come from.

Imports nothing heavy, so that ``--help`` and a wrong option answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qailab.errors import InputError
from training.hardware import Hardware, add_options
from training.placement import Placement
from training.settings import EXACT, BackendKind, Config, Precision, check_at_least_one
from training.storage import check_storage, shown

PoolKind = Literal["shared", "per-worker"]


@dataclass(frozen=True)
class Options:
    """The command line.

    Args:
        given: the settings of `Config` that were given explicitly, by name.
        name: name of the new run, or None for one made of date and time.
        resume: the run to go on with, or None for a new one.
        actors: number of Ray actors with simulators, or None for one for each core.
        address: address of a Ray cluster, or None for a local one.
        workers: number of processes that train together.
        pool: whether they share the actors, or each has its own; None if it was not given.
        placement: where actors are, and what they take.
        storage: where the run is kept so that it outlives this machine: a directory or a URI.
        hardware: the options of ``--backend ibm``.
        runs_dir: the folder of all runs.
        estimate: whether only to tell what the run costs on hardware.
    """

    given: dict[str, Any]
    name: str | None
    resume: str | None
    actors: int | None
    address: str | None
    workers: int
    pool: PoolKind | None
    placement: Placement
    storage: str | None
    hardware: Hardware
    runs_dir: Path
    estimate: bool

    @property
    def place(self) -> tuple[str, ...]:
        """The options given about where to run, to be given again when resuming."""
        given = {
            "--actors": self.actors,
            "--address": self.address,
            "--workers": self.workers if self.workers > 1 else None,
            "--pool": self.pool,
            "--placement": str(self.placement) or None,
            "--storage": None if self.storage is None else shown(self.storage),
            **self.hardware.arguments,
        }
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
        if kind == "ibm" and self.workers > 1:
            raise InputError(
                "--workers is for simulators; with --backend ibm one process sends all rows of a "
                "step to all devices, a job for each, which more processes would only cut up"
            )
        self.placement.check_backend(kind)
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
        check_at_least_one("actors", known.actors)
    _check_workers(known)
    placement = Placement.parse(known.placement or "")
    if placement.actors_per_node is not None and known.actors is not None:
        raise InputError("give either --actors or --placement actors-per-node=N, not both")
    if known.name is not None:
        if known.resume is not None:
            raise InputError("give either --name (a new run) or --resume (an old one), not both")
        if Path(known.name).name != known.name or known.name in ("", ".", ".."):
            raise InputError(
                f"--name must be a plain folder name, got {known.name!r}; use --runs-dir to put "
                "runs elsewhere"
            )
    if known.storage is not None:
        _check_storage(known)
    options = Options(
        given=given,
        name=known.name,
        resume=known.resume,
        actors=known.actors,
        address=known.address,
        workers=known.workers,
        pool=known.pool,
        placement=placement,
        storage=known.storage,
        hardware=Hardware.of(known),
        runs_dir=Path(known.runs_dir),
        estimate=known.estimate,
    )
    if known.resume is None or "backend" in given:  # else the run to go on with knows it
        options.check_backend(given.get("backend", Config.backend))
    return options


def _check_workers(known: argparse.Namespace) -> None:
    check_at_least_one("workers", known.workers)
    if known.pool is not None and known.workers == 1:
        raise InputError(f"--pool {known.pool} is for --workers of at least 2")
    if known.pool == "per-worker" and known.actors is not None and known.actors < known.workers:
        raise InputError(
            f"--pool per-worker needs an actor for each of {known.workers} workers, and --actors "
            f"is {known.actors}"
        )


def _check_storage(known: argparse.Namespace) -> None:
    if known.name is None and known.resume is None:
        raise InputError("--storage needs --name NAME: who submits it again goes on with that run")
    if known.resume is not None and Path(known.resume).name != known.resume:
        raise InputError(f"--resume must be the run's name with --storage, got {known.resume!r}")
    check_storage(known.storage)


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    setting("--shots", _shots, "shots for each row, or 'exact' for none of their noise")
    setting(
        "--backend",
        str,
        "what each actor has: aer, a simulator without noise; aer-noisy, one with noisy gates and "
        "readout; ibm, a device of IBM Quantum",
        choices=get_args(BackendKind),
    )
    setting("--seed", int, "seed of weights, sample order and shot noise", metavar="N")
    setting("--samples", int, "use only the first N samples, for a quick look", metavar="N")
    setting("--dtype", str, "precision of weights and gradients", choices=get_args(Precision))

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
    group.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that train together with Ray Train, each on its part of every batch; the "
        "weights differ by no more than rounding (default: 1, without Ray Train)",
    )
    group.add_argument(
        "--pool",
        choices=get_args(PoolKind),
        help="whether the workers share all actors, or each has its part of them (default: shared)",
    )
    group.add_argument("--placement", metavar="KEY=VALUE[,...]", help=Placement.help())

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
        "--storage",
        metavar="PATH|URI",
        help="keep the run, NAME, in a directory that all nodes share or at a URI of pyarrow or "
        "fsspec (s3://bucket/runs); given again with the same --name and settings, it goes on "
        "with it. One program at a time trains a run: others wait 30 s for it, then end. That "
        "holds for all who reach its folder, if the file system has locks; at a URI, only for "
        "programs of one Ray cluster and those with one --runs-dir",
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


def _shots(text: str) -> int | str:
    return EXACT if text == EXACT else int(text)
