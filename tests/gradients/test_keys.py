"""Keys of circuits: they name circuits in caches, pools and journals of paid results."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import qpy
from qiskit.circuit import QuantumCircuit
from qiskit.circuit import library as lib
from qiskit.quantum_info import Operator, SparsePauliOp, random_unitary
from qiskit.synthesis import SuzukiTrotter

from qailab.gradients import canonicalize
from tests.support.circuits import LIBRARY, PARAMETRISED, around, circuits, ry_ansatz, x, y, z

# Matrices of evolutions come from scipy, which has opinions on sparse formats.
pytestmark = pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")

small = st.integers(0, 2)
MAKERS = {
    lib.IntegerComparatorGate: lambda a, b, c: lib.IntegerComparatorGate(2, 1 + a, geq=b > 0),
    lib.AndGate: lambda a, b, c: lib.AndGate(2, [a - 1, 1]),
    lib.OrGate: lambda a, b, c: lib.OrGate(2, [a - 1, 1 - b]),
    lib.BitwiseXorGate: lambda a, b, c: lib.BitwiseXorGate(2, a),
    lib.LinearPauliRotationsGate: lambda a, b, c: lib.LinearPauliRotationsGate(
        2, a + 1e-7 * b, 0.1 * c
    ),
    lib.PermutationGate: lambda a, b, c: lib.PermutationGate(list(np.roll(range(3), a))),
    lib.UCGate: lambda a, b, c: lib.UCGate(
        [random_unitary(2, seed=seed).data for seed in (a, b)], up_to_diagonal=c > 1
    ),
    lib.StatePreparation: lambda a, b, c: lib.StatePreparation(a, 2, inverse=b > 0),
    lib.PauliEvolutionGate: lambda a, b, c: lib.PauliEvolutionGate(
        SparsePauliOp(["XY", "ZX"]), 0.3, synthesis=SuzukiTrotter(2 * (1 + a // 2), 1 + b)
    ),
    lib.UnitaryGate: lambda a, b, c: lib.UnitaryGate(random_unitary(4, seed=a)),
    lib.RXGate: lambda a, b, c: lib.RXGate(0.3 + 1e-12 * a),
    lib.MCXGate: lambda a, b, c: lib.MCXGate(2 + b, ctrl_state=a),
    lib.CUGate: lambda a, b, c: lib.CUGate(x, y, 0.3 + a, 0.1 * b, ctrl_state=c % 2),
}


def key_of(circuit):
    return canonicalize(circuit, list(circuit.parameters))[0].key


@settings(max_examples=100)
@given(st.sampled_from(list(MAKERS)), st.tuples(small, small, small), st.data())
def test_gates_that_differ_have_keys_that_differ_and_equal_ones_have_one(kind, first, data):
    second = data.draw(st.tuples(small, small, small))
    one, other = (MAKERS[kind](*arguments) for arguments in (first, second))
    if first == second:
        assert key_of(around(one)) == key_of(around(other))
    if not alike(one, other):
        assert key_of(around(one)) != key_of(around(other))


def alike(one, other):
    """Whether two gates have one matrix, as they are decomposed."""
    matrices = []
    for gate in (one, other):
        circuit = QuantumCircuit(gate.num_qubits)
        circuit.append(gate, range(gate.num_qubits))
        values = {p: {x: 0.3, y: 0.5}[p] for p in circuit.parameters}
        matrices.append(Operator(circuit.assign_parameters(values).decompose()).data)
    return one.num_qubits == other.num_qubits and np.array_equal(*matrices)


@pytest.mark.parametrize("table", [LIBRARY, PARAMETRISED])
def test_gates_of_the_library_have_keys_of_their_own_at_every_build(table):
    keys, again = ({name: key_of(around(table[name]())) for name in table} for _ in range(2))
    assert keys == again
    if table is LIBRARY:  # that are others by another name
        assert keys.pop("pauli operator") == keys["pauli"]
        assert keys.pop("exponential") == keys["hamiltonian"]
    assert len(set(keys.values())) == len(keys)


@settings(max_examples=8)
@given(circuits())
def test_a_copy_of_any_circuit_has_its_key(circuit):
    canonical, _ = canonicalize(circuit, list(circuit.parameters))
    assert key_of(circuit.copy()) == canonical.key
    assert pickle.loads(pickle.dumps(canonical)).key == canonical.key


def test_equal_circuits_have_equal_keys_also_after_qpy():
    circuit = around(lib.CUGate(x, y, z, x))
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer)
    buffer.seek(0)
    (loaded,) = qpy.load(buffer)
    assert key_of(loaded) == key_of(circuit)


def test_gates_that_noise_models_tell_apart_have_keys_of_their_own():
    whole, parts, labelled = QuantumCircuit(1), QuantumCircuit(1), QuantumCircuit(1)
    whole.u(x, y, z, 0)
    parts.rz(z, 0)
    parts.ry(x, 0)
    parts.rz(y, 0)
    labelled.append(lib.UGate(x, y, z, label="noisy"), [0])
    for circuit in (whole, parts, labelled):
        circuit.measure_all()
    assert len({key_of(circuit) for circuit in (whole, parts, labelled)}) == 3


def test_ordinary_circuits_keep_the_keys_they_had():
    # The hash of the circuit as Qiskit writes it: journals of old name their circuits by it.
    canonical, _ = canonicalize(circuit := ry_ansatz(), list(circuit.parameters))
    assert canonical.written is None


def test_unnamed_composites_do_not_change_the_key():
    def made():
        inner = QuantumCircuit(1)  # qiskit counts these, and names them by the count
        inner.h(0)
        circuit = QuantumCircuit(1)
        circuit.append(inner.to_gate(), [0])
        circuit.append(inner.to_instruction(), [0])
        circuit.measure_all()
        return key_of(circuit)

    assert made() == made()
