"""The parts of ``scripts/sweep.py``."""

import pandas
import pytest
from sweep import draw, main, parse

from tests.support.training import refusal_of


def test_all_combinations_are_trials_with_the_other_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = parse(["--lr=0.1,0.2", "--reps=1", "--shots=64,exact", "--epochs=2"]).settings
    assert (settings["lr"], settings["reps"], settings["shots"]) == ([0.1, 0.2], [1], [64, "exact"])
    assert (settings["epochs"], settings["qubits"]) == (2, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--lr=0.1,", "argument --lr: invalid"),
        ("--lr=0.1,0", "--lr must be from"),
        ("--name=there", "there is a sweep sweeps/there: --resume it"),
        ("--resume=nothing", "there is no sweep sweeps/nothing"),
        ("--resume=there --lr=0.1", "--resume keeps a sweep's settings: leave out lr"),
    ],
)
def test_wrong_options_end_with_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps" / "there").mkdir(parents=True)
    assert message in refusal_of(main, arguments.split(), capsys)


def test_the_picture_has_a_line_for_each_circuit_of_trials_that_are_done():
    table = pandas.DataFrame(
        {
            "lr": [0.1, 0.01, 0.1, 0.01], "reps": [1, 1, 2, 2], "shots": [64, 64, "exact", "exact"],
            "test_accuracy": [0.9, 0.8, 0.7, 0.95], "epoch": [3, 3, 3, 1], "epochs": [3] * 4,
        }
    )  # fmt: skip
    (axes,) = draw(table).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.8, 0.9], [0.7]]
    assert axes.get_title(loc="left") == "Best: 90.0% with learning rate 0.1, reps 1, shots 64"
    assert draw(table[:0]).axes
