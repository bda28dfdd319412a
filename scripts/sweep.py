r"""Compare settings of the digits classifier: a grid of trials with Ray Tune, on one pool of actors.

  scripts/sweep                                    12 trials of 3 epochs, some minutes on 2 cores
  scripts/sweep --lr 0.01,0.03 --shots 64,exact --samples 300 --name small
  scripts/sweep --resume small                     go on after Ctrl-C or a crash
  scripts/sweep --address auto --actors 64 --at-once 12 --storage /storage/sweeps
  scripts/sweep --actor-options '{"num_cpus": 0.5}' --actors 4

Prints a table, best first, and leaves results.csv and sweep.png in sweeps/<name>/.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import itertools
import json
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.options import Parser, Settings, add_places, add_settings, check_name, cores

from qailab.errors import InputError, QailabError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qailab.distributed import LauncherPool

GRID: dict[str, list[Any]] = {"lr": [0.003, 0.01, 0.03], "reps": [1, 2], "shots": [256, 1024]}
"""What is compared, with default values: all combinations are trials."""
_COLUMNS = {"lr": "", "reps": "", "shots": "", "state": "", "test_accuracy": ".4f",
            "test_loss": ".3f", "epoch": ""}  # fmt: skip
_COLOURS = ("#c8102e", "#22303f", "#e08e45", "#4c956c", "#7a8ca3", "#8f5ea2")

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    try:
        known = parse(arguments)
        rows, stopped_by = run(known)
        folder = Path(known.storage, known.name)
        print(write_report(rows, folder), flush=True)
    except (QailabError, OSError) as error:
        print(f"sweep: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:  # before the first trial
        return 128 + signal.SIGINT
    states = {row["state"] for row in rows}
    if states == {"done"}:
        return 0
    print(f"To go on:\n  scripts/sweep --resume {folder}", file=sys.stderr)
    return 1 if "failed" in states else 128 + stopped_by


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Read the command line; its ``settings`` are those of the trials, lists where they differ.

    Raises:
        InputError: if a value is out of its range, the name is taken, or there is no such sweep.
    """
    parser = Parser("sweep", __doc__ or "")
    add_settings(parser, compared=tuple(GRID))
    add_places(parser, ("actors", "address", "actor_options"))
    group = parser.add_argument_group("the sweep")
    group.add_argument("--at-once", type=int, default=4, metavar="N", help="trials at a time (4)")
    group.add_argument("--name", help="of a new sweep")
    group.add_argument("--resume", metavar="NAME", help="go on with a sweep and its settings")
    group.add_argument("--storage", metavar="DIR", default="sweeps", help="of all sweeps (sweeps)")
    known = parser.parse_args(arguments)
    known.settings = {n: v for n, v in vars(known).items() if n in Settings.__dataclass_fields__}
    if known.resume:
        if known.name or known.settings:
            raise InputError("--resume keeps a sweep's name and settings: leave those out")
        if "/" in known.resume:  # its folder
            known.storage, _, known.resume = known.resume.rstrip("/").rpartition("/")
        known.name = known.resume
        if not Path(known.storage, known.name, "tuner.pkl").is_file():
            raise InputError(f"there is no sweep {known.name} in {known.storage}")
        return known
    known.name = known.name or f"digits-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    check_name(known.name)
    if Path(known.storage, known.name).exists():
        raise InputError(f"there is a sweep {known.name}: --resume it, or give another --name")
    known.settings = asdict(Settings()) | {"epochs": 3} | GRID | known.settings
    for values in itertools.product(*(known.settings[name] for name in GRID)):
        Settings(**known.settings | dict(zip(GRID, values, strict=True)))  # says what is wrong
    return known


def run(known: Namespace) -> tuple[list[Row], int]:
    """Run the trials that are not done; a row for each, and the signal that stopped them."""
    from qailab.backends import AerBackend
    from qailab.distributed import LauncherPool
    from qailab.distributed.connection import connect, disconnect

    address, actors = getattr(known, "address", None), int(getattr(known, "actors", cores()))
    placed = json.loads(getattr(known, "actor_options", "null"))
    print(f"Sweep {known.storage}/{known.name}: starting ...", flush=True)
    with contextlib.ExitStack() as closing:
        # A local Ray needs a CPU for each trial, too.
        closing.callback(disconnect, connect(address, actors + known.at_once))
        backends = [AerBackend()] * actors
        pool = LauncherPool(backends, address=address, actor_options=placed, progress=False)
        tuner = make_tuner(known, closing.enter_context(pool))
        # Tune stops, and saves what it needs to go on, at SIGINT alone.
        signals = [signal.SIGINT]
        signal.signal(
            signal.SIGTERM,
            lambda *_: (signals.append(signal.SIGTERM), os.kill(os.getpid(), signal.SIGINT)),
        )
        return [row_of(result) for result in tuner.fit()], signals[-1]


def make_tuner(known: Namespace, pool: LauncherPool) -> Any:
    """Ray Tune with a new sweep, or with what is left of one."""
    import training.loop  # what trials need, to be sent with them
    from ray import cloudpickle, tune  # late: Ray reads settings of `connect` when imported

    for module in (training, sys.modules[__name__]):
        cloudpickle.register_pickle_by_value(module)  # other nodes need not have these files
    folder = Path(known.storage, known.name).absolute()
    trainable = tune.with_parameters(trial, pool=pool)
    if known.resume:
        return tune.Tuner.restore(str(folder), trainable, resume_errored=True)
    space = {n: tune.grid_search(v) if n in GRID else v for n, v in known.settings.items()}
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(max_concurrent_trials=known.at_once),
        run_config=tune.RunConfig(
            name=known.name,
            storage_path=str(folder.parent),
            failure_config=tune.FailureConfig(max_failures=3),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            verbose=1,
        ),
    )


def trial(config: dict[str, Any], pool: LauncherPool) -> None:
    """Train with some settings: what Tune runs in a process for each trial."""
    from ray import tune
    from training.checkpoint import FILE, Checkpoint
    from training.loop import Training

    last, start = tune.get_checkpoint(), None
    if last is not None:
        with last.as_directory() as path:
            start = Checkpoint.load(Path(path, FILE))
    for checkpoint in Training(Settings(**config), pool, start).steps():
        if checkpoint.progress.batch == 0:
            with checkpoint.as_directory() as path:
                kept = tune.Checkpoint.from_directory(path)
                tune.report(asdict(checkpoint.history[-1]), checkpoint=kept)


def row_of(result: Any) -> Row:
    """How far a trial is, of Tune's result."""
    metrics = result.metrics or {}
    done = metrics.get("epoch") == result.config["epochs"]
    state = "failed" if result.error is not None else "done" if done else "not done"
    row = {name: metrics.get(name) for name in _COLUMNS}
    return row | {name: result.config[name] for name in GRID} | {"state": state}


def write_report(rows: Sequence[Row], folder: Path) -> str:
    """Write the files; the table to print."""
    ranked = sorted(rows, key=lambda row: (row["state"] != "done", -(row["test_accuracy"] or 0)))
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(ranked)
    draw(ranked).savefig(folder / "sweep.png", dpi=150)
    lines = [list(_COLUMNS)]
    for row in ranked:
        lines.append(
            ["-" if row[n] is None else f"{row[n]:{form}}" for n, form in _COLUMNS.items()]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(map(str.rjust, line, widths)) for line in lines]
    return "\n".join([*table, f"{folder}/: results.csv, sweep.png"])


def draw(ranked: Sequence[Row]) -> Figure:
    """Test accuracy by learning rate of the trials that are done, a line for each circuit."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    done = [row for row in ranked if row["state"] == "done"]
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    circuits = sorted({(row["reps"], str(row["shots"])) for row in done})
    for (reps, shots), colour in zip(circuits, itertools.cycle(_COLOURS), strict=False):
        mine = [row for row in done if (row["reps"], str(row["shots"])) == (reps, shots)]
        mine.sort(key=lambda row: row["lr"])
        accuracies = [row["test_accuracy"] for row in mine]
        label = f"reps {reps}, shots {shots}"
        axes.plot([row["lr"] for row in mine], accuracies, "o-", color=colour, label=label)
    rates = sorted({row["lr"] for row in ranked})
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("learning rate of Adam in the first epoch")
    axes.set_ylabel("test samples classified correctly")
    axes.grid(color="#d9dfe6", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    title = f"{len(done)} of {len(ranked)} trials are done"
    if done:
        best = done[0]
        title = (f"Best: {best['test_accuracy']:.1%} with learning rate {best['lr']:g}, reps "
                 f"{best['reps']}, shots {best['shots']}; {title}")  # fmt: skip
        axes.legend(frameon=False)
    axes.set_title(title, loc="left", fontsize=10)
    return figure


if __name__ == "__main__":
    sys.exit(main())
