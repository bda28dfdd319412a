"""Several processes that train together, with Ray Train.

::

    the program                               Ray Train                       each worker
    steps() of a Team  <- Queue, checkpoints of the first worker <----------  steps() of a Training
    pool of actors     -> its handle ------------------------------------->   circuits
                          TorchTrainer: starts workers, restores them from  <- report(checkpoint)
                          the last epoch that was reported to its storage
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import training
from qailab.distributed import LauncherPool
from qailab.errors import PoolError, QailabError
from training.checkpoint import FILE, Checkpoint
from training.loop import Training
from training.storage import RunFolder

MAX_FAILURES = 10  # so often may workers die in one run; more are no bad luck
_WAITED_SECONDS = 60.0  # without a step: worth a line


def steps_of_workers(
    start: Checkpoint, pool: LauncherPool, folder: RunFolder, workers: int
) -> Iterator[Checkpoint]:
    """Train with workers until the last epoch is done; what the first of them has after each step.

    Args:
        start: the state to go on from.
        pool: the actors, which all workers share.
        folder: the run's folder, which all nodes must reach; Ray Train's checkpoints are in it.
        workers: how many.

    Raises:
        QailabError: if a worker met one, or too many died.
    """
    import ray
    from ray import cloudpickle
    from ray.util.queue import Empty, Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(training)  # other nodes need not have these files
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    steps = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    config = {"start": start.to_bytes(), "pool": pool, "steps": steps}
    # A thread, and the signals stay ours: `fit` would take Ctrl-C for itself. It ends with Ray.
    threading.Thread(target=_fit, args=(config, folder, workers), daemon=True).start()
    while True:
        try:
            item = steps.get(timeout=_WAITED_SECONDS)
        except Empty:
            free = ray.available_resources().get("CPU", 0)
            print(f"Waiting for {workers} workers of 1 CPU each; {free:g} CPU are free", flush=True)
            continue
        if isinstance(item, Exception):
            raise item
        if item is None:
            return
        yield Checkpoint.from_bytes(item, "what a worker sent")


def _fit(config: dict[str, Any], folder: RunFolder, workers: int) -> None:
    """Run Ray Train, and leave its end at the queue."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    end: Exception | None = None
    try:
        TorchTrainer(
            _work,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=workers),
            run_config=RunConfig(
                name=folder.name,
                storage_path=folder.parent,
                storage_filesystem=folder.filesystem,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        ).fit()
    except Exception as error:
        end = PoolError(f"Ray Train ended ({type(error).__name__}: {str(error).splitlines()[0]})")
    config["steps"].put(end)


def _work(config: dict[str, Any]) -> None:
    """Train as one worker; Ray Train calls it in each of its processes."""
    from ray import train

    steps, context = config["steps"], train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    start = _newest(Checkpoint.from_bytes(config["start"], "the start"))
    try:
        mine = Training(start.settings, config["pool"], start, rank=rank, workers=workers)
        for checkpoint in mine.steps():
            if rank == 0:
                steps.put(checkpoint.to_bytes())
            if checkpoint.progress.batch == 0:
                with checkpoint.as_directory() as path:
                    kept = train.Checkpoint.from_directory(path) if rank == 0 else None
                    train.report({"epoch": checkpoint.progress.epoch}, checkpoint=kept)
    except QailabError as error:  # it would come again: the program ends the run
        steps.put(error)
        raise


def _newest(start: Checkpoint) -> Checkpoint:
    """The program's checkpoint, or one of the same run that was reported after it."""
    from ray import train

    reported = train.get_checkpoint()
    if reported is None:
        return start
    with reported.as_directory() as path:
        last = Checkpoint.load(Path(path, FILE))
    settings = dataclasses.replace(last.settings, epochs=start.settings.epochs)
    if settings != start.settings or last.progress.place <= start.progress.place:
        return start
    return dataclasses.replace(last, settings=settings)
