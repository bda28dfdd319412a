"""Hardware: jobs and overhead of a training step, through IBM's real client.

A rehearsal server runs in a process of its own, without latency. The overhead is all time of a step
that the server was not running its jobs, over the time that it was. Both sides share this machine's
cores, so that other work raises it.
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

from tables import Column

from benchmarks.report import Report
from benchmarks.workload import Case, Workload
from qailab.backends import IBMBackend

_QUBITS, _REPS = 6, 6  # 48 angles
_SERVER = """
import json, sys
from qailab.rehearsal import RehearsalServer
with RehearsalServer(["lagos"], seed=1) as server:
    print(json.dumps(server.environment), flush=True)
    for line in sys.stdin:
        print(json.dumps([job.run_seconds for job in server.jobs]), flush=True)
"""
_COLUMNS = (
    Column("journal", width=7), Column("rows", ",", 6), Column("jobs/step", "g"),
    Column("ms/step", ",.1f"), Column("server ms/step", ",.1f"), Column("overhead", ".1%"),
)  # fmt: skip


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure steps with and without a journal."""
    work = Workload(Case(_QUBITS, options.samples, options.shots, options.seed, _REPS))
    table = report.table("hardware", _COLUMNS, "A step: forward and backward, medians")
    with _server() as server, tempfile.TemporaryDirectory() as folder:
        for journal in (None, Path(folder) / "jobs.sqlite"):
            with closing(IBMBackend("ibm_lagos", journal=journal)) as backend:
                row = _measure(server, work, backend, options.steps)
            table.add({"journal": "no" if journal is None else "yes"} | row)


def _measure(
    server: subprocess.Popen[str], work: Workload, backend: IBMBackend, steps: int
) -> dict[str, Any]:
    layer = work.layer(backend)
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
def _server() -> Iterator[subprocess.Popen[str]]:
    """A rehearsal server in a process of its own, to which this process's environment leads."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        os.environ.update(json.loads(server.stdout.readline()))
        yield server  # it ends with its input
