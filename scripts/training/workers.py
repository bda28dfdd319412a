"""What a worker of Ray Train runs: the trainer, as one of a team.

It is sent by value: workers need qailab, but none of these files. So nothing here may import
the program's own modules later than at the top.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
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


def work(config: dict[str, Work]) -> None:
    """Train as one worker, from Ray Train's last checkpoint if there is one."""
    import ray
    from ray.train.torch import get_device

    given, team = config["work"], ProcessGroup()
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # a line for each report
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        start = _last_checkpoint() or Checkpoint.from_bytes(given.start, "the start")
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


def _last_checkpoint() -> Checkpoint | None:
    from ray.train import get_checkpoint

    reported = get_checkpoint()
    if reported is None:
        return None
    with reported.as_directory() as folder:
        return Checkpoint.load(Path(folder) / "checkpoint.pt")


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
            train.report(metrics, checkpoint=kept)
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
            checkpoint.save(Path(folder) / "checkpoint.pt")
            yield folder
