import numpy as np
import pytest
import torch
from torch import nn

from qailab.torch import QLayer
from tests.support.circuits import ry_ansatz


def test_a_layer_learns_inside_a_neural_net_classifier():
    from sklearn.base import clone
    from skorch import NeuralNetClassifier

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 2),
        QLayer(ry_ansatz(), seed=1),
        nn.Linear(4, 2),
        nn.Softmax(dim=-1),
    )
    classifier = NeuralNetClassifier(
        model, max_epochs=12, lr=0.1, optimizer=torch.optim.Adam, train_split=None, verbose=0
    )
    points = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    labels = (points[:, 0] > 0).astype(np.int64)
    fitted = clone(classifier).fit(points, labels)
    assert fitted.score(points, labels) > 0.85
    assert fitted.predict_proba(points).sum(axis=1) == pytest.approx(1.0, abs=1e-5)
