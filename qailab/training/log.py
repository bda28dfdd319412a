"""The log of a run: in which order gradients arrived, the one thing that no seed decides."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qailab.errors import InputError


@dataclass(frozen=True)
class Entry:
    """A gradient that arrived.

    Args:
        lane: the number of the lane that it came from.
        batch: the number of its batch, counted from the first epoch on.
        attempt: how often the batch had been taken before.
        version: the version of the weights it was computed at: how many gradients they had seen.
        applied: whether it was applied, or dropped.
        scale: what its step was multiplied by.
    """

    lane: int
    batch: int
    attempt: int
    version: int
    applied: bool
    scale: float


@dataclass
class RunLog:
    """What a run is of, and its gradients in the order of their arrival; ``==`` compares all.

    Args:
        about: digests of the model, the optimizer and the data, the seed, and batches of an epoch.
        entries: the gradients.
    """

    about: dict[str, Any] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON lines: ``about``, then an entry each."""
        lines = [self.about, *map(asdict, self.entries)]
        Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunLog:
        """Read what `write` wrote.

        Raises:
            InputError: if it is not a log.
            OSError: if there is none.
        """
        try:
            about, *lines = map(json.loads, Path(path).read_text().splitlines())
            if not isinstance(about, dict) or "model" not in about:
                raise ValueError("its first line does not say what it is of")
            return cls(about, [Entry(**line) for line in lines])
        except (ValueError, TypeError) as error:
            raise InputError(f"{os.fspath(path)} is not the log of a run ({error})") from error

    def check_same(self, about: dict[str, Any]) -> None:
        """Raise if the run to be repeated is not the one that the log is of.

        Raises:
            InputError: naming what differs.
        """
        differing = [
            f"{name} ({self.about.get(name)} in the log, {value} here)"
            for name, value in about.items()
            if self.about.get(name) != value
        ]
        if differing:
            raise InputError(
                f"this log cannot be replayed here: it is of another {', '.join(differing)}; build "
                f"model, optimizer and loader as the run did that wrote it"
            )
