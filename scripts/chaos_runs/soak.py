"""Many small steps, then many circuits, through one pool: nothing grows in the driver or actors.

Memory, threads and descriptors are compared half-way and at the end, when caches are full.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from qiskit import QuantumCircuit

from chaos_runs.harness import Report
from chaos_runs.processes import actors
from qailab.backends import AerBackend
from qailab.circuit import Block, RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.distributed import LauncherPool
from qailab.torch import QLayer

_STEPS = 2000
_MOST = {"memory": 24.0, "threads": 2, "files": 4}  # growth of a process from half-way on; MB


def run(report: Report, folder: Path, options: dict[str, Any]) -> None:
    """Run a trial; ``options`` are ``actors``, ``steps`` and ``circuits``."""
    steps, circuits = options["steps"] or _STEPS, options["circuits"]
    report.what = f"{steps} steps, {circuits} circuits; MB, and their growth"
    backends = [AerBackend() for _ in range(options["actors"])]
    with LauncherPool(backends, progress=False, actor_options={"num_cpus": 0.1}) as pool:
        pool.wait()
        layer = QLayer(_circuit(0), backend=pool, seed=report.seed)
        _soak(report, "steps", steps, lambda _: _step(layer))
        _soak(report, "circuits", circuits, lambda n: _step(QLayer(_circuit(n), backend=pool)))


def _circuit(number: int) -> QuantumCircuit:
    blocks: list[Block] = [RotationalEncoder("xyz"[number % 3], "input")]
    blocks += [RealAmplitudesBlock("weight", reps=1 + number // 3 % 3)]
    own = QuantumCircuit(3)
    own.rx(0.01 * (1 + number), 0)
    return build_circuit(3, blocks).compose(own, front=True)


def _step(layer: QLayer) -> None:
    layer(torch.full((2, 3), 0.3)).sum().backward()


def _soak(report: Report, what: str, times: int, step: Callable[[int], None]) -> None:
    """Take so many steps, and note what grew in their second half."""
    usage = []
    for first, last in ((0, times // 2), (times // 2, times)):
        for number in range(first, last):
            step(number)
        gc.collect()
        usage.append([_usage(each) for each in (psutil.Process(), *actors())])
    report.figures["steps"] = report.figures.get("steps", 0) + times
    half, end = usage
    for place, (before, after) in enumerate(zip(half, end, strict=True)):
        who = "actors" if place else "driver"
        grown = {name: after[name] - before[name] for name in _MOST}
        figures = {who: after["memory"], f"+{who}": grown["memory"]}
        figures |= {name: grown[name] for name in ("threads", "files")}
        for name, value in figures.items():
            report.figures[name] = round(max(value, report.figures.get(name, value)), 1)
        report.problems += [
            f"{what}: {name} of {who} grew by {value:.1f} from {before[name]:.1f}"
            for name, value in grown.items()
            if value > _MOST[name]
        ]


def _usage(process: psutil.Process) -> dict[str, float]:
    with process.oneshot():
        memory = process.memory_info().rss / 2**20
        return {"memory": memory, "threads": process.num_threads(), "files": process.num_fds()}
