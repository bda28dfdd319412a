"""Who trains together: which part of a batch is whose, and how the parts are put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed
from torch import Tensor


class Team(Protocol):
    """Workers that hold the same model, each for its part of every batch.

    Attributes:
        size: how many there are.
        rank: which of them this is, from 0.
    """

    @property
    def size(self) -> int: ...

    @property
    def rank(self) -> int: ...

    def total(self, values: Tensor) -> Tensor:
        """The sum of all workers' values, the same bits for each of them."""
        ...


@dataclass(frozen=True)
class Alone:
    """A team of one."""

    size: int = 1
    rank: int = 0

    def total(self, values: Tensor) -> Tensor:
        return values


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of torch's default process group."""

    @property
    def size(self) -> int:
        return torch.distributed.get_world_size()

    @property
    def rank(self) -> int:
        return torch.distributed.get_rank()

    def total(self, values: Tensor) -> Tensor:
        # Gathered rather than reduced: an order of summation that no library and no timing
        # decides, for a few thousand numbers.
        parts = [torch.empty_like(values) for _ in range(self.size)]
        torch.distributed.all_gather(parts, values.contiguous())
        return in_order(parts)


def in_order(parts: list[Tensor]) -> Tensor:
    """Their sum, from the first to the last."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def part_of(count: int, team: Team) -> slice:
    """The part of so many samples that this worker takes; parts differ by one sample at most.

    >>> [part_of(7, Alone(3, rank)) for rank in range(3)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return slice(count * team.rank // team.size, count * (team.rank + 1) // team.size)
