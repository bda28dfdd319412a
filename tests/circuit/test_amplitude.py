import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qiskit.quantum_info import Statevector

from qailab.circuit import AmplitudeEncodingGate
from qailab.errors import InputError


def samples(num_qubits, count, seed):
    return np.random.default_rng(seed).normal(size=(count, 2**num_qubits))


@given(st.integers(1, 5), st.integers(0, 10**6))
def test_the_prepared_state_is_the_normalised_sample_signs_included(num_qubits, seed):
    gate = AmplitudeEncodingGate([0.0] * 2**num_qubits)
    features = samples(num_qubits, 2, seed)
    features[0, ::3] = 0.0
    for sample, angles in zip(features, gate.angles(features), strict=True):
        state = Statevector(gate.angle_circuit(angles)).data
        np.testing.assert_allclose(state, sample / np.linalg.norm(sample), atol=1e-12)


@given(st.integers(1, 4), st.integers(0, 10**6))
def test_the_jacobian_is_the_derivative_of_the_angles(num_qubits, seed):
    gate = AmplitudeEncodingGate([0.0] * 2**num_qubits)
    (sample,) = samples(num_qubits, 1, seed)
    sample += np.sign(sample) * 0.1  # away from the branch cut of atan2, where angles jump by 4 pi
    step = 1e-6
    differences = [
        (gate.angles((sample + step * e)[None]) - gate.angles((sample - step * e)[None]))[0]
        / (2 * step)
        for e in np.eye(len(sample))
    ]
    np.testing.assert_allclose(gate.jacobian(sample), np.stack(differences, axis=1), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_the_scale_of_a_sample_has_no_effect(scale):
    gate = AmplitudeEncodingGate([0.0] * 8)
    features = samples(3, 2, 5)
    np.testing.assert_allclose(gate.angles(scale * features), gate.angles(features), rtol=1e-12)


def test_a_vanishing_block_has_gradient_zero_and_others_are_exact():
    gate = AmplitudeEncodingGate([0.0] * 4)
    jacobian = gate.jacobian(np.array([0.0, 0.0, 1.0, 2.0]))
    assert np.isfinite(jacobian).all()
    assert (jacobian[:, :2] == 0).all()
    assert np.abs(jacobian[:, 2:]).max() > 0.1


@pytest.mark.parametrize("features", [[1.0, 0.5, 1e-9, 0.0], [5e-324, 0.0, 0.0, 0.0]])
def test_a_gradient_that_rounding_would_take_names_sample_and_features(features):
    gate = AmplitudeEncodingGate([0.0] * 4)
    lost = features.index(min(v for v in features if v))
    with pytest.raises(InputError, match=rf"sample 1 .*as features {lost} and {lost + 1}"):
        gate.check_slopes(np.array([[1.0, 2.0, 0.0, 1e-3], features]))


@pytest.mark.parametrize("size", [0, 1, 3, 6])
def test_the_number_of_features_is_a_power_of_two(size):
    with pytest.raises(InputError, match=f"got {size}"):
        AmplitudeEncodingGate([0.0] * size)
