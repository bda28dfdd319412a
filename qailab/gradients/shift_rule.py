"""Parameter-shift rules, as data that refuses to exist when it is wrong.

For an expectation ``f`` whose dependence on one angle has the frequencies ``w``,
``f'(t) = sum_i c_i f(t + s_i)`` holds exactly if for every frequency
``sum c = 0``, ``sum c cos(w s) = 0`` and ``sum c sin(w s) = w``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qailab.errors import InputError

_TOLERANCE = 1e-12  # the sums have a handful of terms of order one


@dataclass(frozen=True)
class ShiftRule:
    """Coefficients and shifts that give an exact derivative from shifted evaluations.

    Args:
        coefficients: the weight ``c_i`` of each shifted evaluation.
        shifts: the shift ``s_i`` of each evaluation, in radians.
        frequencies: the positive frequencies ``w`` of the gate, in radians per radian of angle.

    Raises:
        InputError: if the rule is not exact for its frequencies.

    References:
        D. Wierichs, J. Izaac, C. Wang, C. Y.-Y. Lin, General parameter-shift rules for quantum
        gradients, Quantum 6, 677 (2022), doi:10.22331/q-2022-03-30-677.

    >>> ShiftRule(coefficients=(0.5, -0.5), shifts=(math.pi / 2, -math.pi / 2)).num_terms
    2
    """

    coefficients: tuple[float, ...]
    shifts: tuple[float, ...]
    frequencies: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if len(self.coefficients) != len(self.shifts) or not self.shifts:
            raise InputError(
                "a shift rule needs as many coefficients as shifts, and at least one; "
                f"got {len(self.coefficients)} coefficients and {len(self.shifts)} shifts"
            )
        if not self.frequencies or min(self.frequencies) <= 0:
            raise InputError(f"frequencies must be positive, got {self.frequencies}")
        terms = list(zip(self.coefficients, self.shifts, strict=True))
        residues = [sum(self.coefficients)]
        for w in self.frequencies:
            residues.append(sum(c * math.cos(w * s) for c, s in terms))
            residues.append(sum(c * math.sin(w * s) for c, s in terms) - w)
        worst = max(abs(residue) for residue in residues)
        if not worst < _TOLERANCE:
            raise InputError(
                f"the shift rule {self.coefficients} at {self.shifts} is not exact for the "
                f"frequencies {self.frequencies}: a defining sum is off by {worst:.3g}"
            )

    @property
    def num_terms(self) -> int:
        """The number of shifted evaluations per angle."""
        return len(self.shifts)


TWO_TERM_RULE = ShiftRule(coefficients=(0.5, -0.5), shifts=(math.pi / 2, -math.pi / 2))
"""The rule of every gate ``exp(-i t P / 2)`` with ``P @ P = 1`` (one frequency, 1)."""
