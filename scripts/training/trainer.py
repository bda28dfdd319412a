"""The training loop: steps, evaluations, and a checkpoint to go back to at any moment.

It is the same for one process and for a team: each worker takes its part of every batch, and all
make the same step with the sum of their gradients. Shot noise goes by a sample's place in the
whole batch, so the weights do not depend on the team but for the rounding of that sum.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Adam

from qailab.errors import CheckpointError
from training.checkpoint import Checkpoint, EpochMetrics, Progress
from training.data import CLASSES, Digits
from training.model import HybridClassifier
from training.settings import Config
from training.team import Alone, Team, part_of

LR_DECAY = 0.85
"""The learning rate's factor from epoch to epoch. Shot noise keeps a constant rate from settling;
and it must not depend on the number of epochs, which a resumed run may raise."""
_ALONE = Alone()


class Keeper(Protocol):
    """Where checkpoints go: the run's folder, or from workers to the program that started them."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep it, at the start and after each epoch."""
        ...

    def save_step(self, checkpoint: Checkpoint) -> None:
        """Keep it, where each step is worth it."""
        ...


class Trainer:
    """Trains a classifier; the weights are a function of the config alone.

    `checkpoint` is always the state after the last complete step: whatever interrupts a step, it
    can be saved, and a trainer that starts from it repeats the steps that were lost exactly.

    Args:
        model: the classifier.
        digits: the data.
        config: the settings.
        keeper: where checkpoints go.
        count_rows: how many rows were run so far, whenever it is asked.
        resume: the state to start from; by default the beginning.
        team: who trains together; by default nobody else.
        device: where the linear layers are.

    Raises:
        CheckpointError: if the state to start from does not fit the model.
    """

    def __init__(
        self,
        model: HybridClassifier,
        digits: Digits,
        config: Config,
        keeper: Keeper,
        *,
        count_rows: Callable[[], int],
        resume: Checkpoint | None = None,
        team: Team = _ALONE,
        device: torch.device | str = "cpu",
    ) -> None:
        self._model = model.to(device)
        self._digits = digits.to(device, getattr(torch, config.dtype))
        self._config = config
        self._keeper = keeper
        self._team = team
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
        self._keeper.save(self.checkpoint)
        while self.checkpoint.progress.epoch < self._config.epochs:
            self._epoch(on_batch)
            self._keeper.save(self.checkpoint)
            on_epoch(self.checkpoint.history[-1])

    def _epoch(self, on_batch: Callable[[Progress], None]) -> None:
        """What is left of an epoch, and the evaluation at its end."""
        done = self.checkpoint.progress
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * LR_DECAY**done.epoch
        batches = self._digits.batches(self._config.seed, done.epoch, self._config.batch_size)
        for number in range(done.batch, len(batches)):
            began = time.perf_counter()
            loss_sum, correct, rows = self._step(batches[number])
            done = dataclasses.replace(
                done,
                batch=number + 1,
                loss_sum=done.loss_sum + loss_sum,
                correct=done.correct + correct,
                seen=done.seen + len(batches[number]),
                rows=done.rows + rows,
                seconds=done.seconds + time.perf_counter() - began,
            )
            self.checkpoint = self._snapshot(
                done, self.checkpoint.history, self.checkpoint.confusion
            )
            if self._each_step:
                self._keeper.save_step(self.checkpoint)
            on_batch(done)
        self._evaluate()

    def _step(self, batch: Tensor) -> tuple[float, int, int]:
        """Train one batch; its summed loss, how many samples were classified correctly, and rows.

        Args:
            batch: the sample numbers of the whole team's batch, shape ``(B,)``.
        """
        began = self._count_rows()
        mine = batch[self._take_part(len(batch))]
        images, labels = self._digits.train_images[mine], self._digits.train_labels[mine]
        self._optimizer.zero_grad()
        # An empty part is a step like any other: the layer counts its forward passes.
        logits = self._model(images)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        (loss / len(batch)).backward()
        correct = (logits.argmax(dim=1) == labels).sum()
        seen = self._sum_up(loss.detach(), correct, self._count_rows() - began)
        self._optimizer.step()
        return seen[0].item(), int(seen[1]), int(seen[2])

    def _take_part(self, count: int) -> slice:
        part = part_of(count, self._team)
        self._model.circuit.first_sample = part.start
        return part

    def _sum_up(self, *numbers: Tensor | float) -> Tensor:
        """Add up the gradients of the team, and these numbers, of which the sums are returned."""
        parameters = list(self._model.parameters())
        gradients = [parameter.grad.flatten().double() for parameter in parameters]
        total = self._team.total(torch.cat([*gradients, self._row(*numbers)]))
        parts = total.split([*(each.numel() for each in gradients), len(numbers)])
        for parameter, part in zip(parameters, parts, strict=False):
            parameter.grad.copy_(part.view_as(parameter))
        return parts[-1]

    def _row(self, *numbers: Tensor | float) -> Tensor:
        device = self._digits.train_labels.device
        return torch.stack(
            [torch.as_tensor(n, dtype=torch.float64, device=device) for n in numbers]
        )

    def _evaluate(self) -> None:
        """Classify the test samples and close the epoch.

        Its forward pass is a step of the layer as well: always at this point, always one.
        """
        done = self.checkpoint.progress
        began, rows_began = time.perf_counter(), self._count_rows()
        part = self._take_part(len(self._digits.test_labels))
        labels = self._digits.test_labels[part]
        with torch.no_grad():
            logits = self._model(self._digits.test_images[part])
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        counts = torch.bincount(labels * CLASSES + logits.argmax(dim=1), minlength=CLASSES**2)
        mine = self._row(loss, self._count_rows() - rows_began)
        sums = self._team.total(torch.cat([mine, counts.double()])).cpu()
        confusion = sums[2:].long().reshape(CLASSES, CLASSES)
        rows = done.rows + int(sums[1])
        seconds = done.seconds + time.perf_counter() - began
        tested = len(self._digits.test_labels)
        metrics = EpochMetrics(
            epoch=done.epoch + 1,
            loss=done.loss_sum / done.seen,
            train_accuracy=done.correct / done.seen,
            test_loss=sums[0].item() / tested,
            test_accuracy=int(confusion.trace()) / tested,
            rows=rows,
            rows_per_second=rows / seconds,
            seconds=seconds,
        )
        self.checkpoint = self._snapshot(
            Progress(epoch=done.epoch + 1), (*self.checkpoint.history, metrics), confusion
        )

    def _snapshot(
        self, progress: Progress, history: tuple[EpochMetrics, ...], confusion: Tensor
    ) -> Checkpoint:
        # Copies: the originals change in place, and may be half changed when a step is interrupted.
        return Checkpoint(
            self._config,
            progress,
            history,
            _copied(self._model.state_dict()),
            _copied(self._optimizer.state_dict()),
            confusion,
        )

    def _load(self, checkpoint: Checkpoint) -> None:
        try:
            self._model.load_state_dict(checkpoint.model)
            # A copy: the optimizer would go on to change the checkpoint's own tensors.
            self._optimizer.load_state_dict(copy.deepcopy(checkpoint.optimizer))
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                "the checkpoint does not fit the model of its own settings "
                f"({self._config}): {error}"
            ) from error


def _copied(state: Any) -> Any:
    """A copy in this machine's memory of a ``state_dict``."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return copy.deepcopy(state)
