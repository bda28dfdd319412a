"""Tiny training runs in this process, for the tests of ``scripts/train.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "scripts" / "train.py"
sys.path.insert(0, str(PROGRAM.parent))  # as Python does for a script

from training.data import Digits  # noqa: E402
from training.model import HybridClassifier, make_backend  # noqa: E402
from training.options import Config  # noqa: E402
from training.runs import Checkpoint, RunFolder  # noqa: E402
from training.trainer import Trainer  # noqa: E402

TINY = Config(qubits=2, reps=1, shots=32, batch_size=40, lr=0.05, seed=3, samples=150, epochs=3)
STEPS = 3  # batches of an epoch of TINY: 120 training samples


class Stopped(Exception):
    """Raised in the middle of a run."""


def make_trainer(path: Path, config: Config = TINY, resume: Checkpoint | None = None) -> Trainer:
    model = HybridClassifier(config, make_backend(config.backend))
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    return Trainer(
        model, Digits.load(config.samples), config, folder, count_rows=lambda: 0, resume=resume
    )


def stop_after(trainer: Trainer, steps: int) -> None:
    """Run, raising in the callback after so many steps."""
    left = iter(range(1, steps))
    with pytest.raises(Stopped):
        trainer.run(on_batch=lambda _: None if next(left, None) else throw(Stopped()))


def throw(error: BaseException) -> NoReturn:
    raise error


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    """All that the weights depend on, and the metrics but for times, bit for bit."""
    assert one.progress.epoch == other.progress.epoch
    assert_equal(one.model, other.model)
    assert_equal(one.optimizer, other.optimizer)
    assert torch.equal(one.confusion, other.confusion)
    for mine, theirs in zip(one.history, other.history, strict=True):
        assert mine.loss == theirs.loss
        assert mine.test_loss == theirs.test_loss
        assert mine.train_accuracy == theirs.train_accuracy


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    else:
        assert one == other


def arguments_of(config: Config) -> list[str]:
    """The command line that asks for these settings."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in vars(config).items()]
