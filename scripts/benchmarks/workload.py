"""What is measured: one backward pass of one circuit, as a layer and as raw Aer runs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from qiskit_aer import AerSimulator
from torch import Tensor

from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.gradients.rows import ShiftedRows
from qailab.launchers import CircuitProblem, RowEvaluator
from qailab.torch import QLayer

REPETITIONS = 3
"""Of the ansatz: with the encoder, five angles for each qubit (30 at n=6)."""


@dataclass(frozen=True)
class Case:
    """One size of work.

    Args:
        qubits: qubits of the circuit, n.
        batch: samples, B.
        shots: shots for each row.
        seed: seed of the values and of the shot noise.
        for_inputs: whether the gradient for the inputs is wanted besides that for the weights.
    """

    qubits: int
    batch: int
    shots: int = 1024
    seed: int = 7
    for_inputs: bool = True

    @property
    def name(self) -> str:
        """The size in short."""
        return f"n={self.qubits} B={self.batch}"


@dataclass(frozen=True)
class Gradients:
    """What a backward pass gave.

    Args:
        inputs: shape ``(B, I)``, None if it was not asked for.
        weights: shape ``(W,)``.
    """

    inputs: Tensor | None
    weights: Tensor


class Workload:
    """The circuit of a case with values for its inputs, its weights and ``grad_output``.

    Args:
        case: the size.

    Attributes:
        circuit: RY encoder, then RealAmplitudes; all qubits measured.
        inputs: radians, shape ``(B, I)``, float64.
        weights: radians, shape ``(W,)``, float64.
        grad_output: shape ``(B, K)``, float64.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.circuit: QuantumCircuit = build_circuit(
            case.qubits,
            [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=REPETITIONS)],
        )
        self.problem = CircuitProblem(self.circuit)
        rng = np.random.default_rng(case.seed)
        self.inputs = torch.from_numpy(
            rng.uniform(0, np.pi, size=(case.batch, self.problem.num_inputs))
        )
        self.weights = torch.from_numpy(rng.uniform(0, 2 * np.pi, size=self.problem.num_weights))
        self.grad_output = torch.from_numpy(
            rng.normal(size=(case.batch, self.problem.num_outcomes))
        )

    def layer(self, backend: RowEvaluator) -> QLayer:
        """The circuit as a layer on a backend, with this workload's weights."""
        layer = QLayer(
            self.circuit, backend=backend, shots=self.case.shots, seed=self.case.seed
        ).double()
        with torch.no_grad():
            layer.weight.copy_(self.weights)
        return layer

    def backward(self, layer: QLayer) -> Callable[[], Gradients]:
        """Run the forward pass now; the function that is returned runs the backward pass."""
        inputs = self.inputs.clone().requires_grad_(self.case.for_inputs)
        return backward_of(layer(inputs), inputs, layer.weight, self.grad_output)

    def shifted_rows(self) -> ShiftedRows:
        """The rows of the backward pass, all angles shifted, 2AB of them."""
        shared = self.weights.numpy()[None, :].repeat(self.case.batch, axis=0)
        parameters = np.concatenate([self.inputs.numpy(), shared], axis=1)
        wanted = np.ones(parameters.shape[1], dtype=bool)
        wanted[: self.problem.num_inputs] = self.case.for_inputs
        angle_map = self.problem.angle_map
        return ShiftedRows(base=angle_map.values(parameters), columns=angle_map.reached_by(wanted))


def backward_of(
    outputs: Tensor, inputs: Tensor, weights: Tensor, grad_output: Tensor
) -> Callable[[], Gradients]:
    """A function that runs the backward pass of a forward pass, as often as it is called."""
    wanted = [inputs, weights] if inputs.requires_grad else [weights]
    vectors = grad_output.to(outputs.dtype)

    def run() -> Gradients:
        gradients = torch.autograd.grad(outputs, wanted, vectors, retain_graph=True)
        return Gradients(gradients[0] if len(gradients) == 2 else None, gradients[-1])

    return run


class RawAer:
    """The bound: the same rows on Aer and nothing around it.

    One circuit with ``save_probabilities`` and all bindings at once, ``shots=1``, one thread; the
    probabilities put into one array; all shots drawn by one call of numpy's multinomial.

    Args:
        work: whose rows to run.
        most_seconds: if all rows would take longer, a stretch of them is run instead.

    Attributes:
        total_rows: rows of the whole backward pass.
        rows: how many of them are run.
    """

    def __init__(self, work: Workload, most_seconds: float) -> None:
        canonical = work.problem.canonical
        self._parameters = canonical.angles
        self._circuit = canonical.circuit.remove_final_measurements(inplace=False)
        self._circuit.save_probabilities(list(canonical.measured_qubits))
        self._simulator = AerSimulator(
            method="statevector", max_parallel_threads=1, runtime_parameter_bind_enable=True
        )
        self._shots = work.case.shots
        self._rng = np.random.default_rng(work.case.seed)
        self._angles = work.shifted_rows().angles()
        self.total_rows = len(self._angles)
        self.rows = min(self.total_rows, 32)
        self._run()  # what Aer does once
        self.rows = min(self.total_rows, max(32, int(most_seconds / self._seconds_per_row())))

    @property
    def scaled(self) -> bool:
        """Whether only a stretch of the rows is run, and its time scaled to all of them."""
        return self.rows < self.total_rows

    def seconds(self) -> float:
        """Run the rows once; the time that all rows take."""
        return self._seconds_per_row() * self.total_rows

    def _seconds_per_row(self) -> float:
        began = time.perf_counter()
        self._run()
        return (time.perf_counter() - began) / self.rows

    def _run(self) -> NDArray[np.int64]:
        columns = np.ascontiguousarray(self._angles[: self.rows].T)
        binds = [dict(zip(self._parameters, columns, strict=True))]
        result = self._simulator.run([self._circuit], parameter_binds=binds, shots=1).result()
        table = np.array([experiment.data.probabilities for experiment in result.results])
        return self._rng.multinomial(self._shots, table)
