"""How far each trial of a sweep is: what the table, the files and the picture show of it.

A trial's folder, ``sweeps/<name>/lr=0.01,reps=1,shots=256/``, is that of a run of scripts/train,
and its checkpoint is the only truth: it is there whatever ended the trial or the whole sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.checkpoint import Checkpoint
from training.runs import RunFolder

from qailab.errors import CheckpointError
from sweeping.settings import Point, Settings

DONE, FAILED, INTERRUPTED, NOT_BEGUN = "done", "failed", "interrupted", "not begun"

Row = dict[str, Any]
"""What is known of a trial: its point, and what `row_of` adds; None is for what is not known."""


def name_of(point: Point) -> str:
    """What tells a trial from the others; its folder has this name."""
    return ",".join(f"{name}={value}" for name, value in point.items())


def run_of(folder: Path, point: Point) -> RunFolder:
    """The folder of a trial.

    Args:
        folder: the sweep's folder.
        point: the trial's own settings.
    """
    return RunFolder(folder / name_of(point))


def rows_of(settings: Settings, folder: Path, errors: Mapping[str, str]) -> list[Row]:
    """A row for each trial, in the order of the grid.

    Args:
        settings: the sweep's settings.
        folder: the sweep's folder.
        errors: what ended the trials that failed, by name.
    """
    epochs = settings.base.epochs
    return [row_of(point, folder, epochs, errors.get(name_of(point))) for point in settings.points]


def row_of(point: Point, folder: Path, epochs: int, error: str | None = None) -> Row:
    """How far a trial is, and if it is done, what it came to.

    Args:
        point: the trial's own settings.
        folder: the sweep's folder.
        epochs: when it is done.
        error: what ended it, if it failed.
    """
    path = run_of(folder, point).checkpoint
    try:
        history = Checkpoint.load(path).history if path.is_file() else None
    except CheckpointError as damaged:
        history, error = (), str(damaged)
    done = history is not None and len(history) == epochs
    if done:
        state = DONE
    elif error is not None:
        state = FAILED
    else:
        state = NOT_BEGUN if history is None else INTERRUPTED
    history = history or ()
    return point | {
        "state": state,
        # After some of the epochs they could not be compared with those of the others.
        "test_accuracy": history[-1].test_accuracy if done else None,
        "test_loss": history[-1].test_loss if done else None,
        "epoch": len(history),
        "rows": sum(each.rows for each in history),
        "seconds": sum(each.seconds for each in history),
        "error": error if state == FAILED else None,
    }
