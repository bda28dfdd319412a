import os
import sys
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.circuit import ClassicalRegister, Parameter, QuantumCircuit
from qiskit.circuit import library as lib
from qiskit.quantum_info import random_unitary

from qailab.backends import StatevectorBackend
from qailab.backends.answers import contract
from qailab.backends.statevector import backend
from qailab.backends.statevector.program import Kind, compile_program
from qailab.errors import BackendBuildError, BackendError, InputError, MemoryLimitError
from qailab.gradients import (
    ParamShiftPlan,
    PointRows,
    RowBatch,
    ShiftedRows,
    ShiftRule,
    SlopeRows,
    canonicalize,
)
from tests.support import oracles
from tests.support.circuits import (
    LIBRARY,
    NAMES,
    PARAMETRISED,
    STANDARD,
    around,
    circuits,
    values_of,
)
from tests.support.contracts import BackendContract, answers, backward_batch, forward_batch, model

# The oracle's matrix of PauliEvolutionGate comes from scipy, which has opinions on sparse formats.
SPARSE = pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")
BACKEND = StatevectorBackend()


class TestContract(BackendContract):
    def backend(self):
        return StatevectorBackend()


class TestThreads(BackendContract):
    parts = 5

    def backend(self):
        return StatevectorBackend(threads=3)


def slope_batch(batch):
    rows = SlopeRows(base=batch.rows.base, columns=batch.rows.columns)
    return RowBatch(rows, None, batch.noise, batch.cotangents)


def exact_batches(circuit, values):
    """Canonical circuit and angle map, and the exact shifted rows and slopes of one sample."""
    canonical, angle_map = canonicalize(circuit, list(circuit.parameters))
    shifted = backward_batch(canonical, angle_map, np.array([values]), None)
    return canonical, angle_map, shifted, slope_batch(shifted)


def gradient(angle_map, values, slopes):
    wanted = np.ones(len(values), dtype=bool)
    plan = ParamShiftPlan.of(angle_map, np.array([values]), wanted)
    table = np.zeros((1, plan.shifted.base.shape[1]))
    table[:, plan.shifted.columns] = slopes
    return angle_map.vjp(plan.parameters, table, wanted, plan.shifted.columns)[0]


def check(circuit, values):
    """Probabilities, slopes and shift rule against Qiskit's statevector."""
    canonical, angle_map, shifted, slopes = exact_batches(circuit, values)
    found = answers(BACKEND, canonical, forward_batch(angle_map, np.array([values]), None))[0]
    expected = oracles.probabilities(circuit, circuit.parameters, values)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    if not len(values):
        return
    by_rule = answers(BACKEND, canonical, shifted)[:, 0].reshape(-1, 2) @ [0.5, -0.5]
    by_sweep = answers(BACKEND, canonical, slopes)
    np.testing.assert_allclose(by_sweep[:, 0], by_rule, atol=1e-10)
    assert (by_sweep[:, 1] == 0).all()
    expected = oracles.vjp(circuit, circuit.parameters, values, shifted.cotangents[0])
    np.testing.assert_allclose(gradient(angle_map, values, by_sweep[:, 0]), expected, atol=1e-9)


@pytest.mark.parametrize("name", sorted(STANDARD))
def test_standard_gates(name):
    circuit = around(STANDARD[name])
    check(circuit, values_of(circuit))


@SPARSE
@pytest.mark.parametrize("name", NAMES)
def test_gates_of_the_library(name):
    check(around(LIBRARY[name]()), [])


@SPARSE
@pytest.mark.parametrize("name", sorted({*PARAMETRISED} - {"global phase"}))  # on no qubit
def test_other_gates_with_parameters(name):
    circuit = around(PARAMETRISED[name]())
    check(circuit, values_of(circuit))


@SPARSE
@settings(max_examples=25)
@given(circuits(qubits=4, most=8))
def test_random_circuits(circuit):
    check(circuit, values_of(circuit))


ROTATIONS = (lib.RYGate, lib.RXGate, lib.RZGate, lib.PhaseGate, lib.RXXGate, lib.RYYGate,
             lib.RZZGate, lib.RZXGate)  # fmt: skip
FIXED = (
    lib.HGate(), lib.SGate(), lib.SXGate(), lib.YGate(), lib.CXGate(), lib.CXGate(ctrl_state=0),
    lib.CZGate(), lib.CYGate(), lib.SwapGate(), lib.iSwapGate(), lib.CSGate(), lib.CCXGate(),
    lib.CCZGate(), lib.ECRGate(), lib.CHGate(), lib.MCXGate(4, ctrl_state=5), lib.DCXGate(),
    lib.MCPhaseGate(0.3, 3), lib.UnitaryGate(random_unitary(8, seed=1)),
    lib.DiagonalGate(np.exp(1j * np.arange(8))),
)  # fmt: skip


@settings(max_examples=25)
@given(st.data())
def test_wide_circuits_on_all_strides(data):
    """Low and high qubits go different ways; so do real circuits and complex ones."""
    qubits = data.draw(st.integers(5, 7))
    circuit = QuantumCircuit(qubits)
    real = data.draw(st.booleans())
    rotations = ROTATIONS[:1] if real else ROTATIONS
    fixed = [FIXED[i] for i in (0, 4, 5, 6, 8, 11, 12, 14)] if real else FIXED
    for i in range(data.draw(st.integers(4, 25))):
        turn = data.draw(st.booleans())
        gate = data.draw(st.sampled_from(rotations if turn else fixed))
        gate = gate(Parameter(f"p{i}")) if turn else gate
        circuit.append(gate, data.draw(st.permutations(range(qubits)))[: gate.num_qubits])
    order = data.draw(st.permutations(range(qubits)))[: data.draw(st.integers(1, qubits))]
    circuit.add_register(ClassicalRegister(len(order), "meas"))
    circuit.measure(order, range(len(order)))
    values = np.random.default_rng(0).uniform(-3, 3, circuit.num_parameters)
    check(circuit, values)
    if real:
        canonical, _ = canonicalize(circuit, list(circuit.parameters))
        assert compile_program(canonical).is_real


def test_idle_qubits_cost_nothing():
    circuit = QuantumCircuit(40)
    circuit.ry(Parameter("a"), 30)
    circuit.cx(30, 2)
    circuit.barrier()
    circuit.add_register(ClassicalRegister(1, "meas"))
    circuit.measure(2, 0)
    canonical, angle_map = canonicalize(circuit, list(circuit.parameters))
    found = answers(BACKEND, canonical, forward_batch(angle_map, np.array([[1.0]]), None))
    np.testing.assert_allclose(found, [[np.cos(0.5) ** 2, np.sin(0.5) ** 2]], atol=1e-15)


def test_what_is_fused():
    circuit = QuantumCircuit(4)
    a, b = Parameter("a"), Parameter("b")
    circuit.h(0)
    circuit.h(0)
    circuit.ry(a, 1)
    circuit.ry(b, 1)
    circuit.cx(0, 1)
    circuit.cx(2, 3)
    circuit.swap(1, 2)
    circuit.measure_all()
    program = compile_program(canonicalize(circuit, [a, b])[0])
    assert [Kind(word[0]) for word in program.operations] == [Kind.RY, Kind.PERMUTATION]
    assert program.slot_columns.tolist() == [0, 1]
    assert len(program.slot_operations) == 1


def test_kernels_know_the_same_operations():
    from qailab.backends.statevector import kernels, program

    for kind in Kind:
        assert getattr(kernels, f"_{kind.name}") == kind
    assert kernels._WORDS == program.WORDS


def test_another_shift_rule():
    _, canonical, angle_map, values = model()
    batch = backward_batch(canonical, angle_map, values, None)
    s = 0.7
    rule = ShiftRule((0.5 / np.sin(s), -0.5 / np.sin(s)), (s, -s))
    rows = ShiftedRows(base=batch.rows.base, columns=batch.rows.columns[1::2], rule=rule)
    found = answers(BACKEND, canonical, RowBatch(rows, None, batch.noise, batch.cotangents))
    points = PointRows(base=rows.angles().reshape(len(values), rows.rows_per_sample, -1))
    direct = answers(BACKEND, canonical, RowBatch(points, None, batch.noise, batch.cotangents))
    np.testing.assert_allclose(found, direct, atol=1e-14)


@pytest.mark.parametrize("shots", [None, 7, 4000])
@pytest.mark.parametrize("measured", [None, [4, 1]])
def test_answers_are_the_contracted_probabilities(shots, measured):
    _, canonical, angle_map, values = model(5, 2, measured)
    batch = backward_batch(canonical, angle_map, values, shots)
    stop = threading.Event()
    table = contract(BACKEND.probabilities(canonical, batch, stop), batch)
    np.testing.assert_allclose(answers(BACKEND, canonical, batch), table, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shots", [None, 50, 3000])
def test_the_same_bits_in_any_company(shots, monkeypatch):
    from qailab.backends.statevector import work

    _, canonical, angle_map, values = model(5, 2)
    batch = backward_batch(canonical, angle_map, values, shots)
    whole = answers(BACKEND, canonical, batch)
    slopes = answers(BACKEND, canonical, slope_batch(batch))
    alone = angle_map.values(values[2:])
    later = ShiftedRows.numbered(2, alone, columns=batch.rows.columns)
    other = RowBatch(later, shots, batch.noise, batch.cotangents[2:])
    np.testing.assert_array_equal(
        answers(BACKEND, canonical, other), whole[2 * later.rows_per_sample :]
    )
    for threads, table_bytes in ((1, 1), (1, 3000), (2, 1000), (3, 1 << 20)):
        monkeypatch.setattr(work, "_TABLE_BYTES", table_bytes)
        monkeypatch.setattr(work, "_PIECE_FLOATS", table_bytes)
        backend = StatevectorBackend(threads=threads)
        np.testing.assert_array_equal(answers(backend, canonical, batch), whole)
        found = answers(backend, canonical, slope_batch(batch))
        np.testing.assert_array_equal(found, slopes)
        backend.close()


def test_arrays_from_a_store_are_read_only():
    _, canonical, angle_map, values = model()
    batch = backward_batch(canonical, angle_map, values, 100)
    expected = answers(BACKEND, canonical, batch)
    batch.rows.base.flags.writeable = False
    batch.cotangents.flags.writeable = False
    np.testing.assert_array_equal(answers(BACKEND, canonical, batch), expected)
    answers(BACKEND, canonical, slope_batch(batch))


def test_a_stop_is_seen():
    _, canonical, angle_map, values = model()
    stop = threading.Event()
    stop.set()
    batch = backward_batch(canonical, angle_map, values, 100)
    with pytest.raises(CancelledError):
        BACKEND.answers(canonical, batch, stop)


def test_few_outcomes_do_not_make_pieces_long(monkeypatch):
    from qailab.backends.statevector import work

    monkeypatch.setattr(work, "_PIECE_FLOATS", 1)
    _, canonical, angle_map, values = model(4, 1, [2])
    batch = backward_batch(canonical, angle_map, values, 10)
    job = work.StateWork(compile_program(canonical), batch, 1)
    (pieces,) = job.contract(np.empty((batch.num_rows, 2)))
    program = compile_program(canonical)
    rows_of_slot = batch.rows.rule.num_terms * np.diff(program.slot_starts).max()
    assert sum(1 for _ in pieces) >= batch.num_rows // rows_of_slot


def test_an_interrupt_stops_the_threads_that_it_leaves(monkeypatch):
    stops = []

    def interrupted(backend, circuit, batch, stop, **options):
        stops.append(stop)
        raise KeyboardInterrupt

    monkeypatch.setattr("qailab.backends.statevector.backend.evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        BACKEND.run(None, None)
    assert stops[0].is_set()


def test_a_forked_child_has_threads_of_its_own(monkeypatch):
    backend = StatevectorBackend(threads=2)
    parents = backend._workers()
    assert backend._workers() is parents
    parent = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: parent + 1)
        assert backend._workers() is not parents
        backend.close()
    parents.shutdown()


def test_too_many_qubits():
    canonical = model(4)[1]
    small = StatevectorBackend(max_qubits=3)
    with pytest.raises(MemoryLimitError, match=r"4 active qubits.*max_qubits=3.*AerBackend"):
        small.validate(canonical, None)
    assert repr(small) == "StatevectorBackend(max_qubits=3)"


@pytest.mark.parametrize("options", [{"max_qubits": 0}, {"max_qubits": 31}, {"threads": 1.5}])
def test_bad_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        StatevectorBackend(**options)


def test_a_gate_without_a_matrix(monkeypatch):
    canonical = model()[1]
    monkeypatch.setattr("qailab.backends.statevector.program.matrix_of", lambda gate: None)
    with pytest.raises(BackendError, match=r"'cx' has no matrix.*AerBackend"):
        StatevectorBackend().validate(canonical, 10)


def test_no_place_for_compiled_kernels(monkeypatch):
    def njit(*args, **options):
        raise RuntimeError("cannot cache function 'f': no locator available for file 'x'")

    module = "qailab.backends.statevector.sampling"
    monkeypatch.setattr("numba.njit", njit)
    monkeypatch.delattr(module, raising=False)
    monkeypatch.delitem(sys.modules, module, raising=False)
    loaded = backend._load_kernels.__wrapped__  # not those that other tests have loaded
    monkeypatch.setattr(backend, "_load_kernels", loaded)
    with pytest.raises(BackendBuildError, match="NUMBA_CACHE_DIR"):
        StatevectorBackend().open()
