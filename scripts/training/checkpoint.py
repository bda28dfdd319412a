"""The state of a run between two steps, and its file."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qailab.errors import CheckpointError, InputError
from training.options import Settings
from training.storage import RunFolder

FILE = "checkpoint.pt"


@dataclass(frozen=True)
class EpochMetrics:
    """One line of ``metrics.jsonl``. Losses are mean cross-entropies."""

    epoch: int  # from 1
    loss: float  # of training samples, each when its batch was trained; so train_accuracy
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    rows: int  # for training and testing
    rows_per_second: float
    seconds: float
    qpu_seconds: float = 0.0  # of devices, also for gradients that were not applied


@dataclass(frozen=True)
class Progress:
    """How far a run is: finished epochs, and sums over the finished batches of the next one."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    rows: int = 0
    seconds: float = 0.0
    qpu_seconds: float = 0.0

    @property
    def place(self) -> tuple[int, int]:
        """What tells earlier from later."""
        return self.epoch, self.batch


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run between two steps."""

    settings: Settings
    progress: Progress
    history: tuple[EpochMetrics, ...]
    model: dict[str, Any]  # a state_dict; shot noise goes on from the step in it
    optimizer: dict[str, Any]  # a state_dict
    confusion: Tensor  # counts of (digit, answer) after the last finished epoch, shape (10, 10)
    lanes: dict[str, Any] | None = None  # with --async: the trainer's state_dict

    def to_bytes(self) -> bytes:
        """The content of its file, which ``torch.load`` reads."""
        parts = asdict(self)
        parts["config"] = parts.pop("settings")
        buffer = io.BytesIO()
        torch.save(parts, buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, where: object) -> Checkpoint:
        """Read what `to_bytes` made: tensors and plain values, never code.

        Raises:
            CheckpointError: if it is damaged, or another program's.
        """
        try:
            damaged = zipfile.ZipFile(io.BytesIO(content)).testzip()  # torch checks no checksum
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            parts = torch.load(io.BytesIO(content), weights_only=True)
            return cls(
                Settings(**parts.pop("config")),
                Progress(**parts.pop("progress")),
                tuple(EpochMetrics(**metrics) for metrics in parts.pop("history")),
                **parts,
            )
        except Exception as error:  # torch promises no type; a damaged file can raise any
            first_line = (str(error).splitlines() or [""])[0]
            raise CheckpointError(
                f"{where} cannot be read ({type(error).__name__}: {first_line}): it is damaged, or "
                "of another program. Take it from a backup, or start a new run"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a file."""
        return cls.from_bytes(path.read_bytes(), path)

    @classmethod
    def of_run(cls, folder: RunFolder) -> Checkpoint:
        """Read that of a run.

        Raises:
            CheckpointError: if there is none, or it is damaged.
        """
        content = folder.read(FILE)
        if content is None:
            raise CheckpointError(f"there is no run {folder}: it has no {FILE}")
        return cls.from_bytes(content, f"{folder}/{FILE}")

    @contextlib.contextmanager
    def for_ray(self) -> Iterator[Any]:
        """A checkpoint of Ray Train and Tune."""
        from ray.train import Checkpoint as Directory

        with tempfile.TemporaryDirectory() as path:
            Path(path, FILE).write_bytes(self.to_bytes())
            yield Directory(path)

    @classmethod
    def from_ray(cls, kept: Any) -> Checkpoint | None:
        """Read one; None if there is none."""
        if kept is None:
            return None
        with kept.as_directory() as path:
            return cls.load(Path(path, FILE))

    def save(self, folder: RunFolder) -> None:
        """Write the checkpoint, and what people read of it."""
        folder.write(FILE, self.to_bytes())
        folder.write("config.json", json.dumps(asdict(self.settings), indent=2).encode() + b"\n")
        lines = [json.dumps(asdict(metrics)) + "\n" for metrics in self.history]
        folder.write("metrics.jsonl", "".join(lines).encode())


def find_checkpoint(folder: RunFolder, options: Namespace) -> Checkpoint:
    """The checkpoint that a run goes on from.

    Raises:
        CheckpointError: if there is none, or it is damaged.
        InputError: if it is of other settings than those of the command line.
    """
    found = Checkpoint.of_run(folder)
    # A name that is given again stands for all settings: it must not go on with another's run.
    asked, own = options.given if options.resume else asdict(options.settings), found.settings
    differing = [
        f"{name} is {getattr(own, name)}, not {value}"
        for name, value in asked.items()
        if name != "epochs" and value != getattr(own, name)
    ]
    if differing:
        raise InputError(
            f"the run {folder} has other settings ({'; '.join(differing)}): leave those out with "
            f"--resume {options.name}, or give a new --name"
        )
    if options.lanes is None and found.lanes is not None:
        raise InputError(
            f"the run {folder} is asynchronous: give --async LANES, as many as you like"
        )
    if options.lanes is not None and found.lanes is None and found.progress.place > (0, 0):
        raise InputError(f"the run {folder} was begun without --async: leave it out")
    epochs = asked.get("epochs", own.epochs)
    begun = found.progress.epoch + (found.progress.batch > 0)
    if epochs < begun:
        raise InputError(f"the run {folder} has begun epoch {begun}; --epochs {epochs} is too few")
    return dataclasses.replace(found, settings=dataclasses.replace(own, epochs=epochs))
