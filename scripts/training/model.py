"""The data, the classifier, and the backends that its circuit runs on."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.launchers import RowEvaluator
from qailab.torch import ObservableQLayer, QLayer
from training.options import Settings

PIXELS = 64
CLASSES = 10

_LAYERS = {"probabilities": QLayer, "z": ObservableQLayer}


@dataclass(frozen=True, eq=False)
class Digits:
    """The handwritten digits that ship inside scikit-learn: 1797 images of 8 x 8 pixels."""

    train_images: Tensor  # shape (N, 64), in [0, 1]
    train_labels: Tensor  # shape (N,), integers from 0 to 9
    test_images: Tensor  # shape (M, 64)
    test_labels: Tensor  # shape (M,)

    @classmethod
    def load(cls, settings: Settings) -> Digits:
        """Read the data, and take every fifth image of each digit for testing."""
        spec = importlib.util.find_spec("sklearn")
        assert spec is not None, "scikit-learn is installed with qailab[train]"
        # Its own loader comes with scipy and pandas: more than a second.
        file = Path(str(spec.origin)).parent / "datasets" / "data" / "digits.csv.gz"
        lines = np.loadtxt(file, delimiter=",", max_rows=settings.samples)
        # A pixel counts the dark dots of a 4 x 4 block.
        images, labels = lines[:, :-1] / 16.0, lines[:, -1].astype(int)
        test = np.zeros(len(labels), dtype=bool)
        for digit in range(CLASSES):
            # The same test samples for all runs: accuracies can be compared.
            test[np.flatnonzero(labels == digit)[2::5]] = True
        dtype = getattr(torch, settings.dtype)
        return cls(
            torch.tensor(images[~test], dtype=dtype),
            torch.tensor(labels[~test]),
            torch.tensor(images[test], dtype=dtype),
            torch.tensor(labels[test]),
        )

    def batches(self, settings: Settings, epoch: int) -> tuple[Tensor, ...]:
        """The sample numbers of each batch of an epoch.

        A function of (seed, epoch) alone: a resumed run finds its place in the middle of an epoch
        without any state of a generator.
        """
        # One number of two: epochs of neighbouring seeds must not share their order.
        mixed = (settings.seed * 1_000_003 + epoch) % 2**63
        order = torch.randperm(
            len(self.train_labels), generator=torch.Generator().manual_seed(mixed)
        )
        return order.split(settings.batch_size)


class HybridClassifier(nn.Module):
    """64 pixels -> linear -> n angles -> circuit -> 2**n probabilities -> linear -> 10 digits.

    With ``--output z``, <Z> of each of n qubits takes the place of the probabilities.

    Shape:
        - Input: ``(B, 64)``
        - Output: ``(B, 10)``, the logits of the digits
    """

    def __init__(self, settings: Settings, backend: RowEvaluator) -> None:
        super().__init__()
        torch.manual_seed(settings.seed)
        blocks = [
            RotationalEncoder("y", "input"),
            RealAmplitudesBlock("weight", reps=settings.reps),
        ]
        self.encoder = nn.Linear(PIXELS, settings.qubits)
        self.circuit = _LAYERS[settings.output](
            build_circuit(settings.qubits, blocks),
            backend=backend,
            shots=settings.num_shots,
            gradient=settings.gradient,  # type: ignore[arg-type]
            seed=settings.seed,
        )
        self.readout = nn.Linear(self.circuit.out_features, CLASSES)
        self.to(getattr(torch, settings.dtype))

    @property
    def rows_per_sample(self) -> int:
        """A row forward, and backward two for each angle, or its slope, or two for SPSA."""
        angles = self.circuit.problem.canonical.num_angles
        return 1 + {"spsa": 2, "adjoint": angles}.get(self.circuit.gradient, 2 * angles)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.circuit(self.encoder(images))
        if isinstance(self.circuit, QLayer):
            # They average 1 / K: times K, the readout sees numbers of order one, as it expects.
            outputs = outputs * self.circuit.out_features
        logits: Tensor = self.readout(outputs)
        return logits
