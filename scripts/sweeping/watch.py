"""What Ray Tune tells of its trials while they run.

Imported when Ray is connected to: it reads settings when it is first imported.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayActorError

from sweeping.settings import Point
from sweeping.trials import DONE, Row, name_of

_ERROR_LETTERS = 120


class Watch(tune.Callback):  # type: ignore[misc]
    """Prints a line when something happens to a trial, and notes what ended it.

    Args:
        row_of: how far a trial is.
        errors: where it is noted, by the trial's name.
        check: called all the time; raises `KeyboardInterrupt` where one was lost.
    """

    def __init__(
        self, row_of: Callable[[Point], Row], errors: dict[str, str], check: Callable[[], None]
    ) -> None:
        self._row_of = row_of
        self._errors = errors
        self._check = check

    def on_step_begin(self, iteration: int, trials: Any, **_: Any) -> None:
        self._check()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        row = self._row_of(trial.config["point"])
        if row["state"] == DONE:  # a shared directory may show it later
            self._tell(trial, f"accuracy {row['test_accuracy']:.4f}, loss {row['test_loss']:.3f}")

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        epoch = self._row_of(trial.config["point"])["epoch"]
        self._tell(trial, f"{_cause(trial)}; it goes on after epoch {epoch}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        cause = _cause(trial)
        self._errors[name_of(trial.config["point"])] = cause
        self._tell(trial, f"failed: {cause}")

    def _tell(self, trial: Any, what: str) -> None:
        print(f"{name_of(trial.config['point'])}: {what}", file=sys.stderr, flush=True)

    def __reduce__(self) -> Any:
        return tune.Callback, ()  # Tune keeps a pickled copy, which nobody needs


def _cause(trial: Any) -> str:
    """What happened to a trial; all of it is in the file that Tune leaves."""
    path = trial.pickled_error_file
    error = cloudpickle.loads(Path(path).read_bytes()) if path else None
    return shortly(error)


def shortly(error: BaseException | None) -> str:
    """An error of Ray in one short line: what it is about, not where it came up."""
    if error is None:
        return "it could not be run"
    if isinstance(error, RayActorError):
        return "its process died"
    cause = getattr(error, "cause", error)
    text = " ".join(str(cause).split())
    return textwrap.shorten(f"{type(cause).__name__}: {text}", _ERROR_LETTERS, placeholder=" ...")
