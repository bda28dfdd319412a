"""The first steps of a training: on a pool of two, in process, and in two plain processes.

Two processes without Ray, with half of the samples each, are what two actors can reach at best.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import torch

from benchmarks.report import Report
from benchmarks.timing import interleaved
from benchmarks.workload import Case, Workload
from qailab.backends import AerBackend
from qailab.launchers import RowEvaluator

_POOL, _HERE, _PLAIN = "2 actors", "in-process", "2 processes"
_STEPS = {"1": slice(0, 1), "2-4": slice(1, 4), "5-20": slice(4, 20)}
_TRAININGS = 5  # each of a circuit that nobody has compiled
_FOOTNOTE = f"""\
ms of a forward and a backward pass: medians over these steps of {_TRAININGS} trainings, each of a
circuit that nobody has compiled. 2 processes: without Ray, half of the samples each."""

_aer = cache(AerBackend)
"""The backend of a process."""


def _step_of(case: Case, backend: RowEvaluator, part: slice = slice(None)) -> Callable[[], object]:
    """A forward and a backward pass of a part of the samples, each time anew."""
    work = Workload(case)
    layer = work.layer(backend)
    work.inputs, work.grad_output = work.inputs[part], work.grad_output[part]
    return lambda: work.backward(layer)()


@cache
def _half_step(case: Case, half: int) -> Callable[[], object]:
    torch.set_num_threads(1)
    middle = case.batch // 2
    return _step_of(case, _aer(), slice(middle) if half == 0 else slice(middle, None))


def _prepare(case: Case, half: int) -> None:
    """Make what `_take` needs, in a process of its own."""
    _half_step(case, half)


def _take(case: Case, half: int) -> None:
    _half_step(case, half)()


def measure_steps(cases: list[Case], pool: RowEvaluator, report: Report) -> None:
    """Measure the steps of some trainings of each case; a row of the table for a few of them."""
    table = report.table("steps", title="The first steps of a training")
    marks, spawn = itertools.count(1), multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        two = [stack.enter_context(ProcessPoolExecutor(1, spawn)) for _ in range(2)]

        def both(do: Callable[[Case, int], None], case: Case) -> None:
            for done in [one.submit(do, case, half) for half, one in enumerate(two)]:
                done.result()

        def train(case: Case) -> dict[str, list[float]]:
            cold = replace(case, mark=next(marks))
            both(_prepare, cold)
            runs = {_HERE: _step_of(cold, _aer()), _POOL: _step_of(cold, pool)}
            return interleaved({**runs, _PLAIN: lambda: both(_take, cold)}, rounds=20)

        train(cases[0])  # actors and processes import what they need
        for case in cases:
            trainings = [train(case) for _ in range(_TRAININGS)]
            for steps, part in _STEPS.items():
                ms = {
                    name: 1e3 * statistics.median(t for each in trainings for t in each[name][part])
                    for name in (_HERE, _PLAIN, _POOL)
                }
                table.add({
                    "n": case.qubits, "batch": case.batch, "steps": steps, **ms,
                    "/ in-proc": ms[_POOL] / ms[_HERE], "/ 2 proc": ms[_POOL] / ms[_PLAIN],
                })  # fmt: skip
    print(_FOOTNOTE)
