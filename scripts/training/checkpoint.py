"""The state of a run between two steps, and what it is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qailab.errors import CheckpointError, QailabError
from training.settings import Config

NEW = ".new"
"""How names end that files have while they are written."""


class SaveError(QailabError, OSError):
    """A file of a run could not be written."""


@dataclass(frozen=True)
class EpochMetrics:
    """One line of ``metrics.jsonl``.

    Args:
        epoch: which epoch, from 1.
        loss: mean cross-entropy of the training samples, each when its batch was trained.
        train_accuracy: the same for the accuracy.
        test_loss: mean cross-entropy of the test samples after the epoch.
        test_accuracy: accuracy of the test samples after the epoch.
        rows: circuits that ran in the epoch, for training and testing.
        rows_per_second: ``rows / seconds``.
        seconds: how long it took.
    """

    epoch: int
    loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    rows: int
    rows_per_second: float
    seconds: float


@dataclass(frozen=True)
class Progress:
    """How far a run is: after ``batch`` batches of the epoch after ``epoch`` finished ones.

    Args:
        epoch: finished epochs.
        batch: finished batches of the next one.
        loss_sum: cross-entropy of its samples so far, summed.
        correct: how many of its samples were classified correctly.
        seen: how many samples that is.
        rows: circuits that ran in it.
        seconds: how long that took.
    """

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    rows: int = 0
    seconds: float = 0.0

    @property
    def place(self) -> tuple[int, int]:
        """What tells earlier from later."""
        return self.epoch, self.batch


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run between two steps.

    Args:
        config: its settings.
        progress: how far it is.
        history: the metrics of the finished epochs.
        model: the classifier's ``state_dict``; shot noise continues from the step in it.
        optimizer: the optimizer's ``state_dict``.
        confusion: counts of (digit, answer) after the last finished epoch, shape ``(10, 10)``.
    """

    config: Config
    progress: Progress
    history: tuple[EpochMetrics, ...]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    confusion: Tensor

    def save(self, path: Path) -> None:
        """Write it, all or nothing.

        Raises:
            SaveError: if it cannot be written.
        """
        replace(path, lambda new: new.write_bytes(self.to_bytes()))

    def to_bytes(self) -> bytes:
        """What is in its file."""
        plain = {
            "config": dataclasses.asdict(self.config),
            "progress": dataclasses.asdict(self.progress),
            "history": [dataclasses.asdict(metrics) for metrics in self.history],
            "model": self.model,
            "optimizer": self.optimizer,
            "confusion": self.confusion,
        }
        buffer = io.BytesIO()
        torch.save(plain, buffer)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read it. Only tensors and plain values are accepted, never code.

        Raises:
            CheckpointError: if there is none, or it is damaged.
        """
        if not path.is_file():
            raise no_checkpoint(path.parent)
        return cls.from_bytes(path.read_bytes(), str(path))

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Checkpoint:
        """What `to_bytes` made.

        Args:
            content: the bytes.
            where: where they are from, for messages.

        Raises:
            CheckpointError: if they are damaged.
        """
        try:
            plain = torch.load(io.BytesIO(content), weights_only=True)
            return cls(
                config=Config.from_dict(plain["config"], where),
                progress=Progress(**plain["progress"]),
                history=tuple(EpochMetrics(**metrics) for metrics in plain["history"]),
                model=plain["model"],
                optimizer=plain["optimizer"],
                confusion=plain["confusion"],
            )
        except CheckpointError:
            raise
        except Exception as error:  # torch promises no type; a damaged file can raise any
            first_line = (str(error).splitlines() or [""])[0]
            raise CheckpointError(
                f"{where} cannot be read ({type(error).__name__}: {first_line}); it is damaged, or "
                "of another program. Take it from a backup, or start a new run"
            ) from error


def no_checkpoint(where: object) -> CheckpointError:
    """The error for a place without one."""
    return CheckpointError(
        f"there is no checkpoint in {where} (expected checkpoint.pt): it is not the folder of a "
        "run, or the run ended before training began; start a new run"
    )


def beside(path: Path) -> Path:
    """A name in the same folder that nobody else has, for what is to take the path's place."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{NEW}")


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside ``path``, and put it there in one step.

    Raises:
        SaveError: if it cannot be written; what was there is as it was.
    """
    new = beside(path)
    try:
        write(new)
        with new.open("rb") as file:
            os.fsync(file.fileno())  # a power cut must not leave the new name with old blocks
        os.replace(new, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            new.unlink()
        if not isinstance(error, OSError):
            raise
        raise SaveError(
            f"{path} cannot be written ({type(error).__name__}: {error.strerror or error}); make "
            "room there, or correct its rights"
        ) from error
