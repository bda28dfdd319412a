"""Asynchronous trainings whose lanes fail, hang, are slow and noisy, leave and join.

The driver stops now and then, and another one goes on from the checkpoint with other lanes. In the
end each batch has counted once an epoch, and the log's replay on quiet lanes is the same run, bit
for bit.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import torch

from chaos_runs.harness import Report
from chaos_runs.training import Size, loss_of
from qailab.backends import AerBackend
from qailab.backends.answers import Evaluation
from qailab.errors import BackendError
from qailab.gradients import CanonicalCircuit, RowBatch
from qailab.training import AsyncTrainer

_SIZE, _BATCHES, _EPOCHS = Size(qubits=2, samples=4, reps=1), 12, 3
_TIMEOUT = 2.0  # of a batch; a busy machine must not take quiet lanes for hanging ones
_SLOWEST = 0.1  # seconds of a job on the slowest lane, on average


class FaultyBackend(AerBackend):
    """Takes its time, and fails or hangs now and then, by a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._chance = random.Random(seed)
        self._seconds = _SLOWEST ** self._chance.uniform(1.0, 3.0)
        self._fails = self._chance.choice([0.0, 0.05, 0.3, 1.0])
        self._hangs = self._chance.choice([0.0, 0.0, 0.05])

    def answers(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        seconds, what = self._chance.expovariate(1 / self._seconds), self._chance.random()
        hangs = what < self._hangs
        if stop.wait(None if hangs else seconds):
            raise CancelledError("cancelled")
        if what < self._hangs + self._fails:
            raise BackendError("it fails now and then")
        return super().answers(circuit, batch, stop)


def run(report: Report, folder: Path, options: dict[str, Any]) -> None:
    """Run a trial; ``options`` are not needed."""
    chance, checkpoint = random.Random(report.seed), folder / "checkpoint.pt"
    arguments = {
        "max_staleness": chance.randint(0, 8), "staleness": chance.choice(["drop", "scale"]),
        "weighting": chance.choice(["uniform", "standard_error"]),
    }  # fmt: skip
    report.what = ", ".join(f"{name} {value}" for name, value in arguments.items())
    figures = dict.fromkeys(("failed", "drivers", "stale"), 0.0)
    batches = _SIZE.batches(_BATCHES, report.seed)
    first = _trainer(report.seed, [AerBackend()])
    first.fit(batches[:1], 1)  # imports what takes longer than the timeout
    while True:
        places = [FaultyBackend(chance.getrandbits(32)) for _ in range(chance.randint(2, 6))]
        trainer = _trainer(report.seed, places, timeout=_TIMEOUT, **arguments)
        if figures["drivers"]:
            trainer.load(checkpoint)
        trainer.add_lane(AerBackend())  # or all might be lost
        figures["drivers"] += 1
        last = chance.randint(5, 3 * _BATCHES)
        for step in trainer.steps(batches, _EPOCHS, checkpoint=checkpoint):
            trainer.optimizer.step()
            figures["stale"] = max(figures["stale"], step.staleness)
            last -= 1
            if last == 5:
                trainer.remove_lane(0)
                trainer.add_lane(FaultyBackend(chance.getrandbits(32)))
            if last == 0 and step.number < _BATCHES * _EPOCHS:
                break
        figures["failed"] += sum(row["failed"] for row in trainer.stats())
        if last > 0 or step.number == _BATCHES * _EPOCHS:
            break
    applied = [entry.batch for entry in trainer.log.entries if entry.applied]
    figures["applied"], figures["dropped"] = len(applied), len(trainer.log.entries) - len(applied)
    report.figures = figures
    if sorted(applied) != list(range(_BATCHES * _EPOCHS)):
        report.problems.append(f"batches were lost or counted twice: {applied}")
    quiet = [AerBackend() for _ in range(chance.randint(1, 3))]
    replay = _trainer(report.seed, quiet, replay=trainer.log)
    replay.fit(batches, _EPOCHS)
    for name, value in trainer.model.state_dict().items():
        if not torch.equal(value, replay.model.state_dict()[name]):
            report.problems.append(f"{name} differs in the replay")
    if replay.log != trainer.log:
        report.problems.append("the replay's log differs")


def _trainer(seed: int, places: list[Any], **options: Any) -> AsyncTrainer:
    """The same training for one seed, wherever it runs."""
    model = _SIZE.model(AerBackend(), seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    return AsyncTrainer(model, optimizer, loss_of, places, progress=False, seed=seed, **options)
