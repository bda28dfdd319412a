"""Gradients: in process and on pools of actors, against raw Aer and against other libraries."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from tables import Column

from benchmarks.report import Report
from benchmarks.steps import COLUMNS, FOOTNOTE, measure_steps
from benchmarks.timing import interleaved, medians, memory_mib, reset_peaks
from benchmarks.workload import Case, Workload, raw_aer, small_backward
from qailab.backends import AerBackend, Backend
from qailab.distributed import LauncherPool
from qailab.launchers import RowEvaluator

Places = Mapping[str, RowEvaluator]
"""Where rows run, by name: first this process, then pools."""

_IN_PROCESS, _BOUND = "in-process", "raw Aer"
_MEMORY = (10, 256)  # qubits and batch: 25,600 rows
_READY_SECONDS = 120.0
_GRID = (
    Column("n"), Column("batch"), Column("rows", ",", 6), Column("where", width=10),
    Column("ms", ",.1f", 8), Column(_BOUND, ",.1f", 8), Column("/ raw", ".2f"),
    Column("/ in-proc", ".2f"), Column("bytes/row", ",.1f"), Column("driver MiB", ",.0f"),
    Column("actor", ",.0f"),
)  # fmt: skip
_FOOTNOTE = """\
ms: one backward pass for inputs and weights, the median of several rounds in which all take turns.
raw Aer: the bound, ms of the same rows in the same rounds. /: median over median, lower is better.
MiB: peak resident memory, libraries and what earlier work left behind included."""


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
    with ExitStack() as stack:
        pools = options.peers or set(options.only) - {"exact", "observables"}
        places = open_places(options.actors if pools else [], stack)
        if "small" in options.only:
            measure_small(places, options.repetitions, options.seed, report)
        if "memory" in options.only:  # before the bound runs in this process
            table = report.table("memory", _GRID, "Memory of a large batch")
            for row in measure(Case(*_MEMORY, options.shots, options.seed), places, rounds=1):
                table.add(row)
        if "grid" in options.only:
            table = report.table("grid", _GRID, "Gradients")
            for case in _cases(options, qubits=(4, 6, 8, 10, 12), batches=(1, 16, 64)):
                for row in measure(case, places, rounds=options.rounds, bound=True):
                    table.add(row)
            print(_FOOTNOTE)
        if "steps" in options.only and (two := places.get("2 actors")) is not None:
            table = report.table("steps", COLUMNS, "The first steps of a training")
            for row in measure_steps(
                list(_cases(options, qubits=(4, 6, 8, 10, 12), batches=(16,))), two
            ):
                table.add(row)
            print(FOOTNOTE)
        if "exact" in options.only:
            from benchmarks.exact import measure_exact

            cases = _cases(options, qubits=(4, 6, 8, 10, 12), batches=(1, 16, 64))
            measure_exact(cases, report, options.rounds)
        if "observables" in options.only:
            from benchmarks.observables import measure_observables

            cases = _cases(options, qubits=(6, 10), batches=(16,))
            measure_observables(cases, report, options.rounds)
        if options.peers:
            from benchmarks.peers import measure_peers

            measure_peers(_cases(options, qubits=(6, 10), batches=(16,)), places, report)


def _cases(
    options: argparse.Namespace, *, qubits: Sequence[int], batches: Sequence[int]
) -> Iterator[Case]:
    for size in sorted(options.qubits or qubits):
        for batch in sorted(options.batch or batches):
            yield Case(size, batch, options.shots, options.seed)


def measure_small(places: Places, repetitions: int, seed: int, report: Report) -> None:
    """Time a backward pass of 20 rows of 4 qubits, and what a pool adds to it."""
    runs = {name: small_backward(backend, seed) for name, backend in places.items()}
    for _ in range(5):
        _check_equal([run() for run in runs.values()])
    seconds = medians(interleaved(runs, repetitions))
    columns = (Column("where", width=10), Column("ms", ".2f", 7), Column("over in-process", ".2f"))
    table = report.table("small", columns, "One backward pass of 20 rows of 4 qubits, in ms")
    for name, own in seconds.items():
        more = 1e3 * (own - seconds[_IN_PROCESS])
        table.add({"where": name, "ms": 1e3 * own, "over in-process": more})


def measure(
    case: Case, places: Places, *, rounds: int | None, bound: bool = False
) -> Iterator[Mapping[str, Any]]:
    """Measure a case at every place, and the bound beside them; a row of the table for each."""
    small = Workload(replace(case, batch=min(2, case.batch)))
    for backend in places.values():
        warm_up = small.backward(small.layer(backend))
        for _ in range(3):  # compiles the circuit; a pool learns its speed
            warm_up()
    work = Workload(case)
    runs: dict[str, Any] = {name: work.backward(work.layer(each)) for name, each in places.items()}
    peaks, gradients = {}, []
    for name, backend in places.items():
        driver, actors = [os.getpid()], _pids(backend)
        reset_peaks(driver + actors)
        gradients.append(runs[name]())
        peaks[name] = (memory_mib(driver), memory_mib(actors))
    _check_equal(gradients)
    if bound:
        runs[_BOUND] = raw_aer(work)
        runs[_BOUND]()  # what Aer does once
    sent = {name: _wire_bytes(backend) for name, backend in places.items()}
    seconds = interleaved(runs, rounds)
    times = medians(seconds)
    limit = times.get(_BOUND)
    for name, backend in places.items():
        measured = len(seconds[name])
        yield {
            "n": case.qubits, "batch": case.batch, "rows": work.rows, "where": name,
            "ms": 1e3 * times[name], "best ms": 1e3 * min(seconds[name]), "rounds": measured,
            _BOUND: limit and 1e3 * limit, "/ raw": limit and times[name] / limit,
            "/ in-proc": times[name] / times[_IN_PROCESS],
            "bytes/row": (_wire_bytes(backend) - sent[name]) / work.rows / measured or None,
            "driver MiB": peaks[name][0], "actor": peaks[name][1],
        }  # fmt: skip


def _check_equal(gradients: Sequence[Any]) -> None:
    """Raise if gradients of several places differ by a bit: their times would say nothing."""
    flat = [torch.cat([part.flatten() for part in gradient]) for gradient in gradients]
    if not all(torch.equal(flat[0], other) for other in flat):
        raise SystemExit("the pools' gradients differ from this process's")


def _pids(backend: RowEvaluator) -> list[int]:
    if not isinstance(backend, LauncherPool):
        return []
    return [actor["pid"] for actor in backend.stats()["actors"]]


def _wire_bytes(backend: RowEvaluator) -> int:
    """Bytes sent to and received from actors so far."""
    if not isinstance(backend, LauncherPool):
        return 0
    stats = backend.stats()
    return stats["bytes_sent"] + stats["bytes_received"]
