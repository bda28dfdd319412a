"""Independent answers to compare with: statevectors, plain Aer, high-order differences."""

from collections.abc import Callable, Sequence

import numpy as np
from qiskit import transpile
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.circuit.library import UnitaryGate
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel

# Central differences of order 8: with steps of 0.02 the error is about 1e-13 for angles of order
# one, far below the 1e-9 that is asked for.
_OFFSETS = np.array([1, 2, 3, 4])
_WEIGHTS = np.array([4 / 5, -1 / 5, 4 / 105, -1 / 280])
_STEP = 0.02


def probabilities(
    circuit: QuantumCircuit, parameters: Sequence[Parameter], values: np.ndarray
) -> np.ndarray:
    """Outcome probabilities of a measured circuit, by Qiskit's own statevector."""
    return outcomes_of(circuit, parameters)(values)


def outcomes_of(
    circuit: QuantumCircuit, parameters: Sequence[Parameter]
) -> Callable[[np.ndarray], np.ndarray]:
    """`probabilities` of a circuit at many points."""
    unitary, measured = without_measurements(circuit)

    def outcomes(values: np.ndarray) -> np.ndarray:
        bound = unitary.assign_parameters(dict(zip(parameters, values, strict=True)), strict=False)
        return Statevector(bound).probabilities(measured)

    return outcomes


def without_measurements(circuit: QuantumCircuit) -> tuple[QuantumCircuit, list[int]]:
    """A circuit's gates, and the qubit of each measured clbit in order."""
    unitary, qubit_of = QuantumCircuit(*circuit.qregs), {}
    for instruction in circuit.data:
        if instruction.operation.name == "measure":
            clbit = circuit.find_bit(instruction.clbits[0]).index
            qubit_of[clbit] = circuit.find_bit(instruction.qubits[0]).index
        else:
            unitary.append(instruction.operation, instruction.qubits)
    return unitary, [qubit_of[clbit] for clbit in sorted(qubit_of)]


def expectations_of(
    circuit: QuantumCircuit,
    parameters: Sequence[Parameter],
    observables: Sequence[str | SparsePauliOp],
) -> Callable[[np.ndarray], np.ndarray]:
    """Values of observables after a circuit, whose final measurements are left out."""
    unitary, _ = without_measurements(circuit)
    operators = [SparsePauliOp(one) for one in observables]

    def values_at(values: np.ndarray) -> np.ndarray:
        bound = unitary.assign_parameters(dict(zip(parameters, values, strict=True)), strict=False)
        state = Statevector(bound)
        return np.array([state.expectation_value(one).real for one in operators])

    return values_at


def noisy_probabilities(
    circuit: QuantumCircuit,
    parameters: Sequence[Parameter],
    values: np.ndarray,
    noise_model: NoiseModel,
) -> np.ndarray:
    """Outcome probabilities under a noise model without readout errors, as plain Aer has them.

    All qubits are measured, in order. Gates that Aer's density matrix does not know stay as they
    are: a matrix of the gate's name.
    """
    bound = circuit.assign_parameters(dict(zip(parameters, values, strict=True)))
    simulator = AerSimulator(noise_model=noise_model)
    compiled = transpile(bound, simulator, optimization_level=0)
    simulator = AerSimulator(method="density_matrix")
    known = simulator.configuration().basis_gates
    runnable = QuantumCircuit(*compiled.qregs)
    for instruction in compiled.data:
        gate = instruction.operation
        if gate.name not in ("measure", "barrier"):
            if gate.name not in known:
                gate = UnitaryGate(gate.to_matrix(), label=gate.label or gate.name)
            runnable.append(gate, instruction.qubits)
    runnable.save_probabilities()
    result = simulator.run(runnable, noise_model=noise_model, shots=1).result()
    return np.asarray(result.data()["probabilities"])


def vjp(
    circuit: QuantumCircuit,
    parameters: Sequence[Parameter],
    values: np.ndarray,
    vector: np.ndarray,
) -> np.ndarray:
    """``d (vector . probabilities) / d values``, by differences of order 8."""
    points, weights = difference_points(values)
    outcomes = outcomes_of(circuit, parameters)
    found = [outcomes(point) @ vector for point in points]
    return weights @ np.array(found)


def difference_points(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points, and weights ``(V, points)`` of a function's values there that give its slopes."""
    size = len(values)
    steps = np.concatenate([_OFFSETS, -_OFFSETS]) * _STEP
    points = values + np.einsum("s,ij->isj", steps, np.eye(size)).reshape(size * len(steps), size)
    weights = np.concatenate([_WEIGHTS, -_WEIGHTS]) / _STEP
    return points, np.kron(np.eye(size), weights)
