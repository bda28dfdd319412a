"""The batches of a training by number, from a loader that is read once an epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from qailab.errors import InputError, InputTypeError


class Batches:
    """Batches by number, each kept until it is released.

    What is drawn from torch's generator, as by a loader that shuffles, is a function of (seed,
    number): a resumed run reads the same batches, and so does a replay.

    Args:
        loader: gives the batches of an epoch each time it is iterated: a ``DataLoader``, a list.
        seed: of the order.
        is_done: whether a batch is not needed any more; those are read and dropped.
        first: the first epoch that is needed.

    Raises:
        InputError: if the loader has no batches, or does not say how many.
    """

    def __init__(
        self,
        loader: Any,
        seed: int,
        is_done: Callable[[int], bool] = lambda _: False,
        first: int = 0,
    ) -> None:
        if not hasattr(loader, "__len__") or not hasattr(loader, "__iter__"):
            raise InputTypeError(
                f"the loader must have a length and be iterable, as a DataLoader of a dataset with "
                f"a length or a list of batches, got {loader!r}"
            )
        self.per_epoch = len(loader)
        if self.per_epoch == 0:
            raise InputError("the loader has no batches")
        self._loader, self._seed, self._is_done = loader, seed, is_done
        self._next = first * self.per_epoch
        self._held: dict[int, Any] = {}
        self._iterator: Iterator[Any] = iter(())

    def get(self, number: int) -> Any:
        """A batch.

        Raises:
            InputError: if an epoch has fewer batches than the loader said.
        """
        while self._next <= number:
            batch = self._draw(self._next)
            if not self._is_done(self._next):
                self._held[self._next] = batch
            self._next += 1
        return self._held[number]

    def release(self, number: int) -> None:
        """Forget a batch."""
        self._held.pop(number, None)

    def _generators(self) -> Iterator[torch.Generator]:
        """Generators that the loader and its samplers draw from in place of torch's own."""
        sampler = getattr(self._loader, "batch_sampler", None)
        for owner in (
            self._loader, getattr(self._loader, "sampler", None),
            sampler, getattr(sampler, "sampler", None),
        ):  # fmt: skip
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                yield generator

    def _draw(self, number: int) -> Any:
        epoch, place = divmod(number, self.per_epoch)
        with torch.random.fork_rng(devices=[]):
            mixed = hashlib.blake2b(f"{self._seed} {number}".encode(), digest_size=8).digest()
            torch.manual_seed(int.from_bytes(mixed) >> 1)
            if place == 0:
                for generator in self._generators():
                    generator.manual_seed(torch.initial_seed())
                self._iterator = iter(self._loader)
            try:
                return next(self._iterator)
            except StopIteration:
                raise InputError(
                    f"the loader says that it has {self.per_epoch} batches, and had {place} in "
                    f"epoch {epoch}"
                ) from None
