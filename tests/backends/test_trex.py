"""Readout mitigation on a simulated device with asymmetric readout errors, and what is refused."""

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from qiskit.quantum_info import SparsePauliOp
from torch import nn

from qailab.backends import AerBackend, EmulatedBackend, IBMBackend, StatevectorBackend
from qailab.backends.trex import CALIBRATION_ROWS, TwirledReadout
from qailab.errors import BackendError, EvaluationError, InputError
from qailab.gradients import Observables
from qailab.torch import ObservableQLayer, QLayer, estimate_cost
from tests.support.circuits import ry_ansatz
from tests.support.contracts import answers, backward_batch, mitigated_device, observable_model

CIRCUIT = ry_ansatz(3)
X = torch.tensor([[0.3, 0.9, 1.4], [0.1, 0.5, 2.0]], dtype=torch.float64)


def layer_of(backend=None, shots=20_000, observables="Z", seed=3):
    layer = ObservableQLayer(
        CIRCUIT, observables=observables, backend=backend, shots=shots, seed=seed
    ).double()
    layer.tracks_output_std_error = True
    layer.weight.data.copy_(torch.linspace(0.3, 2.0, 6))
    return layer


def step(layer):
    """Values, gradients and their standard errors, flat."""
    x = X.clone().requires_grad_()
    layer.weight.grad = None
    outputs = layer(x)
    outputs.sum().backward()
    found = (outputs, x.grad, layer.weight.grad)
    errors = (layer.output_std_error, layer.input_std_error, layer.weight_std_error)
    return [torch.cat([part.detach().flatten() for part in parts]) for parts in (found, errors)]


@pytest.mark.parametrize("observables", ["Z", SparsePauliOp(["ZZI", "XXI", "IYY"], [0.5, 0.7, -1])])
def test_the_bias_of_values_and_gradients_is_taken_out(observables):
    exact, _ = step(layer_of(shots=None, observables=observables))
    scores = {}
    for name, backend in (
        ("plain", AerBackend(noise_model=mitigated_device().noise_model)),
        ("trex", mitigated_device()),
    ):
        found, errors = step(layer_of(backend, 50_000, observables))
        scores[name] = ((found - exact) / errors)[errors > 1e-9].abs()
    assert scores["plain"].max() > 30
    assert scores["trex"].max() < 3.5  # of some 15: a tenth of the bias would be seen
    assert 0.4 < scores["trex"].square().mean().sqrt() < 1.6


def test_z_scores_know_what_the_factors_are_off():
    observables = ["IZZ", SparsePauliOp(["ZZI", "IIZ", "XXI"], [1.0, 0.8, -0.7])]
    vector = torch.tensor([1.0, -0.5], dtype=torch.float64)
    exact, layer = (
        layer_of(None, None, observables),
        layer_of(mitigated_device(), 400, observables),
    )

    def gradients(layer, seeds):
        found, errors = [], []
        for seed in seeds:
            layer.seed.fill_(seed)
            x = X[:1].clone().requires_grad_()
            outputs = layer(x)
            (slopes,) = torch.autograd.grad((outputs * vector).sum(), x)
            found.append(torch.cat([outputs[0].detach(), slopes[0]]))
            errors.append(torch.cat([layer.output_std_error[0], layer.input_std_error[0]]))
        return torch.stack(found), torch.stack(errors)

    expected, _ = gradients(exact, [0])
    found, errors = gradients(layer, range(100))
    scores = (found - expected) / errors
    assert scores.mean(dim=0).abs().max() < 4.5 / np.sqrt(100)
    assert (scores.var(dim=0) - 1).abs().max() < 4.5 * np.sqrt(2 / 100)


def test_the_factors_are_the_same_however_rows_are_cut():
    _, canonical, angle_map, values = observable_model()
    batch = backward_batch(canonical, angle_map, values, 200)
    rows, group = batch.rows, batch.rows.group
    whole = answers(mitigated_device(), canonical, batch)
    cuts = [rows.start, group, 5 * group, rows.stop]
    parts = [batch.part(start, stop) for start, stop in pairwise(cuts)]
    again = np.concatenate([answers(mitigated_device(), canonical, part) for part in parts])
    np.testing.assert_array_equal(again, whole)
    other = replace(batch, noise=replace(batch.noise, step=1))
    assert (answers(mitigated_device(), canonical, other) != whole).any()


def test_costs_count_the_calibration_rows():
    def told(backend):
        layer = layer_of(backend, 100)
        return estimate_cost(nn.Sequential(nn.Linear(3, 3), layer), 2, show=False).methods[0].step

    plain, mitigated = told(AerBackend()), told(EmulatedBackend(mitigated_device()))
    assert (plain.rows, mitigated.rows) == (38, 38 + 2 * CALIBRATION_ROWS)
    assert mitigated.shots == 100 * mitigated.rows


def test_a_term_that_the_readout_leaves_nothing_of_is_an_error():
    observables = Observables.of(["ZZZ", "IIZ"], 3)
    bits = np.random.default_rng(1).integers(0, 8, (4, 50, 1)).astype(np.uint8) & 0b110
    with pytest.raises(EvaluationError, match=r"of the parity of 3 qubits.*take more shots"):
        TwirledReadout.of(observables, bits)


def test_what_cannot_be_mitigated_is_said_before_anything_runs():
    with pytest.raises(InputError, match="readout with errors; give noise_model"):
        AerBackend(readout_mitigation="trex")
    with pytest.raises(TypeError, match="readout_mitigation"):
        StatevectorBackend(readout_mitigation="trex")
    for make in (AerBackend, IBMBackend):
        with pytest.raises(InputError, match="readout_mitigation must be one of 'trex'"):
            make(readout_mitigation="m3")
    for backend in (mitigated_device(), IBMBackend("ibm_fez", readout_mitigation="trex")):
        with pytest.raises(BackendError, match="asks for probabilities; ask for observables"):
            QLayer(CIRCUIT, backend=backend)
    with pytest.raises(BackendError, match="give shots, not shots=None"):
        layer_of(mitigated_device(), None)
    with pytest.raises(BackendError, match=r"density matrices .*12 qubits"):
        ObservableQLayer(ry_ansatz(12), backend=mitigated_device())
    assert repr(pickle.loads(pickle.dumps(mitigated_device()))).startswith(
        "AerBackend(readout_mitigation='trex'"
    )
