"""Plan and reconstruct, run by an oracle in between: no backend, no torch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import Operator

from qailab.circuit import AmplitudeEncoder, RealAmplitudesBlock, build_circuit
from qailab.errors import InputError
from qailab.gradients import AdjointPlan, NoiseStream, ParamShiftPlan, SpsaPlan, canonicalize
from tests.gradients.test_canonical import GATES, circuit_of
from tests.support import oracles
from tests.support.circuits import PARAMETRISED, around, ry_ansatz, values_of, x, y

pytestmark = pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")

ALL = slice(None)


def run(plan, canonical, vectors):
    """Answer the rows of a plan exactly."""
    rows, outcomes = plan.rows, oracles.outcomes_of(canonical.circuit, canonical.angles)
    values = [
        outcomes(angles) @ vectors[sample]
        for angles, sample in zip(rows.angles(), rows.samples(), strict=True)
    ]
    return np.stack([values, np.full(rows.num_rows, 0.25)], axis=1)


def wanted(parameters, chosen=ALL):
    mask = np.zeros(len(parameters), dtype=bool)
    mask[chosen] = True
    return mask


@pytest.mark.parametrize("name", [*GATES, *PARAMETRISED])
def test_param_shift_is_exact_for_every_gate(name):
    assert_exact(circuit_of(GATES[name]) if name in GATES else around(PARAMETRISED[name]()))


def assert_exact(circuit):
    parameters, values = list(circuit.parameters), values_of(circuit)
    canonical, angle_map = canonicalize(circuit, parameters)
    vector = np.random.default_rng(1).normal(size=canonical.num_outcomes)
    expected = oracles.vjp(circuit, parameters, values, vector)
    for noiseless in (False, True):
        plan = ParamShiftPlan.of(angle_map, values[None], wanted(parameters), noiseless=noiseless)
        (gradient,) = plan.reconstruct(run(plan, canonical, vector[None])).values
        np.testing.assert_allclose(gradient, expected, atol=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 3), st.floats(-20, 0), st.integers(0, 100))
def test_amplitude_encoding_next_to_zero_is_exact_or_an_error(pair, exponent, seed):
    # d p / d x of the normalised amplitudes themselves, without any circuit's angles
    weights = np.random.default_rng(seed).normal(size=6)
    features = np.random.default_rng(seed + 1).normal(size=8)
    features[2 * pair : 2 * pair + 2] *= 10.0**exponent
    circuit = build_circuit(3, [AmplitudeEncoder("input"), RealAmplitudesBlock("weight", reps=1)])
    parameters = list(circuit.parameters)
    canonical, angle_map = canonicalize(circuit, parameters)
    values = np.concatenate([features, weights])
    ansatz = build_circuit(3, [RealAmplitudesBlock("weight", reps=1)])
    unitary = Operator(
        ansatz.remove_final_measurements(inplace=False).assign_parameters(weights)
    ).data
    vector = np.random.default_rng(seed + 2).normal(size=8)
    norm = np.linalg.norm(features)
    amplitudes = features / norm
    slope = 2.0 * np.real(unitary.conj().T @ (vector * (unitary @ amplitudes)))
    expected = (slope - amplitudes * (amplitudes @ slope)) / norm

    def plan():
        return ParamShiftPlan.of(angle_map, values[None], wanted(parameters, slice(0, 8)))

    largest = np.abs(features[2 * pair : 2 * pair + 2]).max() / np.abs(features).max()
    if largest < 1e-7:
        with pytest.raises(InputError, match=rf"sample 0.*features {2 * pair} and {2 * pair + 1}"):
            plan()
        ParamShiftPlan.of(angle_map, values[None], wanted(parameters, slice(8, 14)))
    else:
        planned = plan()
        (gradient,) = planned.reconstruct(run(planned, canonical, vector[None])).values
        np.testing.assert_allclose(gradient[:8], expected, atol=1e-7)


def test_infinite_derivatives_that_nobody_wants_are_no_error():
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(2, 1)
    circuit.ry(x.arcsin(), 0)
    circuit.ry(w, 0)
    circuit.ry(x.arcsin(), 1)
    circuit.measure(0, 0)
    canonical, angle_map = canonicalize(circuit, [w, x])
    values, vectors = np.array([[0.4, 1.0]]), np.array([[0.0, 1.0]])
    plan = ParamShiftPlan.of(angle_map, values, np.array([True, False]))
    gradient = plan.reconstruct(run(plan, canonical, vectors)).values
    assert gradient[0] == pytest.approx([np.sin(np.pi / 2 + 0.4) / 2, 0.0], abs=1e-12)
    with pytest.raises(InputError, match=r"instruction 0.*sample 0"):
        ParamShiftPlan.of(angle_map, values, np.array([True, True]))

    outside = QuantumCircuit(2, 1)
    outside.ry(w, 0)
    outside.ry(x.arcsin(), 1)
    outside.measure(0, 0)
    _, angle_map = canonicalize(outside, [w, x])
    both = np.array([True, True])
    assert ParamShiftPlan.of(angle_map, values, both, noiseless=True).rows.num_rows == 2
    with pytest.raises(InputError, match=r"instruction 1.*sample 0"):
        ParamShiftPlan.of(angle_map, values, both)


def test_parameters_that_are_not_wanted_get_zero():
    circuit = circuit_of(GATES["affine"])
    canonical, angle_map = canonicalize(circuit, [x, y])
    plan = ParamShiftPlan.of(angle_map, np.array([[0.3, 0.7]]), np.array([True, False]))
    first, second = plan.reconstruct(run(plan, canonical, np.arange(8.0)[None])).values[0]
    assert (first != 0, second) == (True, 0)


def test_only_angles_that_wanted_parameters_reach_are_shifted():
    circuit = ry_ansatz()
    parameters = list(circuit.parameters)
    _, angle_map = canonicalize(circuit, parameters)
    values = np.zeros((3, 6))
    counts = [
        ParamShiftPlan.of(angle_map, values, wanted(parameters, chosen)).rows.num_rows
        for chosen in (slice(0, 2), slice(2, 6), ALL, slice(0, 0))
    ]
    assert counts == [2 * 2 * 3, 2 * 4 * 3, 2 * 6 * 3, 0]


def test_variances_follow_the_chain_rule():
    x = Parameter("x")
    circuit = QuantumCircuit(1)
    circuit.ry(3 * x, 0)
    circuit.ry(x, 0)
    circuit.measure_all()
    canonical, angle_map = canonicalize(circuit, [x])
    plan = ParamShiftPlan.of(angle_map, np.array([[0.3]]), wanted([x]))
    answers = run(plan, canonical, np.array([[0.0, 1.0]]))  # each row has variance 0.25
    # Two rows an angle with coefficient 1/2, two angles with slopes 3 and 1.
    expected = (3**2 + 1**2) * 2 * 0.5**2 * 0.25
    assert plan.reconstruct(answers).variances[0, 0] == pytest.approx(expected)


def spsa(circuit, values, vectors, resamplings, seed=0, chosen=ALL):
    parameters = list(circuit.parameters)
    canonical, angle_map = canonicalize(circuit, parameters)
    plan = SpsaPlan.of(
        angle_map, values, wanted(parameters, chosen),
        perturbation=0.05, resamplings=resamplings, noise=NoiseStream(seed),
    )  # fmt: skip
    return plan, plan.reconstruct(run(plan, canonical, vectors))


def test_spsa_has_two_rows_for_each_sample_and_resampling():
    circuit = circuit_of(GATES["feature map"])
    plan, gradient = spsa(circuit, np.zeros((4, 3)), np.ones((4, 8)), resamplings=3)
    assert plan.rows.num_rows == 4 * 3 * 2
    assert gradient.values.shape == (4, 3)


def test_spsa_averages_to_the_gradient():
    circuit = circuit_of(GATES["u"])
    parameters = list(circuit.parameters)
    values = np.array([[0.4, 0.9, -0.3]])
    vectors = np.random.default_rng(0).normal(size=(1, 8))
    repeats = 400
    _, gradient = spsa(circuit, values, vectors, resamplings=repeats)
    exact = oracles.vjp(circuit, parameters, values[0], vectors[0])
    # One direction's error in an entry is at most the other entries' size.
    spread = np.sqrt((exact**2).sum() / repeats)
    assert np.abs(gradient.values[0] - exact).max() < 4 * spread + 0.05**2


def test_spsa_with_one_parameter_is_a_central_difference_and_leaves_others_alone():
    circuit = circuit_of(GATES["u"])
    values = np.array([[0.4, 0.9, -0.3]])
    vectors = np.arange(8.0)[None]
    _, gradient = spsa(circuit, values, vectors, resamplings=1, chosen=slice(0, 1))
    exact = oracles.vjp(circuit, list(circuit.parameters), values[0], vectors[0])
    assert gradient.values[0, 0] == pytest.approx(exact[0], abs=1e-2)
    assert (gradient.values[0, 1:] == 0).all()


def test_spsa_names_the_sample_whose_angle_has_no_value():
    x = Parameter("x")
    circuit = circuit_of(lambda c: c.ry(x.log(), 0))
    values = np.array([[1.0], [1.0], [-1.0]])
    with pytest.raises(InputError, match="for sample 2"):
        spsa(circuit, values, np.ones((3, 8)), resamplings=3)


def test_spsa_is_seeded():
    circuit = circuit_of(GATES["u"])
    values, vectors = np.full((2, 3), 0.3), np.ones((2, 8)) * np.arange(8)
    first, again, other = (spsa(circuit, values, vectors, 2, seed)[0].signs for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@given(st.sampled_from(sorted(GATES)), st.data())
def test_slopes_of_the_angles_give_the_gradient_of_the_shift_rule(name, data):
    """The adjoint plan differs in who knows the slopes, in nothing else."""
    circuit = circuit_of(GATES[name])
    parameters = list(circuit.parameters)
    canonical, angle_map = canonicalize(circuit, parameters)
    first = data.draw(st.integers(0, 3))
    values = np.random.default_rng(first).uniform(0.1, 1.0, size=(2, len(parameters)))
    which = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(parameters), max_size=len(parameters))),
        dtype=bool,
    )
    vectors = np.random.default_rng(9).normal(size=(2, canonical.num_outcomes))
    shifted = ParamShiftPlan.of(angle_map, values, which, first_sample=first, noiseless=True)
    adjoint = AdjointPlan.of(angle_map, values, which, first_sample=first)
    assert adjoint.rows.num_rows * 2 == shifted.rows.num_rows
    assert adjoint.rows.start == first * len(adjoint.slopes.columns)
    answers = run(shifted, canonical, vectors)
    pairs = answers[:, 0].reshape(-1, 2) @ [0.5, -0.5]
    slopes = np.stack([pairs, np.zeros_like(pairs)], axis=1)
    expected, gradient = shifted.reconstruct(answers), adjoint.reconstruct(slopes)
    np.testing.assert_allclose(gradient.values, expected.values, rtol=0, atol=1e-14)
    assert not gradient.variances.any()
