"""A small model, its data, and the ordinary loop."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qailab.backends import StatevectorBackend
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.torch import QLayer


def loss_fn(model, batch):
    features, labels = batch
    return cross_entropy(model(features), labels)


def make_model(seed=7, middle=(), shots=32):
    torch.manual_seed(seed)
    blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=1)]
    layer = QLayer(build_circuit(2, blocks), backend=StatevectorBackend(), shots=shots, seed=seed)
    return nn.Sequential(nn.Linear(3, 2), *copy.deepcopy(middle), layer, nn.Linear(4, 2))


def make_batches(count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(count, 4, 3, generator=generator)
    return [(x, (x.sum(dim=1) > 1.5).long()) for x in features]


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture
def batches():
    return make_batches()
