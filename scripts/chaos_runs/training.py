"""What is computed: a small hybrid model on seeded data, whose every bit depends on the seed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.launchers import RowEvaluator
from qailab.torch import QLayer

SHOTS = 128
_FEATURES, _CLASSES = 6, 3


Batch = tuple[Tensor, Tensor]
"""Features and labels of a step."""


@dataclass(frozen=True)
class Size:
    """How large a model and its steps are."""

    qubits: int
    samples: int  # of a step
    reps: int  # of the ansatz

    def layer(self, backend: RowEvaluator | None, seed: int) -> QLayer:
        """The model's quantum layer."""
        blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=self.reps)]
        return QLayer(build_circuit(self.qubits, blocks), backend=backend, shots=SHOTS, seed=seed)

    def model(self, backend: RowEvaluator, seed: int) -> nn.Sequential:
        """A hybrid classifier."""
        torch.manual_seed(seed)
        layer = self.layer(backend, seed)
        readout = nn.Linear(layer.out_features, _CLASSES)
        return nn.Sequential(nn.Linear(_FEATURES, self.qubits), layer, readout)

    def batches(self, steps: int, seed: int) -> list[Batch]:
        """Its data."""
        chance = torch.Generator().manual_seed(seed)
        features = torch.randn(steps, self.samples, _FEATURES, generator=chance)
        labels = torch.randint(_CLASSES, (steps, self.samples), generator=chance)
        return list(zip(features, labels, strict=True))

    def rows(self) -> int:
        """Rows of a forward and a backward pass."""
        return self.samples * (1 + 2 * self.layer(None, 0).problem.canonical.num_angles)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of a batch."""
    features, labels = batch
    return nn.functional.cross_entropy(model(features), labels)


@dataclass(frozen=True)
class Training:
    """What a training gave: all parameters, a hash of all gradients, and its time."""

    weights: tuple[Tensor, ...]
    gradients: str
    seconds: float

    def problems(self, expected: Training) -> list[str]:
        """How it differs from the one it must equal, in words."""
        pairs = list(zip(self.weights, expected.weights, strict=True))
        found = ["gradients differ"] * (self.gradients != expected.gradients)
        if not all(torch.equal(mine, theirs) for mine, theirs in pairs):
            difference = max(float((mine - theirs).abs().max()) for mine, theirs in pairs)
            found.append(f"weights differ by up to {difference:.2g}")
        return found


def train(
    backend: RowEvaluator, size: Size, *, seed: int, steps: int, checkpoint: Path | None = None
) -> Training:
    """Train; go on from the checkpoint if there is one, which is written after each step."""
    began = time.monotonic()
    model = size.model(backend, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    gradients, first = hashlib.sha256(), 0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    for step, batch in list(enumerate(size.batches(steps, seed), 1))[first:]:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            gradients.update(parameter.grad.numpy().tobytes())
        optimizer.step()
        if checkpoint is not None:
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**states, "step": step}, f"{checkpoint}.new")
            os.replace(f"{checkpoint}.new", checkpoint)
    weights = tuple(parameter.detach().clone() for parameter in model.parameters())
    return Training(weights, gradients.hexdigest(), time.monotonic() - began)


@dataclass(frozen=True)
class Derivative:
    """Outputs of a layer and its gradients for inputs and weights, each with a standard error."""

    values: tuple[Tensor, ...]
    errors: tuple[Tensor, ...]

    def problems(self, expected: Derivative, *, bitwise: bool) -> list[str]:
        """How it differs from the one it must equal: bit for bit, or within 6 standard errors."""
        if bitwise:
            same = all(map(torch.equal, self.values, expected.values))
            return [] if same else ["the same jobs gave other gradients"]
        parts = zip(self.values, expected.values, self.errors, expected.errors, strict=True)
        furthest = max(
            float(((mine - theirs).abs() / torch.hypot(error, other)).max())
            for mine, theirs, error, other in parts
        )  # beyond 6 by chance: one of 10**8
        return [] if furthest < 6.0 else [f"gradients differ by {furthest:.1f} standard errors"]


def derive(backends: Sequence[RowEvaluator], size: Size, seed: int) -> list[Derivative]:
    """Gradients of a layer on each backend, at the same time; each layer has its own seed."""
    torch.manual_seed(seed)
    layers = [size.layer(each, 7 * seed + number) for number, each in enumerate(backends)]
    shape = (len(layers), size.samples)
    inputs = torch.randn(*shape, size.qubits, dtype=torch.float64)
    cotangents = torch.randn(*shape, 1 << size.qubits, dtype=torch.float64)
    with ThreadPoolExecutor(len(layers), "layer") as threads:
        return list(threads.map(_derive, layers, inputs, cotangents))


def _derive(layer: QLayer, inputs: Tensor, cotangents: Tensor) -> Derivative:
    layer = layer.double()
    inputs = inputs.clone().requires_grad_()
    outputs = layer(inputs)
    gradients = torch.autograd.grad(outputs, [inputs, layer.weight], cotangents)
    assert layer.input_std_error is not None
    assert layer.weight_std_error is not None
    few = 1 / SHOTS  # what few shots say is certain may be off by what a few shots are
    p = outputs.detach().clamp(few, 1 - few)
    errors = (torch.sqrt(p * (1 - p) / SHOTS), layer.input_std_error, layer.weight_std_error)
    clamped = tuple(error.clamp(min=few) for error in errors)
    return Derivative((outputs.detach(), *gradients), clamped)
