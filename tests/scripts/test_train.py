"""``scripts/train.py``: whole programs as a user starts them, and in this process without Ray."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ray.exceptions import RaySystemError
from train import main
from training.options import Config
from training.runs import Checkpoint, RunFolder

from qailab.backends import AerBackend
from qailab.errors import PoolError, PoolExhaustedError
from tests.scripts.training_runs import (
    DEADLINE,
    STEPS,
    TINY,
    arguments_of,
    assert_same,
    finish,
    make_trainer,
    start,
    throw,
)

# Learns enough to be far above chance in a few seconds, and takes long enough to be interrupted.
SMALL_CONFIG = Config(
    qubits=3, reps=1, shots=64, samples=300, lr=0.05, seed=3, batch_size=8, epochs=6
)
SMALL = arguments_of(SMALL_CONFIG)
PATIENCE = pytest.mark.timeout(4 * DEADLINE)


# The program, in this process, with a pool that is none.


class InProcessPool(AerBackend):
    """A pool of one simulator in this process, which can be made to fail."""

    during: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def __init__(self, backends: list[AerBackend], *, address: str | None, **_: Any) -> None:
        super().__init__()
        self.submitted = 0

    def submit(self, circuit: Any, batch: Any) -> Any:
        self.submitted += 1
        if self.submitted == 2 * STEPS + 4:  # the backward pass of the second epoch's second step
            type(self).during()
        return super().submit(circuit, batch)

    def stats(self) -> dict[str, int]:
        return {"rows": self.submitted}

    def __enter__(self) -> InProcessPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[InProcessPool]]:
    """Runs without Ray, in an empty folder; what the program sets for its process is undone."""
    pool = type("Pool", (InProcessPool,), {})
    monkeypatch.setattr("training.session.LauncherPool", pool)
    monkeypatch.chdir(tmp_path)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield pool
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_a_pool_that_fails_in_a_step_ends_with_its_message_and_a_checkpoint(
    in_process: type[InProcessPool],
    whole: Checkpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_process.during = lambda: throw(PoolExhaustedError("no actor of 2 is left to run on"))
    assert main([*arguments_of(TINY), "--name=mine"]) == 1
    errors = capsys.readouterr().err
    assert "Stopped after 1 of 3 epochs and 1 of 3 steps; saved in runs/mine" in errors
    assert "--resume mine" in errors
    assert "train: error: no actor of 2 is left to run on" in errors

    del in_process.during
    assert main(["--resume=mine"]) == 0
    assert "from epoch 2, step 2" in capsys.readouterr().out
    assert_same(Checkpoint.load(Path("runs/mine/checkpoint.pt")), whole)


def test_a_finished_run_starts_nothing(
    in_process: type[InProcessPool],
    whole: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*arguments_of(TINY), "--name=mine"]) == 0
    monkeypatch.setattr("training.session.LauncherPool", throw)
    Path("runs/mine/curves.png").unlink()
    assert main(["--resume=mine"]) == 0
    said = capsys.readouterr().out
    assert "The run runs/mine has had all its 3 epochs; to train it further, give more" in said
    assert said.count("Test accuracy") == 2
    assert Path("runs/mine/curves.png").is_file()
    assert_same(Checkpoint.load(Path("runs/mine/checkpoint.pt")), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_saves_the_state_before_it(
    number: signal.Signals,
    in_process: type[InProcessPool],
    whole: Checkpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handlers = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    in_process.during = lambda: os.kill(os.getpid(), number)
    assert (
        main([*arguments_of(TINY), "--name=mine", "--runs-dir=my runs", "--actors=2"])
        == 128 + number
    )
    assert handlers == [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    errors = capsys.readouterr().err
    assert "and 1 of 3 steps; saved in my runs/mine" in errors
    assert "--resume mine --runs-dir 'my runs' --actors 2\n" in errors
    assert f"train: ended by {number.name}" in errors

    del in_process.during
    assert main(["--resume=my runs/mine"]) == 0
    assert_same(Checkpoint.load(Path("my runs/mine/checkpoint.pt")), whole)


def test_a_pool_that_cannot_start_leaves_no_run(
    monkeypatch: pytest.MonkeyPatch,
    in_process: type[InProcessPool],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PoolError("no Ray cluster answers at '127.0.0.1:1'")

    monkeypatch.setattr("training.session.LauncherPool", fail)
    assert main([*arguments_of(TINY), "--address=127.0.0.1:1"]) == 1
    assert "train: error: no Ray cluster answers" in capsys.readouterr().err
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error"),
        (RaySystemError("lost"), "Ray failed (RaySystemError: System error: lost"),
    ],
)
def test_errors_of_others_end_with_a_message_and_a_checkpoint(
    error: Exception,
    message: str,
    in_process: type[InProcessPool],
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_process.during = lambda: throw(error)
    assert main([*arguments_of(TINY), "--name=mine"]) == 1
    errors = capsys.readouterr().err
    assert "Stopped after 1 of 3 epochs and 1 of 3 steps; saved in runs/mine" in errors
    assert f"train: error: {message}" in errors
    assert RunFolder(Path("runs/mine")).load({}).progress.place == (1, 1)


def test_a_full_disk_keeps_the_last_checkpoint_and_says_how_to_go_on(
    in_process: type[InProcessPool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = OSError(28, "No space left on device")
    in_process.during = lambda: monkeypatch.setattr(Path, "write_bytes", lambda *_: throw(full))
    assert main([*arguments_of(TINY), "--name=mine"]) == 1
    errors = capsys.readouterr().err
    assert "Stopped after 2 of 3 epochs and 0 of 3 steps; this cannot be saved, and " in errors
    assert "runs/mine keeps its last checkpoint. To go on:\n" in errors
    assert "error: runs/mine/checkpoint.pt cannot be written (OSError: No space left" in errors
    assert RunFolder(Path("runs/mine")).load({}).progress.place == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shots=0"], "train: error: --shots must be at least 1, got 0"),
        (["--resume=nothing"], "train: error: there is no run 'nothing'"),
        (["--resume=mine", "--qubits=4"], "qubits is 2 in the run runs/mine, but 4 in the command"),
        (["--name=mine"], "there is already something at runs/mine"),
    ],
)
def test_wrong_input_ends_with_a_message_before_anything_is_changed(
    arguments: list[str],
    message: str,
    in_process: type[InProcessPool],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_trainer(tmp_path / "runs" / "mine").run()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# Whole programs.


def wait_for(program: subprocess.Popen[str], path: Path, text: str) -> None:
    """Wait until a file of the run holds the text."""
    deadline = time.monotonic() + DEADLINE
    while not (path.exists() and text in path.read_text()):
        if program.poll() is not None or time.monotonic() > deadline:
            os.killpg(program.pid, signal.SIGKILL)
            pytest.fail(f"no {text!r} in {path}: {program.communicate(timeout=DEADLINE)}")
        time.sleep(0.02)


@pytest.fixture(scope="module")
def program_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A whole program, on one actor."""
    cwd = tmp_path_factory.mktemp("program")
    code, output, errors = finish(start(cwd, *SMALL, "--name=whole", "--actors=1"))
    assert code == 0, errors
    return cwd / "runs" / "whole", output, errors


@pytest.mark.integration
@pytest.mark.slow
@PATIENCE
def test_a_run_leaves_its_files_and_learns(program_run: tuple[Path, str, str]) -> None:
    folder, output, errors = program_run
    for name in ("confusion.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock", "checkpoint.pt", "config.json", "confusion.png", "curves.png", "metrics.jsonl",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["rows"] > 0 and line["rows_per_second"] > 0 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    accuracy = lines[-1]["test_accuracy"]
    assert accuracy > 0.4  # chance is 0.1, and its standard error on 60 samples 0.04
    assert f"Test accuracy {accuracy:.4f}" in output
    assert len(re.findall(r"^epoch \d/6  loss .* rows/s", errors, re.MULTILINE)) == 6


@pytest.mark.integration
@pytest.mark.slow
@PATIENCE
def test_a_program_after_ctrl_c_resumes_to_the_same_weights(
    program_run: tuple[Path, str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "stopped"
    program = start(tmp_path, *SMALL, "--name=stopped", "--actors=1")
    wait_for(program, folder / "metrics.jsonl", '"epoch": 2')
    os.killpg(program.pid, signal.SIGINT)  # a terminal sends it to Ray's processes as well
    code, _, errors = finish(program)

    assert code == 128 + signal.SIGINT
    stopped = Checkpoint.load(folder / "checkpoint.pt")
    assert 2 <= stopped.progress.epoch < SMALL_CONFIG.epochs
    command = errors.split("To go on:")[1].splitlines()[1].split()
    assert command[-4:] == ["--resume", "stopped", "--actors", "1"]

    # On another number of actors: neither the stop nor they make a difference.
    code, _, errors = finish(start(tmp_path, "--resume=stopped", "--actors=2"))
    assert code == 0, errors
    assert_same(
        Checkpoint.load(folder / "checkpoint.pt"),
        Checkpoint.load(program_run[0] / "checkpoint.pt"),
    )


@pytest.mark.integration
@pytest.mark.slow
@PATIENCE
def test_a_program_after_kill_9_resumes_to_the_same_weights(
    program_run: tuple[Path, str, str], tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "killed"
    program = start(tmp_path, *SMALL, "--name=killed", "--actors=1")
    wait_for(program, path / "metrics.jsonl", '"epoch": 2')
    program.kill()
    code, _, _ = finish(program)
    with contextlib.suppress(ProcessLookupError):  # agents of Ray may outlive its raylet
        os.killpg(program.pid, signal.SIGKILL)
    assert code == -signal.SIGKILL

    loaded = RunFolder(path).load({})
    assert 2 <= loaded.progress.epoch < SMALL_CONFIG.epochs
    # Without Ray: the simulator of this process gives the same bits as actors.
    resumed = make_trainer(path, loaded.config, resume=loaded)
    resumed.run()
    assert_same(resumed.checkpoint, Checkpoint.load(program_run[0] / "checkpoint.pt"))


@pytest.mark.integration
def test_wrong_input_ends_at_once_with_a_message_and_status_2(tmp_path: Path) -> None:
    code, output, errors = finish(start(tmp_path, "--shots=0"))
    assert (code, output) == (2, "")
    assert errors == "train: error: --shots must be at least 1, got 0\n"
    assert not list(tmp_path.iterdir())
