"""``scripts/sweep.py``."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from sweep import main
from sweeping.options import parse
from sweeping.report import COLUMNS, draw, write_report

from qailab.errors import InputError
from tests.scripts.training_runs import ROOT


def result(lr: float, accuracy: float | None, error: str | None = None) -> dict[str, object]:
    return dict.fromkeys(COLUMNS) | {
        "lr": lr, "reps": 1, "shots": "exact", "test_accuracy": accuracy, "error": error,
    }  # fmt: skip


def test_all_combinations_are_trials(tmp_path: Path) -> None:
    sweep = parse(["--lr=0.1,0.2", "--reps=1", "--shots=64,exact", f"--sweeps-dir={tmp_path}"], "")
    assert sweep.grid == {"lr": [0.1, 0.2], "reps": [1], "shots": [64, "exact"]}
    assert sweep.num_trials == 4


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
        (["--name=scripts", f"--sweeps-dir={ROOT}"], "there is already something at"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(arguments, "")


def test_a_trial_that_failed_is_in_the_table_and_comes_last(tmp_path: Path) -> None:
    rows = [result(0.1, None, "no more"), result(0.2, 0.5), result(0.3, 0.75)]
    lines = write_report(rows, tmp_path).splitlines()
    assert lines[0].split() == ["lr", "reps", "shots", "test_accuracy", "error"]
    assert [line.split()[0] for line in lines[1:4]] == ["0.3", "0.2", "0.1"]
    assert lines[3].endswith("no more")
    (axes,) = draw(rows).axes
    assert "75.0% with a learning rate of 0.3" in axes.get_title(loc="left")
    assert not draw(rows[:1]).axes[0].get_title(loc="left")


@pytest.mark.ray
@pytest.mark.slow
def test_two_trials_share_a_pool(
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [
        "--lr=0.05,0.1", "--reps=1", "--shots=32", "--samples=60", "--epochs=1", "--qubits=2",
        "--actors=1", "--at-once=2", "--name=small",
    ]  # fmt: skip
    code = main(small)
    output, errors = capfd.readouterr()
    assert code == 0, errors
    assert len(re.findall(r"^lr 0\.\d+, reps 1, shots 32: accuracy 0\.", errors, re.MULTILINE)) == 2
    assert "small/: results.csv, results.json, sweep.png" in output
    folder = tmp_path / "sweeps" / "small"
    rows = json.loads((folder / "results.json").read_text())
    assert sorted(row["lr"] for row in rows) == [0.05, 0.1]
    # 48 training samples with 6 angles, and 12 for testing.
    assert all(row["rows"] == 48 * 13 + 12 and row["error"] is None for row in rows)
    assert rows[0]["test_accuracy"] >= rows[1]["test_accuracy"]
    with (folder / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
