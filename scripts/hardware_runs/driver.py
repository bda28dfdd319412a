"""A training in a process of its own, which may be killed at any moment.

It is forked from a process that has imported everything (`multiprocessing`'s fork server, which
preloads this module), so that a run takes a second and most moments are interesting ones.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import qiskit_ibm_runtime  # noqa: F401  (what takes longest to import)
import torch

from hardware_runs.scenario import Scenario
from hardware_runs.workload import train
from qailab.backends import Budget


@dataclass(frozen=True)
class Order:
    """What to train.

    Args:
        scenario: where and how.
        steps: optimizer steps.
        folder: where the journal is, checkpoints and the weights.
        checkpoints: whether there are checkpoints.
        environment: what leads to the server.
        jobs: how many jobs the budget allows; None for no budget.
    """

    scenario: Scenario
    steps: int
    folder: Path
    checkpoints: bool
    environment: dict[str, str]
    jobs: int | None = None

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.folder / "jobs.db"

    @property
    def weights(self) -> Path:
        """The file of the weights; it is there when the training has ended."""
        return self.folder / "weights.pt"


def main(order: Order) -> None:
    """Train, or go on where the last one was killed."""
    os.environ |= order.environment
    log = os.open(order.folder / "driver.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        _train(order)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        sys.exit(1)


def _train(order: Order) -> None:
    torch.set_num_threads(1)
    scenario = order.scenario
    given = {
        "journal": str(order.journal),
        "timeout": 60.0,
        "budget": None if order.jobs is None else Budget(jobs=order.jobs),
    }
    backends = [scenario.backend(device, **given) for device in scenario.devices]
    checkpoint = order.folder / "checkpoint.pt" if order.checkpoints else None
    options = {"seed": scenario.seed, "steps": order.steps, "checkpoint": checkpoint}
    if scenario.where == "process":
        weights = train(backends[0], **options)
        backends[0].close()
    else:
        from qailab.distributed import LauncherPool

        with LauncherPool(backends, progress=False) as pool:
            weights = train(pool, **options)
    torch.save(weights, f"{order.weights}.new")
    os.replace(f"{order.weights}.new", order.weights)
