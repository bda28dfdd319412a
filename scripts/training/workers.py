"""What other processes run for the program: Ray Train, and in each of its workers the trainer.

It is sent by value: they need qailab, but none of these files. So nothing here may import the
program's own modules later than at the top.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qailab.backends import Backend
from qailab.distributed import LauncherPool
from qailab.errors import QailabError
from training.checkpoint import Checkpoint, SaveError
from training.data import Digits
from training.model import HybridClassifier, make_deterministic
from training.team import ProcessGroup
from training.trainer import Trainer

FOLDER = ".workers"
"""Where Ray Train keeps its own checkpoints while it runs, in the run's folder."""
_FILE = "checkpoint.pt"
_LOST = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset)|TCPStore")
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


@dataclass(frozen=True)
class Plan:
    """How Ray Train runs the workers.

    Args:
        workers: how many.
        resources: what each takes.
        spread: whether they are spread over the nodes.
        filesystem: where Ray Train keeps its checkpoints: pyarrow's filesystem.
        path: the folder there.
        max_failures: how often workers may die.
    """

    workers: int
    resources: dict[str, float]
    spread: bool
    filesystem: Any
    path: str
    max_failures: int


def fit(given: list[Any], plan: Plan, post: Any) -> tuple[str, bool]:
    """Train with Ray Train until that ends; why it did, and whether it may be tried again.

    Nothing is told of what ended workers: that was noted at the post.

    A task of Ray, not a thread of the program: Ray Train's ``fit`` cannot be interrupted, and all
    that it has started ends with the process that called it.

    Args:
        given: a reference to the `Work`. (In a list: by itself it would be resolved here.)
        plan: how.
        post: the actor that hears what ended workers.
    """
    os.environ.update(_SETTINGS)  # before Ray Train is imported
    try:
        _trainer(given, plan, post).fit()
    except Exception as error:
        return _ending(error)
    return "the workers' last checkpoint was lost", True  # for a program that has not all of them


def _trainer(given: list[Any], plan: Plan, post: Any) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.callback import UserCallback
    from ray.train.v2.api.config import LoggingConfig

    class Troubles(UserCallback):
        """Leaves what ended workers at the post, from Ray Train's controller."""

        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            post.note.remote(trouble([*worker_exceptions.values()]))

    trainer = TorchTrainer(
        work,
        train_loop_config={"work": given},
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu="GPU" in plan.resources,
            resources_per_worker=plan.resources,
            placement_strategy="SPREAD" if plan.spread else "PACK",
        ),
        run_config=RunConfig(
            name=FOLDER,
            storage_path=plan.path,
            storage_filesystem=plan.filesystem,
            # Ray Train's own processes, and workers that die while they start, are the program's
            # matter: it says so, and counts them.
            failure_config=FailureConfig(plan.max_failures, controller_failure_limit=0),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[Troubles()],
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

    if getattr(error, "worker_failures", None):
        return "", True
    failure = getattr(error, "controller_failure", error)
    if type(failure).__name__ == "WorkerGroupStartupFailedError":
        return "a worker died", True
    if isinstance(failure, RayActorError):
        return "the process of Ray Train died", True
    if isinstance(failure, RayError) or type(failure).__name__ == "PreemptionError":
        return f"Ray Train failed ({_shortly(failure)})", True
    return _shortly(failure), False  # it comes again, such as that of settings which are refused


def trouble(failures: list[Exception]) -> str:
    """What ended workers, in words.

    Args:
        failures: those of the workers, as Ray Train has them.
    """
    from ray.exceptions import RayActorError

    failures = [getattr(each, "health_check_failure", each) for each in failures]
    # When a worker dies, the others find that out by themselves, and perhaps before Ray does.
    own = [each for each in failures if not _LOST.search(str(each))]
    if not own or any(isinstance(each, RayActorError) for each in failures):
        return "a worker died"
    return f"a worker failed ({_shortly(own[0])})"


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

    logging.disable(logging.INFO)  # Ray Train has a line for each report, whatever its level is
    team = ProcessGroup()
    (reference,) = config["work"]
    given: Work = ray.get(reference)
    make_deterministic()
    try:
        start = _newest(Checkpoint.from_bytes(given.start, "the start"))
        with given.pool_of(team.rank, team.size) as pool:
            model = HybridClassifier(start.config, given.recipes[0])
            model.circuit.backend = pool
            keeper = _Reports(given.post if team.rank == 0 else None)
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
            trainer.run(on_batch=lambda _: keeper.post(trainer.checkpoint))
            keeper.wait()
    except QailabError as error:
        # Not to be tried again, as the death of a worker is: actors that died were replaced.
        ray.get(given.post.fail.remote(error))
        raise


def _newest(start: Checkpoint) -> Checkpoint:
    """The checkpoint to go on from: the program's, or the one that was reported after it."""
    from ray.train import get_checkpoint

    reported = get_checkpoint()
    if reported is None:
        return start
    with reported.as_directory() as folder:
        last = Checkpoint.load(Path(folder) / _FILE)
    return last if last.progress.place > start.progress.place else start


class _Reports:
    """Checkpoints go to Ray Train, which restores workers from them, and to the program.

    Args:
        post: the actor to leave them at, in the first worker; None in others.
    """

    def __init__(self, post: Any) -> None:
        self._post = post
        self._sent: Any = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Report it; all workers come together here."""
        from ray import train

        metrics = {"epoch": checkpoint.progress.epoch}
        if checkpoint.history:
            last = checkpoint.history[-1]
            metrics |= {"loss": last.loss, "test_accuracy": last.test_accuracy}
        with self._folder(checkpoint) as folder:
            kept = None if folder is None else train.Checkpoint.from_directory(folder)
            try:
                train.report(metrics, checkpoint=kept)
            except OSError as error:
                raise SaveError(
                    f"the run's folder cannot be written ({type(error).__name__}: {error}); make "
                    "room there, or correct its rights"
                ) from error
        self.post(checkpoint)

    def save_step(self, checkpoint: Checkpoint) -> None:
        """Nothing more than `post` does after each step."""

    def post(self, checkpoint: Checkpoint) -> None:
        """Leave it at the program, which saves it when it is interrupted."""
        if self._post is not None:
            self.wait()
            self._sent = self._post.put.remote(checkpoint.to_bytes())

    def wait(self) -> None:
        """Wait until the last one has arrived."""
        import ray

        if self._sent is not None:
            ray.get(self._sent)

    @contextlib.contextmanager
    def _folder(self, checkpoint: Checkpoint) -> Iterator[str | None]:
        if self._post is None:
            yield None
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder) / _FILE)
            yield folder
