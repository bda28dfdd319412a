"""What a run, or the rest of it, costs on hardware: told before anything is sent."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

from qailab.backends.cost import Cost, UsageEstimate
from qailab.backends.limits import IBMLimits
from qailab.errors import InputError
from qailab.torch import estimate
from training.checkpoint import Progress
from training.data import Digits
from training.model import HybridClassifier
from training.settings import Config

_PAIR = 2  # rows of a backward pass come in pairs, which stay together
_HEADER = ("gradient", "rows", "jobs", "executions", "QPU seconds", "of these for tests")


@dataclass(frozen=True)
class RunCost:
    """What all steps and tests of a run cost, with one gradient method.

    Args:
        method: the gradient method.
        steps: the cost of all training steps.
        tests: the cost of the test samples, after each epoch.
    """

    method: str
    steps: Cost
    tests: Cost

    @property
    def total(self) -> Cost:
        """All of it."""
        return self.steps + self.tests

    def __str__(self) -> str:
        cost = self.total
        return (
            f"{cost.rows:,} rows in {cost.jobs:,} jobs, {cost.shots:,} executions, about "
            f"{cost.qpu_seconds:,.0f} QPU seconds"
        )


def run_costs(
    model: HybridClassifier, digits: Digits, config: Config, done: Progress, devices: int
) -> tuple[RunCost, ...]:
    """The cost of what is left of a run, for every gradient method; that of the model is first.

    Args:
        model: the classifier.
        digits: the data.
        config: the settings.
        done: how far the run is.
        devices: how many devices share each pass.
    """
    sizes: Counter[int] = Counter()
    for epoch in range(done.epoch, config.epochs):
        batches = digits.batches(config.seed, epoch, config.batch_size)
        sizes.update(map(len, batches[done.batch if epoch == done.epoch else 0 :]))
    passes = _Passes(model, _shots(config), devices)
    tests = passes.cost(len(digits.test_labels), 1) * (config.epochs - done.epoch)
    methods = estimate(model, 1, show=False).methods
    costs = {each.method: RunCost(each.name, Cost(), tests) for each in methods}
    for size, steps in sizes.items():
        for each in estimate(model, size, show=False).methods:
            step = passes.cost(each.forward_rows, 1) + passes.cost(each.backward_rows, _PAIR)
            cost = costs[each.method]
            costs[each.method] = dataclasses.replace(cost, steps=cost.steps + step * steps)
    return tuple(costs.values())


def cost_table(costs: tuple[RunCost, ...]) -> str:
    """The costs, a line for each gradient method."""
    lines: list[tuple[str, ...]] = [_HEADER]
    for each in costs:
        total = each.total
        numbers = (total.rows, total.jobs, total.shots, total.qpu_seconds, each.tests.qpu_seconds)
        lines.append((each.method, *(f"{number:,.0f}" for number in numbers)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _shots(config: Config) -> int:
    if config.num_shots is None:
        raise InputError("--estimate needs a number of --shots: hardware has no exact ones")
    return config.num_shots


class _Passes:
    """The cost of passes of rows, in equal shares on some devices."""

    def __init__(self, model: HybridClassifier, shots: int, devices: int) -> None:
        self._angles = model.circuit.problem.canonical.num_angles
        self._shots = shots
        self._devices = devices
        self._limits = IBMLimits()
        self._usage = UsageEstimate()

    def cost(self, rows: int, group: int) -> Cost:
        most = self._limits.rows_per_job(self._shots, self._angles, group)
        jobs, left = 0, rows
        for devices in range(self._devices, 0, -1):
            share = min(left, -(-left // (devices * group)) * group)
            jobs += -(-share // most)
            left -= share
        executions = rows * self._shots
        return Cost(jobs, rows, executions, self._usage.seconds(executions, jobs))
