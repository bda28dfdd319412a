"""``--storage``: the same command line begins a run and goes on with it, wherever it is."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from train import main
from training.checkpoint import Checkpoint
from training.settings import Config
from training.storage import Mirror

from qailab.errors import InputError
from tests.scripts.training_runs import (
    STEPS,
    TINY,
    arguments_of,
    assert_same,
    make_trainer,
    stop_after,
)

RUN = [*arguments_of(TINY), "--name=mine"]
MEMORY = "memory://bucket/runs"


@pytest.fixture(autouse=True)
def held(without_ray: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """The names of runs that were held."""
    names: list[str | None] = []

    def open_post(run: str | None, check: Any) -> Any:
        names.append(run)
        return contextlib.nullcontext()

    monkeypatch.setattr("training.session.connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("training.session.open_post", open_post)
    yield names
    memory = fsspec.filesystem("memory")
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


@pytest.fixture
def stopped(tmp_path: Path) -> Checkpoint:
    """A run after its first epoch and a step."""
    trainer = make_trainer(tmp_path / "stopped")
    stop_after(trainer, STEPS + 1)
    return trainer.checkpoint


@pytest.mark.parametrize("storage", ["shared", "file", MEMORY])
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
    assert len(set(held)) == 1

    names = ["checkpoint.pt", "config.json", "confusion.png", "curves.png", "metrics.jsonl"]
    if storage == MEMORY:
        memory = fsspec.filesystem("memory")
        found = sorted(Path(path).name for path in memory.ls("/bucket/runs/mine", detail=False))
        content = memory.cat("/bucket/runs/mine/checkpoint.pt")
    else:
        folder = (tmp_path / "elsewhere" if storage == "file" else Path(storage)) / "mine"
        found, content = (
            sorted(path.name for path in folder.iterdir()),
            (folder / "checkpoint.pt").read_bytes(),
        )
        assert not Path("runs").exists()
    assert found == names
    assert_same(Checkpoint.from_bytes(content, "there"), whole)

    assert main([*RUN, f"--storage={uri}"]) == 0  # a finished run is left as it is
    assert main(["--resume=mine", "--epochs=4", f"--storage={uri}"]) == 0


@pytest.mark.parametrize("storage", ["shared", MEMORY])
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
    assert "is no run of this program" in capsys.readouterr().err
    assert main(["--resume=mine", "--storage=shared"]) == 2
    assert "there is no checkpoint in shared/mine" in capsys.readouterr().err


def test_a_run_that_another_program_is_at_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def taken(run: str, check: Any) -> None:
        Path(run, "checkpoint.pt").write_text("the other program's")
        raise InputError(f"another program on this cluster is training {run}")

    monkeypatch.setattr("training.session.open_post", taken)
    assert main([*RUN, "--storage=shared"]) == 2
    assert "another program on this cluster" in capsys.readouterr().err
    assert Path("shared/mine/checkpoint.pt").read_text() == "the other program's"


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("file/below", "--storage file/below cannot be written (NotADirectoryError"),
        ("nosuch://bucket/runs", "--storage nosuch://bucket/runs/mine cannot be written"),
        ("http://127.0.0.1:9/runs?key=abc", "--storage http://127.0.0.1:9/runs/mine cannot be"),
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
    assert main([*RUN, f"--storage={MEMORY}"]) == 1
    error = capsys.readouterr().err
    assert "memory://bucket/runs/mine cannot be written any more" in error
    assert "--resume mine" in error


def test_hardware_needs_a_journal_that_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--backend=ibm", "--name=mine", f"--storage={MEMORY}"]) == 2
    assert "--storage memory://bucket/runs keeps no journal" in capsys.readouterr().err
