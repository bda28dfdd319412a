"""In this process, without a pool: every backend, and PennyLane's fastest exact methods.

The bound is the kernels alone: the statevector backend's answers to the same rows, without layer,
plan and chain rule.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from tables import Column

from benchmarks.peers import apply_gates
from benchmarks.report import Report
from benchmarks.timing import interleaved, medians
from benchmarks.workload import Backward, Case, Workload
from qailab.backends import AerBackend, Backend, StatevectorBackend
from qailab.gradients import NoiseStream, PointRows, RowBatch, SlopeRows

_AER, _OURS, _KERNELS = "Aer", "statevector", "kernels"
_BACKPROP, _ADJOINT = "PennyLane backprop", "lightning adjoint <Z>"
_AGREE = 1e-9
_SHOTS = (
    Column("n"), Column("batch"), Column(_AER, ",.2f", 8), Column(_OURS, ",.2f", 11),
    Column("/ Aer", ".3f"),
)  # fmt: skip
_EXACT = (
    *_SHOTS[:4], Column(_KERNELS, ",.3f", 8), Column(_BACKPROP, ",.2f"),
    Column(_ADJOINT, ",.2f"), Column("x the faster", ".1f"),
)  # fmt: skip
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
    table = report.table("backends", _SHOTS, "A backward pass with shots, in process")
    for case in cases:
        work = Workload(case)
        runs = {name: work.backward(work.layer(each)) for name, each in backends.items()}
        ms = _timed(runs, rounds)
        table.add({"n": case.qubits, "batch": case.batch, **ms, "/ Aer": ms[_OURS] / ms[_AER]})

    table = report.table("exact", _EXACT, "Exact: a forward and a backward pass, in process")
    for case in cases:
        work = Workload(replace(case, shots=None))
        steps = {name: _step(work, each) for name, each in backends.items()}
        steps[_BACKPROP] = _backprop(work)
        _check_agree(*(step() for step in steps.values()))
        others = {_ADJOINT: _adjoint(work), _KERNELS: _kernels(work, backends[_OURS])}
        ms = _timed({**steps, **others}, rounds)
        faster = min(ms[_BACKPROP], ms[_ADJOINT]) / ms[_OURS]
        table.add({"n": case.qubits, "batch": case.batch, **ms, "x the faster": faster})
    print(_FOOTNOTE)


def _timed(runs: Mapping[str, Callable[[], object]], rounds: int | None) -> dict[str, float]:
    """Milliseconds of each."""
    for run in runs.values():
        for _ in range(2):  # compiles
            run()
    return {name: 1e3 * own for name, own in medians(interleaved(dict(runs), rounds)).items()}


def _check_agree(*gradients: tuple[torch.Tensor, ...]) -> None:
    flat = [torch.cat([part.flatten() for part in gradient]) for gradient in gradients]
    if max(float((one - flat[0]).abs().max()) for one in flat) > _AGREE:
        raise SystemExit(f"exact gradients differ by more than {_AGREE:g}")


def _step(work: Workload, backend: Backend) -> Backward:
    layer = work.layer(backend)
    return lambda: work.backward(layer)()


def _kernels(work: Workload, backend: Backend) -> Callable[[], object]:
    """The forward rows and the slopes, answered by the backend alone."""
    shared = work.weights.numpy()[None, :].repeat(work.case.batch, axis=0)
    base = work.problem.angle_map.values(np.concatenate([work.inputs.numpy(), shared], axis=1))
    noise, stop, circuit = NoiseStream(work.case.seed), threading.Event(), work.problem.canonical
    forward = RowBatch(PointRows(base=base[:, None, :]), None, noise)
    slopes = SlopeRows(base=base, columns=np.arange(base.shape[1]))
    backward = RowBatch(slopes, None, noise, work.grad_output.numpy())

    def run() -> None:
        for batch in (forward, backward):
            backend.answers(circuit, batch, stop)

    return run


def _backprop(work: Workload) -> Backward:
    import pennylane as qml

    wires = list(reversed(range(work.case.qubits)))

    @qml.qnode(
        qml.device("default.qubit", wires=work.case.qubits),
        interface="torch",
        diff_method="backprop",
    )
    def circuit(features: torch.Tensor, weights: torch.Tensor) -> qml.measurements.ProbabilityMP:
        apply_gates(work, features.T, weights)  # PennyLane broadcasts the batch
        return qml.probs(wires=wires)

    def step() -> tuple[torch.Tensor, ...]:
        inputs, weights = (each.clone().requires_grad_() for each in (work.inputs, work.weights))
        outputs = circuit(inputs, weights).reshape(work.grad_output.shape)
        return torch.autograd.grad(outputs, [inputs, weights], work.grad_output)

    return step


def _adjoint(work: Workload) -> Backward:
    import pennylane as qml

    qubits = work.case.qubits

    @qml.qnode(
        qml.device("lightning.qubit", wires=qubits), interface="torch", diff_method="adjoint"
    )
    def circuit(
        features: torch.Tensor, weights: torch.Tensor
    ) -> list[qml.measurements.ExpectationMP]:
        apply_gates(work, features, weights)
        return [qml.expval(qml.PauliZ(wire)) for wire in range(qubits)]

    cotangents = work.grad_output[:, :qubits]

    def step() -> tuple[torch.Tensor, ...]:
        inputs, weights = (each.clone().requires_grad_() for each in (work.inputs, work.weights))
        outputs = torch.stack([torch.stack(circuit(each, weights)) for each in inputs])
        return torch.autograd.grad(outputs, [inputs, weights], cotangents)

    return step
