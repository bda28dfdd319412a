"""The first steps of a training: on a pool of two, in process, and in two plain processes.

Two processes without Ray, with half of the samples each, are what two actors can reach at best.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from tables import Column

from benchmarks.timing import interleaved
from benchmarks.workload import Case, Workload, backward_of
from qailab.backends import AerBackend
from qailab.launchers import RowEvaluator

_POOL, _HERE, _PLAIN = "2 actors", "in-process", "2 processes"
_STEPS = {"1": slice(0, 1), "2-4": slice(1, 4), "5-20": slice(4, 20)}
COLUMNS = (
    Column("n"), Column("batch"), Column("steps", width=5), Column(_HERE, ",.1f"),
    Column(_PLAIN, ",.1f"), Column(_POOL, ",.1f"), Column("/ in-proc", ".2f"),
    Column("/ 2 proc", ".2f"),
)  # fmt: skip
_GO = "step"
_TRAININGS = 5  # each of a circuit that nobody has compiled
FOOTNOTE = f"""\
ms of a forward and a backward pass: medians over these steps of {_TRAININGS} trainings, each of a
circuit that nobody has compiled. 2 processes: without Ray, half of the samples each."""


class _Step:
    """A forward and a backward pass of a part of the samples, each time anew."""

    def __init__(self, case: Case, backend: RowEvaluator, part: slice = slice(None)) -> None:
        work = Workload(case)
        self._layer = work.layer(backend)
        self._inputs = work.inputs[part].clone().requires_grad_()
        self._grad_output = work.grad_output[part]

    def __call__(self) -> None:
        outputs = self._layer(self._inputs)
        backward_of(outputs, [self._inputs, self._layer.weight], self._grad_output)()


def _serve(pipe: Connection, half: int) -> None:
    """Take a step of half of a case's samples for each message, in a process of its own."""
    torch.set_num_threads(1)
    backend, step = AerBackend(), None
    while (case := pipe.recv()) is not None:
        if isinstance(case, Case):
            step = _Step(case, backend, slice(half * case.batch // 2, (half + 1) * case.batch // 2))
        elif step is not None:
            step()
        pipe.send("done")


@contextmanager
def _two_processes() -> Iterator[list[Connection]]:
    """Start them; they end with this process, or when they are sent None."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    for half, (_, theirs) in enumerate(pipes):
        context.Process(target=_serve, args=(theirs, half), daemon=True).start()
    yield [ours for ours, _ in pipes]
    for ours, _ in pipes:
        ours.send(None)


def _ask(pipes: list[Connection], message: object) -> None:
    for pipe in pipes:
        pipe.send(message)
    for pipe in pipes:
        pipe.recv()


def measure_steps(cases: list[Case], pool: RowEvaluator) -> Iterator[Mapping[str, Any]]:
    """Measure the steps of some trainings of each case; a row of the table for a few of them."""
    here, marks = AerBackend(), itertools.count(1)
    with _two_processes() as pipes:
        for number, case in enumerate([cases[0], *cases]):
            trainings = []
            for _ in range(_TRAININGS if number else 1):
                cold = replace(case, mark=next(marks))
                _ask(pipes, cold)
                runs = {_HERE: _Step(cold, here), _POOL: _Step(cold, pool)}
                both = {**runs, _PLAIN: lambda: _ask(pipes, _GO)}
                trainings.append(interleaved(both, rounds=20))
            # The first time, actors and processes import what they need.
            for steps, part in _STEPS.items() if number else ():
                yield _row(case, steps, part, trainings)


def _row(
    case: Case, steps: str, part: slice, trainings: list[dict[str, list[float]]]
) -> Mapping[str, Any]:
    ms = {
        name: 1e3 * statistics.median(time for each in trainings for time in each[name][part])
        for name in (_HERE, _PLAIN, _POOL)
    }
    return {
        "n": case.qubits, "batch": case.batch, "steps": steps, **ms,
        "/ in-proc": ms[_POOL] / ms[_HERE], "/ 2 proc": ms[_POOL] / ms[_PLAIN],
    }  # fmt: skip
