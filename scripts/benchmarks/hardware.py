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
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Report
from benchmarks.timing import milliseconds
from benchmarks.workload import Case, Workload, backward_of
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
_LAYERS, _LATENCY = 4, 0.5

RunSeconds = Callable[[], list[float]]
"""Asks a server how long each of its jobs ran."""


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure steps with and without a journal, a queue and prefetching; layers side by side."""
    work = Workload(Case(_QUBITS, options.samples, options.shots, options.seed, _REPS))
    table = report.table("hardware", title="A step: forward and backward, medians")
    with _server() as seconds, tempfile.TemporaryDirectory() as folder:
        for journal in (None, Path(folder) / "jobs.sqlite"):
            with closing(IBMBackend("ibm_lagos", journal=journal)) as backend:
                jobs, ms, server_ms = _measure(seconds, work, backend, options.steps)
            table.add({
                "journal": "no" if journal is None else "yes", "rows": work.rows,
                "jobs/step": jobs, "ms/step": ms, "server ms/step": server_ms,
                "overhead": ms / server_ms - 1,
            })  # fmt: skip
    queue = options.queue_seconds
    table = report.table("queue", title=f"A step where each job waits {queue:g} s")
    with _server(queue) as seconds:
        for prefetch in (True, False):
            with closing(IBMBackend("ibm_lagos", mode="job", poll_interval=0.1)) as backend:
                jobs, ms, server_ms = _measure(seconds, work, backend, options.steps, prefetch)
            once = queue + server_ms / 1e3
            table.add({
                "prefetch": "yes" if prefetch else "no", "jobs/step": jobs, "s/step": ms / 1e3,
                "queue + run": once, "ratio": ms / 1e3 / once,
            })  # fmt: skip
    title = f"ParallelQLayers of {_LAYERS} on devices of {_LATENCY} s"
    _parallel(options, report.table("parallel", title=title))


def _parallel(options: argparse.Namespace, table: Any) -> None:
    """The time of layers side by side, each on a device of its own, over that of one."""
    work = Workload(Case(4, options.samples, options.shots, options.seed, 1))
    layers = [work.layer(EmulatedBackend(latency=_LATENCY)) for _ in range(_LAYERS)]
    runs: dict[str, Callable[[], object]] = {}
    for count in (1, _LAYERS):
        several = ParallelQLayers(layers[:count], concatenate=True)
        outputs = several(work.inputs)
        weights = [layer.weight for layer in layers[:count]]
        runs[f"forward {count}"] = lambda several=several: several(work.inputs)
        runs[f"backward {count}"] = backward_of(outputs, weights, torch.ones_like(outputs))
    ms = milliseconds(runs, options.steps, warm_up=1)
    for name in ("forward", "backward"):
        table.add({"pass": name, "over one layer": ms[f"{name} {_LAYERS}"] / ms[f"{name} 1"]})


def _measure(
    server: RunSeconds, work: Workload, backend: IBMBackend, steps: int, prefetch: bool = True
) -> tuple[float, float, float]:
    """Jobs of a step, its milliseconds, and those that the server ran its jobs."""
    layer = work.layer(backend)
    layer.prefetch = prefetch
    jobs, seconds, ran = [], [], []
    for _ in range(steps + 1):
        before = len(server())
        began = time.perf_counter()
        work.backward(layer)()
        seconds.append(time.perf_counter() - began)
        new = server()[before:]
        jobs.append(len(new))
        ran.append(sum(new))
    # The first one compiles.
    return statistics.mean(jobs[1:]), *(
        1e3 * statistics.median(each[1:]) for each in (seconds, ran)
    )


@contextmanager
def _server(queue_seconds: float = 0.0) -> Iterator[RunSeconds]:
    """A rehearsal server in a process of its own, to which this process's environment leads."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(queue_seconds)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdin is not None
        assert server.stdout is not None
        os.environ.update(json.loads(server.stdout.readline()))

        def run_seconds() -> list[float]:
            print("jobs", file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        yield run_seconds  # the server ends with its input
