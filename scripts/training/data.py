"""The handwritten digits that ship inside scikit-learn: 1797 images of 8 x 8 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from qailab.errors import InputError

PIXELS = 64
CLASSES = 10

_MAX_INK = 16.0  # a pixel counts the dark dots of a 4 x 4 block
_TEST_PART = 0.2
_SPLIT_SEED = 0  # the same test samples for every run, so that accuracies can be compared


@dataclass(frozen=True, eq=False)
class Digits:
    """Images and labels for training and for testing.

    Args:
        train_images: shape ``(N, 64)``, in [0, 1].
        train_labels: shape ``(N,)``, integers from 0 to 9.
        test_images: shape ``(M, 64)``, in [0, 1].
        test_labels: shape ``(M,)``.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def load(cls, samples: int | None = None) -> Digits:
        """Read the data and split it, each digit in the same proportion.

        Args:
            samples: use only the first so many samples.

        Raises:
            InputError: if there are not so many.
        """
        images, labels = load_digits(return_X_y=True)
        if samples is not None and samples > len(labels):
            raise InputError(f"--samples must be at most {len(labels)}, got {samples}")
        parts = train_test_split(
            images[:samples] / _MAX_INK,
            labels[:samples],
            test_size=_TEST_PART,
            stratify=labels[:samples],
            random_state=_SPLIT_SEED,
        )
        train_images, test_images, train_labels, test_labels = parts
        return cls(
            torch.tensor(train_images, dtype=torch.float32),
            torch.tensor(train_labels),
            torch.tensor(test_images, dtype=torch.float32),
            torch.tensor(test_labels),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Digits:
        """The same on a device, with images in another precision."""
        return Digits(
            self.train_images.to(device, dtype),
            self.train_labels.to(device),
            self.test_images.to(device, dtype),
            self.test_labels.to(device),
        )

    def batches(self, seed: int, epoch: int, size: int) -> tuple[Tensor, ...]:
        """The sample numbers of each batch of an epoch.

        A function of (seed, epoch) alone: a resumed run finds its place in the middle of an epoch
        without any state of a generator.
        """
        # One number of two: epochs of neighbouring seeds must not share their order.
        mixed = (seed * 1_000_003 + epoch) % 2**63
        order = torch.randperm(
            len(self.train_labels), generator=torch.Generator().manual_seed(mixed)
        )
        return order.split(size)
