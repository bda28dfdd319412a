"""Hardware: jobs, overhead and waiting of a training step, through IBM's real client.

A rehearsal server runs in a process of its own. The overhead is all time of a step that the server
was not running its jobs, over the time that it was. Both sides share this machine's cores, so that
other work raises it. Waiting is measured with a queue before each job, and for layers side by side
on emulated devices.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tables import Column

from benchmarks.report import Report
from benchmarks.workload import Case, Workload
from qailab.backends import EmulatedBackend, IBMBackend
from qailab.torch import ParallelQLayers

_QUBITS, _REPS = 6, 6  # 48 angles
_SERVER = """
import json, sys
from qailab.rehearsal import RehearsalServer
with RehearsalServer(["lagos"], seed=1, queue_seconds=float(sys.argv[1])) as server:
    print(json.dumps(server.environment), flush=True)
    for line in sys.stdin:
        print(json.dumps([job.run_seconds for job in server.jobs]), flush=True)
"""
_COLUMNS = (
    Column("journal", width=7), Column("rows", ",", 6), Column("jobs/step", "g"),
    Column("ms/step", ",.1f"), Column("server ms/step", ",.1f"), Column("overhead", ".1%"),
)  # fmt: skip
_QUEUE_COLUMNS = (
    Column("prefetch", width=8), Column("jobs/step", "g"), Column("s/step", ".2f"),
    Column("queue + run", ".2f"), Column("ratio", ".2f"),
)  # fmt: skip
_LAYERS, _LATENCY = 4, 0.5


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure steps with and without a journal."""
    work = Workload(Case(_QUBITS, options.samples, options.shots, options.seed, _REPS))
    table = report.table("hardware", _COLUMNS, "A step: forward and backward, medians")
    with _server() as server, tempfile.TemporaryDirectory() as folder:
        for journal in (None, Path(folder) / "jobs.sqlite"):
            with closing(IBMBackend("ibm_lagos", journal=journal)) as backend:
                row = _measure(server, work, backend, options.steps)
            table.add({"journal": "no" if journal is None else "yes"} | row)
    queue = options.queue_seconds
    waits = report.table("queue", _QUEUE_COLUMNS, f"A step where each job waits {queue:g} s")
    with _server(queue) as server:
        for prefetch in (True, False):
            with closing(IBMBackend("ibm_lagos", mode="job", poll_interval=0.1)) as backend:
                row = _measure(server, work, backend, options.steps, prefetch=prefetch)
            seconds, once = row["ms/step"] / 1e3, queue + row["server ms/step"] / 1e3
            row |= {"s/step": seconds, "queue + run": once, "ratio": seconds / once}
            waits.add({"prefetch": "yes" if prefetch else "no"} | row)
    both = report.table("parallel", (Column("pass", width=8), Column("over one layer", ".2f")),
                        f"ParallelQLayers of {_LAYERS} on devices of {_LATENCY} s")  # fmt: skip
    for name, ratio in _parallel(options).items():
        both.add({"pass": name, "over one layer": ratio})


def _parallel(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of layers side by side, each on a device of its own, over those of one."""
    work = Workload(Case(4, options.samples, options.shots, options.seed, 1))
    layers = [work.layer(EmulatedBackend(latency=_LATENCY)) for _ in range(_LAYERS)]
    seconds: dict[int, list[list[float]]] = {}
    for count in (1, _LAYERS):
        several = ParallelQLayers(layers[:count], concatenate=True)
        for step in range(options.steps + 1):
            times = [time.perf_counter()]
            outputs = several(work.inputs)
            times.append(time.perf_counter())
            outputs.square().sum().backward()
            times.append(time.perf_counter())
            if step > 0:  # the first one compiles
                seconds.setdefault(count, []).append(list(np.diff(times)))
    medians = {count: np.median(each, axis=0) for count, each in seconds.items()}
    ratios = medians[_LAYERS] / medians[1]
    return dict(zip(("forward", "backward"), map(float, ratios), strict=True))


def _measure(
    server: subprocess.Popen[str],
    work: Workload,
    backend: IBMBackend,
    steps: int,
    *,
    prefetch: bool = True,
) -> dict[str, Any]:
    layer = work.layer(backend)
    layer.prefetch = prefetch
    seconds, ran, jobs = [], [], []
    for step in range(steps + 1):
        before = len(_jobs(server))
        began = time.perf_counter()
        work.backward(layer)()
        took = time.perf_counter() - began
        new = _jobs(server)[before:]
        if step > 0:  # the first one compiles
            seconds.append(took)
            ran.append(sum(new))
            jobs.append(len(new))
    overheads = [(took - busy) / busy for took, busy in zip(seconds, ran, strict=True)]
    return {
        "rows": work.rows,
        "jobs/step": statistics.mean(jobs),
        "ms/step": 1e3 * statistics.median(seconds),
        "server ms/step": 1e3 * statistics.median(ran),
        "overhead": statistics.median(overheads),
    }


def _jobs(server: subprocess.Popen[str]) -> list[float]:
    """The seconds of each job that the server ran."""
    assert server.stdin is not None
    assert server.stdout is not None
    print("jobs", file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


@contextmanager
def _server(queue_seconds: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """A rehearsal server in a process of its own, to which this process's environment leads."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(queue_seconds)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        os.environ.update(json.loads(server.stdout.readline()))
        yield server  # it ends with its input
