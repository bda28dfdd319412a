"""Shot noise as a pure function of (seed, step, pass, row number).

Each row draws from its own stretch of a counter-based generator, so the noise of a row is the
same whichever process draws it, in whatever order, however often.

References:
    J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, Parallel random numbers: as easy as
    1, 2, 3, SC '11, doi:10.1145/2063384.2063405 (Philox).
"""

from __future__ import annotations

import functools
import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qailab.arguments import checked_integer

Purpose = Literal["forward", "backward", "directions", "both"]
_PURPOSES: dict[Purpose, int] = {"forward": 0, "backward": 1, "directions": 2, "both": 3}
_SEED_LIMIT = 2**63  # a seed is stored in an int64 tensor of the layer's state_dict


def check_seed(seed: object) -> int:
    """Return the seed if it is an integer in [0, 2**63).

    Raises:
        InputTypeError: if it is not an integer.
        InputError: if it is out of range.
    """
    return checked_integer("seed", seed, least=0, most=_SEED_LIMIT - 1)


@dataclass(frozen=True)
class NoiseStream:
    """The noise of one pass of one step; row ``r`` of it is always the same noise.

    Args:
        seed: a non-negative integer below 2**63.
        step: the training step, so that steps differ.
        purpose: what the noise is for, so that the passes of a step are independent.
    """

    seed: int
    step: int = 0
    purpose: Purpose = "forward"

    @classmethod
    def fresh(cls, purpose: Purpose) -> NoiseStream:
        """A stream that nobody has seen before (seeded by the operating system)."""
        return cls(seed=secrets.randbits(63), purpose=purpose)

    @classmethod
    def of(cls, what: str, seed: int, step: int, purpose: Purpose) -> NoiseStream:
        """A stream of one thing's own: others with the same seed have independent noise.

        Args:
            what: names the thing, such as a circuit.
            seed: the seed.
            step: the step.
            purpose: what the noise is for.
        """
        return cls(_own_seed(what, seed), step, purpose)

    def for_purpose(self, purpose: Purpose) -> NoiseStream:
        """The independent stream of the same step for another purpose."""
        return replace(self, purpose=purpose)

    def generators(self, first_row: int, num_rows: int) -> Iterator[np.random.Generator]:
        """Yield the generator of each row, positioned at the start of that row's stretch.

        It is one generator that moves from row to row (a new object for each row would cost ten
        times as much): draw from it before asking for the next.
        """
        bits = np.random.Philox(key=self.key())
        generator = np.random.Generator(bits)
        state = bits.state
        counter = state["state"]["counter"]
        for row in range(first_row, first_row + num_rows):
            counter[:] = (0, 0, row, 0)  # 2**128 blocks of four words for each row
            bits.state = state  # the buffer in `state` was taken empty, and stays so
            yield generator

    def integer_seeds(self, first_row: int, num_rows: int) -> Iterator[int]:
        """Yield a 62-bit seed for each row, for simulators that seed themselves."""
        for generator in self.generators(first_row, num_rows):
            yield int(generator.integers(2**62))

    def key(self) -> NDArray[np.uint64]:
        """The key of the stream's Philox generator, two words."""
        entropy = (self.seed, self.step, _PURPOSES[self.purpose])
        # The spawn key is hashed after padding, so (seed, step) pairs cannot run into each other.
        sequence = np.random.SeedSequence(entropy[0], spawn_key=entropy[1:])
        return np.asarray(sequence.generate_state(2, np.uint64), dtype=np.uint64)


@functools.lru_cache(maxsize=1024)  # the same at every step
def _own_seed(what: str, seed: int) -> int:
    own = hashlib.blake2b(f"{check_seed(seed)} {what}".encode(), digest_size=8).digest()
    return int.from_bytes(own) >> 1
