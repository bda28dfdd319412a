"""Several processes that train together, with Ray Train.

::

    the program                          Ray Train                     each worker
    steps_of_workers <---------- Queue: checkpoints of worker 0 <----- steps of a Training
    LauncherPool ------------------------ its handle ----------------> circuits
                     TorchTrainer: starts workers, and restores <----- report(checkpoint), after
                     them from the last epoch in its storage           each epoch
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import training
from qailab.distributed import LauncherPool
from qailab.errors import PoolError, QailabError
from training.checkpoint import Checkpoint
from training.loop import Training
from training.storage import RunFolder

MAX_FAILURES = 10  # so often may workers die in one run; more are no bad luck
_QUIET_SECONDS = 60.0  # after which it is said what may be missing


def steps_of_workers(
    start: Checkpoint, pool: LauncherPool, folder: RunFolder, workers: int
) -> Iterator[Checkpoint]:
    """Train with workers until the last epoch is done, with a checkpoint after each step.

    All share the pool, and must reach the folder.

    Raises:
        QailabError: if a worker met one, or too many died.
    """
    import ray
    from ray import cloudpickle
    from ray.util.queue import Empty, Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(training)  # other nodes need not have these files
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here}
    steps = Queue(actor_options=options)
    config = {"start": start.to_bytes(), "pool": pool, "steps": steps}
    # A task, for Ray Train would take Ctrl-C for itself, and cannot be stopped otherwise.
    fitting = ray.remote(_fit).options(max_retries=0, **options).remote(config, folder, workers)
    try:
        while True:
            try:
                item = steps.get(timeout=_QUIET_SECONDS)
            except Empty:
                if ray.wait([fitting], timeout=0)[0]:
                    ray.get(fitting)  # raises what ended it
                free = ray.available_resources().get("CPU", 0)
                print(f"{workers} workers take 1 CPU each, {free:g} CPU are free", flush=True)
                continue
            if isinstance(item, Exception):
                raise item
            if item is None:
                return
            yield Checkpoint.from_bytes(item, "what a worker sent")
    except ray.exceptions.RayError as error:
        raise PoolError(f"Ray Train ended ({type(error).__name__}: {error})") from error
    finally:
        ray.cancel(fitting, force=True)


def _fit(config: dict[str, Any], folder: RunFolder, workers: int) -> None:
    """Run Ray Train, and leave its end at the queue."""
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        LoggingConfig,
        RunConfig,
        ScalingConfig,
    )
    from ray.train.torch import TorchTrainer

    run_config = RunConfig(
        name=folder.name,
        storage_path=folder.parent,
        storage_filesystem=folder.filesystem,
        failure_config=FailureConfig(max_failures=MAX_FAILURES),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
        logging_config=LoggingConfig(log_level="ERROR"),
    )
    scaling = ScalingConfig(num_workers=workers)
    end = None
    try:
        TorchTrainer(
            _work, train_loop_config=config, scaling_config=scaling, run_config=run_config
        ).fit()
    except Exception as error:
        words = (str(error).splitlines() or [""])[0]
        end = PoolError(f"Ray Train ended ({type(error).__name__}: {words})")
    config["steps"].put(end)


def _work(config: dict[str, Any]) -> None:
    """Train as one worker; Ray Train calls it in each of its processes."""
    from ray import train

    steps, context = config["steps"], train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    start = Checkpoint.from_bytes(config["start"], "the start")
    last = Checkpoint.from_ray(train.get_checkpoint())
    if last is not None:  # of this run, as far as it was before a worker or the program died
        last = dataclasses.replace(
            last, settings=dataclasses.replace(last.settings, epochs=start.settings.epochs)
        )
        if last.settings == start.settings and last.progress.place > start.progress.place:
            start = last
    try:
        mine = Training(start.settings, config["pool"], start, rank=rank, workers=workers)
        for checkpoint in mine.steps():
            if rank == 0:
                steps.put(checkpoint.to_bytes())
            if checkpoint.progress.batch == 0:
                with checkpoint.for_ray() as kept:
                    metrics = {"epoch": checkpoint.progress.epoch}
                    train.report(metrics, checkpoint=kept if rank == 0 else None)
    except QailabError as error:  # it would come again: the program ends the run
        steps.put(error)
        raise
