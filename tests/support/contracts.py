"""What every backend must do; inherit `BackendContract` and give a backend."""

import pickle
import threading
from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np
import pytest
from qiskit.quantum_info import SparsePauliOp
from qiskit_aer.noise import NoiseModel, ReadoutError

from qailab.backends import AerBackend, Backend
from qailab.backends.base import evaluate
from qailab.circuit import build_circuit
from qailab.gradients import (
    NoiseStream,
    Observables,
    ParamShiftPlan,
    PointRows,
    RowBatch,
    canonicalize,
)
from tests.support import oracles
from tests.support.circuits import ry_ansatz

DEADLINE = 120
OBSERVABLES = ["ZIZ", SparsePauliOp(["XXI", "YIY", "ZZI", "IZI", "III"], [0.5, -1.2, 0.7, 1, 2])]
"""Of three qubits, in three bases, with terms that are correlated."""


def model(qubits=3, reps=1, measure_qubits=None):
    """A circuit, its canonical form, its angle map and three samples of parameters."""
    circuit = ry_ansatz(qubits, reps, measure_qubits)
    canonical, angle_map = canonicalize(circuit, list(circuit.parameters))
    values = np.random.default_rng(5).uniform(0, 3, size=(3, circuit.num_parameters))
    return circuit, canonical, angle_map, values


def observable_model():
    """The same circuit, asked for observables."""
    circuit, _, _, values = model()
    observables = Observables.of(OBSERVABLES, circuit.num_qubits)
    return circuit, *canonicalize(circuit, list(circuit.parameters), observables), values


def mitigated_device():
    """A device with readout errors of 2 and 8 %, and TREX."""
    noise = NoiseModel()
    noise.add_all_qubit_readout_error(ReadoutError([[0.98, 0.02], [0.08, 0.92]]))
    return AerBackend(noise_model=noise, readout_mitigation="trex")


def bases_of(canonical):
    return None if canonical.observables is None else canonical.observables.bases


def forward_batch(angle_map, values, shots, seed=1, bases=None):
    rows = PointRows(base=angle_map.values(values)[:, None, :], bases=bases)
    return RowBatch(rows, shots, NoiseStream(seed))


def backward_batch(canonical, angle_map, values, shots, seed=1):
    wanted = np.ones(values.shape[1], dtype=bool)
    rows = ParamShiftPlan.of(angle_map, values, wanted, bases=bases_of(canonical)).rows
    vectors = np.random.default_rng(2).normal(size=(len(values), canonical.num_outputs))
    return RowBatch(rows, shots, NoiseStream(seed), vectors)


def answers(backend, circuit, batch, stop=None):
    """The answers of a batch, evaluated here and now."""
    return evaluate(backend, circuit, batch, stop or threading.Event()).answers


class BackendContract(ABC):
    """Contract of `qailab.backends.Backend`."""

    noiseless = True
    shots = 200
    parts = 12  # how many parts of a batch are tried, beside the first rows and the last

    @abstractmethod
    def backend(self) -> Backend:
        """The backend that is tested."""

    def test_probabilities_are_the_circuits(self):
        circuit, canonical, angle_map, values = model()
        batch = forward_batch(angle_map, values, shots=self.shots)
        estimates = answers(self.backend(), canonical, batch)
        assert estimates.shape == (3, 8)
        np.testing.assert_allclose(estimates.sum(axis=1), 1.0)
        np.testing.assert_allclose(estimates * self.shots, np.round(estimates * self.shots))
        if self.noiseless:
            exact = [oracles.probabilities(circuit, circuit.parameters, v) for v in values]
            assert np.abs(estimates - exact).max() < 5 * 0.5 / np.sqrt(self.shots)

    def test_a_subset_of_qubits_in_any_order(self):
        circuit, canonical, angle_map, values = model(measure_qubits=[2, 0])
        if not (self.noiseless and self.backend().supports_exact):
            return
        exact = [oracles.probabilities(circuit, circuit.parameters, v) for v in values]
        batch = forward_batch(angle_map, values, shots=None)
        np.testing.assert_allclose(answers(self.backend(), canonical, batch), exact, atol=1e-12)

    def test_values_of_observables_and_their_variances(self):
        circuit, canonical, angle_map, values = observable_model()
        observables, backend = canonical.observables, self.backend()
        batch = forward_batch(angle_map, values, self.shots, bases=observables.bases)
        estimates = batch.rows.over_bases(answers(backend, canonical, batch))
        assert estimates.shape == (3, 2)
        rows = RowBatch(batch.rows, self.shots, NoiseStream(1), np.tile([0.3, -1.0], (3, 1)))
        found = answers(backend, canonical, rows)
        again = batch.rows.over_bases(found)  # the same shots, contracted
        np.testing.assert_allclose(again[:, 0], estimates @ [0.3, -1.0], atol=1e-12)
        assert (found[:, 1] >= 0).all()
        told = answers(backend, canonical, replace(batch, variances=True))
        told = batch.rows.over_bases(told)
        np.testing.assert_array_equal(told[:, :2], estimates)
        for place, unit in enumerate(np.eye(2)):  # sampled variances, perhaps beside exact ones
            rows = replace(rows, cotangents=np.tile(unit, (3, 1)))
            alone = batch.rows.over_bases(answers(backend, canonical, rows))
            np.testing.assert_allclose(told[:, 2 + place], alone[:, 1], rtol=0.5)
        assert (again[:, 1] <= 3.0**2 / self.shots).all()
        if self.noiseless:
            expectations = oracles.expectations_of(circuit, circuit.parameters, OBSERVABLES)
            exact = [expectations(each) for each in values]
            deviations = estimates + observables.constants - exact
            assert np.abs(deviations).max() < 5 * 3.0 / np.sqrt(self.shots)
            assert (np.abs(deviations @ [0.3, -1.0]) < 6 * np.sqrt(again[:, 1]) + 1e-9).all()

    @pytest.mark.parametrize("kind", ["forward", "backward"])
    @pytest.mark.parametrize("asked", [model, observable_model])
    def test_any_part_of_a_batch_has_the_bits_of_the_whole(self, kind, asked):
        _, canonical, angle_map, values = asked()
        backend = self.backend()
        batch = (
            forward_batch(angle_map, values, self.shots, bases=bases_of(canonical))
            if kind == "forward"
            else backward_batch(canonical, angle_map, values, self.shots)
        )
        whole, groups = answers(backend, canonical, batch), batch.num_rows // batch.rows.group
        bounds = np.random.default_rng(len(whole)).integers(0, groups + 1, size=(self.parts, 2))
        for low, high in [(0, 1), (groups - 1, groups), *np.sort(bounds)]:
            start, stop = batch.rows.group * low, batch.rows.group * high
            part = answers(backend, canonical, batch.part(start, stop))
            np.testing.assert_array_equal(part, whole[start:stop])

    def test_seed_and_step_decide_the_noise(self):
        _, canonical, angle_map, values = model()
        backend = self.backend()
        rows = forward_batch(angle_map, values, self.shots).rows

        def estimate(seed, step):
            batch = RowBatch(rows, self.shots, NoiseStream(seed, step))
            return answers(backend, canonical, batch)

        np.testing.assert_array_equal(estimate(1, 0), estimate(1, 0))
        assert (estimate(1, 0) != estimate(1, 1)).any()
        assert (estimate(1, 0) != estimate(2, 0)).any()

    def test_values_and_variances_of_contracted_rows(self):
        _, canonical, angle_map, values = model()
        backend = self.backend()
        batch = backward_batch(canonical, angle_map, values, self.shots)
        found = answers(backend, canonical, batch)
        assert found.shape == (batch.num_rows, 2)
        again = answers(
            backend, canonical, RowBatch(batch.rows, self.shots, NoiseStream(1), batch.cotangents)
        )
        np.testing.assert_array_equal(found, again)
        largest = np.abs(batch.cotangents).max()
        assert (found[:, 1] >= 0).all()
        assert (found[:, 1] <= 4 * largest**2 / self.shots).all()

    def test_no_rows(self):
        _, canonical, angle_map, values = model()
        batch = forward_batch(angle_map, values, self.shots).part(0, 0)
        backend = self.backend()
        assert answers(backend, canonical, batch).shape == (0, 8)
        assert backend.submit(canonical, batch).result(DEADLINE).shape == (0, 8)

    def test_a_circuit_without_parameters(self):
        circuit = build_circuit(2, [])
        canonical, angle_map = canonicalize(circuit, [])
        batch = forward_batch(angle_map, np.empty((3, 0)), shots=self.shots)
        estimates = answers(self.backend(), canonical, batch)
        assert (estimates.argmax(axis=1) == 0).all()

    def test_submit_gives_what_evaluate_gives(self):
        _, canonical, angle_map, values = model()
        backend = self.backend()
        batch = forward_batch(angle_map, values, self.shots)
        future = backend.submit(canonical, batch)
        np.testing.assert_array_equal(future.result(DEADLINE), answers(backend, canonical, batch))
        assert future.done()
        assert not future.cancel()

    def test_it_pickles_small_also_after_use(self):
        _, canonical, angle_map, values = model()
        backend = self.backend()
        batch = forward_batch(angle_map, values, self.shots)
        before = answers(backend, canonical, batch)
        copy = pickle.loads(pickle.dumps(backend))
        np.testing.assert_array_equal(answers(copy, canonical, batch), before)
        assert repr(copy) == repr(backend)

    def test_close_twice_and_use_again(self):
        _, canonical, angle_map, values = model()
        backend = self.backend()
        batch = forward_batch(angle_map, values, self.shots)
        before = answers(backend, canonical, batch)
        backend.close()
        backend.close()
        np.testing.assert_array_equal(answers(backend, canonical, batch), before)
