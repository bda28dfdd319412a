"""Shots of a circuit, and how results hold them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]


class Samples(ABC):
    """Shots of a circuit: what each of its classical bits was."""

    @abstractmethod
    def words(self, clbits: Sequence[int]) -> ByteArray:
        """Shots as ``BitArray`` packs them.

        Args:
            clbits: classical bits, the least significant first.

        Returns:
            Shape ``(n, shots, ceil(len(clbits) / 8))``, big-endian.
        """

    @abstractmethod
    def packed(self, clbits: Sequence[int]) -> bytes:
        """The bits of shape ``(n, shots, len(clbits))`` as a stream, the first in the lowest."""


class OutcomeSamples(Samples):
    """Shots as numbers of outcomes.

    Args:
        outcomes: of each row and shot: the measured bits, the first of them lowest; shape
            ``(n, shots)``.
        clbits: the classical bits that are measured, in the order of an outcome's bits.
    """

    def __init__(self, outcomes: NDArray[Any], clbits: Sequence[int]) -> None:
        self._outcomes = outcomes
        self._place = {clbit: place for place, clbit in enumerate(clbits)}
        self._all = np.arange(1 << len(clbits), dtype=np.uint32)

    def _table(self, clbits: Sequence[int]) -> BoolArray:
        """Bits of all outcomes, shape ``(K, len(clbits))``; those not measured are 0."""
        table = np.zeros((len(self._all), len(clbits)), dtype=np.bool_)
        for column, clbit in enumerate(clbits):
            if clbit in self._place:
                table[:, column] = self._all >> self._place[clbit] & 1
        return table

    def words(self, clbits: Sequence[int]) -> ByteArray:
        table = _as_words(self._table(clbits))
        if table.shape[1] == 1:
            column: ByteArray = np.take(table[:, 0], self._outcomes)
            return column.reshape(*column.shape, 1)
        words: ByteArray = table[self._outcomes]
        return words

    def packed(self, clbits: Sequence[int]) -> bytes:
        table = self._table(clbits)
        size, total = len(clbits), self._outcomes.size
        if not 0 < size <= 8:
            return np.packbits(table[self._outcomes], bitorder="little").tobytes()
        # Eight shots of s bits are s whole bytes: several times faster than packing booleans.
        values = np.take(np.packbits(table, axis=1, bitorder="little")[:, 0], self._outcomes)
        eights: NDArray[Any] = np.zeros(-(-total // 8) * 8, dtype=np.uint8)
        eights[:total] = values.ravel()
        for width in (1, 2, 4):  # neighbours to pairs, to fours, to eights
            pairs = eights.astype(f"<u{2 * width}").reshape(-1, 2)
            eights = pairs[:, 0] | pairs[:, 1] << size * width
        whole = eights.view(np.uint8).reshape(-1, 8)[:, :size]
        return whole.tobytes()[: -(-total * size // 8)]


class BitSamples(Samples):
    """Shots as bits.

    Args:
        bits: of each row, shot and classical bit, shape ``(n, shots, num_clbits)``.
    """

    def __init__(self, bits: BoolArray) -> None:
        self._bits = bits

    def words(self, clbits: Sequence[int]) -> ByteArray:
        return _as_words(self._bits[..., list(clbits)])

    def packed(self, clbits: Sequence[int]) -> bytes:
        return np.packbits(self._bits[..., list(clbits)], bitorder="little").tobytes()


def _as_words(bits: BoolArray) -> ByteArray:
    """Bits, the lowest first, to big-endian bytes along the last axis."""
    missing = -bits.shape[-1] % 8
    padded = np.concatenate([bits, np.zeros((*bits.shape[:-1], missing), np.bool_)], axis=-1)
    return np.packbits(padded[..., ::-1], axis=-1, bitorder="big")


def bits_of(counts: dict[str, int], num_clbits: int) -> BoolArray:
    """Counts by hexadecimal outcomes to shots, shape ``(shots, num_clbits)``."""
    size = -(-num_clbits // 8)
    raw = b"".join(int(outcome, 16).to_bytes(size, "little") for outcome in counts)
    table = np.frombuffer(raw, dtype=np.uint8).reshape(len(counts), size)
    bits = np.unpackbits(table, axis=1, bitorder="little")[:, :num_clbits].astype(np.bool_)
    return np.repeat(bits, list(counts.values()), axis=0)
