"""The log of a run: what it is of, and in which order gradients arrived, which no seed decides."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qailab.errors import InputError
from qailab.torch.layers import CircuitLayer


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


def about_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Digests of a model (initial values, circuits, shots) and of an optimizer's options."""
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("evaluation_step")}
    layers = [layer for layer in model.modules() if isinstance(layer, CircuitLayer)]
    circuits = [(layer.problem.key, layer.shots, layer.first_sample) for layer in layers]
    rules = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        | {"initial_lr": group.get("initial_lr", group["lr"])}
        for group in optimizer.param_groups
    ]
    rule = (type(optimizer).__name__, rules)
    return {"model": digest((state, circuits)), "optimizer": digest(rule)}


def plain(values: Any) -> Any:
    """The same with Python's numbers for numpy's, which a checkpoint could not be read with."""
    if type(values) is dict:
        return {key: plain(value) for key, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)(map(plain, values))
    return values.item() if isinstance(values, np.generic) else values


def digest(values: Any) -> str:
    """A short hash of tensors in tuples, lists and mappings; other values go by their ``repr``."""
    found = hashlib.blake2b(digest_size=8)
    _feed(found, values)
    return found.hexdigest()


def _feed(found: Any, values: Any) -> None:
    if isinstance(values, Tensor):
        found.update(f"{values.dtype} {tuple(values.shape)}".encode())
        found.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(values, Mapping):
        for key, value in values.items():
            found.update(f"{key!r}:".encode())
            _feed(found, value)
    elif isinstance(values, list | tuple):
        found.update(f"{len(values)} of".encode())
        for value in values:
            _feed(found, value)
    else:
        found.update(repr(values).encode())
