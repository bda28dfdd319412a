"""``scripts/train.py --workers``: real runs with Ray Train, of which workers are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from train import main
from training.checkpoint import Checkpoint
from training.place import open_post
from training.placement import Placement
from training.runs import RunFolder
from training.settings import Config
from training.together import Together, WorkersError
from training.workers import Work, _ending, trouble

from qailab.errors import InputError, PoolError
from tests.scripts.test_train_team import assert_close, train_as_team
from tests.scripts.training_runs import TINY, arguments_of, assert_same, make_trainer

# Long enough for a worker to be killed in the middle.
CONFIG = Config(**{**vars(TINY), "batch_size": 7, "epochs": 9, "dtype": "float64"})


TRAIN_WARNINGS = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Train by itself


def processes(title: bytes = b"RayTrainWorker") -> list[int]:
    """The processes with this in their title that this process has, directly or not."""
    parents: dict[int, int] = {}
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            status = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            parents[int(entry)] = int(status[1])
            if title in Path("/proc", entry, "cmdline").read_bytes():
                found.append(int(entry))
    return [pid for pid in found if os.getpid() in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    line = []
    while pid in parents:
        pid = parents[pid]
        line.append(pid)
    return line


def wait_for(what: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + 180
    while not what():
        assert time.monotonic() < deadline, message
        time.sleep(0.02)


def epochs_in(metrics: Path) -> int:
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def end_at_the_start() -> None:
    """Ask the program, which is this process, to end when Ray Train starts."""
    wait_for(lambda: bool(processes(b"ray::fit")), "Ray Train was not started")
    os.kill(os.getpid(), signal.SIGTERM)


def kill_two(metrics: Path) -> int:
    """Kill a worker when they start, and one after the first epoch; how many there were then."""
    wait_for(lambda: bool(processes()), "no worker was started")
    os.kill(processes()[0], signal.SIGKILL)
    wait_for(lambda: epochs_in(metrics) > 0, "no epoch was finished")
    assert list(metrics.parent.glob(".workers/checkpoint_*")), "nothing was reported to Ray Train"
    victim, _ = processes()
    os.kill(victim, signal.SIGKILL)
    return epochs_in(metrics)


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
        assert ray.get(post.get.remote(0)) == (0, None, None, [])
        ray.get(post.put.remote(b"one"))
        seen, content, *_ = ray.get(post.get.remote(0))
        assert content == b"one"
        assert ray.get(post.get.remote(seen)) == (seen, None, None, [])
        ray.kill(post, no_restart=False)  # as when its process dies
        wait_for(lambda: ray.get(post.get.remote(seen))[0] != seen, "it was not made again")
        ray.get(post.put.remote(b"two"))
        assert ray.get(post.get.remote(seen))[1] == b"two"
        monkeypatch.setattr("training.place._FREED_SECONDS", 0)
        with pytest.raises(InputError, match=message), open_post("/storage/mine", lambda: None):
            pass


@pytest.mark.ray
def test_workers_that_find_no_room_are_an_error_in_the_end(
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("training.together._TOLD_SECONDS", 0.5)
    monkeypatch.setattr("training.together._START_SECONDS", 1.0)
    # Somebody else's workers have their place on the cluster.
    table = {"ab" * 18: {"state": "CREATED"}}
    monkeypatch.setattr(ray.util, "placement_group_table", lambda: table)
    with open_post(None, lambda: None) as post:
        team = make_together(tmp_path, Placement(worker_cpus=64), post)
        with pytest.raises(PoolError, match=r"2 of 64 CPU each are waited for.*too few CPU"):
            team.run(on_batch=lambda _: None, on_epoch=lambda _: None)
    assert capfd.readouterr().err.count("No training worker has begun after") == 1


def make_together(path: Path, placement: Placement | None = None, post: Any = None) -> Together:
    start = make_trainer(path).checkpoint
    given = Work(b"", [], [], None, post)
    return Together(start, RunFolder(path), 2, placement or Placement(), given, lambda: None)


def test_workers_that_die_again_and_again_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    team = make_together(tmp_path)
    endings = iter([("a worker died", True)] * 2 + [("ValueError: no", False)])
    monkeypatch.setattr(Together, "_training", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(Together, "_follow", lambda *_: next(endings))
    with pytest.raises(WorkersError, match="the workers cannot be started: ValueError: no"):
        team.run(on_batch=lambda _: None, on_epoch=lambda _: None)
    said = capfd.readouterr().err.splitlines()
    assert said == [f"a worker died; going on from epoch 1 ({n} of 10)" for n in (1, 2)]
    endings = iter([("a worker died", True)] * 11)
    team = make_together(tmp_path)
    with pytest.raises(WorkersError, match="failed more than 10 times, last: a worker died"):
        team.run(on_batch=lambda _: None, on_epoch=lambda _: None)


@TRAIN_WARNINGS
def test_deaths_are_told_from_what_comes_again() -> None:
    from ray.exceptions import ActorDiedError, RayTaskError
    from ray.train.v2._internal.exceptions import (
        WorkerGroupStartupFailedError,
        WorkerHealthCheckFailedError,
    )
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    dead = WorkerHealthCheckFailedError("", ActorDiedError())
    assert trouble([RuntimeError("closed"), dead]) == "a worker died"
    lost = RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer")
    assert trouble([lost]) == "a worker died"
    assert trouble([lost, OSError("no")]) == "a worker failed (OSError: no)"
    assert _ending(WorkerGroupError("", {0: lost})) == ("", True)  # is noted when it happens
    assert _ending(ControllerError(WorkerGroupStartupFailedError())) == ("a worker died", True)
    gone = ("the process of Ray Train died", True)
    assert _ending(ControllerError(ActorDiedError())) == gone
    assert _ending(ActorDiedError()) == gone  # Ray Train's controller
    inside = RayTaskError("f", "ray::f()\nOSError: no", OSError("no"))
    assert _ending(ControllerError(inside)) == ("Ray Train failed (OSError: no)", True)
    assert _ending(ControllerError(ValueError("no"))) == ("ValueError: no", False)


def test_what_fails_twice_at_one_step_ends_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    team = make_together(tmp_path)
    team._failed("a worker died")
    team._failed("a worker died")  # bad luck
    team._failed("a worker failed (OSError: no)")
    with pytest.raises(WorkersError, match=r"failed \(OSError: no\), and again at the same step"):
        team._failed("a worker failed (OSError: no)")
    assert capfd.readouterr().err.count("going on from epoch 1") == 3


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)  # three starts of Ray Train, on a machine that others use as well
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
        ended = executor.submit(end_at_the_start)
        code = main([*arguments, "--workers=2"])
        ended.result()
        output, errors = capfd.readouterr()
        assert code == 128 + signal.SIGTERM, errors
        assert errors.endswith("train: ended by SIGTERM\n")
        wait_for(lambda: not processes(b"ray::fit"), "Ray Train has outlived the program")
        killed = executor.submit(kill_two, folder / "metrics.jsonl")
        code = main([*arguments, "--workers=2"])
    output, more = capfd.readouterr()
    errors += more
    assert code == 0, errors
    assert killed.result() < CONFIG.epochs  # else it came too late
    assert "a worker died; going on from epoch 1 (1 of 10)" in errors
    assert "(2 of 10)" in errors
    assert "by 2 workers with 1 Ray actor, shared, with AerBackend()" in output
    for epoch in range(1, CONFIG.epochs + 1):
        assert errors.count(f"epoch {epoch}/{CONFIG.epochs}") == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock", "checkpoint.pt", "config.json", "confusion.png", "curves.png", "metrics.jsonl",
    ]  # fmt: skip
    ended = Checkpoint.load(folder / "checkpoint.pt")
    assert all(metrics.rows == 120 * 13 + 30 for metrics in ended.history)
    # Bit for bit that of threads which add up in the same order, and that of one but for rounding.
    assert_same(ended, train_as_team(tmp_path, CONFIG, 2)[0])
    alone = make_trainer(tmp_path / "alone", CONFIG)
    alone.run()
    assert_close(ended, alone.checkpoint)
