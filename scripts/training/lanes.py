"""Asynchronous training: several batches on their way to the actors at once, none waits for others.

An epoch is tested when all its batches were applied; some of the next one may be in it by then.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from qailab.distributed import LauncherPool
from qailab.training import AsyncTrainer
from training.checkpoint import Checkpoint
from training.loop import Training


def steps_of_lanes(training: Training, pool: LauncherPool, lanes: int) -> Iterator[Checkpoint]:
    """Train until the last epoch is done, with a checkpoint after each step and each test."""
    digits, settings = training.digits, training.settings
    data = TensorDataset(digits.train_images, digits.train_labels)
    loader = DataLoader(data, batch_size=settings.batch_size, shuffle=True)
    trainer = AsyncTrainer(
        training.model, training.optimizer, loss_of, [pool] * lanes, seed=settings.seed,
        progress=False,
    )  # fmt: skip
    if training.checkpoint.lanes is not None:
        trainer.load_state_dict(training.checkpoint.lanes)
    training.set_rate()
    since = time.perf_counter()
    for step in trainer.steps(loader, settings.epochs):
        training.optimizer.step()
        now = time.perf_counter()
        sums = step.metrics
        training.count(
            sums["loss"], int(sums["correct"]), int(sums["seen"]), now - since, trainer.state_dict()
        )
        since = now
        yield training.checkpoint
        for _ in range(step.epochs_ended):
            training.test()
            training.set_rate()
            since = time.perf_counter()
            yield training.checkpoint
    tqdm.write(trainer.table())


def loss_of(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, float]]:
    """The mean loss of a batch; sums of losses, right answers and samples."""
    images, labels = batch
    logits = model(images)
    loss = cross_entropy(logits, labels, reduction="sum")
    correct = (logits.argmax(dim=1) == labels).sum().item()
    return loss / len(labels), {"loss": loss.item(), "correct": correct, "seen": len(labels)}
