"""``scripts/train.py --workers``: a real run with Ray Train, of which a worker is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import torch
from train import main
from training.checkpoint import Checkpoint
from training.place import open_post
from training.settings import Config

from qailab.errors import InputError
from tests.scripts.test_train_team import assert_close, train_as_team
from tests.scripts.training_runs import TINY, arguments_of, assert_same, make_trainer

# Long enough for a worker to be killed in the middle.
CONFIG = Config(**{**vars(TINY), "batch_size": 7, "epochs": 9, "dtype": "float64"})


def workers() -> list[int]:
    """The processes of Ray Train's workers that this process has, directly or not."""
    parents: dict[int, int] = {}
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            status = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            parents[int(entry)] = int(status[1])
            if b"RayTrainWorker" in Path("/proc", entry, "cmdline").read_bytes():
                found.append(int(entry))
    return [pid for pid in found if os.getpid() in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    line = []
    while pid in parents:
        pid = parents[pid]
        line.append(pid)
    return line


def kill_one(metrics: Path) -> int:
    """Kill a worker after the first epoch; how many epochs there were."""
    deadline = time.monotonic() + 90
    while not (metrics.exists() and metrics.read_text()):
        assert time.monotonic() < deadline, "no epoch was finished"
        time.sleep(0.02)
    victim, _ = workers()
    os.kill(victim, signal.SIGKILL)
    return len(metrics.read_text().splitlines())


@pytest.fixture
def own_torch_settings() -> Iterator[None]:
    """What the program sets for its process is undone."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.ray
def test_a_run_is_held_by_one_program_at_a_time(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.place._FREED_SECONDS", 0.5)
    looked: list[None] = []
    with open_post("/storage/mine", lambda: looked.append(None)):
        with open_post("/storage/yours", lambda: None):
            pass
        message = "another program on this cluster is training /storage/mine"
        with (
            pytest.raises(InputError, match=message),
            open_post("/storage/mine", lambda: looked.append(None)),
        ):
            pass
    assert looked
    monkeypatch.setattr("training.place._FREED_SECONDS", 30)
    with open_post("/storage/mine", lambda: None) as post:  # as soon as the other one has ended
        assert ray.get(post.get.remote(0)) == (0, None, None)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)  # two starts of Ray Train's workers, on a machine that others use as well
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray Train makes them of itself
@pytest.mark.filterwarnings("ignore:.*use_push_based_shuffle:DeprecationWarning")
def test_a_worker_that_is_killed_makes_no_difference(
    ray_cluster: None,
    own_torch_settings: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shared" / "team"
    arguments = [*arguments_of(CONFIG), "--name=team", "--actors=1", "--storage=shared"]
    with ThreadPoolExecutor(1) as executor:
        killed = executor.submit(kill_one, folder / "metrics.jsonl")
        code = main([*arguments, "--workers=2"])
    output, errors = capfd.readouterr()
    assert code == 0, errors
    assert killed.result() < CONFIG.epochs  # else it came too late
    assert "by 2 workers with 1 Ray actor, shared, with AerBackend()" in output
    for epoch in range(1, CONFIG.epochs + 1):
        assert errors.count(f"epoch {epoch}/{CONFIG.epochs}") == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.pt", "config.json", "confusion.png", "curves.png", "metrics.jsonl",
    ]  # fmt: skip
    ended = Checkpoint.load(folder / "checkpoint.pt")
    assert all(metrics.rows == 120 * 13 + 30 for metrics in ended.history)
    # Bit for bit that of threads which add up in the same order, and that of one but for rounding.
    assert_same(ended, train_as_team(tmp_path, CONFIG, 2)[0])
    alone = make_trainer(tmp_path / "alone", CONFIG)
    alone.run()
    assert_close(ended, alone.checkpoint)
