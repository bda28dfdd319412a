"""Weights of lanes: EQC's formula from a device's calibration, and shot noise."""

import numpy as np
import pytest
from qiskit import QuantumCircuit, transpile
from qiskit_ibm_runtime.fake_provider import FakeLagosV2, FakeManilaV2

from qailab.backends import AerBackend, EmulatedBackend, IBMBackend, StatevectorBackend
from qailab.errors import InputError
from qailab.training import circuit_quality
from qailab.training.weighting import LaneWeights, spread


def bell():
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return circuit


def test_quality_is_the_formula_of_the_paper():
    device, target = FakeLagosV2(), FakeLagosV2().target
    compiled = transpile(bell(), device, optimization_level=1, seed_transpiler=0).count_ops()
    assert compiled == {"rz": 2, "sx": 1, "cx": 1, "measure": 2, "barrier": 1}

    def mean(*names):
        return np.mean([each.error for name in names for each in target[name].values()])

    expected = (1 - mean("rz", "sx", "x")) ** 3 * (1 - mean("cx")) * (1 - mean("measure")) ** 2
    assert circuit_quality(bell(), device) == pytest.approx(expected, rel=1e-6)


def test_weights_go_from_three_quarters_to_one():
    assert spread([0.2, 0.6, 0.4]) == pytest.approx([0.75, 1.0, 0.875])
    assert spread([0.3, 0.3]) == [1.0, 1.0]


def test_quality_finds_the_calibration_of_simulated_and_local_devices():
    weights = LaneWeights("quality", [bell()])
    for lane, place in enumerate(
        [AerBackend(from_backend=FakeLagosV2()), EmulatedBackend(IBMBackend(FakeManilaV2()))]
    ):
        weights.add(lane, place)
    assert sorted(weights.of(lane, None) for lane in (0, 1)) == [0.75, 1.0]
    better = circuit_quality(bell(), FakeLagosV2()) > circuit_quality(bell(), FakeManilaV2())
    assert weights.of(0, None) == (1.0 if better else 0.75)
    with pytest.raises(InputError, match="needs a calibration"):
        weights.add(2, StatevectorBackend())


def test_the_noisiest_lane_by_its_standard_errors_counts_least():
    weights = LaneWeights("standard_error", [])
    assert weights.of(0, 0.1) == 1.0
    for _ in range(50):
        found = [weights.of(lane, error) for lane, error in ((0, 0.1), (1, 0.3), (2, 0.2))]
    assert found == pytest.approx([1.0, 0.75, 0.875], abs=0.01)
    again = LaneWeights("standard_error", [])
    again.restore(weights.state())
    assert again.of(1, 0.3) == weights.of(1, 0.3)
