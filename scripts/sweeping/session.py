"""One sweep from its beginning, or from where it stopped, to its report: what Ray Tune runs."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys
from pathlib import Path
from typing import Any

import training
from training.data import Digits
from training.interrupts import Interrupts
from training.model import HybridClassifier, make_backend, make_deterministic
from training.place import connected
from training.settings import Config
from training.trainer import Trainer

import sweeping
from qailab.distributed import LauncherPool
from qailab.errors import InputError
from sweeping.options import Sweep, taken
from sweeping.report import stopped, write_report
from sweeping.settings import FILE, Point
from sweeping.trials import DONE, name_of, row_of, rows_of, run_of


def trial(config: dict[str, Point], base: Config, folder: Path, pool: Any, device: str) -> None:
    """Train with some settings: what Ray Tune runs in a process for each trial.

    Args:
        config: the settings of this trial, as ``point``.
        base: those that all trials share.
        folder: the sweep's folder; a checkpoint that the trial has there is gone on from.
        pool: the handle of the pool that all trials share.
        device: where the linear layers are.
    """
    from ray import tune

    make_deterministic()
    settings = dataclasses.replace(base, **config["point"])
    run = run_of(folder, config["point"])
    run.path.mkdir(exist_ok=True)
    resume = run.load(dataclasses.asdict(settings)) if run.checkpoint.is_file() else None
    model = HybridClassifier(settings, make_backend(settings.backend))
    model.circuit.backend = pool
    trainer = Trainer(
        model,
        Digits.load(settings.samples),
        settings,
        run,
        count_rows=lambda: pool.stats()["rows"],
        resume=resume,
        device=device,
    )
    trainer.run(on_epoch=lambda metrics: tune.report(dataclasses.asdict(metrics)))


def run(sweep: Sweep, errors: dict[str, str], interrupts: Interrupts) -> None:
    """Run the trials that are not done.

    Args:
        sweep: what to compare, and where.
        errors: where it is noted what ended the trials that failed, by name.
        interrupts: Ctrl-C and SIGTERM.

    Raises:
        KeyboardInterrupt: when one of them came.
        QailabError: if there is no cluster, or no actor can start.
    """
    base, placement = sweep.settings.base, sweep.placement
    folder = sweep.folder.absolute()  # for processes that are elsewhere
    each = make_backend(base.backend).resources.num_cpus
    with connected(sweep.address, placement.cpus_for(sweep.actors, each, sweep.at_once)):
        _quiet()
        import ray  # `connected` sets what Ray reads when it is first imported
        from ray import cloudpickle, tune

        from sweeping.watch import Watch

        # Trials are sent by value: other nodes need qailab, but none of these files.
        for module in (training, sweeping):
            cloudpickle.register_pickle_by_value(module)
        options = placement.actor_options(ray.nodes(), sweep.actors, each)
        recipe = make_backend(base.backend, placement.device)
        pool = LauncherPool([recipe] * len(options), actor_options=options, progress=False)
        with pool:
            interrupts.install()  # Ray takes SIGTERM for itself
            begin(sweep)
            how_far = functools.partial(row_of, folder=folder, epochs=base.epochs)
            device = "cuda" if placement.worker_gpus else "cpu"
            tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(trial, base=base, folder=folder, pool=pool, device=device),
                    {k.lower(): v for k, v in placement.worker_resources.items()},
                ),
                param_space={"point": tune.grid_search(points_left(sweep))},
                tune_config=tune.TuneConfig(
                    max_concurrent_trials=sweep.at_once,
                    trial_dirname_creator=lambda trial: name_of(trial.config["point"]),
                ),
                run_config=tune.RunConfig(
                    name="tune",  # Tune's own files, beside the folders of the trials
                    storage_path=str(folder),
                    failure_config=tune.FailureConfig(max_failures=3),
                    callbacks=[Watch(how_far, errors, interrupts.check)],
                    verbose=0,
                ),
            ).fit()


def begin(sweep: Sweep) -> None:
    """Make the folder of a new sweep: when there is a pool, so that a wrong --address makes none.

    Raises:
        InputError: if another sweep took the name meanwhile, or the folder cannot be made.
    """
    trials, left = len(sweep.settings.points), len(points_left(sweep))
    done = f", {trials - left} of them done" if sweep.resumed else ""
    epochs = f"{sweep.settings.base.epochs} epoch{'' if sweep.settings.base.epochs == 1 else 's'}"
    if not sweep.resumed:
        try:
            sweep.folder.mkdir(parents=True)
        except FileExistsError:
            raise taken(sweep.folder) from None
        except OSError as error:
            raise InputError(f"cannot make the folder {sweep.folder}: {error}") from error
        sweep.settings.save(sweep.folder)
    print(f"Sweep {sweep.folder}: {trials} trials of {epochs}{done}", flush=True)


def points_left(sweep: Sweep) -> list[Point]:
    """The trials that are not done."""
    points, rows = sweep.settings.points, rows_of(sweep.settings, sweep.folder, {})
    return [p for p, row in zip(points, rows, strict=True) if row["state"] != DONE]


def report(sweep: Sweep, errors: dict[str, str]) -> int:
    """Write and print how far the sweep is, if it was begun; 1 if it is not done, else 0."""
    if not (sweep.folder / FILE).is_file():
        return 1
    rows = rows_of(sweep.settings, sweep.folder, errors)
    print(write_report(rows, sweep.folder), flush=True)
    if all(row["state"] == DONE for row in rows):
        return 0
    print(stopped(rows, sweep), file=sys.stderr, flush=True)
    return 1


def _quiet() -> None:
    """Leave what is said to `Watch`: Tune prints tracebacks in spite of ``verbose=0``."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
    # Tune would take Ctrl-C for itself, and end as if nothing had happened.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
