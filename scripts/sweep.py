r"""Compare settings of the digits classifier: a grid of trials with Ray Tune, all on one pool.

  scripts/sweep                                    12 trials of 3 epochs, some minutes on 2 cores
  scripts/sweep --lr 0.01,0.03 --shots 64,exact --samples 300 --name small
  scripts/sweep --resume small                     go on after Ctrl-C or a crash
  scripts/sweep --address auto --actors 64 --at-once 12 --storage /storage/sweeps
  scripts/sweep --actor-options '{"num_cpus": 0.5}' --actors 4

Prints a table, best first, and leaves results.csv and sweep.png in sweeps/<name>/.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.options import Parser, Settings, cores, positive, take_name

from qailab.errors import InputError, QailabError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qailab.distributed import LauncherPool

GRID: dict[str, list[Any]] = {"lr": [0.003, 0.01, 0.03], "reps": [1, 2], "shots": [256, 1024]}
"""What is compared, with default values: all combinations are trials."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    signals = [signal.SIGINT]  # the last one is what stopped the sweep, if something did

    def stop(number: int, _: object) -> None:
        signals.append(signal.Signals(number))
        os.kill(os.getpid(), signal.SIGINT)  # at which Tune saves what it needs to go on

    try:
        options = parse(arguments)
        table, trials, errors = run(options, stop)
    except (QailabError, OSError) as error:
        print(f"sweep: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:  # before the first trial, or a second time
        return 128 + signals[-1]
    done = int((table["epoch"] == table["epochs"]).sum())
    print(
        f"{table.to_string(index=False)}\n{options.storage}/{options.name}/: results.csv, sweep.png"
    )
    if done == trials:
        return 0
    print(f"{done} of {trials} trials are done. To go on:\n  scripts/sweep --resume "
          f"{options.storage}/{options.name}", file=sys.stderr)  # fmt: skip
    return 1 if errors else 128 + signals[-1]


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Read the command line; ``settings`` are those of all trials, lists where they differ.

    Raises:
        InputError: if a value is out of its range, the name is taken, or there is no such sweep.
    """
    parser = Parser("sweep", __doc__ or "")
    parser.add_settings({"epochs": 3} | GRID, without=("backend",))
    add = parser.add_places()
    add("--at-once", "N", "trials at a time (4)", type=positive, default=4)
    parser.add_name("sweeps", "of a new sweep")
    options = parser.parse(arguments)
    take_name(options)
    given, folder = options.given, Path(options.storage, options.name)
    if options.resume and given:
        raise InputError(f"--resume keeps a sweep's settings: leave out {', '.join(given)}")
    if options.resume and not (folder / "tuner.pkl").is_file():
        raise InputError(f"there is no sweep {folder}")
    if not options.resume and folder.exists():
        raise InputError(f"there is a sweep {folder}: --resume it, or give another --name")
    options.settings = asdict(Settings(epochs=3)) | GRID | given
    for values in itertools.product(*(options.settings[name] for name in GRID)):
        Settings(**options.settings | dict(zip(GRID, values, strict=True)))  # says what is wrong
    return options


def run(options: Namespace, stop: Any) -> tuple[Any, int, int]:
    """Run the trials that are not done; a table of all, how many there are, and how many failed."""
    folder = Path(options.storage, options.name)
    print(f"Sweep {folder}: starting ...", flush=True)
    from training.backends import open_pool

    from qailab.backends import AerBackend

    backends = [AerBackend()] * (options.actors or cores())
    with contextlib.ExitStack() as closing:
        tuner = make_tuner(options, open_pool(closing, options, backends, options.at_once))
        signal.signal(signal.SIGTERM, stop)  # Ray has taken it for itself
        results = tuner.fit()
    table = results.get_dataframe().rename(columns=lambda name: name.removeprefix("config/"))
    shown = [*GRID, "test_accuracy", "test_loss", "epoch", "epochs", "seconds"]
    table = table.reindex(columns=shown).sort_values("test_accuracy", ascending=False)
    table.to_csv(folder / "results.csv", index=False)
    draw(table).savefig(folder / "sweep.png", dpi=150)
    return table, len(results), results.num_errors


def make_tuner(options: Namespace, pool: LauncherPool) -> Any:
    """Ray Tune with a new sweep, or with what is left of one."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one has a page for each epoch
    import training.loop  # what trials need, to be sent with them
    from ray import cloudpickle, tune

    for module in (training, sys.modules[__name__]):
        cloudpickle.register_pickle_by_value(module)  # other nodes need not have these files
    folder = Path(options.storage, options.name).absolute()
    trainable = tune.with_parameters(trial, pool=pool)
    if options.resume:
        return tune.Tuner.restore(str(folder), trainable, resume_errored=True)
    grid = {name: tune.grid_search(options.settings[name]) for name in GRID}
    return tune.Tuner(
        trainable,
        param_space=options.settings | grid,
        tune_config=tune.TuneConfig(max_concurrent_trials=options.at_once),
        run_config=tune.RunConfig(
            name=options.name,
            storage_path=str(folder.parent),
            failure_config=tune.FailureConfig(max_failures=3),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            progress_reporter=tune.CLIReporter(
                metric_columns=["epoch", "test_accuracy"], parameter_columns=list(GRID)
            ),
            verbose=1,
        ),
    )


def trial(config: dict[str, Any], pool: LauncherPool) -> None:
    """Train with some settings: what Tune runs in a process for each trial."""
    from ray import tune
    from training.checkpoint import Checkpoint
    from training.loop import Training

    start = Checkpoint.from_ray(tune.get_checkpoint())
    for checkpoint in Training(Settings(**config), pool, start).steps():
        if checkpoint.progress.batch == 0:
            with checkpoint.for_ray() as kept:
                tune.report(asdict(checkpoint.history[-1]), checkpoint=kept)


def draw(table: Any) -> Figure:
    """Test accuracy by learning rate of the trials that are done, a line for each circuit."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    done = table[table["epoch"] == table["epochs"]]  # others cannot be compared with them
    for (reps, shots), rows in done.sort_values("lr").groupby(["reps", "shots"]):
        axes.plot("lr", "test_accuracy", "o-", data=rows, label=f"reps {reps}, shots {shots}")
    rates = sorted(set(table["lr"]))
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("learning rate of Adam in the first epoch (logarithmic)")
    axes.set_ylabel("test samples classified correctly")
    axes.grid(color="#d9dfe6", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    title = f"{len(done)} of {len(table)} trials are done"
    if len(done):
        axes.legend(frameon=False)
        best = done.to_dict("records")[0]
        title = (f"Best: {best['test_accuracy']:.1%} with learning rate {best['lr']:g}, reps "
                 f"{best['reps']}, shots {best['shots']}")  # fmt: skip
    axes.set_title(title, loc="left")
    return figure


if __name__ == "__main__":
    sys.exit(main())
