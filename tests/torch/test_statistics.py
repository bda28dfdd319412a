"""With shots: gradients are unbiased, and the reported standard errors are the true ones."""

import numpy as np
import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit

from qailab.backends import aer
from qailab.torch import QLayer

SEEDS = 400


def circuit():
    inputs, weights = ParameterVector("input", 2), ParameterVector("weight", 2)
    made = QuantumCircuit(2)
    made.ry(inputs[0] + weights[0], 0)
    made.ry(2 * inputs[1], 1)
    made.crx(weights[1], 0, 1)
    made.rxx(weights[0], 0, 1)
    made.measure_all()
    return made


@pytest.mark.parametrize("sampler", ["numpy", "aer"])
def test_z_scores_have_mean_zero_and_variance_one(sampler, monkeypatch):
    if sampler == "aer":
        monkeypatch.setattr(aer, "MAX_EXACT_OUTCOMES", 0)
    shots = 300
    inputs = torch.tensor([[0.4, 1.1], [0.9, -0.3]], dtype=torch.float64)
    vectors = torch.tensor([[1.0, -0.5, 2.0, 0.3], [0.2, 1.5, -1.0, 0.4]], dtype=torch.float64)

    def gradients(layer):
        layer.weight.grad = None
        x = inputs.clone().requires_grad_()
        layer(x).backward(vectors)
        return torch.cat([x.grad.flatten(), layer.weight.grad]).numpy()

    exact_layer = QLayer(circuit(), shots=None).double()
    layer = QLayer(circuit(), shots=shots, seed=11).double()
    layer.weight.data.copy_(exact_layer.weight.data.copy_(torch.tensor([0.7, 1.9])))
    exact = gradients(exact_layer)
    scores = np.array(
        [
            (gradients(layer) - exact)
            / torch.cat([layer.input_std_error.flatten(), layer.weight_std_error]).numpy()
            for _ in range(SEEDS)
        ]
    )
    # Of each entry: the mean has standard error 1/sqrt(SEEDS), the variance sqrt(2/SEEDS).
    assert np.abs(scores.mean(axis=0)).max() < 4.5 / np.sqrt(SEEDS)
    assert np.abs(scores.var(axis=0) - 1).max() < 4.5 * np.sqrt(2 / SEEDS)
