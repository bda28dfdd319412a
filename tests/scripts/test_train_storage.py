"""``--storage``: the same command line begins a run and goes on with it, wherever it is."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from train import main
from training.checkpoint import Checkpoint, Progress
from training.runs import RunFolder
from training.settings import Config
from training.storage import Mirror

from qailab.errors import InputError, PoolError
from qailab.journal import Journal, Totals
from tests.scripts.training_runs import (
    SMALL_IBM,
    STEPS,
    TINY,
    arguments_of,
    assert_same,
    make_trainer,
    stop_after,
)

RUN = [*arguments_of(TINY), "--name=mine"]
REMOTE = "local://bucket/runs"  # a URI like others, of fsspec's, for a folder of the current one


@pytest.fixture(autouse=True)
def held(without_ray: None, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The names of runs that were held in the cluster."""
    names: list[str | None] = []

    def open_post(run: str | None, check: Any) -> Any:
        names.append(run)
        return contextlib.nullcontext()

    monkeypatch.setattr("training.session.connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("training.session.open_post", open_post)
    return names


@pytest.fixture
def stopped(tmp_path: Path) -> Checkpoint:
    """A run after its first epoch and a step."""
    trainer = make_trainer(tmp_path / "stopped")
    stop_after(trainer, STEPS + 1)
    return trainer.checkpoint


@pytest.mark.parametrize("storage", ["shared", "file", REMOTE])
def test_the_same_command_line_goes_on_after_a_kill(
    storage: str,
    stopped: Checkpoint,
    whole: Checkpoint,
    held: list[str | None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = (tmp_path / "elsewhere").as_uri() if storage == "file" else storage
    assert main([*RUN, "--epochs=1", f"--storage={uri}"]) == 0  # what a killed job had done
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)  # another machine
    capsys.readouterr()
    assert main([*RUN, f"--storage={uri}"]) == 0
    assert "from epoch 2, step 1" in capsys.readouterr().out
    # Whoever reaches the folder sees the lock in it; at a URI there is none.
    assert held == ([f"{REMOTE}/mine"] * 2 if storage == REMOTE else [])

    names = ["checkpoint.pt", "config.json", "confusion.png", "curves.png", "metrics.jsonl"]
    kept = {"file": tmp_path / "elsewhere", REMOTE: Path("bucket/runs")}.get(storage, Path(storage))
    found = sorted(path.name for path in (kept / "mine").iterdir())
    assert found == (names if storage == REMOTE else [".lock", *names])
    assert Path("runs").exists() == (storage == REMOTE)
    content = (kept / "mine" / "checkpoint.pt").read_bytes()
    assert_same(Checkpoint.from_bytes(content, "there"), whole)

    assert main([*RUN, f"--storage={uri}"]) == 0  # a finished run is left as it is
    assert main(["--resume=mine", "--epochs=4", f"--storage={uri}"]) == 0


@pytest.mark.parametrize("storage", ["shared", REMOTE])
@pytest.mark.parametrize("other", ["--lr=0.1", "--shots=exact", "--samples=100"])
def test_a_name_in_use_with_other_settings_is_refused(
    storage: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*arguments_of(Config(**{**vars(TINY), "epochs": 1, "samples": None}))]
    arguments = [a for a in arguments if a != "--samples=None"]
    first = [*arguments, "--name=mine", "--samples=60", f"--storage={storage}"]
    assert main(first) == 0
    assert main([*first, other]) == 2
    name = other[2:].partition("=")[0]
    assert f"train: error: {name} is" in capsys.readouterr().err
    # Settings that are left out are meant, too.
    assert main(["--name=mine", f"--storage={storage}"]) == 2
    assert "qubits is 2 in the run" in capsys.readouterr().err


def test_something_else_of_that_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("shared/mine").mkdir(parents=True)
    Path("shared/mine/thesis.tex").touch()
    assert main([*RUN, "--storage=shared"]) == 2
    assert "has no checkpoint.pt to go on from" in capsys.readouterr().err
    assert main(["--resume=mine", "--storage=shared"]) == 2
    assert "there is no checkpoint in shared/mine" in capsys.readouterr().err


def test_a_run_that_the_cluster_says_another_program_is_at_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = Path("bucket/runs/mine/checkpoint.pt")

    def taken(run: str, check: Any) -> None:
        there.write_text("the other program's")
        raise InputError(f"another program on this cluster is training {run}")

    monkeypatch.setattr("training.session.open_post", taken)
    assert main([*RUN, f"--storage={REMOTE}"]) == 2
    assert "another program on this cluster" in capsys.readouterr().err
    assert there.read_text() == "the other program's"
    assert not Path("runs/mine").exists()


def test_what_another_program_trained_meanwhile_is_not_lost(
    stopped: Checkpoint,
    whole: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The state that counts is the one when the run is free, not the one before."""

    @contextlib.contextmanager
    def waiting(run: str, check: Any) -> Iterator[None]:
        folder = RunFolder(Path("bucket/runs/mine"))
        folder.save(stopped)
        yield

    monkeypatch.setattr("training.session.open_post", waiting)
    assert main([*RUN, f"--storage={REMOTE}"]) == 0
    assert "from epoch 2, step 2" in capsys.readouterr().out
    assert_same(Checkpoint.load(Path("bucket/runs/mine/checkpoint.pt")), whole)


@pytest.mark.parametrize("further", ["here", "there"])
@pytest.mark.parametrize("other", ["earlier", "damaged", "missing"])
def test_of_two_copies_the_one_that_is_readable_and_further_counts(
    further: str,
    other: str,
    stopped: Checkpoint,
    whole: Checkpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = {"here": RunFolder(Path("runs/mine")), "there": RunFolder(Path("bucket/runs/mine"))}
    for place, folder in folders.items():
        folder.path.mkdir(parents=True)
        if place == further:
            folder.save(stopped)
        elif other == "earlier":
            folder.save(dataclasses.replace(stopped, progress=Progress(1, 0), history=()))
        elif other == "damaged":
            folder.checkpoint.write_bytes(b"PK half a file")
    assert main([*RUN, f"--storage={REMOTE}"]) == 0
    assert "from epoch 2, step 2" in capsys.readouterr().out
    for folder in folders.values():
        assert_same(Checkpoint.load(folder.checkpoint), whole)


def test_a_finished_run_mends_its_copy(stopped: Checkpoint, whole: Checkpoint) -> None:
    here, there = RunFolder(Path("runs/mine")), RunFolder(Path("bucket/runs/mine"))
    for folder, checkpoint in ((here, whole), (there, stopped)):
        folder.path.mkdir(parents=True)
        folder.save(checkpoint)
    assert main([*RUN, f"--storage={REMOTE}"]) == 0
    assert_same(Checkpoint.load(there.checkpoint), whole)
    assert there.metrics.read_text() == here.metrics.read_text()


def test_two_damaged_copies_and_copies_of_two_runs_are_refused(
    stopped: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = RunFolder(Path("runs/mine")), RunFolder(Path("bucket/runs/mine"))
    for folder in (here, there):
        folder.path.mkdir(parents=True)
        folder.save(stopped)
    here.save(dataclasses.replace(stopped, config=Config(**{**vars(TINY), "lr": 0.5})))
    assert main(["--resume=mine", f"--storage={REMOTE}"]) == 2
    message = f"lr is 0.05 in the run {REMOTE}/mine, but 0.5 in runs/mine"
    assert message in capsys.readouterr().err
    for folder in (here, there):
        folder.checkpoint.write_bytes(b"PK half a file")
    assert main(["--resume=mine", f"--storage={REMOTE}"]) == 2
    assert "runs/mine/checkpoint.pt cannot be read" in capsys.readouterr().err


def test_a_program_killed_before_its_first_checkpoint_leaves_the_name_free(
    whole: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (Path("runs/mine"), Path("shared/mine")):
        folder.mkdir(parents=True)
        (folder / ".lock").touch()
        (folder / ".checkpoint.pt.0123.new").write_bytes(b"half")
        Journal(folder / "journal.sqlite").close()
    assert main([*RUN, "--storage=shared"]) == 0
    assert main(RUN) == 0
    for folder in (Path("runs/mine"), Path("shared/mine")):
        assert_same(Checkpoint.load(folder / "checkpoint.pt"), whole)
        assert not [*folder.glob(".*.new")]


def test_a_run_that_cannot_begin_leaves_nothing_but_what_was_paid_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        assert Path("shared/mine/checkpoint.pt").exists()  # who is killed now can go on
        raise PoolError("no Ray cluster answers")

    monkeypatch.setattr("training.session.LauncherPool", fail)
    hardware = [*SMALL_IBM, "--name=mine", "--storage=shared"]
    assert main(hardware) == 1
    assert not Path("shared/mine").exists()
    monkeypatch.setattr(Journal, "totals", lambda _: Totals(1, 6, 192, 2.0))
    assert main(hardware) == 1
    assert Path("shared/mine/journal.sqlite").exists()
    assert Path("shared/mine/checkpoint.pt").exists()


def test_nothing_is_left_of_workers_that_were_killed_when_one_goes_on(stopped: Checkpoint) -> None:
    for folder in (Path("shared/mine"), Path("bucket/runs/mine")):
        (folder / ".workers" / "run").mkdir(parents=True)
        RunFolder(folder).save(stopped)
    assert main([*RUN, "--storage=shared"]) == 0
    assert main([*RUN, f"--storage={REMOTE}"]) == 0
    assert not Path("shared/mine/.workers").exists()
    assert not Path("bucket/runs/mine/.workers").exists()


@pytest.mark.parametrize("storage", ["new/path", REMOTE])
@pytest.mark.parametrize("arguments", [["--resume=nope"], [*RUN, "--estimate"]])
def test_looking_makes_no_directories(storage: str, arguments: list[str]) -> None:
    assert main([*arguments, f"--storage={storage}"]) == (0 if "--estimate" in arguments else 2)
    assert not [*Path.cwd().iterdir()]


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("file/below", "run's folder file/below/mine cannot be written (NotADirectoryError"),
        ("nosuch://bucket/runs", "--storage nosuch://bucket/runs/mine cannot be reached"),
        ("http://127.0.0.1:9/runs?region=abc", "--storage http://127.0.0.1:9/runs/mine cannot be"),
    ],
)
def test_storage_that_cannot_be_written_is_refused_before_anything_starts(
    storage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert main([*RUN, f"--storage={storage}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "abc" not in error
    assert [path.name for path in Path.cwd().iterdir()] == ["file"]


def test_storage_that_stops_to_work_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push, calls = Mirror.push, []

    def fail(self: Mirror, *paths: Path) -> None:
        calls.append(paths)
        filesystem = self.filesystem if len(calls) < 3 else None
        push(Mirror(filesystem, self.path, self.shown), *paths)

    monkeypatch.setattr(Mirror, "push", fail)
    assert main([*RUN, f"--storage={REMOTE}", "--runs-dir=here"]) == 1
    error = capsys.readouterr().err
    assert f"{REMOTE}/mine cannot be written any more" in error
    assert "saved in here/mine" in error
    assert f"--resume mine --runs-dir here --storage {REMOTE}\n" in error


def test_hardware_needs_a_journal_that_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--backend=ibm", "--name=mine", f"--storage={REMOTE}"]) == 2
    assert f"--storage {REMOTE}/mine keeps no journal" in capsys.readouterr().err
