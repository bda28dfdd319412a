"""Gates and random circuits that every part must take as they are."""

import numpy as np
from hypothesis import strategies as st
from qiskit.circuit import (
    AnnotatedOperation,
    ClassicalRegister,
    ControlledGate,
    ControlModifier,
    Gate,
    InverseModifier,
    Parameter,
    PowerModifier,
    QuantumCircuit,
)
from qiskit.circuit import library as lib
from qiskit.quantum_info import Pauli, SparsePauliOp, random_clifford, random_unitary
from qiskit.synthesis import LieTrotter, MatrixExponential, SuzukiTrotter

from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit

x, y, z, w = (Parameter(name) for name in "xyzw")
_XY = SparsePauliOp(["XY", "ZX"], [1.0, 0.5])
_ONE = [random_unitary(2, seed=seed).data for seed in range(4)]
_AMPLITUDES = [0.5, 0.5j, -0.5, 0.5]

STANDARD = {
    name: gate
    for name, gate in lib.get_standard_gate_name_mapping().items()
    if isinstance(gate, Gate) and gate.num_qubits
}
"""Qiskit's standard gates, with parameters of their own where they have some."""

LIBRARY = {
    "mcmt": lambda: lib.MCMTGate(lib.RXGate(0.3), 2, 1),
    "comparator": lambda: lib.IntegerComparatorGate(2, 2),
    "and": lambda: lib.AndGate(2, [1, -1]),
    "or": lambda: lib.OrGate(2),
    "xor": lambda: lib.BitwiseXorGate(3, 5),
    "linear rotations": lambda: lib.LinearPauliRotationsGate(2, 1.0, 0.1),
    "polynomial rotations": lambda: lib.PolynomialPauliRotationsGate(2, [0.1, 0.2, 0.3]),
    "amplitude function": lambda: lib.LinearAmplitudeFunctionGate(2, 1.0, 0.0, (0, 3), (0, 3)),
    "reciprocal": lambda: lib.ExactReciprocalGate(2, 0.3),
    "adder": lambda: lib.HalfAdderGate(1),
    "multiplier": lambda: lib.MultiplierGate(1),
    "qft": lambda: lib.QFTGate(3),
    "permutation": lambda: lib.PermutationGate([2, 0, 1]),
    "diagonal": lambda: lib.DiagonalGate([1, 1j, -1, -1j]),
    "pauli": lambda: lib.PauliGate("XYZ"),
    "uc": lambda: lib.UCGate(_ONE[:2]),
    "uc up to a diagonal": lambda: lib.UCGate(_ONE[:2], up_to_diagonal=True),
    "uc inverse": lambda: lib.UCGate(_ONE).inverse(),
    "ucry": lambda: lib.UCRYGate([0.1, 0.2, 0.3, 0.4]),
    "state": lambda: lib.StatePreparation(_AMPLITUDES),
    "state inverse": lambda: lib.StatePreparation(_AMPLITUDES).inverse(),
    "state label": lambda: lib.StatePreparation("+r"),
    "isometry": lambda: lib.Isometry(random_unitary(4, seed=3).data[:, :2], 0, 0),
    "unitary": lambda: lib.UnitaryGate(random_unitary(4, seed=2)),
    "hamiltonian": lambda: lib.HamiltonianGate(_XY.to_matrix(), 0.3),
    "evolution": lambda: lib.PauliEvolutionGate(_XY, 0.3, synthesis=SuzukiTrotter(2, 3)),
    "exponential": lambda: lib.PauliEvolutionGate(_XY, 0.3, synthesis=MatrixExponential()),
    "rv": lambda: lib.RVGate(0.1, 0.2, 0.3),
    "mcx": lambda: lib.MCXGate(3, ctrl_state=5),
    "mcp": lambda: lib.MCPhaseGate(0.4, 2, ctrl_state=1),
    "ms": lambda: lib.MSGate(2, 0.3),
    "oracle": lambda: lib.PhaseOracleGate("a & ~b"),
    "clifford": lambda: random_clifford(3, seed=5),
    "pauli operator": lambda: Pauli("XYZ"),
    "controlled": lambda: AnnotatedOperation(lib.SXGate(), ControlModifier(2, 1)),
    "power": lambda: AnnotatedOperation(lib.SXGate(), PowerModifier(3)),
    "root": lambda: AnnotatedOperation(lib.RXGate(0.3), PowerModifier(0.5)),
    "modifiers": lambda: AnnotatedOperation(
        lib.StatePreparation([0.6, 0.8]), [InverseModifier(), ControlModifier(1)]
    ),
}
"""Gates of Qiskit's library without parameters, most of which keep what they do to themselves."""

NAMES = tuple(sorted(LIBRARY))

PARAMETRISED = {
    "mcmt": lambda: lib.MCMTGate(lib.RXGate(x), 2, 1),
    "evolution": lambda: lib.PauliEvolutionGate(_XY, x, synthesis=LieTrotter(2)),
    "open cu": lambda: lib.CUGate(x, y, z, w, ctrl_state=0),
    "mcp": lambda: lib.MCPhaseGate(x, 2),
    "ms": lambda: lib.MSGate(2, x),
    "power": lambda: AnnotatedOperation(lib.RXGate(x), PowerModifier(2)),
    "inverse": lambda: AnnotatedOperation(lib.CUGate(x, y, z, w), InverseModifier()),
    "global phase": lambda: lib.GlobalPhaseGate(x),
}
"""Gates with parameters that are not standard gates."""


def ry_ansatz(qubits=2, reps=1, measure_qubits=None):
    """Inputs as angles of RY, weights of RealAmplitudes."""
    blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=reps)]
    return build_circuit(qubits, blocks, measure_qubits)


def around(gate, qubits=None):
    """A measured circuit in which a gate's every matrix element can be seen."""
    size = max(gate.num_qubits, 1) if qubits is None else qubits
    circuit = QuantumCircuit(size)
    for qubit in range(size):
        circuit.ry(0.3 + 0.2 * qubit, qubit)
        circuit.rz(0.5 + 0.1 * qubit, qubit)
    circuit.append(gate, range(gate.num_qubits))
    for qubit in range(size):
        circuit.rx(0.7 + 0.1 * qubit, qubit)
    circuit.measure_all()
    return circuit


@st.composite
def expressions(draw):
    """An expression of one or two parameters, finite and smooth everywhere."""
    return draw(
        st.sampled_from(
            [x, y, z, 2 * x - y, -0.5 * z + 0.3, x * y, (x + z).sin(), 1.5**y, y**2 / 2, z.exp()]
        )
    )


@st.composite
def circuits(draw, qubits=3, most=6, library=NAMES):
    """A measured circuit of standard gates, and gates of the library, of random expressions."""
    circuit = QuantumCircuit(qubits)
    circuit.h(range(qubits))
    names = [name for name, gate in STANDARD.items() if gate.num_qubits <= qubits]
    for _ in range(draw(st.integers(1, most))):
        if draw(st.integers(0, 3)) == 0:
            table = draw(st.sampled_from([LIBRARY, PARAMETRISED]))
            gate = table[draw(st.sampled_from(library if table is LIBRARY else sorted(table)))]()
            if gate.num_qubits > qubits:
                continue
        else:
            gate = STANDARD[draw(st.sampled_from(names))].to_mutable()
            if isinstance(gate, ControlledGate):
                gate.ctrl_state = draw(st.integers(0, 2**gate.num_ctrl_qubits - 1))
            if gate.params:
                value = st.one_of(expressions(), st.floats(-3, 3).map(lambda v: round(v, 3)))
                gate.params = [draw(value) for _ in gate.params]
        where = draw(st.permutations(range(qubits)))[: gate.num_qubits]
        circuit.append(gate, where)
    measured = draw(st.integers(1, qubits))
    circuit.add_register(ClassicalRegister(measured, "meas"))
    circuit.measure(range(measured), range(measured))
    return circuit


def values_of(circuit, seed=0):
    """Values for the circuit's parameters, away from anything special."""
    return np.random.default_rng(seed).uniform(0.2, 1.0, circuit.num_parameters)
