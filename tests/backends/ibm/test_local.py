"""IBM's local testing mode: no network, no account."""

import threading

import numpy as np
import pytest
from qiskit.circuit import ParameterVector, QuantumCircuit

from qailab.backends import Budget, IBMBackend
from qailab.backends.ibm.programs import Program, compile_program, counts_of
from qailab.backends.ibm.programs import bits_of as packed_bits
from qailab.errors import BackendError, BudgetExceededError, EvaluationError
from qailab.gradients import NoiseStream, RowBatch
from qailab.journal import Journal
from qailab.launchers import (
    BackwardPass,
    CircuitProblem,
    ForwardPass,
    QuantumLauncher,
    StepContext,
)
from tests.support.circuits import ry_ansatz
from tests.support.client import fake_manila
from tests.support.contracts import BackendContract, answers, forward_batch, mitigated_device, model


class TestOnIdealSimulator(BackendContract):
    parts = 4

    def backend(self):
        from qiskit_aer import AerSimulator

        return IBMBackend(AerSimulator(max_parallel_threads=1))


def test_a_fake_device_has_noise_that_its_seed_decides():
    _, canonical, angle_map, values = model()
    found = [
        answers(IBMBackend(fake_manila()), canonical, forward_batch(angle_map, values, 50, seed))
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_journal_and_budget_work_without_a_device(tmp_path):
    _, canonical, angle_map, values = model()
    batch = forward_batch(angle_map, values, shots=50)
    options = {"journal": tmp_path / "jobs.db", "budget": Budget(jobs=1)}
    first = answers(IBMBackend(fake_manila(), **options), canonical, batch)
    np.testing.assert_array_equal(
        answers(IBMBackend(fake_manila(), **options), canonical, batch), first
    )
    with Journal(tmp_path / "jobs.db") as journal:
        assert journal.totals().jobs == 1
    other = forward_batch(angle_map, values, shots=51)
    with pytest.raises(BudgetExceededError):
        answers(IBMBackend(fake_manila(), **options), canonical, other)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_compiled_circuits_take_the_angles_that_are_left(level):
    _, canonical, _, _ = model(measure_qubits=[2, 0])
    program = compile_program(canonical, fake_manila(), optimization_level=level, seed=0)
    assert len(program.columns) == program.circuit.num_parameters <= canonical.num_angles
    names = [canonical.angles[column].name for column in program.columns]
    assert names == [parameter.name for parameter in program.circuit.parameters]
    assert not program.circuit.parameters & getattr(
        program.circuit.global_phase, "parameters", set()
    )


def bits_of(registers):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 2, size=(4, 50, size)).astype(bool) for size in registers]


@pytest.mark.parametrize("registers", [[3], [8], [9], [17], [2, 3], [5, 6, 7]])
def test_bits_of_any_registers_and_widths_are_counted_like_qiskit_does(registers):
    from qiskit.primitives import BitArray, DataBin, PrimitiveResult, SamplerPubResult

    bits = bits_of(registers)
    arrays = {f"c{i}": BitArray.from_bool_array(b, order="little") for i, b in enumerate(bits)}
    pub = SamplerPubResult(DataBin(**arrays, shape=(4,)))
    counts = counts_of(PrimitiveResult([pub]), sum(registers), 4, 50)
    if len(registers) == 1:  # as the executor gives them
        np.testing.assert_array_equal(counts_of([{"c": bits[0]}], registers[0], 4, 50), counts)
    joined = pub.join_data()
    for row in range(4):
        expected = np.zeros(1 << sum(registers), dtype=int)
        for outcome, count in joined.get_int_counts(row).items():
            expected[outcome] = count
        np.testing.assert_array_equal(counts[row], expected)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 20, 70])
def test_bits_of_any_width_are_packed_like_qiskit_does(width):
    from qiskit.primitives import BitArray

    bits = bits_of([width])[0]
    expected = BitArray.from_bool_array(bits, order="little").array
    np.testing.assert_array_equal(packed_bits([{"c": bits}], width, 4, 50), expected)
    program = Program(None, np.arange(0), width, keeps_bits=True)
    measured = program.measured([{"c": bits}], 4, 50)
    np.testing.assert_array_equal(measured.reshape(expected.shape), expected)


def test_observables_of_many_qubits_from_the_bits_of_shots():
    from qiskit_aer import AerSimulator

    circuit = QuantumCircuit(40)
    angles = ParameterVector("input", 40)
    for qubit, angle in enumerate(angles):
        circuit.ry(angle, qubit)
    problem = CircuitProblem(circuit, observables=["Z" * 40, "I" * 39 + "Z", "X" + "I" * 39])
    backend = IBMBackend(AerSimulator(method="matrix_product_state"))
    launcher = QuantumLauncher(problem, ForwardPass(500, seed=1), backend)
    values = np.linspace(0.0, 0.3, 40)
    expected = [np.prod(np.cos(values)), np.cos(values[0]), np.sin(values[-1])]
    found = launcher.run(values, np.empty(0))
    np.testing.assert_allclose(found, expected, atol=5 / np.sqrt(500))


def test_twirling_rounds_shots_up_and_variances_are_of_all_that_came():
    problem = CircuitProblem(ry_ansatz(2), observables="Z")
    parameters = np.ones((3, problem.num_inputs + problem.num_weights))
    rows = ForwardPass(shots=65).rows(problem, parameters)
    batch = RowBatch(rows, 65, NoiseStream(1), variances=True)
    backend = IBMBackend(fake_manila(), options={"twirling": {"enable_measure": True}})
    found = answers(backend, problem.canonical, batch)
    values, variances = found[:, :2], found[:, 2:]
    np.testing.assert_allclose(variances, (1 - values**2) / (128 - 1))


def test_the_bias_of_an_asymmetric_readout_is_taken_out():
    from qiskit_aer import AerSimulator

    noise = mitigated_device().noise_model
    angles = ParameterVector("input", 2)
    circuit = QuantumCircuit(2)
    circuit.ry(angles[0], 0)
    circuit.ry(angles[1], 1)
    circuit.cx(0, 1)
    problem = CircuitProblem(circuit, observables=["IZ", "ZI"])
    values = np.array([2.6, 0.8])
    expected = [np.cos(2.6), np.cos(2.6) * np.cos(0.8)]
    slopes = [-np.sin(2.6) * (1 + np.cos(0.8)), -np.cos(2.6) * np.sin(0.8)]
    scores = {}
    for mitigation in (None, "trex"):
        backend = IBMBackend(AerSimulator(noise_model=noise), readout_mitigation=mitigation)
        errors = []
        context = StepContext(on_std_error=errors.append)
        launcher = QuantumLauncher(problem, ForwardPass(10_000, 1), backend, context=context)
        found = launcher.run(values, np.empty(0))
        backward = QuantumLauncher(problem, BackwardPass(shots=10_000, seed=1), backend)
        gradient = backward.run(values, np.empty(0), np.ones(2))
        scores[mitigation] = np.abs(
            [
                *((found - expected) / errors[0]),
                *((gradient.inputs - slopes) / gradient.input_std_error),
            ]
        )
    assert scores[None].max() > 15
    assert scores["trex"].max() < 5  # the client's flips have no seed


@pytest.mark.parametrize(
    ("rows", "shots", "bits"), [(5, 50, 3), (4, 51, 3), (4, 50, 2), (4, 50, 4)]
)
def test_a_result_that_was_not_asked_for_is_an_error(rows, shots, bits):
    with pytest.raises(EvaluationError, match="the job answered"):
        counts_of([{"c": bits_of([3])[0]}], bits, rows, shots)


def test_what_does_not_fit_a_device_is_said_before_anything_runs():
    _, canonical, angle_map, values = model(qubits=6)
    backend = IBMBackend(fake_manila())
    with pytest.raises(BackendError, match="6 qubits, and fake_manila has 5"):
        backend.validate(canonical, 100)
    batch = forward_batch(angle_map, values, 10)
    with pytest.raises(BackendError, match="6 qubits, and fake_manila has 5"):
        backend.probabilities(canonical, batch, threading.Event())
    with pytest.raises(BackendError, match="shots=None"):
        backend.validate(canonical, None)
