r"""Compare settings of the digits classifier: a grid of trials with Ray Tune, on one pool.

::

    trial (lr 0.01, reps 1, ...) --+
    trial (lr 0.03, reps 1, ...) --+--> LauncherPool --> Ray actors with simulators
    trial (lr 0.01, reps 2, ...) --+

Each trial is a process of its own that is handed the same pool: circuits of all trials are spread
over all actors, and none of them waits for a trial that computes on its own. A trial's weights are
those of scripts/train with its settings.

    scripts/sweep                                        12 trials, some minutes on 2 cores
    scripts/sweep --lr 0.01,0.03 --reps 1 --shots 64,exact --samples 300
    scripts/sweep --address 10.0.0.5:6379 --actors 64 --at-once 12 --sweeps-dir /storage/sweeps

It prints a table, best first, and leaves results.csv, results.json and sweep.png in
sweeps/<name>/. Exit status: 0 when all trials are done, 1 when one failed, 2 for a wrong option.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
import training
from sweeping.options import Sweep, parse
from sweeping.report import COLUMNS, Row, write_report
from training.data import Digits
from training.model import HybridClassifier, make_backend
from training.place import connected
from training.settings import Config
from training.trainer import Trainer

from qailab.distributed import LauncherPool
from qailab.errors import InputError, QailabError


def trial(values: dict[str, Any], base: Config, pool: Any) -> None:
    """Train with some settings: what Ray Tune runs in a process for each trial.

    Args:
        values: the settings of this trial.
        base: those that all trials share.
        pool: the handle of the pool that all trials share.
    """
    from ray import tune

    torch.set_num_threads(1)
    config = dataclasses.replace(base, **values)
    model = HybridClassifier(config, make_backend(config.backend))
    model.circuit.backend = pool
    trainer = Trainer(
        model,
        Digits.load(config.samples),
        config,
        Nowhere(),
        count_rows=lambda: pool.stats()["rows"],
    )
    trainer.run(on_epoch=lambda metrics: tune.report(dataclasses.asdict(metrics)))


class Nowhere:
    """Checkpoints are not kept: a trial that dies begins again, and ends the same."""

    def save(self, checkpoint: Any) -> None: ...

    def save_step(self, checkpoint: Any) -> None: ...


def run(sweep: Sweep) -> list[Row]:
    """Run all trials; a row of results for each."""
    each = make_backend(sweep.base.backend).resources.num_cpus
    cpus = sweep.placement.cpus_for(sweep.actors, each, sweep.at_once)
    with connected(sweep.address, cpus):
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # else Tune prints in spite of verbose=0
        import ray  # `connected` sets what Ray reads when it is first imported
        from ray import cloudpickle, tune

        options = sweep.placement.actor_options(ray.nodes(), sweep.actors, each)
        recipe = make_backend(sweep.base.backend, sweep.placement.device)
        # Trials are sent by value: other nodes need qailab, but none of these files.
        cloudpickle.register_pickle_by_value(training)
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        with LauncherPool([recipe] * len(options), actor_options=options) as pool:
            results = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(trial, base=sweep.base, pool=pool),
                    {k.lower(): v for k, v in sweep.placement.worker_resources.items()},
                ),
                param_space={k: tune.grid_search(values) for k, values in sweep.grid.items()},
                tune_config=tune.TuneConfig(
                    metric="test_accuracy", mode="max", max_concurrent_trials=sweep.at_once
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(sweep.folder.absolute()),
                    failure_config=tune.FailureConfig(max_failures=3),
                    callbacks=[_lines(tune.Callback)],
                    verbose=0,
                ),
            ).fit()
    return [row(result) for result in results]


def _lines(kind: type[Any]) -> Any:
    """Print a line for each trial when it ends.

    Args:
        kind: Ray Tune's class of callbacks.
    """

    class Lines(kind):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            values = ", ".join(f"{name} {value}" for name, value in trial.config.items())
            accuracy = trial.last_result["test_accuracy"]
            print(f"{values}: accuracy {accuracy:.4f}", file=sys.stderr, flush=True)

    return Lines()


def row(result: Any) -> Row:
    """What the table shows of a trial."""
    known = {**(result.metrics or {}), **result.config}
    error = None if result.error is None else str(result.error).strip().splitlines()[-1]
    return {name: known.get(name) for name in COLUMNS} | {"error": error}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    try:
        sweep = parse(arguments, __doc__ or "")
        sweep.folder.mkdir(parents=True)
        print(f"Sweep {sweep.folder}: {sweep.num_trials} trials of {sweep.base.epochs} epochs")
        rows = run(sweep)
        print(write_report(rows, sweep.folder))
    except InputError as error:
        print(f"sweep: error: {error}", file=sys.stderr)
        return 2
    except (QailabError, OSError) as error:
        print(f"sweep: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 1 if any(row["error"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
