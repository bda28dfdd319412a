"""``scripts/train.py --backend ibm``: what is said and refused without any server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from train import main

from qailab.errors import BackendBuildError
from tests.scripts.training_runs import PASSES, SMALL_IBM, TOGETHER, make_trainer


@pytest.mark.parametrize(
    "text",
    [
        "no actor is left: RayTaskError(BackendBuildError): ray::open()\n  File\n"
        "qailab.errors.BackendBuildError: there is no account; save one",
        "no actor is left: there is no account; save one\nTraceback (most recent call last):\n  x",
    ],
)
def test_a_device_that_cannot_be_used_leaves_no_run_and_one_line(
    text: str,
    without_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BackendBuildError(text)

    monkeypatch.setattr("training.session.LauncherPool", fail)
    assert main([*SMALL_IBM, "--name=a"]) == 1
    message = "train: error: no actor is left: there is no account; save one\n"
    assert capsys.readouterr().err == message
    assert not Path("runs/a").exists()


def test_a_journal_that_is_none_stops_before_the_first_step(
    without_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.sqlite").write_text("no database at all" * 1000)
    assert main([*SMALL_IBM, "--name=a", "--journal=text.sqlite"]) == 1
    assert "text.sqlite" in capsys.readouterr().err
    assert not Path("runs/a").exists()


def test_an_estimate_says_the_cost_of_every_method_and_leaves_nothing(
    without_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL_IBM, TOGETHER, "--journal=mine.sqlite", "--estimate"]) == 0
    output = capsys.readouterr().out
    # 6 angles: 20 x (1 + 12) rows a step, 4 steps; 10 rows for each of two tests.
    assert re.search(rf"param_shift +1,060 +{2 * PASSES} +33,920 +", output)
    assert re.search(rf"spsa +260 +{2 * PASSES} ", output)
    assert not list(Path.cwd().iterdir())


def test_an_estimate_of_the_rest_of_a_run(
    without_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(Path("runs/mine")).run()
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")}
    assert main(["--resume=mine", "--epochs=4", "--estimate"]) == 0
    output = capsys.readouterr().out
    assert "The rest of the run runs/mine takes" in output
    assert re.search(r"param_shift +1,590 +7 ", output)  # 120 x 13 rows, and 30
    assert {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume=mine", "--devices=ibm_fez"], "--devices: only for --backend ibm, and the"),
        (["--backend=ibm", "--max-time=soon"], "max_time must be"),
        (["--backend=ibm", "--journal=no/such/file"], "--journal no/such/file: there is no folder"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_changed(
    arguments: list[str],
    message: str,
    without_ray: None,
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
