"""Observables as masks, bases and coefficients, against Qiskit's own operators."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import Pauli, PauliList, SparsePauliOp, Statevector, random_statevector

from qailab.backends.sampling import contract_bits, counts_to_bits
from qailab.errors import CircuitError, InputError, InputTypeError
from qailab.gradients import NoiseStream, Observables, PointRows, RowBatch, canonicalize


@st.composite
def operators(draw, qubits, most=30):
    """A random real operator; terms may repeat, cancel or be the identity."""
    letters = st.text(draw(st.sampled_from(["IZ", "IX", "XY", "IXYZ"])), min_size=qubits)
    labels = draw(st.lists(letters.map(lambda t: t[:qubits]), min_size=1, max_size=most))
    coefficients = st.one_of(st.integers(-3, 3), st.floats(-2, 2, allow_nan=False))
    return SparsePauliOp(labels, [draw(coefficients) for _ in labels])


def probabilities_in(observables, state, basis):
    """Of the measured bits, after the turns of a basis."""
    circuit = QuantumCircuit(observables.num_qubits)
    for (gate, qubit), angle in zip(observables.turns, observables.bases[basis], strict=True):
        getattr(circuit, gate)(angle, qubit)
    return state.evolve(circuit).probabilities(list(observables.measured_qubits))[None]


@given(st.integers(1, 5).flatmap(lambda n: st.lists(operators(n), min_size=1, max_size=3)))
def test_the_values_of_any_state(several):
    qubits = several[0].num_qubits
    observables = Observables.of(several, qubits)
    state = random_statevector(2**qubits, seed=3)
    expected = [state.expectation_value(one).real for one in several]
    cotangents = np.random.default_rng(0).normal(size=(1, len(several)))
    values, contracted = observables.constants.copy(), cotangents @ observables.constants
    for basis in range(observables.num_bases):
        table = probabilities_in(observables, state, basis)
        values += observables.of_probabilities(basis, table)[0]
        contracted += (table * observables.outcome_cotangents(basis, cotangents)).sum()
    np.testing.assert_allclose(values, expected, atol=1e-12)
    np.testing.assert_allclose(contracted, cotangents @ expected, atol=1e-12)


def test_z_is_of_each_qubit_and_needs_no_turns():
    observables = Observables.of("Z", 3)
    assert (observables.num_observables, observables.num_bases) == (3, 1)
    assert observables.turns == ()
    zero_one = Statevector.from_label("100")
    table = probabilities_in(observables, zero_one, 0)
    np.testing.assert_allclose(observables.of_probabilities(0, table), [[1, 1, -1]])


@pytest.mark.parametrize(
    ("given_", "bases", "turns"),
    [
        ("ZIX", 1, [("ry", 0)]),
        (["XXI", "ZZI", "YYI"], 3, [("rz", 1), ("ry", 1), ("rz", 2), ("ry", 2)]),
        ([Pauli("XIZ"), SparsePauliOp(["XZI", "IIZ"])], 1, [("ry", 2)]),
        (PauliList(["IIX", "IIZ"]), 2, [("ry", 0)]),
        ([SparsePauliOp(["XXX", "III"], [0.0, 2.0])], 1, []),
    ],
)
def test_bases_and_their_turns(given_, bases, turns):
    observables = Observables.of(given_, 3)
    assert (observables.num_bases, list(observables.turns)) == (bases, turns)
    assert observables.bases.shape == (bases, len(turns))


def test_terms_that_cancel_are_not_measured():
    observables = Observables.of(SparsePauliOp(["ZI", "XX", "XX"], [1.0, 0.5, -0.5]), 2)
    assert (observables.num_bases, observables.measured_qubits) == (1, (1,))


def test_wide_observables_are_small_and_parities_are_right():
    qubits, rng = 150, np.random.default_rng(1)
    labels = ["".join(rng.choice(list("IZ"), qubits)) for _ in range(40)]
    observables = Observables.of(labels, qubits)
    assert observables.masks.nbytes + observables.coefficients.nbytes < 20_000
    outcomes = [int.from_bytes(rng.bytes(19)) >> 2 for _ in range(7)]
    bits = counts_to_bits([{hex(outcome): 1 for outcome in outcomes}], observables.num_bits)
    place = {qubit: i for i, qubit in enumerate(observables.measured_qubits)}
    signs = [
        [
            (-1) ** sum(one >> place[q] & 1 for q in range(qubits) if label[-1 - q] == "Z")
            for one in outcomes
        ]
        for label in labels
    ]
    rows = PointRows(base=np.zeros((1, 1, 0)))
    values = contract_bits(observables, RowBatch(rows, 7, NoiseStream(0)), bits)
    np.testing.assert_allclose(values, [np.mean(signs, axis=1)])
    cotangents = rng.normal(size=(1, 40))
    batch = RowBatch(rows, 7, NoiseStream(0), cotangents)
    each = cotangents[0] @ np.array(signs)
    expected = [[each.mean(), each.var(ddof=1) / 7]]
    np.testing.assert_allclose(contract_bits(observables, batch, bits), expected)


def test_one_shot_has_no_variance():
    observables, rows = Observables.of("Z", 1), PointRows(base=np.zeros((1, 1, 0)))
    batch = RowBatch(rows, 1, NoiseStream(0), np.ones((1, 1)))
    found = contract_bits(observables, batch, counts_to_bits([{"0x1": 1}], 1))
    np.testing.assert_array_equal(found, [[-1.0, np.nan]])


def test_keys_tell_observables_apart_and_runs_by_what_is_measured():
    angle = Parameter("x")
    circuit = QuantumCircuit(2)
    circuit.ry(angle, 0)

    def made(observables):
        return canonicalize(circuit, [angle], Observables.of(observables, 2))[0]

    first = made("ZZ")
    assert first.key == made(["ZZ"]).key
    assert first.key == pickle.loads(pickle.dumps(first)).key
    others = [made(SparsePauliOp("ZZ", 2.0)), made("IZ"), made("ZX")]
    measured = circuit.copy()
    measured.measure_all()
    probabilities, _ = canonicalize(measured, [angle])
    assert len({first.key, probabilities.key, *(other.key for other in others)}) == 5
    assert others[0].run_key == first.run_key  # the same bits answer both
    assert len({first.run_key, probabilities.run_key, others[1].run_key, others[2].run_key}) == 4


def test_final_measurements_are_left_out_and_others_are_errors():
    circuit = QuantumCircuit(2, 3)
    circuit.h(0)
    circuit.measure([0, 1], [2, 0])
    canonical, _ = canonicalize(circuit, [], Observables.of("XI", 2))
    assert canonical.measured_qubits == (1,)
    assert dict(canonical.circuit.count_ops()) == {"h": 1, "ry": 1, "measure": 1}
    circuit.x(0)
    with pytest.raises(CircuitError, match="acts on qubit 0 after it was measured"):
        canonicalize(circuit, [], Observables.of("Z", 2))


@pytest.mark.parametrize(
    ("given_", "error", "match"),
    [
        ("ZZZ", InputError, "observable 0 is on 3 qubits, and the circuit has 2; use a circuit"),
        (["ZZ", "X"], InputError, "observable 1 is on 1 qubits, and the circuit has 2; pad"),
        (SparsePauliOp(["ZZ", "XY"], [1, 2j]), InputError, "term XY of observable 0 .* 2j"),
        (Pauli("iZZ"), InputError, "term ZZ of observable 0 has the coefficient"),
        (SparsePauliOp("ZZ", np.nan), InputError, "a finite real number"),
        (SparsePauliOp("ZZ", np.array([Parameter("c")])), InputError, "coefficient c; it must"),
        ([], InputError, "observables is empty"),
        ("", InputError, "letters I, X, Y and Z"),
        ("ZA", InputError, "letters I, X, Y and Z.*'ZA'"),
        ("-ZZ", InputError, "letters I, X, Y and Z"),
        (["ZZ", 3], InputTypeError, "observable 1 must be a Pauli label.*int"),
        (Statevector([1, 0, 0, 0]), InputTypeError, "got Statevector"),
    ],
)
def test_bad_input(given_, error, match):
    with pytest.raises(error, match=match):
        Observables.of(given_, 2)
