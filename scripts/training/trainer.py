"""The training loop: steps, evaluations, and a checkpoint to go back to at any moment."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Adam

from qailab.errors import CheckpointError
from training.data import CLASSES, Digits
from training.model import HybridClassifier
from training.options import Config
from training.runs import Checkpoint, EpochMetrics, Progress, RunFolder

LR_DECAY = 0.85
"""The learning rate's factor from epoch to epoch. Shot noise keeps a constant rate from settling;
and it must not depend on the number of epochs, which a resumed run may raise."""


class Trainer:
    """Trains a classifier; the weights are a function of the config alone.

    `checkpoint` is always the state after the last complete step: whatever interrupts a step, it
    can be saved, and a trainer that starts from it repeats the steps that were lost exactly.

    Args:
        model: the classifier.
        digits: the data.
        config: the settings.
        folder: where checkpoints go.
        count_rows: how many rows were run so far, whenever it is asked.
        resume: the state to start from; by default the beginning.

    Raises:
        CheckpointError: if the state to start from does not fit the model.
    """

    def __init__(
        self,
        model: HybridClassifier,
        digits: Digits,
        config: Config,
        folder: RunFolder,
        *,
        count_rows: Callable[[], int],
        resume: Checkpoint | None = None,
    ) -> None:
        self._model = model
        self._digits = digits
        self._config = config
        self._folder = folder
        self._count_rows = count_rows
        # A step on a device takes seconds to hours, and a checkpoint 2 ms. The journal would give
        # all results again, but an epoch of steps takes its time even so.
        self._each_step = config.backend == "ibm"
        self._optimizer = Adam(model.parameters(), lr=config.lr)
        if resume is None:
            resume = self._snapshot(Progress(), (), torch.zeros(CLASSES, CLASSES, dtype=torch.long))
        else:
            self._load(resume)
        self.checkpoint = resume

    def run(
        self,
        *,
        on_batch: Callable[[Progress], None] = lambda _: None,
        on_epoch: Callable[[EpochMetrics], None] = lambda _: None,
    ) -> None:
        """Train until the last epoch is done, saving after each; on hardware after each step.

        Args:
            on_batch: called after each step with the progress.
            on_epoch: called after each epoch with its metrics.
        """
        self._folder.save(self.checkpoint)
        while self.checkpoint.progress.epoch < self._config.epochs:
            self._epoch(on_batch)
            self._folder.save(self.checkpoint)
            on_epoch(self.checkpoint.history[-1])

    def _epoch(self, on_batch: Callable[[Progress], None]) -> None:
        """What is left of an epoch, and the evaluation at its end."""
        done = self.checkpoint.progress
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * LR_DECAY**done.epoch
        batches = self._digits.batches(self._config.seed, done.epoch, self._config.batch_size)
        for number in range(done.batch, len(batches)):
            clock = _Clock(self._count_rows)
            loss, correct = self._step(batches[number])
            size = len(batches[number])
            rows, seconds = clock.read()
            done = dataclasses.replace(
                done,
                batch=number + 1,
                loss_sum=done.loss_sum + loss * size,
                correct=done.correct + correct,
                seen=done.seen + size,
                rows=done.rows + rows,
                seconds=done.seconds + seconds,
            )
            self.checkpoint = self._snapshot(
                done, self.checkpoint.history, self.checkpoint.confusion
            )
            if self._each_step:
                self.checkpoint.save(self._folder.checkpoint)
            on_batch(done)
        self._evaluate()

    def _step(self, batch: Tensor) -> tuple[float, int]:
        """Train one batch; its mean loss, and how many samples were classified correctly."""
        images, labels = self._digits.train_images[batch], self._digits.train_labels[batch]
        self._optimizer.zero_grad()
        logits = self._model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        self._optimizer.step()
        return loss.item(), int((logits.argmax(dim=1) == labels).sum())

    def _evaluate(self) -> None:
        """Classify the test samples and close the epoch.

        Its forward pass is a step of the layer as well: always at this point, always one.
        """
        done = self.checkpoint.progress
        clock = _Clock(self._count_rows)
        labels = self._digits.test_labels
        with torch.no_grad():
            logits = self._model(self._digits.test_images)
            loss = nn.functional.cross_entropy(logits, labels).item()
        confusion = torch.bincount(labels * CLASSES + logits.argmax(dim=1), minlength=CLASSES**2)
        rows, seconds = clock.read()
        rows, seconds = done.rows + rows, done.seconds + seconds
        metrics = EpochMetrics(
            epoch=done.epoch + 1,
            loss=done.loss_sum / done.seen,
            train_accuracy=done.correct / done.seen,
            test_loss=loss,
            test_accuracy=int((logits.argmax(dim=1) == labels).sum()) / len(labels),
            rows=rows,
            rows_per_second=rows / seconds,
            seconds=seconds,
        )
        self.checkpoint = self._snapshot(
            Progress(epoch=done.epoch + 1),
            (*self.checkpoint.history, metrics),
            confusion.reshape(CLASSES, CLASSES),
        )

    def _snapshot(
        self, progress: Progress, history: tuple[EpochMetrics, ...], confusion: Tensor
    ) -> Checkpoint:
        # Copies: the originals change in place, and may be half changed when a step is interrupted.
        return Checkpoint(
            self._config,
            progress,
            history,
            copy.deepcopy(self._model.state_dict()),
            copy.deepcopy(self._optimizer.state_dict()),
            confusion,
        )

    def _load(self, checkpoint: Checkpoint) -> None:
        try:
            self._model.load_state_dict(checkpoint.model)
            # A copy: the optimizer would go on to change the checkpoint's own tensors.
            self._optimizer.load_state_dict(copy.deepcopy(checkpoint.optimizer))
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{self._folder.checkpoint} does not fit the model of its own settings "
                f"({self._config}): {error}"
            ) from error


class _Clock:
    """Rows and seconds since it was made."""

    def __init__(self, count_rows: Callable[[], int]) -> None:
        self._count_rows = count_rows
        self._rows = count_rows()
        self._began = time.perf_counter()

    def read(self) -> tuple[int, float]:
        return self._count_rows() - self._rows, time.perf_counter() - self._began
