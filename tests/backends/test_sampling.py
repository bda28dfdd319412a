import numpy as np
import pytest

from qailab.backends.sampling import counts_to_frequencies, measured_marginal, sample_frequencies
from qailab.gradients import NoiseStream


def test_sampling_is_unbiased():
    probabilities = np.repeat([[0.7, 0.2, 0.1, -1e-17]], 4000, axis=0)
    frequencies = sample_frequencies(probabilities, 25, NoiseStream(1), 0)
    errors = (frequencies.mean(axis=0) - probabilities[0]) / np.sqrt(0.25 / 25 / 4000)
    assert np.abs(errors).max() < 4


def test_counts():
    frequencies = counts_to_frequencies([{"0x0": 3, "0x3": 1}, {"0x2": 8}], 4)
    np.testing.assert_array_equal(frequencies, [[0.75, 0, 0, 0.25], [0, 0, 1, 0]])


@pytest.mark.parametrize("measured", [(0,), (2,), (0, 1, 2), (2, 0), (1, 2, 0)])
def test_marginals(measured):
    full = np.random.default_rng(0).dirichlet(np.ones(8), size=2)
    expected = np.zeros((2, 2 ** len(measured)))
    for state in range(8):
        outcome = sum((state >> qubit & 1) << bit for bit, qubit in enumerate(measured))
        expected[:, outcome] += full[:, state]
    np.testing.assert_allclose(measured_marginal(full, measured), expected)
