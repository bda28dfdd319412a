"""With shots: gradients are unbiased, and the reported standard errors are the true ones.

A step has many gradients of the same samples, by `torch.func.vmap`: their rows have other numbers,
so other noise.
"""

import numpy as np
import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
from torch.func import functional_call, grad, vmap

from qailab.backends import AerBackend, StatevectorBackend, sampling
from qailab.torch import ObservableQLayer, QLayer

STEPS = 4
# Correlated terms in a basis, and a second basis; the sums of both observables share shots.
OBSERVABLES = ["ZZ", SparsePauliOp(["ZI", "IZ", "XY", "II"], [1.0, 0.8, -0.7, 3.0])]


def circuit(size):
    inputs, weights = ParameterVector("input", size), ParameterVector("weight", size)
    made = QuantumCircuit(2)
    made.ry(inputs[0] + weights[0], 0)
    if size > 1:
        made.ry(2 * inputs[1], 1)
        made.crx(weights[1], 0, 1)
    made.rxx(weights[0], 0, 1)
    made.measure_all()
    return made


def observed():
    inputs, weights = ParameterVector("input", 1), ParameterVector("weight", 2)
    made = QuantumCircuit(2)
    made.ry(inputs[0] + weights[0], 0)
    made.rx(0.6, 1)
    made.crx(weights[1], 0, 1)
    return made


@pytest.mark.parametrize(
    ("sampler", "made", "observables", "shots"),
    [
        ("kernels", circuit(2), None, 300),
        ("aer", circuit(1), None, 300),  # from counts, 1 ms a row
        ("kernels", observed(), OBSERVABLES, 300),
        ("aer", observed(), OBSERVABLES, 60),  # from the bits of its shots
    ],
    ids=["kernels", "aer", "observables kernels", "observables aer"],
)
def test_z_scores_have_mean_zero_and_variance_one(sampler, made, observables, shots, monkeypatch):
    backend, each = StatevectorBackend(), 100
    if sampler == "aer":
        monkeypatch.setattr(sampling, "MAX_EXACT_OUTCOMES", 0)
        backend, each = AerBackend(), 40  # sees errors that are off by a factor of 1.2
    kind, options = QLayer, {}
    if observables:
        kind, options = ObservableQLayer, {"observables": observables}
    exactly, layer = (
        kind(made, shots=n, seed=11, backend=backend, **options).double() for n in (None, shots)
    )
    size = layer.in_features
    inputs = torch.tensor([[0.4, 1.1], [0.9, -0.3]], dtype=torch.float64)[:size, :size]
    weight = torch.tensor([0.7, 1.9], dtype=torch.float64)[: len(layer.weight)]
    vectors = torch.tensor([[1.0, -0.5, 2.0, 0.3], [0.2, 1.5, -1.0, 0.4]], dtype=torch.float64)

    def gradients(layer, copies):
        def loss(weight, x):
            outputs = functional_call(layer, {"weight": weight}, (x,))
            return (outputs * vectors[:size, : layer.out_features]).sum()

        both = grad(loss, argnums=(0, 1))
        return flat(*vmap(both, in_dims=(None, 0))(weight, inputs.expand(copies, size, size)))

    def flat(weights, features):
        return torch.cat([weights, features.flatten(1)], dim=1).numpy()

    exact = gradients(exactly, 1)
    scores = np.concatenate(
        [
            (gradients(layer, each) - exact) / flat(layer.weight_std_error, layer.input_std_error)
            for _ in range(STEPS)
        ]
    )
    # Of each entry: the mean has standard error 1/sqrt(n), the variance sqrt(2/n); variances that
    # are estimated from 60 shots of observables make the variance 1 + 3/60 or so.
    n, excess = len(scores), 3 / shots if observables and sampler == "aer" else 0.0
    assert scores.shape == (STEPS * each, len(weight) + size * size)
    assert np.abs(scores.mean(axis=0)).max() < 4.5 / np.sqrt(n)
    assert np.abs(scores.var(axis=0) - 1).max() < 4.5 * np.sqrt(2 / n) + excess
    following = np.corrcoef(scores[:-1].T, scores[1:].T)[: scores.shape[1], scores.shape[1] :]
    assert np.abs(following).max() < 4.5 / np.sqrt(n)
