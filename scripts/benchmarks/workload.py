"""What is measured: one backward pass of one circuit, as a layer and as raw Aer runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from qiskit_aer import AerSimulator
from torch import Tensor

from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.gradients import ShiftedRows
from qailab.launchers import CircuitProblem, RowEvaluator
from qailab.torch import QLayer

Backward = Callable[[], tuple[Tensor, ...]]
"""Runs a backward pass; gradients of inputs ``(B, I)`` and weights ``(W,)``."""
Places = Mapping[str, RowEvaluator]
"""Where rows run, by name: first this process, then pools."""


@dataclass(frozen=True)
class Case:
    """One size of work; ``reps`` are of the ansatz, circuits with other marks compiled anew."""

    qubits: int
    batch: int
    shots: int | None = 1024
    seed: int = 7
    reps: int = 3
    mark: int = 0


class Workload:
    """The circuit of a case (RY encoder, then RealAmplitudes) with values.

    Attributes:
        inputs: radians, shape ``(B, I)``, float64.
        weights: radians, shape ``(W,)``, float64.
        grad_output: shape ``(B, K)``, float64.
        base: the angles of the samples, radians, shape ``(B, A)``, float64.
        shifted: the rows of a backward pass: two shifts of each angle of each sample.
        rows: how many these are.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=case.reps)]
        self.circuit: QuantumCircuit = build_circuit(case.qubits, blocks)
        if case.mark:
            first = QuantumCircuit(1)
            first.rz(1e-3 * case.mark, 0)  # on |0>: it changes nothing but the circuit's key
            self.circuit.compose(first, [0], front=True, inplace=True)
        self.problem = CircuitProblem(self.circuit)
        rng = np.random.default_rng(case.seed)
        samples, outcomes = case.batch, self.problem.num_outcomes
        inputs = rng.uniform(0, np.pi, (samples, self.problem.num_inputs))
        weights = rng.uniform(0, 2 * np.pi, self.problem.num_weights)
        self.inputs, self.weights = torch.from_numpy(inputs), torch.from_numpy(weights)
        self.grad_output = torch.from_numpy(rng.normal(size=(samples, outcomes)))
        shared = np.broadcast_to(weights, (samples, len(weights)))
        self.base = self.problem.angle_map.values(np.concatenate([inputs, shared], axis=1))
        self.shifted = ShiftedRows(base=self.base, columns=np.arange(self.base.shape[1]))
        self.rows = self.shifted.num_rows

    def layer(self, backend: RowEvaluator) -> QLayer:
        """The circuit as a layer on a backend, with this workload's weights."""
        case = self.case
        layer = QLayer(self.circuit, backend=backend, shots=case.shots, seed=case.seed).double()
        with torch.no_grad():
            layer.weight.copy_(self.weights)
        return layer

    def backward(self, layer: QLayer) -> Backward:
        """Run the forward pass now; the function that is returned runs the backward pass."""
        inputs = self.inputs.clone().requires_grad_()
        return backward_of(layer(inputs), [inputs, layer.weight], self.grad_output)


def backward_of(outputs: Tensor, wanted: list[Tensor], grad_output: Tensor) -> Backward:
    """A function that runs the backward pass of a forward pass, as often as it is called."""
    cotangents = grad_output.to(outputs.dtype)
    return lambda: torch.autograd.grad(outputs, wanted, cotangents, retain_graph=True)


def raw_aer(work: Workload) -> Callable[[], NDArray[np.int64]]:
    """The bound: the rows of a backward pass on Aer and nothing around it.

    One circuit with ``save_probabilities`` and all bindings at once, ``shots=1``, one thread; the
    probabilities put into one array; all shots drawn by one call of numpy's multinomial.
    """
    canonical = work.problem.canonical
    circuit = canonical.circuit.remove_final_measurements(inplace=False)
    circuit.save_probabilities(list(canonical.measured_qubits))
    simulator = AerSimulator(
        method="statevector", max_parallel_threads=1, runtime_parameter_bind_enable=True
    )
    columns = np.ascontiguousarray(work.shifted.angles().T)
    binds = [dict(zip(canonical.angles, columns, strict=True))]
    rng = np.random.default_rng(work.case.seed)

    def run() -> NDArray[np.int64]:
        result = simulator.run([circuit], parameter_binds=binds, shots=1).result()
        table = np.array([experiment.data.probabilities for experiment in result.results])
        return rng.multinomial(work.case.shots, table)

    return run
