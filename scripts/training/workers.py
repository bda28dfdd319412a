"""What other processes run for the program: Ray Train, and in each of its workers the trainer.

It is sent by value: they need qailab, but none of these files. So nothing here may import the
program's own modules later than at the top.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import torch

from qailab.backends import Backend
from qailab.distributed import LauncherPool
from qailab.errors import QailabError
from training.checkpoint import Checkpoint
from training.data import Digits
from training.model import HybridClassifier
from training.team import ProcessGroup
from training.trainer import Trainer

_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # how soon a death is noticed
    # The program says how long workers may wait for their resources.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1e6",
    # A process less: it tells workers that their node is about to go, and they do not ask.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@dataclass(frozen=True, eq=False)
class Work:
    """What all workers are given.

    Args:
        start: the checkpoint to begin with, as bytes.
        recipes: the backend of each actor. (Not `backends`: who names that beside `torch` makes
            cloudpickle send the module `torch.backends`, which cannot be sent.)
        actor_options: Ray's options of each actor.
        pool: the handle of the pool that they share; None if each makes its own.
        post: the actor that the first worker leaves checkpoints at.
    """

    start: bytes
    recipes: list[Backend]
    actor_options: list[dict[str, Any]]
    pool: LauncherPool | None
    post: Any

    def pool_of(self, rank: int, size: int) -> Any:
        """A context manager with the pool of a worker."""
        if self.pool is not None:
            return contextlib.nullcontext(self.pool)
        return LauncherPool(
            self.recipes[rank::size], actor_options=self.actor_options[rank::size], progress=False
        )


def fit(
    given: list[Any], workers: int, resources: dict[str, float], spread: bool
) -> tuple[str, bool]:
    """Train with Ray Train until that ends; why it did, and whether it may be tried again.

    A task of Ray, not a thread of the program: Ray Train's ``fit`` cannot be interrupted, and all
    that it has started ends with the process that called it.

    Args:
        given: a reference to the `Work`. (In a list: by itself it would be resolved here.)
        workers: how many.
        resources: what each takes.
        spread: whether they are spread over the nodes.
    """
    os.environ.update(_SETTINGS)  # before Ray Train is imported
    try:
        _trainer(given, workers, resources, spread).fit()
    except Exception as error:
        return _ending(error)
    return "the workers' last checkpoint was lost", True  # for a program that has not all of them


def _trainer(given: list[Any], workers: int, resources: dict[str, float], spread: bool) -> Any:
    from fsspec.implementations.memory import MemoryFileSystem
    from pyarrow.fs import FSSpecHandler, PyFileSystem
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    # Failures are the program's matter: it has the last checkpoint, and counts them all.
    failures = FailureConfig(max_failures=0, controller_failure_limit=0)
    failures.max_preemption_failures = 0  # older Rays do not have it
    trainer = TorchTrainer(
        work,
        train_loop_config={"work": given},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            placement_strategy="SPREAD" if spread else "PACK",
        ),
        run_config=RunConfig(
            name="qailab",
            storage_path="/qailab",  # it wants a place for checkpoints, and gets none
            storage_filesystem=PyFileSystem(FSSpecHandler(MemoryFileSystem())),
            failure_config=failures,
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )
    # Without its detached actor that frees the resources of a controller that was killed: Ray does
    # so when the program ends, and the program before it tries again. The actor needs Ray's
    # dashboard, does not find it where a node has several Rays, and then stays for good.
    made = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [
        each for each in made() if type(each).__name__ != "PlacementGroupCleanerCallback"
    ]
    return trainer


def _ending(error: Exception) -> tuple[str, bool]:
    from ray.exceptions import RayActorError, RayError

    found = getattr(error, "worker_failures", None)  # by rank
    failures = [*found.values()] if found else [getattr(error, "controller_failure", error)]
    failures = [getattr(each, "health_check_failure", each) for each in failures]
    names = {type(each).__name__ for each in failures}
    if "WorkerGroupStartupFailedError" in names or any(
        isinstance(each, RayActorError) for each in failures
    ):
        return "a worker died", True
    # Others than workers' errors come again, such as that of settings which Ray Train refuses.
    if found or "PreemptionError" in names or isinstance(failures[0], RayError):
        return f"a worker failed ({_shortly(failures[0])})", True
    return _shortly(failures[0]), False


def _shortly(error: Exception) -> str:
    """What an error is about, without the tracebacks of other processes."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if any(line.startswith("Traceback") or "ray::" in line for line in lines):
        return lines[-1]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"


def work(config: dict[str, list[Any]]) -> None:
    """Train as one worker."""
    import ray
    from ray.train.torch import get_device

    team = ProcessGroup()
    (reference,) = config["work"]
    given: Work = ray.get(reference)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        start = Checkpoint.from_bytes(given.start, "the start")
        with given.pool_of(team.rank, team.size) as pool:
            model = HybridClassifier(start.config, given.recipes[0])
            model.circuit.backend = pool
            keeper = _Keeper(given.post if team.rank == 0 else None)
            trainer = Trainer(
                model,
                Digits.load(start.config.samples),
                start.config,
                keeper,
                count_rows=lambda: pool.stats()["rows"],
                resume=start,
                team=team,
                device=get_device(),
            )
            trainer.run(on_batch=lambda _: keeper.save(trainer.checkpoint))
            keeper.wait()
    except QailabError as error:
        # Not to be tried again, as the death of a worker is: actors that died were replaced.
        ray.get(given.post.fail.remote(error))
        raise


class _Keeper:
    """Checkpoints go to the program, which saves them, and starts workers from the last one.

    Args:
        post: the actor to leave them at, in the first worker; None in others.
    """

    def __init__(self, post: Any) -> None:
        self._post = post
        self._sent: Any = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Leave it there."""
        if self._post is not None:
            self.wait()
            self._sent = self._post.put.remote(checkpoint.to_bytes())

    def save_step(self, checkpoint: Checkpoint) -> None:
        """Nothing more than is done after each step."""

    def wait(self) -> None:
        """Wait until the last one has arrived."""
        import ray

        if self._sent is not None:
            ray.get(self._sent)
