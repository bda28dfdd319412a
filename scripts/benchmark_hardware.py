"""Benchmark: what a training step costs beside the device, through IBM's real client.

::

    scripts/benchmark_hardware                   one device, 32 samples, 3,072 shifted rows
    scripts/benchmark_hardware --steps 10 --samples 8

A rehearsal server runs in a process of its own, without latency. A step is a forward and a
backward pass of a model of 6 qubits, 1024 shots. Printed for each sampler of IBM's client, with
and without a journal: jobs for each step, as the server counted them; and the overhead, which is
all time of the step that the server was not running its jobs, over the time that it was (the
median of the steps; the first one, which compiles, is left out). Both sides share this machine's
cores, so that other work raises it. And how long it takes to count 500 rows of measured bits.

Must hold: one job forward and one backward; an overhead under 15 %; counts within 5 ms. Exit
status 1 if it does not.
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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from qiskit.primitives import BitArray, DataBin, PrimitiveResult, SamplerPubResult

from qailab.backends import IBMBackend
from qailab.backends.ibm.results import counts_of
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.launchers import BackwardPass, CircuitProblem, ForwardPass, QuantumLauncher

_QUBITS = 6
_SHOTS = 1024
_MOST_OVERHEAD = 0.15
_MOST_COUNTING_SECONDS = 0.005
_SERVER = """
import json, sys
from qailab.rehearsal import RehearsalServer
with RehearsalServer(["lagos"], seed=1) as server:
    print(json.dumps(server.environment), flush=True)
    for line in sys.stdin:
        jobs = [(job.rows, job.run_seconds) for job in server.jobs]
        print(json.dumps(jobs), flush=True)
"""


class Server:
    """A rehearsal server in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.environment: dict[str, str] = self._read()

    def jobs(self) -> list[tuple[int, float]]:
        """Rows and seconds of each job."""
        assert self._process.stdin is not None
        print("jobs", file=self._process.stdin, flush=True)
        return [(rows, seconds) for rows, seconds in self._read()]

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _read(self):
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def measure(server: Server, backend: IBMBackend, samples: int, steps: int) -> tuple[float, float]:
    """Jobs for each step, and overhead."""
    blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=6)]
    problem = CircuitProblem(build_circuit(_QUBITS, blocks))
    chance = np.random.default_rng(0)
    inputs = chance.uniform(0, np.pi, (samples, problem.num_inputs))
    weights = chance.uniform(0, np.pi, problem.num_weights)
    grad_output = chance.normal(size=(samples, problem.num_outcomes))
    overheads, jobs = [], 0
    for step in range(steps + 1):
        before = len(server.jobs())
        began = time.perf_counter()
        QuantumLauncher(problem, ForwardPass(_SHOTS, 1), backend, step=step).run(inputs, weights)
        QuantumLauncher(problem, BackwardPass("param_shift", _SHOTS, 1), backend, step=step).run(
            inputs, weights, grad_output
        )
        seconds = time.perf_counter() - began
        new = server.jobs()[before:]
        ran = sum(seconds for _, seconds in new)
        if step > 0:
            overheads.append((seconds - ran) / ran)
            jobs += len(new)
    return jobs / steps, statistics.median(overheads)


def counting_seconds() -> float:
    """Seconds to count 500 rows of 1024 shots of 8 bits, the best of 20."""
    bits = np.random.default_rng(0).integers(0, 256, (500, 1024, 1), dtype=np.uint8)
    pub = SamplerPubResult(DataBin(meas=BitArray(bits, 8), shape=(500,)))
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        counts_of(PrimitiveResult([pub]), 8, 500, 1024)
        best = min(best, time.perf_counter() - began)
    return best


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=32, help="samples of a step (default: 32)")
    parser.add_argument("--steps", type=int, default=6, help="steps that count (default: 6)")
    options = parser.parse_args(arguments)
    server = Server()
    os.environ.update(server.environment)
    rows = options.samples * 2 * _QUBITS * 8
    print(f"{rows:,} shifted rows of {_SHOTS:,} shots, {_QUBITS} qubits, no latency")
    print(f"{'sampler':<12}{'journal':<10}{'jobs a step':>12}{'overhead':>12}")
    holds = True
    try:
        with tempfile.TemporaryDirectory() as folder:
            for sampler in ("client", "server"):
                for journal in (None, Path(folder) / f"{sampler}.sqlite"):
                    backend = IBMBackend("ibm_lagos", sampler=sampler, journal=journal)
                    jobs, overhead = measure(server, backend, options.samples, options.steps)
                    backend.close()
                    kept = "no" if journal is None else "yes"
                    print(f"{sampler:<12}{kept:<10}{jobs:>12g}{overhead:>12.1%}", flush=True)
                    holds &= jobs == 2 and overhead < _MOST_OVERHEAD
    finally:
        server.stop()
    counting = counting_seconds()
    print(f"counts of 500 rows x 1,024 shots, 8 bits: {1e3 * counting:.1f} ms")
    holds &= counting < _MOST_COUNTING_SECONDS
    print(
        f"one job forward and one backward, an overhead under {_MOST_OVERHEAD:.0%}, counts within "
        f"{1e3 * _MOST_COUNTING_SECONDS:g} ms: {'yes' if holds else 'NO'}"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
