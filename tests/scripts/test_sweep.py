"""``scripts/sweep.py``."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from sweep import main
from sweeping import session
from sweeping.options import Sweep, parse
from sweeping.report import draw, write_report
from sweeping.settings import FILE, Settings
from sweeping.trials import rows_of, run_of
from sweeping.watch import shortly
from training.checkpoint import Checkpoint, EpochMetrics, Progress
from training.interrupts import Interrupts
from training.model import make_backend
from training.settings import Config

from qailab.errors import CheckpointError, InputError, PoolError
from tests.scripts.training_runs import ROOT, InProcessPool, Stopped, assert_same, throw

BASE = Config(qubits=2, samples=60, epochs=3, batch_size=40)
POINT = {"lr": 0.05, "reps": 1, "shots": 32}
SMALL = ["--lr=0.05,0.1", "--reps=1", "--shots=32", "--samples=60", "--epochs=3", "--qubits=2"]


def result(lr: float, accuracy: float | None, state: str = "done", **more: Any) -> dict[str, Any]:
    return {
        "lr": lr, "reps": 1, "shots": 64, "state": state, "test_accuracy": accuracy,
        "test_loss": accuracy and 1.0, "epoch": 3, "rows": 10, "seconds": 0.5, "error": None,
    } | more  # fmt: skip


def test_all_combinations_are_trials(tmp_path: Path) -> None:
    sweep = parse(["--lr=0.1,0.2", "--reps=1", "--shots=64,exact", f"--sweeps-dir={tmp_path}"], "")
    assert sweep.settings.grid == {"lr": [0.1, 0.2], "reps": [1], "shots": [64, "exact"]}
    _, second, _, _ = sweep.settings.points
    assert second == {"lr": 0.1, "reps": 1, "shots": "exact"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr=0.1,"], "--lr must be numbers with commas between, got '0.1,'"),
        (["--lr=0"], "--lr must be positive"),
        (["--reps=1,1"], "--reps has a value twice"),
        (["--shots=64,many"], "--shots must be numbers"),
        (["--shots=0"], "--shots must be at least 1"),
        (["--at-once=0"], "--at-once must be at least 1"),
        (["--samples=5"], "--samples must be at least 50"),
        (["--placement=cpus"], "--placement must be KEY=VALUE"),
        (["--name=a/b"], "--name must be a plain folder name"),
        (["--name=.."], "--name must be a plain folder name"),
        (["--name=scripts", f"--sweeps-dir={ROOT}"], "already something at .* --resume scripts"),
        (["--name=a", "--resume=b"], "either --name .* or --resume"),
        (["--resume=scripts", f"--sweeps-dir={ROOT}"], "there is no sweep 'scripts'.*: none"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(arguments, "")


def begun(folder: Path, *arguments: str) -> Sweep:
    """A new sweep in a folder of sweeps, of which nothing has run yet."""
    sweep = parse([*SMALL, "--name=old", f"--sweeps-dir={folder}", *arguments], "")
    session.begin(sweep)
    return sweep


def test_a_resumed_sweep_has_its_own_settings_and_another_place(tmp_path: Path) -> None:
    old = begun(tmp_path)
    again = parse(["--resume=old", "--at-once=1", f"--sweeps-dir={tmp_path}"], "")
    assert (again.settings, again.folder) == (old.settings, old.folder)
    assert again.place == ("--sweeps-dir", str(tmp_path), "--at-once", "1")
    same = ["--lr=0.1,0.05", "--epochs=3"]
    assert parse([f"--resume={tmp_path}/old", *same], "").settings == old.settings


def test_a_sweep_is_not_resumed_with_other_settings(tmp_path: Path) -> None:
    begun(tmp_path)
    other = ["--resume=old", f"--sweeps-dir={tmp_path}", "--lr=0.05", "--reps=1", "--epochs=4"]
    with pytest.raises(InputError) as error:
        parse(other, "")
    assert str(error.value) == (
        f"epochs is 3 in {tmp_path}/old/sweep.json, but 4 on the command line; lr is 0.05,0.1 in "
        f"{tmp_path}/old/sweep.json, but 0.05 on the command line. A sweep goes on with the "
        "settings it began with: leave those options out, or start a new sweep with another --name"
    )


@pytest.mark.parametrize("content", ["", "{}", '{"grid": {"lr": [], "reps": [1], "shots": [2]}}'])
def test_settings_that_cannot_be_read_are_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(CheckpointError, match="must hold the settings of a sweep"):
        Settings.load(tmp_path)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch, without_ray: None) -> list[int]:
    """The epochs that trials report to Ray Tune."""
    epochs: list[int] = []
    monkeypatch.setattr(ray.tune, "report", lambda metrics: epochs.append(metrics["epoch"]))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    return epochs


def run_trial(folder: Path, device: str = "cpu") -> Checkpoint:
    """Train in this process, whatever there is of it; what it has left."""
    folder.mkdir(exist_ok=True)
    pool = InProcessPool([make_backend("aer")], address=None)
    session.trial({"point": POINT}, BASE, folder, pool, device)
    return Checkpoint.load(run_of(folder, POINT).checkpoint)


def test_a_trial_that_was_stopped_goes_on_and_ends_the_same(
    tmp_path: Path, reported: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_trial(tmp_path / "whole")
    assert reported == [1, 2, 3]
    reported.clear()
    with monkeypatch.context() as patch:
        patch.setattr(ray.tune, "report", lambda _: throw(Stopped()))
        with pytest.raises(Stopped):
            run_trial(tmp_path / "stopped")
    assert_same(whole, run_trial(tmp_path / "stopped"))
    assert reported == [2, 3]


def test_a_trial_is_where_its_gpu_is(
    tmp_path: Path, reported: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = lambda *_, device, **__: throw(Stopped(device))  # noqa: E731
    monkeypatch.setattr(session, "Trainer", trainer)
    with pytest.raises(Stopped, match="cuda"):
        run_trial(tmp_path, "cuda")


def finish(sweep: Sweep, number: int, epochs: int = 3) -> None:
    """Leave what a trial leaves after some epochs."""
    point = sweep.settings.points[number]
    config, run = dataclasses.replace(sweep.settings.base, **point), run_of(sweep.folder, point)
    each = EpochMetrics(1, 2.0, 0.5, 1.5, 0.25 * (number + 1), 100, 50.0, 2.0)
    history = tuple(dataclasses.replace(each, epoch=n + 1) for n in range(epochs))
    run.path.mkdir()
    run.save(Checkpoint(config, Progress(epochs), history, {}, {}, torch.zeros(10, 10)))


def test_every_trial_has_a_row_with_its_state_and_the_whole_of_its_cost(tmp_path: Path) -> None:
    sweep = begun(tmp_path, "--lr=0.1,0.2,0.3,0.4")
    finish(sweep, 0)
    finish(sweep, 1, epochs=2)
    finish(sweep, 2, epochs=1)
    failed = {"lr=0.3,reps=1,shots=32": "its process died"}
    rows = rows_of(sweep.settings, sweep.folder, failed)
    shown = ("state", "rows", "seconds", "epoch", "test_accuracy", "error")
    assert [tuple(row[name] for name in shown) for row in rows] == [
        ("done", 300, 6.0, 3, 0.25, None),
        ("interrupted", 200, 4.0, 2, None, None),  # after some epochs it is no result
        ("failed", 100, 2.0, 1, None, "its process died"),
        ("not begun", 0, 0, 0, None, None),
    ]
    assert [point["lr"] for point in session.points_left(sweep)] == [0.2, 0.3, 0.4]


def test_a_damaged_checkpoint_is_a_failed_trial(tmp_path: Path) -> None:
    sweep = begun(tmp_path)
    finish(sweep, 0)
    run_of(sweep.folder, sweep.settings.points[0]).checkpoint.write_bytes(b"no")
    row, _ = rows_of(sweep.settings, sweep.folder, {})
    assert row["state"] == "failed"
    assert "cannot be read" in row["error"]


def test_errors_of_ray_are_one_short_line() -> None:
    assert shortly(ray.exceptions.ActorDiedError()) == "its process died"
    cause = ValueError("a\n  b " + "very " * 100 + "long one")
    traceback = "ray::trial()\n" + "  File ...\n" * 50 + "ValueError: ..."
    line = shortly(ray.exceptions.RayTaskError("trial", traceback, cause))
    assert re.fullmatch(r"ValueError: a b( very)+ \.\.\.", line)
    assert len(line) <= 120
    assert shortly(None) == "it could not be run"


def test_a_wrong_address_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = PoolError("no Ray cluster answers")
    monkeypatch.setattr(session, "connected", lambda *_: throw(error))
    assert main([*SMALL, "--name=new", "--address=nobody:1", f"--sweeps-dir={tmp_path}"]) == 1
    assert "no Ray cluster answers" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sweep_that_is_stopped_says_so_and_how_to_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    def stop(sweep: Sweep, errors: dict[str, str], interrupts: Interrupts) -> None:
        session.begin(sweep)
        finish(sweep, 1)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(session, "run", stop)
    place = f"--sweeps-dir={tmp_path}"
    assert main([*SMALL, "--lr=0.1,0.2,0.3", "--name=new", place, "--at-once=2"]) == code
    output, errors = capsys.readouterr()
    assert [line.split()[3] for line in output.splitlines()[2:5]] == ["done", "not", "not"]
    assert "Stopped after 1 of 3 trials (2 not begun)" in errors
    assert f"--resume new --sweeps-dir {tmp_path} --at-once 2\n" in errors
    assert f"ended by {number.name}" in errors
    # Going on, with the command that was printed.
    monkeypatch.setattr(session, "run", lambda sweep, *_: [finish(sweep, n) for n in (0, 2)])
    assert main(["--resume=new", place]) == 0
    assert "0.7500" in capsys.readouterr().out.splitlines()[1]
    monkeypatch.delattr(session, "run")  # all is done: nothing to run, only to report
    assert main(["--resume=new", place]) == 0


def test_a_trial_that_is_not_done_comes_last(tmp_path: Path) -> None:
    failed = result(0.1, None, "failed", error="no more")
    done = [result(0.2, 0.5), result(0.3, 0.75), result(0.4, 0.75, test_loss=0.9)]
    lines = write_report([failed, *done], tmp_path).splitlines()
    assert lines[0].split()[:5] == ["lr", "reps", "shots", "state", "test_accuracy"]
    assert [line.split()[0] for line in lines[1:5]] == ["0.4", "0.3", "0.2", "0.1"]
    assert lines[4].endswith("no more")


def test_the_title_names_the_best_with_all_its_settings_and_ties() -> None:
    rows = [result(0.1, 0.5), result(0.2, 0.75, shots="exact"), result(0.3, 0.75, reps=2)]
    many = [result(0.1 * n, 0.75) for n in range(1, 5)]
    none = result(0.4, None, "interrupted")
    shown = [rows[:2], rows, many, [rows[0], none], [none]]
    assert [draw(each).axes[0].get_title(loc="left") for each in shown] == [
        "Best: 75.0% with learning rate 0.2, 1 repetition, exact probabilities",
        "Best: 75.0% with learning rate 0.2, 1 repetition, exact probabilities\n"
        "  and learning rate 0.3, 2 repetitions, 64 shots",
        "Best: 75.0% with 4 settings, equally good",
        "Best: 50.0% with learning rate 0.1, 1 repetition, 64 shots\n"
        "1 of 2 trials are done; only they are shown",
        "No result: 0 of 1 trials are done",
    ]


def test_ticks_are_the_rates_that_were_tried_and_true_percentages() -> None:
    figure = draw([result(lr, a) for lr, a in ((0.003, 0.125), (0.02, 0.15), (0.05, 0.25))])
    figure.canvas.draw()
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.003", "0.02", "0.05"]
    for tick, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
        assert float(label.get_text().rstrip("%")) == pytest.approx(100 * tick, abs=1e-4)


def test_lines_can_be_told_apart_and_do_not_cross_what_is_missing() -> None:
    kinds = itertools.product((1, 2, 3), (8, 16, 32, 64, 128, 256, 512, "exact"))
    rows = [result(0.1, 0.5, reps=reps, shots=shots) for reps, shots in kinds]
    *lines, _ = draw(rows).axes[0].get_lines()
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == len(lines) == 24
    rows = [result(0.1, 0.5), result(0.2, None, "failed"), result(0.3, 0.5)]
    line, _ = draw(rows).axes[0].get_lines()
    assert line.get_ydata().tolist() == pytest.approx([0.5, math.nan, 0.5], nan_ok=True)


@pytest.mark.ray
@pytest.mark.slow
def test_two_trials_share_a_pool(
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main([*SMALL, "--epochs=2", "--actors=1", "--at-once=2", "--name=small"])
    output, errors = capfd.readouterr()
    assert code == 0, errors
    assert len(re.findall(r"^lr=0\.\d+,reps=1,shots=32: accuracy 0\.", errors, re.MULTILINE)) == 2
    assert "small/: results.csv, results.json, sweep.png" in output
    folder = tmp_path / "sweeps" / "small"
    rows = json.loads((folder / "results.json").read_text())
    # 48 training samples with 6 angles, and 12 for testing, in each of two epochs.
    assert all(row["rows"] == 2 * (48 * 13 + 12) and row["state"] == "done" for row in rows)
    assert rows[0]["test_accuracy"] >= rows[1]["test_accuracy"]
    assert len((folder / "results.csv").read_text().splitlines()) == 3
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
