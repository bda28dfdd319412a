"""What is trained: a small hybrid model on seeded data, whose every bit depends on the seed."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qailab.backends import AerBackend, Outcomes
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.distributed import LauncherPool
from qailab.gradients import RowBatch
from qailab.gradients.canonical import CanonicalCircuit
from qailab.launchers import RowEvaluator
from qailab.torch import QLayer

_QUBITS = 4
_FEATURES, _CLASSES = 6, 3
_SAMPLES = 20
_SHOTS = 128
_RATE = 0.05


class SlowAer(AerBackend):
    """A simulator whose rows take time, as larger circuits' do, without keeping a core busy.

    Args:
        row_seconds: seconds that each row takes on top.
    """

    def __init__(self, row_seconds: float) -> None:
        super().__init__()
        self.row_seconds = row_seconds

    def outcomes(self, circuit: CanonicalCircuit, batch: RowBatch) -> Outcomes:
        time.sleep(self.row_seconds * batch.num_rows)
        return super().outcomes(circuit, batch)


class CountingPool(LauncherPool):
    """A pool that knows how many rows it was asked for."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.asked = 0
        super().__init__(*arguments, **options)

    def submit(self, circuit: CanonicalCircuit, batch: RowBatch) -> Any:
        self.asked += batch.num_rows
        return super().submit(circuit, batch)


@dataclass(frozen=True)
class Training:
    """What a training gave.

    Args:
        weights: all parameters at its end.
        gradients: a hash of all gradients of all steps.
        seconds: how long it took.
    """

    weights: tuple[Tensor, ...]
    gradients: str
    seconds: float

    def same_weights(self, other: Training) -> bool:
        """Whether the weights are the same, bit for bit."""
        return all(map(torch.equal, self.weights, other.weights))

    def difference(self, other: Training) -> float:
        """The largest difference between two weights."""
        pairs = zip(self.weights, other.weights, strict=True)
        return max(float((mine - theirs).abs().max()) for mine, theirs in pairs)


def rows_of(steps: int) -> int:
    """How many rows a training of so many steps asks for."""
    angles = _layer(AerBackend(), 0).problem.canonical.num_angles
    return steps * _SAMPLES * (1 + 2 * angles)


def train(backend: RowEvaluator, *, seed: int, steps: int) -> Training:
    """Train.

    Args:
        backend: where the circuits run.
        seed: of the data, the first weights and the shot noise.
        steps: optimizer steps.
    """
    began = time.monotonic()
    torch.manual_seed(seed)
    features = torch.randn(steps, _SAMPLES, _FEATURES)
    labels = torch.randint(_CLASSES, (steps, _SAMPLES))
    layer = _layer(backend, seed)
    model = nn.Sequential(
        nn.Linear(_FEATURES, _QUBITS), layer, nn.Linear(layer.out_features, _CLASSES)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
    gradients = hashlib.sha256()
    for inputs, targets in zip(features, labels, strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            gradients.update(parameter.grad.numpy().tobytes())
        optimizer.step()
    weights = tuple(parameter.detach().clone() for parameter in model.parameters())
    return Training(weights, gradients.hexdigest(), time.monotonic() - began)


def _layer(backend: RowEvaluator, seed: int) -> QLayer:
    blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=2)]
    return QLayer(build_circuit(_QUBITS, blocks), backend=backend, shots=_SHOTS, seed=seed)
