"""One program at a time is at a run, whoever it is and wherever its Ray is."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from train import main
from training.claim import LOCK, claim
from training.runs import Checkpoint, RunFolder

from qailab.errors import InputError
from tests.scripts.training_runs import (
    PROGRAM,
    STEPS,
    TINY,
    arguments_of,
    assert_same,
    make_trainer,
    stop_after,
    throw,
)

HOLD = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from training.claim import claim
with claim(Path(sys.argv[2]), lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""
ME = f"another program (pid {os.getpid()} on {socket.gethostname()})"


@contextlib.contextmanager
def other_program(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is at the run; what it started outlives it."""
    arguments = [sys.executable, "-c", HOLD, str(PROGRAM.parent), str(folder)]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.claim._PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr("training.claim._TOLD_SECONDS", 0.1)


def nothing() -> None:
    """Nothing came meanwhile."""


def test_a_second_program_waits_says_so_and_is_refused(
    impatient: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looked: list[None] = []
    with claim(tmp_path / "mine", nothing):
        with (
            pytest.raises(InputError, match=r"is training .*mine; wait for it or") as caught,
            claim(tmp_path / "mine", lambda: looked.append(None)),
        ):
            pass
        with claim(tmp_path / "yours", nothing):
            pass
    assert str(caught.value).startswith(ME)
    assert looked
    assert capsys.readouterr().err == f"waiting for {ME}, which is at the run {tmp_path}/mine\n"


@pytest.mark.parametrize("spelling", ["link/mine", "runs/../runs/mine", "run"])
def test_another_spelling_of_the_folder_is_the_same_run(spelling: str, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "link").symlink_to("runs")
    (tmp_path / "run").symlink_to(tmp_path / "runs" / "mine")
    with (
        claim(tmp_path / "runs" / "mine", nothing),
        pytest.raises(InputError, match="another program"),
        claim(tmp_path / spelling, nothing, wait=False),
    ):
        pass


def test_a_program_that_is_killed_leaves_the_run_free_at_once(tmp_path: Path) -> None:
    with other_program(tmp_path / "mine") as other:
        with (
            pytest.raises(InputError, match=rf"pid {other.pid} on"),
            claim(tmp_path / "mine", nothing, wait=False),
        ):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with claim(tmp_path / "mine", nothing, wait=False):
            assert str(os.getpid()) in (tmp_path / "mine" / LOCK).read_text()


def test_what_interrupts_the_wait_ends_it(tmp_path: Path) -> None:
    with (
        claim(tmp_path, nothing),
        pytest.raises(KeyboardInterrupt),
        claim(tmp_path, lambda: throw(KeyboardInterrupt())),
    ):
        pass


@pytest.mark.parametrize("kept", [True, False])
def test_who_waits_is_at_it_as_soon_as_it_is_free(kept: bool, tmp_path: Path) -> None:
    """Also if the folder was removed, as that of a run that could not begin is."""
    folder = tmp_path / "mine"

    def wait() -> bool:
        with claim(folder, waiting.set):
            return (folder / LOCK).exists()

    waiting = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        with claim(folder, nothing):
            if kept:
                (folder / "checkpoint.pt").touch()
            later = executor.submit(wait)
            assert waiting.wait(10)
        assert later.result(10)
    assert folder.exists() == kept


def test_of_many_at_the_same_moment_one_is_at_it(tmp_path: Path) -> None:
    def attempt(_: int) -> None:
        barrier.wait()
        with contextlib.suppress(InputError), claim(tmp_path / "mine", nothing, wait=False):
            inside.append(None)
            assert len(inside) == 1
            time.sleep(0.01)
            inside.pop()

    inside: list[None] = []
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as executor:
        for _ in range(20):
            list(executor.map(attempt, range(8)))


def test_without_locks_a_warning_says_so_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with claim(tmp_path / "mine", nothing), claim(tmp_path / "mine", nothing):
        pass
    assert capsys.readouterr().err.count("mine has no locks ([Errno 37] No locks available)") == 2


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"file/mine cannot be written \(NotADirectoryError.*give"),
        claim(tmp_path / "file" / "mine", nothing),
    ):
        pass


# Runs.


@pytest.fixture
def programs(without_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("training.session.connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("training.session.open_post", lambda *_: contextlib.nullcontext())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--name=mine"],
        ["--resume=mine"],
        ["--resume=runs/mine"],
        ["--name=mine", "--storage=runs"],
        ["--resume=mine", "--storage=runs"],
        ["--name=mine", "--storage=local://bucket/runs"],
    ],
)
def test_every_run_that_trains_is_claimed(
    arguments: list[str],
    programs: None,
    impatient: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun = arguments != ["--name=mine"]
    if begun:
        make_trainer(tmp_path / "runs" / "mine").run()
    run = arguments if "--resume" in arguments[0] else [*arguments_of(TINY), *arguments]
    with claim(Path("runs/mine"), nothing):
        assert main(run) == 2
        errors = capsys.readouterr().err
        assert f"train: error: {ME} is training runs/mine" in errors
        assert ("waiting for" in errors) == begun  # nobody has just ended a run of a new name
        assert main([*run, "--estimate"]) == 0
    assert main(run) == 0


def test_a_run_goes_on_from_what_the_program_before_it_left(
    programs: None,
    whole: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The state that counts is the one when the run is free, not the one before the wait."""
    folder = RunFolder(tmp_path / "runs" / "mine")
    trainer = make_trainer(folder.path)
    folder.save(trainer.checkpoint)
    stop_after(trainer, STEPS + 1)

    @contextlib.contextmanager
    def waiting(path: Path, check: Callable[[], None], *, wait: bool) -> Iterator[None]:
        folder.save(trainer.checkpoint)
        with claim(path, check, wait=wait):
            yield

    monkeypatch.setattr("training.session.claim", waiting)
    assert main(["--resume=mine"]) == 0
    assert "from epoch 2, step 2" in capsys.readouterr().out
    assert_same(folder.load({}), whole)


def test_a_name_that_was_taken_meanwhile_is_refused(
    programs: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextlib.contextmanager
    def late(path: Path, check: Callable[[], None], *, wait: bool) -> Iterator[None]:
        make_trainer(path).run()
        with claim(path, check, wait=wait):
            yield

    monkeypatch.setattr("training.session.claim", late)
    assert main([*arguments_of(TINY), "--name=mine", "--lr=0.5"]) == 2
    assert "there is already something at runs/mine" in capsys.readouterr().err
    assert RunFolder(Path("runs/mine")).load({}).config == TINY
