"""What a sweep compares, and the file that keeps it. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.settings import Config

from qailab.errors import CheckpointError, InputError

COMPARED = ("lr", "reps", "shots")
FILE = "sweep.json"

Point = dict[str, Any]
"""A value for each of `COMPARED`: what a trial has of its own."""


@dataclass(frozen=True)
class Settings:
    """Everything that the results of a sweep depend on.

    Args:
        base: the settings that all trials share.
        grid: the values of each of `COMPARED`.

    Raises:
        InputError: if a value is out of its range.
    """

    base: Config
    grid: dict[str, list[Any]]

    def __post_init__(self) -> None:
        for name, values in self.grid.items():
            for value in values:
                dataclasses.replace(self.base, **{name: value})  # says what is wrong

    @property
    def points(self) -> list[Point]:
        """One for each trial: all combinations."""
        values = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, each, strict=True)) for each in values]

    def save(self, folder: Path) -> None:
        """Write the file."""
        kept = {"grid": self.grid, "base": dataclasses.asdict(self.base)}
        (folder / FILE).write_text(json.dumps(kept, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Settings:
        """Read the file.

        Raises:
            CheckpointError: if it cannot be read, or holds something else.
        """
        path = folder / FILE
        try:
            kept = json.loads(path.read_text())
            grid = {name: list(kept["grid"][name]) for name in COMPARED}
            if not all(grid.values()):
                raise ValueError("there is nothing to compare")
            return cls(Config.from_dict(kept["base"], str(path)), grid)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} must hold the settings of a sweep, and cannot be read "
                f"({type(error).__name__}: {error}); take it from a backup, or start a new sweep"
            ) from error

    def check_same(self, given: dict[str, Any], folder: Path) -> None:
        """Check that the settings of the command line are those of the sweep.

        Args:
            given: those that were given, by name; for what is compared, lists.
            folder: the sweep's folder, for the message.

        Raises:
            InputError: if one differs; it names both values of each that does.
        """
        own = dataclasses.asdict(self.base) | self.grid
        different = [
            f"{name} is {_words(own[name])} in {folder / FILE}, but {_words(value)} on the "
            "command line"
            for name, value in given.items()
            if _in_any_order(own[name]) != _in_any_order(value)
        ]
        if different:
            raise InputError(
                f"{'; '.join(different)}. A sweep goes on with the settings it began with: leave "
                "those options out, or start a new sweep with another --name"
            )


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _in_any_order(value: Any) -> Any:
    return set(value) if isinstance(value, list) else value
