"""The progress bar of ``scripts/train.py`` where there is no terminal."""

from __future__ import annotations

import re

import pytest
import torch
from training.checkpoint import Checkpoint, Progress
from training.display import EVERY, Display

from tests.scripts.training_runs import STEPS, TINY


def show(capsys: pytest.CaptureFixture[str]) -> list[str]:
    start = Checkpoint(TINY, Progress(), (), {}, {}, torch.zeros(10, 10))
    with Display(TINY, start, STEPS, lambda: None) as display:
        for batch in (1, 2):
            display.on_batch(Progress(batch=batch, seen=10, rows=5, seconds=1.0, loss_sum=20.0))
    return capsys.readouterr().err.splitlines()


def test_a_log_has_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(capsys) == []


def test_a_log_that_somebody_follows_has_a_line_for_each_state(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EVERY, "1e-9")
    *_, last = lines = show(capsys)
    assert len(lines) == 3  # a terminal's states would be one line
    assert re.fullmatch(r"epoch 1/3 .* 22%, loss 2.000, accuracy .*, 5 rows/s, \S+ left", last)


@pytest.mark.parametrize("value", ["", "often", "-1", "0"])
def test_what_is_no_time_stands_for_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(EVERY, value)
    assert show(capsys) == []
