"""A small model, its data, and trainers of it."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qailab.backends import StatevectorBackend
from qailab.torch import QLayer
from qailab.training import AsyncTrainer
from tests.support.circuits import ry_ansatz

EPOCHS = 3


def loss_fn(model, batch):
    features, labels = batch
    return cross_entropy(model(features), labels)


def make_model(seed=7, middle=(), shots=32):
    torch.manual_seed(seed)
    layer = QLayer(ry_ansatz(), backend=StatevectorBackend(), shots=shots, seed=seed)
    return nn.Sequential(nn.Linear(3, 2), *copy.deepcopy(middle), layer, nn.Linear(4, 2))


def make_batches(count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(count, 4, 3, generator=generator)
    return [(x, (x.sum(dim=1) > 1.5).long()) for x in features]


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def make_trainer(model=None, lanes=3, *, lr=0.05, places=None, **options):
    model = make_model() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    places = places or [StatevectorBackend() for _ in range(lanes)]
    loss = nn.CrossEntropyLoss()  # what `loss_fn` has
    return AsyncTrainer(model, optimizer, loss, places, scheduler=scheduler, **options)


def state_of(trainer):
    """All that a run ends with."""
    return {
        **trainer.model.state_dict(),
        **{f"{i}{k}": v for i, s in trainer.optimizer.state.items() for k, v in s.items()},
    }


def assert_same(one, other):
    for (key, mine), theirs in zip(state_of(one).items(), state_of(other).values(), strict=True):
        assert torch.equal(mine, theirs), key
