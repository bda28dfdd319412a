"""Tiny training runs for the tests of ``scripts/train.py``, in this process and as programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from qailab.backends.future import RowFuture

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

# On hardware: 40 training samples in two steps, and 10 for testing.
DEVICES = ("ibm_lagos", "ibm_nairobi")
SMALL_IBM = [
    "--backend=ibm", "--qubits=2", "--reps=1", "--shots=32", "--samples=50", "--batch-size=20",
    "--epochs=2", "--seed=3", "--poll-interval=0.1",
]  # fmt: skip
PASSES = 2 * (2 + 2 + 1)  # epochs: two steps of a forward and a backward pass each, and one test
TOGETHER = f"--devices={','.join(DEVICES)}"

DEADLINE = 180.0  # for one program; most of it is the start of Ray on a busy machine


class Stopped(Exception):
    """Raised in the middle of a run."""


def make_trainer(
    path: Path, config: Config = TINY, resume: Checkpoint | None = None, **more: Any
) -> Trainer:
    model = HybridClassifier(config, make_backend(config.backend))
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    return Trainer(
        model,
        Digits.load(config.samples),
        config,
        folder,
        count_rows=lambda: 0,
        resume=resume,
        **more,
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


def start(
    cwd: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start the program, as a user does."""
    given = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    given |= {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        **(environment or {}),
    }
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        cwd=cwd,
        env=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C of a terminal reaches the whole group
    )


def finish(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for its end: exit status, output and errors."""
    try:
        output, errors = program.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        raise
    assert "Traceback" not in errors
    return program.returncode, output, errors


class InProcessPool:
    """Backends that share rows as those of a pool do: each gets one part, as equal as can be."""

    def __init__(self, backends: list[Any], *, address: str | None, **_: Any) -> None:
        self._backends = backends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backends[0], name)

    def submit(self, circuit: Any, batch: Any) -> RowFuture:
        rows, parts, first = batch.rows, [], batch.rows.start
        for left in range(len(self._backends), 0, -1):
            share = -(-(rows.stop - first) // (left * rows.group)) * rows.group
            parts.append(batch.part(first, min(first + share, rows.stop)))
            first += share
        futures = [
            backend.submit(circuit, part)
            for backend, part in zip(self._backends, parts, strict=True)
        ]
        whole = RowFuture(on_cancel=lambda: None)
        whole.set_result(np.concatenate([future.result() for future in futures]))
        return whole

    def stats(self) -> dict[str, Any]:
        return {"rows": 0, "actors": [{"state": "ready"}]}

    def __enter__(self) -> InProcessPool:
        return self

    def __exit__(self, *_: object) -> None:
        for backend in self._backends:
            backend.close()
