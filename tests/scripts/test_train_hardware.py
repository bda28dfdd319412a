"""``scripts/train.py --backend ibm``: the real client against a rehearsal server."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from train import main
from training.runs import Checkpoint

from qailab.journal import Journal
from qailab.rehearsal import RehearsalServer
from tests.scripts.training_runs import (
    DEADLINE,
    DEVICES,
    PASSES,
    SMALL_IBM,
    TOGETHER,
    InProcessPool,
    assert_same,
    finish,
    start,
)

TOKEN = "a-token-that-must-be-seen-nowhere"


@pytest.fixture
def serve() -> Iterator[Callable[..., RehearsalServer]]:
    """Starts servers that draw the same shots for the same jobs."""
    running = []

    def started(**options: Any) -> RehearsalServer:
        server = RehearsalServer(("lagos", "nairobi"), seed=5, token=TOKEN, **options)
        running.append(server.start())
        return server

    yield started
    for server in running:
        server.stop()


def assert_no_token(folder: Path, *texts: str) -> None:
    assert not [text for text in texts if TOKEN in text]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


# In this process, without Ray.


@pytest.fixture
def server(
    serve: Callable[..., RehearsalServer], without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> RehearsalServer:
    server = serve()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.mark.parametrize(
    ("mode", "sessions"), [("session", ["session"]), ("batch", ["batch"]), ("job", [])]
)
def test_each_mode_trains_with_one_job_for_each_pass(
    mode: str, sessions: list[str], server: RehearsalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main([*SMALL_IBM, "--epochs=1", "--devices=ibm_lagos", f"--mode={mode}", "--name=a"]) == 0
    )
    assert len(server.jobs) == PASSES // 2
    assert {job.mode for job in server.jobs} == {mode}
    assert [session.mode for session in server.sessions] == sessions
    assert all(session.state == "closed" for session in server.sessions)
    captured = capsys.readouterr()
    assert f"on ibm_lagos in mode '{mode}'" in captured.out
    assert_no_token(Path("runs"), captured.out, captured.err)


def test_the_least_busy_device_is_the_default(server: RehearsalServer) -> None:
    assert main([*SMALL_IBM, "--epochs=1", "--name=a"]) == 0
    assert len({job.backend for job in server.jobs}) == 1
    assert len(server.jobs) == PASSES // 2


def test_a_spent_budget_stops_with_a_checkpoint_and_more_of_it_goes_on(
    server: RehearsalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--devices=ibm_lagos", "--mode=job"]
    assert main([*SMALL_IBM, *where, "--name=a", "--budget-jobs=5"]) == 1
    errors = capsys.readouterr().err
    assert "Stopped after 1 of 2 epochs and 0 of 2 steps; saved in runs/a." in errors
    assert "5 jobs so far" in errors
    assert "To go on, with a larger budget:\n" in errors
    assert "--resume a --devices ibm_lagos --mode job --budget-jobs 5 --poll" in errors
    assert "5 of 5 spent" in errors
    assert len(server.jobs) == 5

    assert main(["--resume=a", *where, "--budget-jobs=5"]) == 1
    assert len(server.jobs) == 5
    assert main(["--resume=a", *where, "--budget-jobs=10"]) == 0
    assert len(server.jobs) == PASSES
    assert main([*SMALL_IBM, *where, "--name=b"]) == 0
    assert_same(Checkpoint.load(Path("runs/a/checkpoint.pt")), loaded("b"))


def loaded(name: str) -> Checkpoint:
    return Checkpoint.load(Path("runs") / name / "checkpoint.pt")


class Killed(BaseException):
    """Nothing is done about it, as about kill -9."""


@pytest.mark.parametrize("passes", range(1, PASSES, 2))
def test_ended_at_any_pass_it_goes_on_from_checkpoint_and_journal(
    passes: int, server: RehearsalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--devices=ibm_lagos", "--mode=job", "--journal=elsewhere.sqlite"]
    left = iter(range(passes))
    submit = InProcessPool.submit

    def ending(pool: InProcessPool, *arguments: Any) -> Any:
        if next(left, None) is None:
            raise Killed
        return submit(pool, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(InProcessPool, "submit", ending)
        with pytest.raises(Killed):
            main([*SMALL_IBM, *where, "--name=a"])
    assert len(server.jobs) == passes
    done = loaded("a").progress
    assert (done.epoch, done.batch) == (passes // 5, passes % 5 // 2)  # every step is saved
    assert main(["--resume=a", *where[:2]]) == 0  # the folder knows where the journal is
    assert len(server.jobs) == PASSES
    assert not server.duplicates()
    with Journal("elsewhere.sqlite") as journal:
        assert journal.totals().jobs == PASSES
    assert Path("runs/a/journal.sqlite").is_symlink()


def test_a_journal_of_another_model_ends_the_run_before_it_begins(
    server: RehearsalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--devices=ibm_lagos", "--mode=job", "--journal=mine.sqlite", "--epochs=1"]
    assert main([*SMALL_IBM, *where, "--name=a"]) == 0
    assert main([*SMALL_IBM, *where, "--name=b", "--qubits=3"]) == 1
    assert "mine.sqlite is of another model" in capsys.readouterr().err.replace("'", "")
    assert not Path("runs/b").exists()
    assert len(server.jobs) == PASSES // 2


# The program, through Ray.


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(4 * DEADLINE)
def test_a_run_on_two_devices_that_was_killed_ends_as_one_that_was_not(
    server: RehearsalServer, serve: Callable[..., RehearsalServer], tmp_path: Path
) -> None:
    assert main([*SMALL_IBM, TOGETHER, "--name=whole"]) == 0

    another = serve()
    program = start(
        tmp_path, *SMALL_IBM, TOGETHER, "--name=killed", environment=another.environment
    )
    wait_for_jobs(program, another, 6)  # in the second step
    os.killpg(program.pid, signal.SIGKILL)
    assert finish(program)[0] == -signal.SIGKILL
    assert (loaded("killed").progress.epoch, loaded("killed").progress.batch) < (1, 0)
    assert not {session.state for session in another.sessions} & {"closed"}
    program = start(tmp_path, "--resume=killed", TOGETHER, environment=another.environment)
    code, output, errors = finish(program)
    assert code == 0, errors

    assert_same(loaded("killed"), loaded("whole"))
    for device in DEVICES:
        assert sum(job.backend == device for job in another.jobs) == PASSES
    assert {job.content for job in another.jobs} == {job.content for job in server.jobs}
    assert not another.duplicates()
    assert [(s.mode, s.state) for s in another.sessions] == 2 * [("session", "closed")]
    assert {job.session for job in another.jobs} == {session.id for session in another.sessions}
    assert f"by 2 Ray actors on {' and '.join(DEVICES)} in mode 'session', no budget" in output
    assert f"{2 * PASSES} jobs so far" in output
    assert_no_token(Path("runs"), output, errors)


def wait_for_jobs(program: subprocess.Popen[str], server: RehearsalServer, jobs: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while len(server.jobs) < jobs:
        if program.poll() is not None or time.monotonic() > deadline:
            os.killpg(program.pid, signal.SIGKILL)
            pytest.fail(f"no {jobs} jobs: {program.communicate(timeout=DEADLINE)}")
        time.sleep(0.005)
