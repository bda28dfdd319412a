import io

import numpy as np
import pytest
from hypothesis import given, settings
from qiskit import qpy
from qiskit.circuit import (
    AnnotatedOperation,
    Barrier,
    ClassicalRegister,
    Gate,
    Measure,
    Parameter,
    PowerModifier,
    QuantumCircuit,
    QuantumRegister,
)
from qiskit.circuit.library import (
    LinearPauliRotationsGate,
    PauliEvolutionGate,
    QFTGate,
    RGate,
    RVGate,
    RXGate,
    RYGate,
    U2Gate,
    WeightedSumGate,
    XXPlusYYGate,
    efficient_su2,
    zz_feature_map,
)
from qiskit.quantum_info import Kraus, SparsePauliOp, Statevector
from qiskit.synthesis import MatrixExponential
from qiskit_aer import AerSimulator
from qiskit_aer.noise import depolarizing_error

from qailab.backends.aer_programs import for_ideal
from qailab.circuit import AmplitudeEncodingGate
from qailab.errors import CircuitError
from qailab.gradients import canonicalize
from qailab.gradients.instructions import FIXED_GATES, SHIFTABLE_GATES, kind_of
from tests.support import oracles
from tests.support.circuits import LIBRARY, PARAMETRISED, around, circuits, values_of, x, y, z

# The oracle's matrix of PauliEvolutionGate comes from scipy, which has opinions on sparse formats.
pytestmark = pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")


def circuit_of(*steps, qubits=3):
    circuit = QuantumCircuit(qubits)
    circuit.h(range(qubits))
    for step in steps:
        step(circuit)
    circuit.measure_all()
    return circuit


GATES = {
    "shared": lambda c: (c.rx(x, 0), c.ry(x, 1), c.rx(x, 0)),
    "affine": lambda c: c.ry(2 * x + y, 0),
    "product": lambda c: c.rx(x * y, 1),
    "sin": lambda c: c.ry(x.sin(), 2),
    "exp": lambda c: c.ry(x.exp(), 2),
    "crx": lambda c: c.crx(x, 0, 1),
    "cry": lambda c: c.cry(x + y, 2, 1),
    "crz": lambda c: (c.crz(x, 0, 1), c.h(1)),
    "cp": lambda c: (c.cp(x, 0, 1), c.h(0)),
    "p": lambda c: (c.p(x, 0), c.h(0)),
    "u": lambda c: (c.u(x, y, z, 0), c.h(0)),
    "u2": lambda c: (c.append(U2Gate(x, y), [1]), c.h(1)),
    "r": lambda c: c.append(RGate(x, y), [1]),
    "cu": lambda c: (c.cu(x, y, z, x, 0, 1), c.h(0)),
    "rxx": lambda c: (c.rz(0.3, 0), c.rxx(x, 0, 1)),
    "ryy": lambda c: c.ryy(x, 0, 1),
    "rzz": lambda c: (c.rzz(x, 0, 1), c.h([0, 1])),
    "rzx": lambda c: (c.rzx(x, 0, 1), c.h(0)),
    "mcp": lambda c: (c.mcp(x, [0, 1], 2), c.h(2)),
    "xx_plus_yy": lambda c: (c.s(0), c.append(XXPlusYYGate(x, y), [0, 1])),
    "open control": lambda c: c.append(
        RYGate(x).control(2, ctrl_state=1, annotated=False), [0, 1, 2]
    ),
    "annotated": lambda c: c.append(RXGate(x).control(1, annotated=True), [0, 2]),
    "evolution": lambda c: c.append(
        PauliEvolutionGate(SparsePauliOp(["XYZ", "ZZI"], [1, 0.5]), time=x), [0, 1, 2]
    ),
    "nested": lambda c: c.append(
        efficient_su2(3, reps=1).assign_parameters([x, y, z] * 4).to_gate(), [0, 1, 2]
    ),
    "fixed": lambda c: (c.append(QFTGate(3), [0, 1, 2]), c.ccx(0, 1, 2), c.rx(x, 0), c.swap(0, 1)),
    "feature map": lambda c: c.compose(
        zz_feature_map(3, reps=1).assign_parameters([x, y, z]), inplace=True
    ),
}


def assert_same(circuit):
    """The canonical circuit, and what was written, have the probabilities of the circuit."""
    parameters, values = list(circuit.parameters), values_of(circuit)
    canonical, angle_map = canonicalize(circuit, parameters)
    (angles,) = angle_map.values(values[None])
    expected = oracles.probabilities(circuit, parameters, values)
    measured = oracles.probabilities(canonical.circuit, canonical.angles, angles)
    np.testing.assert_allclose(measured, expected, atol=1e-12)
    assert canonical.circuit.global_phase == 0
    assert len(canonical.circuit.parameters) == canonical.num_angles
    for instruction in canonical.circuit.data:
        operation = instruction.operation
        kind = kind_of(operation)
        free = any(p in canonical.angles for p in operation.params if isinstance(p, Parameter))
        assert kind in (Barrier, Measure) or kind in (SHIFTABLE_GATES if free else FIXED_GATES)
    if canonical.written is not None:
        again, _ = canonicalize(canonical.written, list(canonical.written.parameters))
        assert again.circuit == canonical.circuit


@pytest.mark.parametrize("name", GATES)
def test_the_canonical_circuit_is_the_same_circuit(name):
    assert_same(circuit_of(GATES[name]))


@pytest.mark.parametrize("table", [LIBRARY, PARAMETRISED], ids=["fixed", "parametrised"])
def test_library_gates_are_opened_to_gates_that_can_be_seen_through(table):
    for make in table.values():
        assert_same(around(make()))


@settings(max_examples=15)
@given(circuits())
def test_any_circuit_is_the_same_circuit(circuit):
    assert_same(circuit)


def test_amplitude_encoding_survives_qpy():
    features = [Parameter(f"input{k}") for k in range(4)]
    circuit = QuantumCircuit(2)
    circuit.append(AmplitudeEncodingGate(features), [0, 1])
    circuit.measure_all()
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer)
    buffer.seek(0)
    (loaded,) = qpy.load(buffer)
    canonical, angle_map = canonicalize(loaded, list(loaded.parameters))
    values = np.array([1.0, -2.0, 0.5, 3.0])
    (angles,) = angle_map.values(values[None])
    measured = oracles.probabilities(canonical.circuit, canonical.angles, angles)
    np.testing.assert_allclose(measured, values**2 / (values**2).sum(), atol=1e-12)


def test_outcome_bits_are_the_measured_clbits_in_order():
    circuit = QuantumCircuit(QuantumRegister(2, "a"), QuantumRegister(1, "b"))
    circuit.add_register(ClassicalRegister(2, "late"), ClassicalRegister(2, "early"))
    circuit.x(2)
    circuit.measure(2, 3)
    circuit.measure(0, 1)
    canonical, _ = canonicalize(circuit, [])
    assert canonical.num_outcomes == 4
    assert oracles.probabilities(canonical.circuit, [], np.array([])).tolist() == [0, 0, 1, 0]


def test_idle_qubits_are_known_and_angles_outside_the_light_cone_count_under_noise_alone():
    circuit = QuantumCircuit(40, 1)
    circuit.rx(x, 7)
    circuit.ry(y, 30)
    circuit.measure(7, 0)
    canonical, angle_map = canonicalize(circuit, [x, y])
    assert canonical.active_qubits == (7, 30)
    assert angle_map.reached_by(np.array([True, True]), noiseless=True).tolist() == [0]
    assert angle_map.reached_by(np.array([False, True]), noiseless=True).tolist() == []
    # Routing and noise may carry them into the measured qubit.
    assert angle_map.reached_by(np.array([True, True])).tolist() == [0, 1]


def _mid_circuit(circuit):
    circuit.measure_all()
    circuit.rx(x, 0)


def _control_flow(circuit):
    circuit.add_register(ClassicalRegister(1))
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.x(0)


def _measured_twice(circuit):
    circuit.add_register(ClassicalRegister(2))
    circuit.measure(0, 0)
    circuit.measure(0, 1)


def _nested_reset(circuit):
    inner = QuantumCircuit(1, name="inner")
    inner.reset(0)
    circuit.append(inner.to_instruction(), [0])


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (_control_flow, r"instruction 1 \(if_else.*control flow"),
        (lambda c: c.reset(0), r"instruction 1 \(reset on qubits 0\)"),
        (lambda c: c.initialize([1, 0], 0), r"instruction 1 \(initialize.*StatePreparation"),
        (_nested_reset, r"instruction 1 \(inner on qubits 0\) contains 'reset', which is a reset"),
        (
            lambda c: c.append(Kraus([[[1, 0], [0, 0]], [[0, 0], [0, 1]]]).to_instruction(), [0]),
            r"kraus.*no unitary",
        ),
        (lambda c: c.append(depolarizing_error(0.1, 1).to_instruction(), [0]), r"no unitary gate"),
        (_mid_circuit, r"instruction 4 \(rx on qubits 0\).*measured"),
        (_measured_twice, r"measures qubit 0 a second time"),
        (lambda c: c.append(RVGate(x, y, z), [0]), r"instruction 1 \(rv.*x, y, z"),
        (
            lambda c: c.append(
                PauliEvolutionGate(SparsePauliOp(["X"]), x, synthesis=MatrixExponential()), [0]
            ),
            r"instruction 1 \(PauliEvolution.*\(x\) cannot be differentiated",
        ),
        (
            lambda c: c.append(AnnotatedOperation(RXGate(x), PowerModifier(0.5)), [0]),
            r"instruction 1 \(annotated.*\(x\) cannot be differentiated",
        ),
        (
            lambda c: c.append(LinearPauliRotationsGate(1, x, y), [0, 1]),
            r"instruction 1 \(LinPauliRot.*does not list \([xy]",
        ),
        (
            lambda c: c.append(WeightedSumGate(1, [1]), [0, 1]),
            r"instruction 1 \(WeightedSum.*neither a definition nor a matrix",
        ),
        (lambda c: c.delay(x, 0), r"instruction 1 \(delay.*x"),
        (lambda c: c.ry(x.sign(), 0), r"instruction 1 \(ry.*'x'"),
    ],
)
def test_what_cannot_be_differentiated_is_named(step, says):
    circuit = QuantumCircuit(2)
    circuit.h(0)
    step(circuit)
    circuit.measure_all()
    with pytest.raises(CircuitError, match=says):
        canonicalize(circuit, list(circuit.parameters))


@pytest.mark.parametrize("name", ["rzz", "p", "rx", "u", "r", "measure_it"])
def test_a_composite_may_have_any_name(name):
    inner = QuantumCircuit(2, name=name)
    inner.ry(x, 0)
    inner.cx(0, 1)
    inner.crx(y, 1, 0)
    circuit = QuantumCircuit(2)
    circuit.append(inner.to_gate() if name != "measure_it" else inner.to_instruction(), [0, 1])
    circuit.measure_all()
    assert_same(circuit)


class FakeHadamard(Gate):
    """A gate of somebody's own, with a library gate's name."""

    def __init__(self):
        super().__init__("h", 1, [])

    def _define(self):
        self.definition = QuantumCircuit(1)
        self.definition.ry(0.4, 0)


class OnlyMatrix(Gate):
    """A gate that has a matrix, and no definition."""

    def __init__(self):
        super().__init__("x", 1, [])

    def __array__(self, dtype=None, copy=None):
        return np.array([[1, 1], [1, -1]], dtype=complex) / np.sqrt(2)


@pytest.mark.parametrize("gate", [FakeHadamard(), OnlyMatrix()])
def test_gates_of_others_are_what_they_say_not_what_they_are_called(gate):
    circuit = QuantumCircuit(2)
    circuit.ry(x, 0)
    circuit.append(gate, [0])
    circuit.cx(0, 1)
    circuit.measure_all()
    canonical, angle_map = canonicalize(circuit, [x])
    native = for_ideal(canonical, AerSimulator(method="statevector"))
    (angles,) = angle_map.values(np.array([[0.7]]))
    np.testing.assert_allclose(
        oracles.probabilities(native.circuit, native.angles, angles),
        oracles.probabilities(circuit, [x], np.array([0.7])),
        atol=1e-12,
    )


def test_a_delay_after_a_measurement_is_harmless():
    circuit = QuantumCircuit(1)
    circuit.delay(100, 0)
    circuit.measure_all()
    circuit.delay(100, 0)
    assert canonicalize(circuit, [])[0].num_outcomes == 2


def test_bound_amplitudes_are_an_ordinary_gate():
    circuit = QuantumCircuit(2)
    circuit.append(AmplitudeEncodingGate([1.0, -2.0, 0.5, 3.0]), [0, 1])
    features = np.array([1.0, -2.0, 0.5, 3.0])
    state = Statevector(circuit).data
    np.testing.assert_allclose(state, features / np.linalg.norm(features), atol=1e-12)
    assert np.isfinite(Statevector(circuit.inverse()).data).all()
    circuit.measure_all()
    assert canonicalize(circuit, [])[0].num_angles == 0


def test_a_circuit_without_measurement():
    with pytest.raises(CircuitError, match="no measurement"):
        canonicalize(QuantumCircuit(1), [])
