"""The folder of a run: where it is, and the checkpoint in it.

::

    runs/<name>/config.json      settings
                checkpoint.pt    everything that the rest of the run depends on
                metrics.jsonl    one line for each finished epoch
                curves.png, confusion.png
                journal.sqlite   with --backend ibm: jobs on hardware, and their results

The checkpoint is the truth; the other files are made of it, so that they agree with it after a
crash at any moment. It is written to a file beside it that then takes its place.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qailab.errors import CheckpointError, InputError
from training.options import Config


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
        """Write it, all or nothing."""
        plain = {
            "config": dataclasses.asdict(self.config),
            "progress": dataclasses.asdict(self.progress),
            "history": [dataclasses.asdict(metrics) for metrics in self.history],
            "model": self.model,
            "optimizer": self.optimizer,
            "confusion": self.confusion,
        }
        _replace(path, lambda beside: torch.save(plain, beside))

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read it. Only tensors and plain values are accepted, never code.

        Raises:
            CheckpointError: if there is none, or it is damaged.
        """
        if not path.is_file():
            raise CheckpointError(
                f"there is no checkpoint in {path.parent} (expected {path.name}): it is not the "
                "folder of a run, or the run ended before training began; start a new run"
            )
        try:
            plain = torch.load(path, weights_only=True)
            return cls(
                config=Config.from_dict(plain["config"], str(path)),
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
                f"{path} cannot be read ({type(error).__name__}: {first_line}); it is damaged, or "
                "of another program. Take it from a backup, or start a new run"
            ) from error


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Args:
        path: where it is.
    """

    path: Path

    @classmethod
    def new(cls, runs_dir: Path, name: str) -> RunFolder:
        """The folder of a run that does not exist yet; nothing is made.

        Raises:
            InputError: if the name is taken.
        """
        folder = cls(runs_dir / name)
        if folder.path.exists():
            raise folder._taken()
        return folder

    @classmethod
    def find(cls, runs_dir: Path, run: str) -> RunFolder:
        """The folder of an existing run, by its name or its path.

        Raises:
            CheckpointError: if there is none.
        """
        for path in (runs_dir / run, Path(run)):
            if path.is_dir():
                return cls(path)
        found = sorted(p.parent.name for p in runs_dir.glob("*/checkpoint.pt"))
        raise CheckpointError(
            f"there is no run {run!r}, neither a folder of that name nor one in {runs_dir}; "
            f"runs there: {', '.join(found) or 'none'}"
        )

    @property
    def checkpoint(self) -> Path:
        """Everything needed to go on."""
        return self.path / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        """One JSON object for each finished epoch."""
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """Loss and accuracy by epoch, drawn."""
        return self.path / "curves.png"

    @property
    def confusion(self) -> Path:
        """Which digits are taken for which, drawn."""
        return self.path / "confusion.png"

    @property
    def journal(self) -> Path:
        """Jobs on hardware and their results, or a link to the file that has them."""
        return self.path / "journal.sqlite"

    def link_journal(self, elsewhere: Path) -> None:
        """Note that the journal is elsewhere: who resumes the run must not pay for jobs again.

        A journal that is in the folder itself stays as it is.
        """
        link = self.journal
        if link.is_symlink() or not link.exists():
            beside = link.with_name(f".{link.name}.new")
            beside.unlink(missing_ok=True)
            beside.symlink_to(elsewhere.absolute())
            os.replace(beside, link)

    def create(self) -> None:
        """Make the folder of a new run.

        Raises:
            InputError: if another run took the name meanwhile, or the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise self._taken() from None
        except OSError as error:
            raise InputError(f"cannot make the run's folder {self.path}: {error}") from error

    def discard(self) -> None:
        """Remove the folder of a run that could not begin."""
        shutil.rmtree(self.path, ignore_errors=True)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, then the files that are made of it."""
        checkpoint.save(self.checkpoint)
        settings = json.dumps(dataclasses.asdict(checkpoint.config), indent=2) + "\n"
        _replace(self.path / "config.json", lambda beside: beside.write_text(settings))
        lines = "".join(json.dumps(dataclasses.asdict(m)) + "\n" for m in checkpoint.history)
        _replace(self.metrics, lambda beside: beside.write_text(lines))

    def load(self, given: dict[str, Any]) -> Checkpoint:
        """The checkpoint, with the number of epochs that is asked for.

        Args:
            given: settings that were asked for explicitly.

        Raises:
            CheckpointError: if there is none, it is damaged, or it is of a run with other
                settings than asked for or than ``config.json`` says.
        """
        checkpoint = Checkpoint.load(self.checkpoint)
        config, progress = checkpoint.config, checkpoint.progress
        written = self._written_config()
        if written is not None:
            config.check_same(
                dataclasses.asdict(written),
                mine=str(self.checkpoint),
                theirs=str(self.path / "config.json"),
            )
        config.check_same(given, mine=f"the run {self.path}", theirs="the command line")
        epochs = given.get("epochs", config.epochs)
        begun = progress.epoch + (progress.batch > 0)
        if epochs < begun:
            raise CheckpointError(
                f"the run {self.path} has already begun epoch {begun}, so --epochs {epochs} "
                f"cannot be; give at least {begun}, or leave --epochs out for {config.epochs}"
            )
        return dataclasses.replace(checkpoint, config=dataclasses.replace(config, epochs=epochs))

    def _written_config(self) -> Config | None:
        path = self.path / "config.json"
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:  # killed between the first checkpoint and its config
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; mend or delete it") from error
        return Config.from_dict(values, str(path))

    def _taken(self) -> InputError:
        return InputError(
            f"there is already something at {self.path}; give another --name, or go on with that "
            f"run: --resume {self.path.name}"
        )


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside ``path``, and put it there in one step."""
    beside = path.with_name(f".{path.name}.new")
    write(beside)
    with beside.open("rb") as file:
        os.fsync(file.fileno())  # a power cut must not leave the new name with old blocks
    os.replace(beside, path)
