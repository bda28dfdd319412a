"""A team of workers gives the weights of one worker: here threads that add up as processes do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training.checkpoint import Checkpoint
from training.runs import RunFolder
from training.settings import Config
from training.team import Alone, in_order, part_of

from tests.scripts.training_runs import TINY, assert_same, make_trainer, stop_after

# 40 training samples: the last batch has one, fewer than there are workers.
UNEVEN = Config(**{**vars(TINY), "samples": 50, "batch_size": 13, "epochs": 2})
EPSILON = {"float32": 1e-5, "float64": 1e-13}


class Thread:
    """A worker of a team of threads.

    Args:
        rank: which of them.
        parts: everybody's numbers.
        barrier: where they meet.
    """

    def __init__(self, rank: int, parts: list[Tensor], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(parts)
        self._parts, self._barrier = parts, barrier

    def total(self, values: Tensor) -> Tensor:
        self._parts[self.rank] = values
        self._barrier.wait(60)
        total = in_order(self._parts)
        self._barrier.wait(60)
        return total


def train_as_team(path: Path, config: Config, size: int, start: Checkpoint | None = None):
    """The checkpoints that the workers end with."""
    barrier = threading.Barrier(size)
    parts = [torch.empty(0)] * size
    trainers = [
        make_trainer(path / str(rank), config, start, team=Thread(rank, parts, barrier))
        for rank in range(size)
    ]
    with ThreadPoolExecutor(size) as executor:
        for future in [executor.submit(trainer.run) for trainer in trainers]:
            future.result(100)
    return [trainer.checkpoint for trainer in trainers]


def assert_close(one: Checkpoint, other: Checkpoint) -> None:
    """The same weights and metrics but for rounding."""
    epsilon = EPSILON[one.config.dtype]
    assert one.model.keys() == other.model.keys()
    for name, mine in one.model.items():
        torch.testing.assert_close(mine, other.model[name], rtol=epsilon, atol=10 * epsilon)
    for mine, theirs in zip(one.history, other.history, strict=True):
        assert mine.test_loss == pytest.approx(theirs.test_loss, rel=10 * epsilon)
        assert mine.loss == pytest.approx(theirs.loss, rel=10 * epsilon)
        assert mine.train_accuracy == theirs.train_accuracy
    assert torch.equal(one.confusion, other.confusion)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 30])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_parts_are_contiguous_and_differ_by_one_at_most(count: int, size: int) -> None:
    parts = [part_of(count, Alone(size, rank)) for rank in range(size)]
    assert [n for part in parts for n in range(count)[part]] == list(range(count))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shots", [32, "exact"])
def test_a_team_ends_with_the_weights_of_one(
    size: int, dtype: str, shots: int | str, tmp_path: Path
) -> None:
    config = Config(**{**vars(UNEVEN), "dtype": dtype, "shots": shots})
    alone = make_trainer(tmp_path / "alone", config)
    alone.run()
    team = train_as_team(tmp_path, config, size)
    assert_close(team[0], alone.checkpoint)
    for other in team[1:]:
        assert_same(other, team[0])
    assert int(alone.checkpoint.model["circuit.step"]) == 2 * (4 + 1)


def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    config = Config(**{**vars(UNEVEN), "dtype": "float64"})
    alone = make_trainer(tmp_path / "alone", config)
    alone.run()
    stopped = make_trainer(tmp_path / "stopped", config)
    stop_after(stopped, 6)
    RunFolder(tmp_path / "stopped").save(stopped.checkpoint)
    loaded = RunFolder(tmp_path / "stopped").load({})
    assert_close(train_as_team(tmp_path, config, 2, loaded)[0], alone.checkpoint)
