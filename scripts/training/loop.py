"""The training loop: steps, tests, and a checkpoint to go back to at any moment.

The loop is the same for one process and for workers. Each worker takes its part of every batch,
and all make the same step with the sum of their gradients. Shot noise goes by a sample's place in
the whole batch, so the weights do not depend on the workers but for the rounding of that sum.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qailab.errors import CheckpointError
from qailab.launchers import RowEvaluator
from training.checkpoint import Checkpoint, EpochMetrics, Progress
from training.model import CLASSES, Digits, HybridClassifier
from training.options import Settings

LR_DECAY = 0.85
"""The learning rate's factor from epoch to epoch. Shot noise keeps a constant rate from settling;
and it must not depend on the number of epochs, which a resumed run may raise."""


class Training:
    """A model that is trained; its weights are a function of the settings alone.

    `checkpoint` is the state after the last complete step. Whatever interrupts a step, a training
    that starts from it repeats the lost one exactly. Several workers are in torch's process group.

    Raises:
        CheckpointError: if the state to start from does not fit the model.
    """

    def __init__(
        self,
        settings: Settings,
        backend: RowEvaluator,
        start: Checkpoint | None = None,
        *,
        rank: int = 0,
        workers: int = 1,
    ) -> None:
        torch.set_num_threads(1)  # sums in the same order, on any machine
        self.settings = settings
        self.digits = Digits.load(settings)
        self.model = HybridClassifier(settings, backend)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr)
        self._rank, self._workers = rank, workers
        self._qpu_seconds = 0.0  # of this process's pool, when they were last looked at
        if start is None:
            start = self._snapshot(Progress(), (), torch.zeros(CLASSES, CLASSES, dtype=torch.long))
        else:
            try:
                self.model.load_state_dict(start.model)
                # A copy: the optimizer would go on to change the checkpoint's own tensors.
                self.optimizer.load_state_dict(copy.deepcopy(start.optimizer))
            except (RuntimeError, ValueError, KeyError) as error:
                raise CheckpointError(f"the checkpoint does not fit the model: {error}") from error
        self.checkpoint = start

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self.digits.train_labels) / self.settings.batch_size)

    def steps(self) -> Iterator[Checkpoint]:
        """Train until the last epoch is done, with a checkpoint after each step.

        The last one of an epoch comes after its test, and has ``progress.batch == 0``.
        """
        while (done := self.checkpoint.progress).epoch < self.settings.epochs:
            self.set_rate()
            for batch in self.digits.batches(self.settings, done.epoch)[done.batch :]:
                self._step(batch)
                yield self.checkpoint
            self.test()
            yield self.checkpoint

    def set_rate(self) -> None:
        """Set the learning rate of this epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * LR_DECAY**self.checkpoint.progress.epoch

    def _step(self, batch: Tensor) -> None:
        """Train one batch; ``batch`` has the sample numbers of all workers, shape ``(B,)``."""
        began = time.perf_counter()
        mine = batch[self._take_part(len(batch))]
        labels = self.digits.train_labels[mine]
        self.optimizer.zero_grad()
        # An empty part is a step like any other: the layer counts its forward passes.
        logits = self.model(self.digits.train_images[mine])
        loss = cross_entropy(logits, labels, reduction="sum")
        (loss / len(batch)).backward()
        correct = (logits.argmax(dim=1) == labels).sum()
        sums = torch.stack([loss.detach().double(), correct.double()])
        self._add_up(sums, *(parameter.grad for parameter in self.model.parameters()))
        self.optimizer.step()
        self.count(sums[0].item(), int(sums[1]), len(batch), time.perf_counter() - began)

    def count(
        self,
        loss_sum: float,
        correct: int,
        seen: int,
        seconds: float,
        lanes: dict[str, Any] | None = None,
    ) -> None:
        """Make the checkpoint of a step, from the sums over its batch, its size and its time."""
        last, done = self.checkpoint, self.checkpoint.progress
        done = Progress(
            epoch=done.epoch,
            batch=done.batch + 1,
            loss_sum=done.loss_sum + loss_sum,
            correct=done.correct + correct,
            seen=done.seen + seen,
            rows=done.rows + seen * self.model.rows_per_sample,
            seconds=done.seconds + seconds,
            qpu_seconds=done.qpu_seconds + self._more_qpu_seconds(),
        )
        self.checkpoint = self._snapshot(done, last.history, last.confusion, lanes)

    def test(self) -> None:
        """Classify the test samples and close the epoch."""
        began, done = time.perf_counter(), self.checkpoint.progress
        tested = len(self.digits.test_labels)
        part = self._take_part(tested)
        labels = self.digits.test_labels[part]
        with torch.no_grad():
            logits = self.model(self.digits.test_images[part])
        loss = cross_entropy(logits, labels, reduction="sum").double()
        counts = torch.bincount(labels * CLASSES + logits.argmax(dim=1), minlength=CLASSES**2)
        self._add_up(loss, counts)
        confusion = counts.reshape(CLASSES, CLASSES)
        rows, seconds = done.rows + tested, done.seconds + time.perf_counter() - began
        metrics = EpochMetrics(
            epoch=done.epoch + 1,
            loss=done.loss_sum / done.seen,
            train_accuracy=done.correct / done.seen,
            test_loss=loss.item() / tested,
            test_accuracy=int(confusion.trace()) / tested,
            rows=rows,
            rows_per_second=rows / seconds,
            seconds=seconds,
            qpu_seconds=done.qpu_seconds + self._more_qpu_seconds(),
        )
        history = (*self.checkpoint.history, metrics)
        done = Progress(epoch=done.epoch + 1)
        self.checkpoint = self._snapshot(done, history, confusion, self.checkpoint.lanes)

    def _more_qpu_seconds(self) -> float:
        """QPU seconds since the last call: none on backends in this process."""
        stats, before = getattr(self.model.circuit.backend, "stats", dict), self._qpu_seconds
        self._qpu_seconds = stats().get("qpu_seconds", 0.0)
        return self._qpu_seconds - before

    def _take_part(self, count: int) -> slice:
        """This worker's part of so many samples; parts differ by one sample at most."""
        first = count * self._rank // self._workers
        self.model.circuit.first_sample = first
        return slice(first, count * (self._rank + 1) // self._workers)

    def _add_up(self, *tensors: Tensor) -> None:
        """Make each tensor the sum of all workers' ones."""
        if self._workers > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def _snapshot(
        self,
        progress: Progress,
        history: tuple[EpochMetrics, ...],
        confusion: Tensor,
        lanes: dict[str, Any] | None = None,
    ) -> Checkpoint:
        # Copies: the originals change in place, and may be half changed when a step is interrupted.
        model = copy.deepcopy(self.model.state_dict())
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        lanes = copy.deepcopy(lanes)
        return Checkpoint(self.settings, progress, history, model, optimizer, confusion, lanes)
