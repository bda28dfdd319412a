"""What is computed: gradients of a small layer, and a training of a small hybrid model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hardware_runs.scenario import SHOTS
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.launchers import RowEvaluator
from qailab.torch import QLayer

_QUBITS = 3
_SAMPLES = 4
_FEATURES, _CLASSES = 4, 3
_RATE = 0.1


@dataclass(frozen=True)
class Derivative:
    """Outputs and gradients of a layer.

    Args:
        outputs: probabilities, shape ``(samples, K)``.
        inputs: gradient of the inputs.
        weights: gradient of the weights.
        input_errors: standard errors of the former.
        weight_errors: standard errors of the latter.
    """

    outputs: Tensor
    inputs: Tensor
    weights: Tensor
    input_errors: Tensor
    weight_errors: Tensor

    def same(self, other: Derivative) -> bool:
        """Whether all is the same, bit for bit."""
        mine, theirs = vars(self).values(), vars(other).values()
        return all(torch.equal(one, two) for one, two in zip(mine, theirs, strict=True))

    def distance(self, other: Derivative) -> float:
        """The largest difference, in standard errors of the difference."""
        p = torch.stack([self.outputs, other.outputs]).mean(dim=0).clamp(1 / SHOTS, 1 - 1 / SHOTS)
        spread = torch.sqrt(2 * p * (1 - p) / SHOTS)
        parts = [(self.outputs - other.outputs).abs() / spread]
        for name in ("inputs", "weights"):
            mine, theirs = getattr(self, name), getattr(other, name)
            errors = f"{name.removesuffix('s')}_errors"
            both = torch.hypot(getattr(self, errors), getattr(other, errors))
            # A gradient that few shots say is certain may be off by what a few shots are.
            parts.append((mine - theirs).abs() / both.clamp(min=1 / SHOTS))
        return max(float(part.max()) for part in parts)


def rows_asked(layers: int = 1) -> int:
    """How many rows `derive` asks for."""
    angles = _layer(None, 0).problem.canonical.num_angles
    return layers * _SAMPLES * (1 + 2 * angles)


def derive(backends: Sequence[RowEvaluator], seed: int) -> list[Derivative]:
    """Gradients of a layer on each backend, at the same time.

    Args:
        backends: where.
        seed: of inputs and weights; each layer has its own.
    """
    torch.manual_seed(seed)
    layers = [_layer(backend, 7 * seed + number) for number, backend in enumerate(backends)]
    shape = (len(layers), _SAMPLES)
    inputs = torch.randn(*shape, _QUBITS, dtype=torch.float64)
    vectors = torch.randn(*shape, 1 << _QUBITS, dtype=torch.float64)
    with ThreadPoolExecutor(len(layers), "layer") as threads:
        return list(threads.map(_derive, layers, inputs, vectors))


def train(
    backend: RowEvaluator,
    *,
    seed: int,
    steps: int,
    checkpoint: Path | None = None,
    after: Callable[[int], None] = lambda step: None,
) -> list[Tensor]:
    """Train; go on from the checkpoint if there is one.

    Args:
        backend: where.
        seed: of all that is random.
        steps: optimizer steps.
        checkpoint: written after each step; None for none.
        after: called after each step.

    Returns:
        All parameters at the end.
    """
    torch.manual_seed(seed)
    features = torch.randn(steps, _SAMPLES, _FEATURES)
    labels = torch.randint(_CLASSES, (steps, _SAMPLES))
    layer = _layer(backend, seed)
    model = nn.Sequential(
        nn.Linear(_FEATURES, _QUBITS), layer, nn.Linear(layer.out_features, _CLASSES)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
    first = 0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    for step in range(first, steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features[step]), labels[step]).backward()
        optimizer.step()
        if checkpoint is not None:
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**states, "step": step + 1}, f"{checkpoint}.new")
            os.replace(f"{checkpoint}.new", checkpoint)
        after(step)
    return [parameter.detach().clone() for parameter in model.parameters()]


def _layer(backend: RowEvaluator | None, seed: int) -> QLayer:
    blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=1)]
    return QLayer(build_circuit(_QUBITS, blocks), backend=backend, shots=SHOTS, seed=seed)


def _derive(layer: QLayer, inputs: Tensor, vectors: Tensor) -> Derivative:
    layer = layer.double()
    inputs = inputs.clone().requires_grad_()
    outputs = layer(inputs)
    (outputs * vectors).sum().backward()
    assert inputs.grad is not None
    assert layer.weight.grad is not None
    assert layer.input_std_error is not None
    assert layer.weight_std_error is not None
    return Derivative(
        outputs.detach(),
        inputs.grad,
        layer.weight.grad,
        layer.input_std_error,
        layer.weight_std_error,
    )
