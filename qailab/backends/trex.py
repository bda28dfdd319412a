"""Twirled readout error extinction (TREX): values of observables without the readout's bias.

Where random qubits are flipped before each shot and their bits after it, the readout leaves of a
term's value the same factor in every state. Calibration rows, which flip and measure qubits that
nothing was done to, tell it: ``<P> = <P as read> / factor``. They run in the same job as the rows
whose values they mend, and count like them.

References:
    E. van den Berg, Z. K. Minev, K. Temme, Model-free readout-error mitigation for quantum
    expectation values, Phys. Rev. A 105, 032620 (2022), doi:10.1103/PhysRevA.105.032620.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qailab.errors import BackendError, EvaluationError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.observables import Bits, Observables, words_of
from qailab.gradients.rows import FloatArray

ReadoutMitigation = Literal["trex"]

CALIBRATION_ROWS = 16
"""Of a call, each with the shots of a row. 16 rows of 1,024 shots know a factor of 0.9 to 0.4 %,
and are 2 % of the rows of a step of 32 samples and 24 angles."""

_MOST_OFF = 0.2  # standard error of a factor over the factor: beyond, its inverse means nothing


@dataclass(frozen=True, eq=False)
class TwirledReadout:
    """What twirled readout leaves of each term of some observables.

    Args:
        factors: of each term, shape ``(T,)``.
        deviations: shape ``(C, T)``; their squares, summed over C, are the relative variances of
            the factors, and their products the covariances.
        twirls: how often the flips of a row change, in equal parts of its shots; None if with every
            shot.
    """

    factors: FloatArray
    deviations: FloatArray
    twirls: int | None = None

    @classmethod
    def of(cls, observables: Observables, bits: Bits, twirls: int | None = None) -> TwirledReadout:
        """The factors that calibration rows tell.

        Args:
            observables: the observables.
            bits: shots of C calibration rows, shape ``(C, shots, bytes)``.
            twirls: how often the flips of a row change.

        Raises:
            EvaluationError: if a factor cannot be told from zero.
        """
        found = np.empty((len(bits), observables.coefficients.shape[1]))
        for basis in range(observables.num_bases):
            for row, shots in enumerate(bits):
                signs = observables.signs(basis, words_of(shots))
                found[row, observables.terms(basis)] = signs.mean(axis=1)
        factors = found.mean(axis=0)
        errors = (found - factors) / math.sqrt(len(found) * (len(found) - 1))
        off = np.sqrt((errors**2).sum(axis=0))
        worst = int(np.argmax(off - _MOST_OFF * factors)) if factors.size else 0
        if factors.size and off[worst] >= _MOST_OFF * factors[worst]:
            raise EvaluationError(
                f"the readout leaves {factors[worst]:.3f} +- {off[worst]:.3f} of the parity of "
                f"{observables.weight(worst)} qubits, which is too little or too uncertain to be "
                "mitigated; take more shots, observables of fewer qubits, or no readout_mitigation"
            )
        return cls(factors, errors / factors, twirls)

    def variance(self, shots: FloatArray, terms: slice, shares: FloatArray) -> float:
        """The variance of a row's sum of terms: from its shots, and from what the factors are off.

        The latter is counted as if it were the row's own, and the rows of a pass have it in common.
        Beside that of their shots it is small: the slope of a weight that 32 like samples agree on
        is off by some 10 % more than is told.

        Args:
            shots: the sum in each shot, mitigated, shape ``(shots,)``.
            terms: which terms.
            shares: the mitigated value of each, shape ``(terms,)``.
        """
        parts = shots.reshape(self.twirls or len(shots), -1).mean(axis=1)  # with the same flips
        return variance_of_mean(parts) + float(((self.deviations[:, terms] @ shares) ** 2).sum())


def variance_of_mean(values: FloatArray) -> float:
    """The variance of their mean; that of one value is not known."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.nan


def check_mitigated(circuit: CanonicalCircuit, shots: int | None) -> None:
    """Raise if values of these rows have no readout that could be mitigated.

    Raises:
        BackendError: if probabilities are asked for, or exact values.
    """
    if circuit.observables is None:
        raise BackendError(
            "readout_mitigation is of expectation values, and this problem asks for probabilities; "
            "ask for observables (ObservableQLayer, CircuitProblem(observables=...)), or use a "
            "backend without it"
        )
    if shots is None:
        raise BackendError("readout_mitigation mends values from shots; give shots, not shots=None")
