"""Gradients: in process and on pools of actors, against raw Aer and against other libraries."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from tables import Column, Table

from benchmarks.report import Report
from benchmarks.timing import interleaved, medians, memory_mib, reset_peaks
from benchmarks.workload import Case, RawAer, Workload, small_backward
from qailab.backends import AerBackend
from qailab.distributed import LauncherPool
from qailab.launchers import RowEvaluator

IN_PROCESS = "in-process"
_MEMORY = (10, 256)  # qubits and batch: 25,600 rows
_READY_SECONDS = 120.0
_BOUND = "raw Aer"

_GRID = (
    Column("n"),
    Column("batch"),
    Column("rows", ",", 6),
    Column("where", width=10),
    Column("ms", ",.1f", 8),
    Column("raw Aer ms", ",.1f"),
    Column("/ raw Aer", ".2f"),
    Column("/ in-proc", ".2f"),
    Column("bytes/row", ",.1f"),
    Column("driver MiB", ",.0f"),
    Column("actor MiB", ",.0f"),
)
_FOOTNOTE = """\
ms: one backward pass for inputs and weights, the median of several rounds in which all take turns.
raw Aer: the bound, the same rows in the same rounds. /: median over median, lower is better. MiB:
peak resident memory, libraries and what earlier work left behind included."""


@dataclass(frozen=True)
class Place:
    """Where rows run: this process or a pool.

    Args:
        name: what the tables call it.
        backend: what a layer gets.
    """

    name: str
    backend: RowEvaluator

    def pids(self) -> list[int]:
        """The actors' process ids."""
        if not isinstance(self.backend, LauncherPool):
            return []
        return [actor["pid"] for actor in self.backend.stats()["actors"]]

    def wire_bytes(self) -> int:
        """Bytes sent to and received from actors so far."""
        if not isinstance(self.backend, LauncherPool):
            return 0
        stats = self.backend.stats()
        return stats["bytes_sent"] + stats["bytes_received"]


def open_places(actors: Sequence[int], stack: ExitStack) -> list[Place]:
    """This process, and a pool for each number of actors, all on one local Ray.

    All live at once, so that each can have its turn in every round; no actor holds a CPU, so that
    all fit.
    """
    places = [Place(IN_PROCESS, AerBackend())]
    for count in actors:
        pool = LauncherPool(
            [AerBackend()] * count,
            address="local",
            actor_options={"num_cpus": 0},
            progress=False,
        )
        stack.enter_context(pool).wait(timeout=_READY_SECONDS)
        places.append(Place(f"{count} actor{'s' * (count > 1)}", pool))
    return places


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure what the options ask for."""
    wanted = set(options.only) - (set() if options.peers else {"peers"})
    if "peers" in wanted:
        from benchmarks.peers import check_installed, measure_peers

        check_installed()
    with ExitStack() as stack:
        places = open_places(options.actors, stack)
        if "small" in wanted:
            measure_small(places, options.repetitions, options.seed, report)
        if "memory" in wanted:  # before the bound runs in this process
            title = f"Memory: {_MEMORY[0]} qubits, batch {_MEMORY[1]}"
            case = Case(*_MEMORY, options.shots, options.seed)
            _grid(report.table("memory", _GRID, title), [case], places, rounds=1, bound=False)
        if "grid" in wanted:
            cases = _cases(options, qubits=(4, 6, 8, 10, 12), batches=(1, 16, 64))
            _grid(report.table("grid", _GRID, "Gradients"), cases, places, rounds=options.rounds)
            print(_FOOTNOTE)
        if "peers" in wanted:
            cases = _cases(options, qubits=(6, 10), batches=(16,))
            measure_peers(cases, {place.name: place.backend for place in places}, report)


def _cases(
    options: argparse.Namespace, *, qubits: Sequence[int], batches: Sequence[int]
) -> list[Case]:
    return [
        Case(size, batch, options.shots, options.seed)
        for size in sorted(options.qubits or qubits)
        for batch in sorted(options.batch or batches)
    ]


def measure_small(places: Sequence[Place], repetitions: int, seed: int, report: Report) -> None:
    """Time a backward pass of 20 rows of 4 qubits, and what a pool adds to it.

    Raises:
        SystemExit: if the gradients are not the same, bit for bit.
    """
    runs = {place.name: small_backward(place.backend, seed) for place in places}
    for _ in range(5):
        gradients = [run() for run in runs.values()]
        if not all(torch.equal(gradients[0], other) for other in gradients):
            raise SystemExit("the pools' gradients differ from this process's")
    seconds = medians(interleaved(runs, repetitions))
    columns = (Column("where", width=10), Column("ms", ".2f", 7), Column("over in-process", ".2f"))
    table = report.table("small", columns, "One backward pass of 20 rows of 4 qubits, in ms")
    for name, own in seconds.items():
        table.add({
            "where": name, "ms": 1e3 * own, "over in-process": 1e3 * (own - seconds[IN_PROCESS])
        })  # fmt: skip


def _grid(
    table: Table,
    cases: Sequence[Case],
    places: Sequence[Place],
    *,
    rounds: int | None,
    bound: bool = True,
) -> None:
    for case in cases:
        for row in measure(case, places, rounds, bound=bound):
            table.add(row)


def measure(
    case: Case, places: Sequence[Place], rounds: int | None, *, bound: bool
) -> list[Mapping[str, Any]]:
    """Measure a case at every place; a row of the table for each.

    Raises:
        SystemExit: if the gradients are not the same, bit for bit.
    """
    _warm_up(case, places)
    work = Workload(case)
    runs: dict[str, Any] = {
        place.name: work.backward(work.layer(place.backend)) for place in places
    }
    peaks, gradients = {}, []
    for place in places:
        pids = place.pids()
        reset_peaks([os.getpid(), *pids])
        gradients.append(runs[place.name]())
        peaks[place.name] = (memory_mib([os.getpid()]), memory_mib(pids))
    if not all(
        torch.equal(*pair) for other in gradients for pair in zip(gradients[0], other, strict=True)
    ):
        raise SystemExit(f"{case}: the pools' gradients differ from this process's")
    raw = RawAer(work) if bound else None
    sent = {place.name: place.wire_bytes() for place in places}
    seconds = interleaved(runs | ({_BOUND: raw.run} if raw else {}), rounds)
    times = medians(seconds)
    bound_seconds = times[_BOUND] * raw.scale if raw else None
    rows = []
    for place in places:
        own, bytes_sent = times[place.name], place.wire_bytes() - sent[place.name]
        rows.append({
            "n": case.qubits,
            "batch": case.batch,
            "rows": work.rows,
            "where": place.name,
            "ms": 1e3 * own,
            "best ms": 1e3 * min(seconds[place.name]),
            "rounds": len(seconds[place.name]),
            "raw Aer ms": None if bound_seconds is None else 1e3 * bound_seconds,
            "/ raw Aer": None if bound_seconds is None else own / bound_seconds,
            "/ in-proc": own / times[IN_PROCESS],
            "bytes/row": bytes_sent / work.rows / len(seconds[place.name]) or None,
            "driver MiB": peaks[place.name][0],
            "actor MiB": peaks[place.name][1],
        })  # fmt: skip
    return rows


def _warm_up(case: Case, places: Sequence[Place]) -> None:
    """Compile the circuit everywhere, and let pools learn its speed."""
    small = Workload(replace(case, batch=min(2, case.batch)))
    for place in places:
        run = small.backward(small.layer(place.backend))
        for _ in range(3):
            run()
