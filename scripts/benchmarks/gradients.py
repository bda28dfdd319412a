"""Gradients: in process and on pools of actors, against raw Aer and against other libraries."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from tables import Table

from benchmarks.exact import measure_exact
from benchmarks.observables import measure_observables
from benchmarks.peers import measure_peers
from benchmarks.report import Report
from benchmarks.steps import measure_steps
from benchmarks.timing import memory_mib, milliseconds, reset_peaks
from benchmarks.workload import Case, Places, Workload, backward_of, raw_aer
from qailab.backends import AerBackend, Backend
from qailab.distributed import LauncherPool
from qailab.launchers import RowEvaluator

_IN_PROCESS, _BOUND = "in-process", "raw Aer"
_QUBITS, _BATCHES = (4, 6, 8, 10, 12), (1, 16, 64)
_CASES = {
    "small": ((5,), (1,)), "memory": ((10,), (256,)), "grid": (_QUBITS, _BATCHES),
    "steps": (_QUBITS, (16,)), "exact": (_QUBITS, _BATCHES), "observables": ((6, 10), (16,)),
    "peers": ((6, 10), (16,)),
}  # fmt: skip
"""Qubits and batches of the sections, those of all but the first two unless options say others."""
_SMALL_ROUNDS = 200
_READY_SECONDS = 120.0
_FOOTNOTE = """\
ms: one backward pass for inputs and weights, the median of several rounds in which all take turns.
raw Aer: the bound, ms of the same rows in the same rounds. /: median over median, lower is better.
driver, actor: peak resident MiB, libraries and what earlier work left behind included."""


def open_pool(backends: Sequence[Backend], stack: ExitStack) -> LauncherPool:
    """A pool on this process's local Ray; no actor holds a CPU, so that several pools fit."""
    options = {"num_cpus": 0}
    pool = LauncherPool(backends, address="local", actor_options=options, progress=False)
    stack.enter_context(pool).wait(timeout=_READY_SECONDS)
    return pool


def open_places(actors: Sequence[int], stack: ExitStack) -> Places:
    """This process, and a pool for each number of actors, all at once: so they can take turns."""
    pools = {f"{n} actor{'s' * (n > 1)}": open_pool([AerBackend()] * n, stack) for n in actors}
    return {_IN_PROCESS: AerBackend(), **pools}


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure what the options ask for."""
    wanted = {*options.only, *["peers"] * options.peers}
    cases = {name: list(_cases(name, options)) for name in _CASES}
    with ExitStack() as stack:
        places = open_places(options.actors if wanted - {"exact", "observables"} else [], stack)
        if "small" in wanted:
            measure_small(cases["small"][0], places, options.rounds or _SMALL_ROUNDS, report)
        if "memory" in wanted:  # before the bound runs in this process
            table = report.table("memory", title="Memory of a large batch")
            measure(cases["memory"], places, table, rounds=1, bound=False)
        if "grid" in wanted:
            table = report.table("grid", title="Gradients")
            measure(cases["grid"], places, table, rounds=options.rounds, bound=True)
            print(_FOOTNOTE)
        if "steps" in wanted and (two := places.get("2 actors")) is not None:
            measure_steps(cases["steps"], two, report)
        if "exact" in wanted:
            measure_exact(cases["exact"], report, options.rounds)
        if "observables" in wanted:
            measure_observables(cases["observables"], report, options.rounds)
        if "peers" in wanted:
            measure_peers(cases["peers"], places, report)


def _cases(section: str, options: argparse.Namespace) -> Iterable[Case]:
    qubits, batches = _CASES[section]
    if section not in ("small", "memory"):
        qubits, batches = options.qubits or qubits, options.batch or batches
    for size in sorted(qubits):
        for batch in sorted(batches):
            yield Case(size, batch, options.shots, options.seed)


def measure_small(case: Case, places: Places, rounds: int, report: Report) -> None:
    """Time a backward pass of 20 rows, of 10 weights, and what a pool adds to it."""
    work, runs = Workload(replace(case, reps=1)), {}
    for name, backend in places.items():
        layer = work.layer(backend)
        runs[name] = backward_of(layer(work.inputs), [layer.weight], work.grad_output)
    _check_equal([run() for run in runs.values()])
    times = milliseconds(runs, rounds, warm_up=5)
    table = report.table("small", title=f"One backward pass of 20 rows of {case.qubits} qubits")
    for name, ms in times.items():
        table.add({"where": name, "ms": ms, "over in-process": ms - times[_IN_PROCESS]})


def measure(
    cases: Iterable[Case], places: Places, table: Table, *, rounds: int | None, bound: bool
) -> None:
    """Measure cases at every place, and the bound beside them; a row of the table for each."""
    for case in cases:
        small = Workload(replace(case, batch=min(2, case.batch)))
        for backend in places.values():
            warm_up = small.backward(small.layer(backend))
            for _ in range(3):  # compiles the circuit; a pool learns its speed
                warm_up()
        work = Workload(case)
        runs: dict[str, Any] = {name: work.backward(work.layer(at)) for name, at in places.items()}
        more, gradients = {}, []
        for name, backend in places.items():
            driver, (actors, before) = [os.getpid()], _pids_and_bytes(backend)
            reset_peaks(driver + actors)
            gradients.append(runs[name]())
            sent = _pids_and_bytes(backend)[1] - before
            more[name] = {"bytes/row": sent / work.rows or None,
                          "driver": memory_mib(driver), "actor": memory_mib(actors)}  # fmt: skip
        _check_equal(gradients)
        if bound:
            runs[_BOUND] = raw_aer(work)
        times = milliseconds(runs, rounds, warm_up=1)
        limit = times.get(_BOUND)
        for name in places:
            ms = times[name]
            table.add({
                "n": case.qubits, "batch": case.batch, "rows": work.rows, "where": name, "ms": ms,
                _BOUND: limit, "/ raw": limit and ms / limit, "/ in-proc": ms / times[_IN_PROCESS],
                **more[name],
            })  # fmt: skip


def _check_equal(gradients: Sequence[Any]) -> None:
    """Raise if gradients of several places differ by a bit: their times would say nothing."""
    flat = [torch.cat([part.flatten() for part in gradient]) for gradient in gradients]
    if not all(torch.equal(flat[0], other) for other in flat):
        raise SystemExit("the pools' gradients differ from this process's")


def _pids_and_bytes(backend: RowEvaluator) -> tuple[list[int], int]:
    """A pool's processes, and the bytes that were sent to and received from them so far."""
    if not isinstance(backend, LauncherPool):
        return [], 0
    stats = backend.stats()
    pids = [actor["pid"] for actor in stats["actors"]]
    return pids, stats["bytes_sent"] + stats["bytes_received"]
