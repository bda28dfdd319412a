import multiprocessing
import threading
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import transpile
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.circuit import library as lib
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error

from qailab.backends import AerBackend, Probabilities, aer, sampling
from qailab.backends.aer_programs import AmplitudeProgram
from qailab.errors import (
    BackendBuildError,
    BackendError,
    EvaluationError,
    InputError,
    InputTypeError,
    MemoryLimitError,
)
from qailab.gradients import NoiseStream, ParamShiftPlan, RowBatch, canonicalize
from tests.support import oracles
from tests.support.circuits import LIBRARY, NAMES, around, circuits, values_of
from tests.support.client import fake_manila
from tests.support.contracts import (
    BackendContract,
    answers,
    backward_batch,
    forward_batch,
    model,
)

# The oracle's matrix of PauliEvolutionGate comes from scipy, which has opinions on sparse formats.
SPARSE = pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")


def noise_model():
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(0.02, 1), ["ry", "sx", "rz"])
    noise.add_all_qubit_quantum_error(depolarizing_error(0.05, 2), ["cx"])
    noise.add_all_qubit_readout_error(ReadoutError([[0.95, 0.05], [0.1, 0.9]]))
    noise.add_readout_error(ReadoutError([[0.9, 0.1], [0.2, 0.8]]), [1])
    return noise


class TestStatevector(BackendContract):
    def backend(self):
        return AerBackend()


class TestDensityMatrix(BackendContract):
    def backend(self):
        return AerBackend(method="density_matrix")


class TestMatrixProductState(BackendContract):
    def backend(self):
        return AerBackend(method="matrix_product_state")


class TestAerSampledCounts(BackendContract):
    parts = 4

    @pytest.fixture(autouse=True)
    def _many_outcomes(self, monkeypatch):
        monkeypatch.setattr(sampling, "MAX_EXACT_OUTCOMES", 0)

    def backend(self):
        return AerBackend()


class TestNoiseModel(BackendContract):
    noiseless = False

    def backend(self):
        return AerBackend(noise_model=noise_model())


class TestNoisyTrajectories(BackendContract):
    parts = 1
    shots = 20
    noiseless = False

    @pytest.fixture(autouse=True)
    def _no_density_matrix(self, monkeypatch):
        monkeypatch.setattr(aer, "MAX_DENSITY_QUBITS", 0)

    def backend(self):
        return AerBackend(noise_model=noise_model())


@cache
def in_line():
    """A device of four qubits, which takes a fifth of a second to compile for."""
    lines = [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]
    return AerBackend(from_backend=GenericBackendV2(4, coupling_map=lines, seed=1))


class TestFakeDevice(BackendContract):
    parts = 0
    noiseless = False

    def backend(self):
        return in_line()


@pytest.mark.parametrize("noisy", [True, False])
def test_rows_sampled_by_aer_are_independent(noisy, monkeypatch):
    # Aer seeds the shots of a noisy row one by one: neighbouring rows of one run share most.
    monkeypatch.setattr(sampling, "MAX_EXACT_OUTCOMES", 0)
    monkeypatch.setattr(aer, "MAX_DENSITY_QUBITS", 0)
    circuit = QuantumCircuit(6)
    circuit.h(range(6))
    circuit.measure_all()
    canonical, angle_map = canonicalize(circuit, [])
    backend = AerBackend(noise_model=noise_model() if noisy else None)
    batch = forward_batch(angle_map, np.empty((4, 0)), shots=4226)  # they would share a half
    found = answers(backend, canonical, batch)
    found -= found.mean(axis=0)  # of all rows: readout errors are not the same for all outcomes
    neighbours = np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1]
    # Of four independent rows less their mean, two correlate by -1/3; of three pairs of 64.
    assert abs(neighbours + 1 / 3) < 4 / np.sqrt(3 * 64)


def exact_bits(backend, circuit, angles, values):
    canonical, angle_map = canonicalize(circuit, angles)
    return answers(backend, canonical, forward_batch(angle_map, np.array([values]), None))[0]


@SPARSE
@pytest.mark.parametrize("method", ["automatic", "density_matrix", "matrix_product_state"])
def test_gates_of_the_library_are_what_aer_runs(method):
    for first in range(4):  # ten gates in a circuit: what takes time is to compile one
        circuit = QuantumCircuit(5)
        for name in NAMES[first::4]:
            gate = LIBRARY[name]()
            circuit.compose(
                around(gate).remove_final_measurements(inplace=False),
                range(gate.num_qubits),
                inplace=True,
            )
        circuit.measure_all()
        found = exact_bits(AerBackend(method=method), circuit, [], [])
        expected = oracles.probabilities(circuit, [], np.array([]))
        np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("size", [3e-8, 1e-8, 1e-9])
@pytest.mark.parametrize("qubits", [2, 16])
def test_exact_probabilities_of_matrix_product_states_keep_small_schmidt_coefficients(size, qubits):
    angle = Parameter("a")
    circuit = QuantumCircuit(qubits, 2)
    for control in range(2, qubits):
        circuit.cx(control, 0)  # in the light cone, and without effect
    circuit.h(0)
    circuit.cry(angle, 0, 1)
    circuit.ry(0.7, 0)
    circuit.ry(0.9, 1)
    circuit.cx(0, 1)
    circuit.ry(0.9, 0)
    circuit.measure([0, 1], [0, 1])
    found = exact_bits(AerBackend(method="matrix_product_state"), circuit, [angle], [size])
    expected = oracles.probabilities(circuit, [angle], np.array([size]))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def gradient_and_slopes(backend, circuit, values):
    """The gradient of a contraction, and the slopes that the probabilities themselves have."""
    canonical, angle_map = canonicalize(circuit, list(circuit.parameters))
    vector = np.random.default_rng(0).normal(size=canonical.num_outcomes)
    plan = ParamShiftPlan.of(angle_map, values[None], np.ones(len(values), dtype=bool))
    batch = RowBatch(plan.rows, None, NoiseStream(1), vector[None])
    (gradient,) = plan.reconstruct(answers(backend, canonical, batch)).values
    points, weights = oracles.difference_points(values)
    found = answers(backend, canonical, forward_batch(angle_map, points, None))
    return gradient, weights @ (found @ vector)


@st.composite
def noise_models(draw):
    """Depolarizing noise on some gates, of names and a label, in some basis."""
    ones = ["u", "u1", "u2", "u3", "r", "p", "rx", "ry", "rz", "h", "sx", "x", "s", "label"]
    twos = ["cx", "cz", "swap", "crx", "cp", "cu", "cu1", "cu3", "rzz", "rxx", "ecr", "csx"]
    basis = draw(st.sampled_from([None, ["u", "cz"], ["r", "rz", "rxx"], ["u3", "cx"]]))
    noise = NoiseModel(basis)
    for size, names in ((1, ones), (2, twos)):
        chosen = draw(st.sets(st.sampled_from(names), min_size=1, max_size=4))
        error = depolarizing_error(0.04 * size, size)
        noise.add_all_qubit_quantum_error(error, sorted(chosen))
    noise.add_quantum_error(depolarizing_error(0.2, 1), "ry", [1], warnings=False)
    return noise


# Plain Aer does not run the exponential: Qiskit's transpiler fails to open it.
OF_PLAIN_AER = tuple(name for name in NAMES if name != "exponential")


@SPARSE
@settings(max_examples=12)
@given(circuits(qubits=2, most=4, library=OF_PLAIN_AER), noise_models())
def test_noise_acts_as_in_plain_aer_and_the_gradient_is_of_that(circuit, noise):
    angle = Parameter("label")
    measured = QuantumCircuit(2)
    measured.append(lib.RXGate(angle, label="label"), [0])
    measured.compose(circuit.remove_final_measurements(inplace=False), [0, 1], inplace=True)
    measured.measure_all()
    parameters, values = list(measured.parameters), values_of(measured)
    backend = AerBackend(noise_model=noise)
    try:
        found = exact_bits(backend, measured, parameters, values)
    except BackendError as error:  # one in sixty: an rxx in gates of u and cu1
        if "shift rule" not in str(error):
            raise
        return
    expected = oracles.noisy_probabilities(measured, parameters, values, noise)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    np.testing.assert_allclose(*gradient_and_slopes(backend, measured, values), atol=1e-9)


def test_noise_of_the_gate_that_a_rotation_becomes():
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(0.1, 1), ["u1", "u2", "u3"])
    angle = Parameter("a")
    circuit = QuantumCircuit(1)
    circuit.ry(angle, 0)
    circuit.measure_all()
    (_, one) = exact_bits(AerBackend(noise_model=noise), circuit, [angle], [0.4])
    assert one == pytest.approx(0.9 * np.sin(0.2) ** 2 + 0.05, abs=1e-12)


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        (
            AerBackend(noise_model=NoiseModel(["u", "cp"])),
            r"in the gates cp, u, 'rzz' of the circuit",
        ),
        (
            AerBackend(from_backend=GenericBackendV2(2, ["u", "cp"], seed=1)),
            r"in the gates .*cp.*, angle 0 of the circuit",
        ),
    ],
)
def test_noise_that_leaves_a_rotation_without_a_shift_rule(backend, says):
    angle = Parameter("a")
    circuit = QuantumCircuit(2)
    circuit.rzz(angle, 0, 1)
    circuit.measure_all()
    with pytest.raises(BackendError, match=says):
        exact_bits(backend, circuit, [angle], [0.4])


@pytest.mark.parametrize(
    "basis", [["u", "cx"], ["u3", "cx"], ["r", "rz", "rxx"], ["u", "crx"], ["u", "iswap"]]
)
def test_devices_with_other_gates_than_rotations(basis):
    lines = [[0, 1], [1, 0], [1, 2], [2, 1]]
    device = GenericBackendV2(3, basis, coupling_map=lines, seed=3)
    circuit, _, _, values = model()
    backend = AerBackend(from_backend=device)
    if "iswap" not in basis:  # which plain Aer does not run
        simulator = AerSimulator.from_backend(device)
        options = {"optimization_level": 1, "initial_layout": [0, 1, 2]}
        assert_is_plain_aers(backend, simulator, 3, None, 20_000, **options)
    np.testing.assert_allclose(*gradient_and_slopes(backend, circuit, values[0]), atol=1e-9)


def test_angles_outside_the_light_cone_count_where_routing_and_noise_carry_them_into_it():
    inside, outside = Parameter("a"), Parameter("b")
    circuit = QuantumCircuit(5, 1)  # as wide as the device: it keeps its qubits
    circuit.ry(inside, 0)
    circuit.ry(outside, 2)
    circuit.cx(4, 0)
    circuit.measure(0, 0)
    backend = AerBackend(from_backend=fake_manila())
    assert not backend.noiseless
    gradient, slopes = gradient_and_slopes(backend, circuit, np.array([0.4, 1.1]))
    np.testing.assert_allclose(gradient, slopes, atol=1e-9)
    assert abs(gradient[1]) > 1e-6


def test_noise_stays_on_its_qubits_beside_many_idle_ones():
    angles = [Parameter("a"), Parameter("b")]
    circuit = QuantumCircuit(40, 1)
    circuit.ry(angles[0], 7)
    circuit.cx(7, 30)
    circuit.ry(angles[1], 30)
    circuit.measure(30, 0)
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(0.1, 1), "ry")
    noise.add_quantum_error(depolarizing_error(0.2, 2), "cx", [7, 30])
    noise.add_readout_error(ReadoutError([[0.7, 0.3], [0.1, 0.9]]), [30])
    backend = AerBackend(noise_model=noise)
    (_, exact) = exact_bits(backend, circuit, angles, [0.3, 0.4])
    one = 0.5 - 0.5 * 0.9**2 * 0.8 * np.cos(0.3) * np.cos(0.4)
    assert exact == pytest.approx(0.9 * one + 0.3 * (1 - one), abs=1e-12)
    canonical, angle_map = canonicalize(circuit, angles)
    batch = forward_batch(angle_map, np.array([[0.3, 0.4]]), shots=20_000)
    assert answers(backend, canonical, batch)[0, 1] == pytest.approx(exact, abs=0.02)


def test_many_noisy_qubits_are_sampled():
    circuit = QuantumCircuit(18, 1)
    circuit.h(range(18))
    circuit.measure(0, 0)
    canonical, angle_map = canonicalize(circuit, [])
    batch = forward_batch(angle_map, np.empty((1, 0)), shots=2)
    assert answers(AerBackend(noise_model=noise_model()), canonical, batch).sum() == 1


def test_noisy_gates_are_not_optimised_away():
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(0.1, 1), ["x", "id"])
    angle = Parameter("a")
    circuit = QuantumCircuit(1)
    circuit.ry(angle, 0)
    for _ in range(3):
        circuit.x(0)
        circuit.id(0)
    circuit.x(0)
    circuit.measure_all()
    exact = exact_bits(AerBackend(noise_model=noise), circuit, [angle], [0.0])
    assert exact[0] == pytest.approx(0.5 + 0.5 * 0.9**7, abs=1e-9)


def test_a_circuit_as_wide_as_the_device_keeps_its_qubits():
    device = fake_manila()
    angle = Parameter("a")
    circuit = QuantumCircuit(5, 1)
    circuit.rx(angle, 3)
    circuit.measure(3, 0)
    exact = exact_bits(AerBackend(from_backend=device), circuit, [angle], [0.0])
    simulator = AerSimulator.from_backend(device)
    bound = transpile(
        circuit.assign_parameters([0.0]), simulator,
        initial_layout=list(range(5)), optimization_level=1,
    )  # fmt: skip
    counts = simulator.run(bound, shots=50_000, seed_simulator=1).result().get_counts()
    assert exact[1] == pytest.approx(counts["1"] / 50_000, abs=2e-3)  # others are off by 4e-3


def test_a_users_simulator_is_taken_and_left_alone():
    mine = AerSimulator()
    before = mine.options.method
    circuit, canonical, angle_map, values = model(qubits=2)
    (exact,) = answers(
        AerBackend(from_backend=mine), canonical, forward_batch(angle_map, values[:1], None)
    )
    ideal = oracles.probabilities(circuit, circuit.parameters, values[0])
    np.testing.assert_allclose(exact, ideal, atol=1e-12)
    assert mine.options.method == before


def test_more_qubits_than_the_device_has():
    with pytest.raises(BackendError, match=r"the circuit has 6 qubits.*fake_manila.*has 5"):
        AerBackend(from_backend=fake_manila()).validate(plain(6, 1), 100)


def test_a_forked_child_can_go_on():
    backend = AerBackend()
    _, canonical, angle_map, values = model(qubits=2)
    batch = forward_batch(angle_map, values, shots=50)
    expected = backend.submit(canonical, batch).result(60)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child():
        answers.put(backend.submit(canonical, batch).result(60))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads is the point
        process = context.Process(target=child)
        process.start()
    process.join(60)
    assert process.exitcode == 0
    np.testing.assert_array_equal(answers.get(), expected)


def test_a_backend_that_answers_in_another_shape():
    class Wrong(AerBackend):
        def probabilities(self, circuit, batch, stop):
            return Probabilities(super().probabilities(circuit, batch, stop).sampled[:1])

    _, canonical, angle_map, values = model(qubits=2)
    with pytest.raises(EvaluationError, match=r"must return shape .*got \(1, 4\)"):
        answers(Wrong(), canonical, forward_batch(angle_map, values, shots=50))


def assert_is_plain_aers(backend, simulator, qubits, measure_qubits, shots, **options):
    """Exact noisy probabilities are what Aer samples from the measured circuit, and not ideal."""
    circuit, canonical, angle_map, values = model(qubits, measure_qubits=measure_qubits)
    (exact,) = answers(backend, canonical, forward_batch(angle_map, values[:1], shots=None))
    ready = transpile(circuit, simulator, seed_transpiler=0, **options)
    bound = ready.assign_parameters(dict(zip(circuit.parameters, values[0], strict=True)))
    counts = simulator.run(bound, shots=shots, seed_simulator=3).result().get_counts()
    frequencies = [counts.get(f"{k:0{qubits}b}", 0) / shots for k in range(2**qubits)]
    assert np.abs(exact - frequencies).max() < 5 * 0.5 / np.sqrt(shots)
    ideal = oracles.probabilities(circuit, circuit.parameters, values[0])
    assert np.abs(exact - ideal).max() > 0.005


def test_exact_noisy_probabilities_are_plain_aers():
    backend, simulator = (
        AerBackend(noise_model=noise_model()),
        AerSimulator(noise_model=noise_model()),
    )
    assert_is_plain_aers(backend, simulator, 2, [1, 0], 100_000, optimization_level=0)
    simulator = AerSimulator.from_backend(device := fake_manila())
    backend = AerBackend(from_backend=device)
    assert_is_plain_aers(backend, simulator, 3, None, 100_000, optimization_level=1)


def test_noisy_gradients_are_exact_derivatives_of_the_noisy_probabilities():
    circuit, _, _, values = model(qubits=2)
    backend = AerBackend(noise_model=noise_model())  # misread bits, too
    np.testing.assert_allclose(*gradient_and_slopes(backend, circuit, values[0]), atol=1e-9)


def test_neighbours_of_one_kind_share_simulations_and_change_nothing(monkeypatch):
    """Same gate, same qubits, nothing between: one simulation serves both. Else, it must not."""
    angles = [Parameter(f"weight{i:02d}") for i in range(16)]
    circuit = QuantumCircuit(2)
    circuit.h([0, 1])
    for i, gate in enumerate(["ry", "ry", "rx", "rx", "p", "p", "rz", "p"]):
        getattr(circuit, gate)(angles[i], 0)
    circuit.rzx(angles[8], 0, 1)
    circuit.rzx(angles[9], 0, 1)
    circuit.rzx(angles[10], 1, 0)
    circuit.rxx(angles[11], 0, 1)
    circuit.ry(angles[12], 1)
    circuit.rxx(angles[13], 0, 1)
    circuit.ry(angles[14], 0)
    circuit.ry(0.3, 0)
    circuit.ry(angles[15], 0)
    circuit.measure_all()
    canonical, angle_map = canonicalize(circuit, angles)
    values = np.random.default_rng(0).uniform(0, 6, size=(2, 16))
    batch = backward_batch(canonical, angle_map, values, shots=None)
    simulated = []
    original = AmplitudeProgram._states
    monkeypatch.setattr(
        AmplitudeProgram,
        "_states",
        lambda self, angles: simulated.append(len(angles)) or original(self, angles),
    )
    shared = answers(AerBackend(), canonical, batch)
    reference = answers(AerBackend(method="density_matrix"), canonical, batch)
    np.testing.assert_allclose(shared, reference, atol=1e-12)
    assert simulated == [2 * (1 + 16 - 4)]  # ry, rx, p and rzx each have one twin


def test_exact_variances_of_shots():
    _, canonical, angle_map, values = model()
    backend = AerBackend()
    batch = backward_batch(canonical, angle_map, values, shots=50)
    variances = answers(backend, canonical, batch)[:, 1]
    spread = np.var(
        [
            answers(backend, canonical, backward_batch(canonical, angle_map, values, 50, seed))[
                :, 0
            ]
            for seed in range(150)
        ],
        axis=0,
    )
    ratio = spread / variances
    assert ratio.mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / 150 / len(ratio)))


def test_sampled_variances_of_one_shot_are_not_a_number(monkeypatch):
    monkeypatch.setattr(sampling, "MAX_EXACT_OUTCOMES", 0)
    _, canonical, angle_map, values = model()
    found = answers(AerBackend(), canonical, backward_batch(canonical, angle_map, values, 1))
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(found[:, 0]).all()


def test_memory_stays_bounded_by_slices(monkeypatch):
    _, canonical, angle_map, values = model()
    whole_batch = backward_batch(canonical, angle_map, values, shots=50)
    whole = answers(AerBackend(), canonical, whole_batch)
    monkeypatch.setattr(AerBackend, "max_rows_per_call", lambda self, circuit, shots: 5)
    np.testing.assert_array_equal(answers(AerBackend(), canonical, whole_batch), whole)


def test_cancelled_between_slices(monkeypatch):
    _, canonical, angle_map, values = model()
    batch = backward_batch(canonical, angle_map, values, shots=50)
    began, go_on = threading.Event(), threading.Event()
    original = AerBackend.probabilities

    def slow(self, circuit, batch, stop):
        began.set()
        assert go_on.wait(30)
        return original(self, circuit, batch, stop)

    monkeypatch.setattr(AerBackend, "probabilities", slow)
    monkeypatch.setattr(AerBackend, "max_rows_per_call", lambda self, circuit, shots: 2)
    future = AerBackend().submit(canonical, batch)
    assert began.wait(30)
    assert future.cancel()
    assert future.cancelled()
    go_on.set()


def plain(qubits, measured):
    circuit = QuantumCircuit(qubits, measured)
    angle = Parameter("weight")
    for qubit in range(qubits):
        circuit.ry(angle, qubit)
    circuit.measure(range(measured), range(measured))
    return canonicalize(circuit, [angle])[0]


@pytest.mark.parametrize(
    ("backend", "qubits", "measured", "shots", "says"),
    [
        (AerBackend(), 45, 45, 100, r"45 measured qubits.*need 268,435,456 MiB"),
        (AerBackend(max_memory_mb=1), 20, 1, 100, r"statevector of 20 qubits needs 16 MiB"),
        (AerBackend(noise_model=noise_model()), 25, 2, None, r"density matrix of 25.*use shots"),
        (AerBackend(method="matrix_product_state"), 40, 1, None, r"statevector of 40.*use shots"),
    ],
)
def test_too_large_says_how_much_it_needs(backend, qubits, measured, shots, says):
    with pytest.raises(MemoryLimitError, match=says):
        backend.validate(plain(qubits, measured), shots)


def test_noise_of_the_measurement_itself_has_no_exact_probabilities():
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(0.1, 1), "measure")
    backend = AerBackend(noise_model=noise)
    circuit = QuantumCircuit(1)
    circuit.measure_all()
    canonical, angle_map = canonicalize(circuit, [])
    with pytest.raises(BackendError, match="use shots"):
        backend.validate(canonical, None)
    (sampled,) = answers(backend, canonical, forward_batch(angle_map, np.empty((1, 0)), 2000))
    assert sampled[1] == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"method": "exact"}, InputError, r"'statevector'.*got 'exact'"),
        ({"device": "TPU"}, InputError, r"'CPU', 'GPU'; got 'TPU'"),
        ({"threads": 0}, InputError, r"threads must be a positive integer, got 0"),
        ({"max_memory_mb": 1.5}, InputTypeError, r"max_memory_mb must be a positive integer"),
        ({"noise_model": noise_model(), "from_backend": AerSimulator()}, InputError, r"not both"),
        ({"noise_model": noise_model(), "method": "matrix_product_state"}, InputError, r"density"),
        ({"noise_model": "strong"}, InputTypeError, "got 'strong'"),
        ({"from_backend": "fake_manila"}, InputTypeError, "got 'fake_manila'"),
    ],
)
def test_bad_options(options, error, says):
    with pytest.raises(error, match=says):
        AerBackend(**options)


def test_a_device_that_aer_does_not_have():
    if "GPU" in AerSimulator().available_devices():
        return
    with pytest.raises(BackendBuildError, match=r"reports the devices CPU.*not GPU"):
        AerBackend(device="GPU").open()


def test_a_live_device_is_copied_without_its_service():
    live = fake_manila()
    live.service = "holds a token"
    assert isinstance(AerBackend(from_backend=live).from_backend, AerSimulator)
