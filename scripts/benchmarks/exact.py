"""In this process, without a pool: every backend, and PennyLane's fastest exact methods.

The bound is the kernels alone: the statevector backend's answers to the same rows, without layer,
plan and chain rule.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import pennylane
from benchmarks.report import Report
from benchmarks.timing import milliseconds
from benchmarks.workload import Backward, Case, Workload
from qailab.backends import AerBackend, Backend, StatevectorBackend
from qailab.gradients import NoiseStream, PointRows, RowBatch, SlopeRows

_AER, _OURS, _KERNELS = "Aer", "statevector", "kernels"
_BACKPROP, _ADJOINT = "PennyLane backprop", "lightning adjoint <Z>"
_AGREE = 1e-9
_FOOTNOTE = """\
ms, medians of rounds in which all take turns, one thread. kernels: the same rows without a layer.
x the faster: how many times as fast as the faster of PennyLane's two (0.45, default.qubit with
backpropagation through the batch; lightning.qubit with adjoint, for <Z> of each qubit)."""


def measure_exact(cases: Iterable[Case], report: Report, rounds: int | None) -> None:
    """Time a backward pass with shots, and a forward and a backward pass without.

    Raises:
        SystemExit: if exact gradients differ by more than 1e-9.
    """
    torch.set_num_threads(1)
    backends, cases = {_AER: AerBackend(), _OURS: StatevectorBackend()}, list(cases)
    table = report.table("backends", title="A backward pass with shots, in process")
    for case in cases:
        work = Workload(case)
        runs = {name: work.backward(work.layer(each)) for name, each in backends.items()}
        ms = milliseconds(runs, rounds)
        table.add({"n": case.qubits, "batch": case.batch, **ms, "/ Aer": ms[_OURS] / ms[_AER]})

    table = report.table("exact", title="Exact: a forward and a backward pass, in process")
    for case in cases:
        work = Workload(replace(case, shots=None))
        steps = {name: _step(work, each) for name, each in backends.items()}
        steps[_BACKPROP] = _peer(pennylane(work, "default.qubit", "backprop"), work)
        gradients = [torch.cat([part.flatten() for part in step()]) for step in steps.values()]
        if max(float((one - gradients[0]).abs().max()) for one in gradients) > _AGREE:
            raise SystemExit(f"exact gradients differ by more than {_AGREE:g}")
        of_z = pennylane(work, "lightning.qubit", "adjoint", of_z=True)
        kernels = _kernels(work, backends[_OURS])
        runs = {**steps, _KERNELS: kernels, _ADJOINT: _peer(of_z, work)}
        ms = milliseconds(runs, rounds)
        faster = min(ms[_BACKPROP], ms[_ADJOINT]) / ms[_OURS]
        table.add({"n": case.qubits, "batch": case.batch, **ms, "x the faster": faster})
    print(_FOOTNOTE)


def _step(work: Workload, backend: Backend) -> Backward:
    layer = work.layer(backend)
    return lambda: work.backward(layer)()


def _peer(circuit: Callable[[Tensor, Tensor], Tensor], work: Workload) -> Backward:
    """A forward and a backward pass through a function of inputs and weights."""

    def step() -> tuple[Tensor, ...]:
        inputs, weights = (each.clone().requires_grad_() for each in (work.inputs, work.weights))
        outputs = circuit(inputs, weights)
        cotangents = work.grad_output[:, : outputs.shape[1]]
        return torch.autograd.grad(outputs, [inputs, weights], cotangents)

    return step


def _kernels(work: Workload, backend: Backend) -> Callable[[], object]:
    """The forward rows and the slopes, answered by the backend alone."""
    base, circuit = work.base, work.problem.canonical
    noise, stop = NoiseStream(work.case.seed), threading.Event()
    forward = RowBatch(PointRows(base=base[:, None, :]), None, noise)
    slopes = SlopeRows(base=base, columns=np.arange(base.shape[1]))
    backward = RowBatch(slopes, None, noise, work.grad_output.numpy())

    def run() -> None:
        for batch in (forward, backward):
            backend.answers(circuit, batch, stop)

    return run
