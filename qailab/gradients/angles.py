"""Where the angles of a canonical circuit come from, and the chain rule back.

An angle is an expression of the logical parameters, or belongs to a state preparation whose
angles are functions of features, which in turn are expressions of the logical parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qailab.circuit.amplitude import AmplitudeEncodingGate
from qailab.gradients.expressions import ExpressionMap
from qailab.gradients.rows import FloatArray, IntArray


@dataclass(frozen=True)
class PreparedAngles:
    """Angles that a state preparation computes from its features.

    Args:
        gate: the preparation.
        features: the expressions of its features.
        columns: the angles it computes, shape ``(gate.num_angles,)``.
    """

    gate: AmplitudeEncodingGate
    features: ExpressionMap
    columns: IntArray


class AngleMap:
    """The map from logical parameters ``(B, L)`` to angles ``(B, A)``, and its Jacobian.

    Args:
        num_angles: the number of angles, A.
        columns: the angles that are expressions of the logical parameters.
        direct: their expressions, one for each of ``columns``.
        prepared: the state preparations, which compute the other angles.
        relevant: the angles that can change the measured outcomes.
    """

    def __init__(
        self,
        num_angles: int,
        columns: IntArray,
        direct: ExpressionMap,
        prepared: Sequence[PreparedAngles],
        relevant: IntArray,
    ) -> None:
        self._num_angles = num_angles
        self._columns = columns
        self._direct = direct
        self._prepared = tuple(prepared)
        self._relevant = relevant

    def values(self, parameters: FloatArray) -> FloatArray:
        """Angles in radians, shape ``(B, A)``, for logical parameters of shape ``(B, L)``."""
        angles = np.zeros((len(parameters), self._num_angles))
        angles[:, self._columns] = self._direct.values(parameters)
        for piece in self._prepared:
            angles[:, piece.columns] = piece.gate.angles(piece.features.values(parameters))
        return angles

    def check_slopes(self, parameters: FloatArray) -> None:
        """Raise an error, before anything runs, where an expression has no finite derivative.

        Raises:
            InputError: naming the instruction and the sample.
        """
        for expressions in (self._direct, *(piece.features for piece in self._prepared)):
            expressions.check_slopes(parameters)

    def reached_by(self, wanted: NDArray[np.bool_]) -> IntArray:
        """The angles that wanted parameters reach and that can change an outcome, ascending.

        Args:
            wanted: which logical parameters are wanted, shape ``(L,)``.
        """
        reached = set(self._columns[self._direct.reach[:, wanted].any(axis=1)].tolist())
        for piece in self._prepared:
            if piece.features.reach[:, wanted].any():
                reached |= set(piece.columns.tolist())
        return np.array(sorted(reached & set(self._relevant.tolist())), dtype=np.int64)

    def pull_back(
        self, parameters: FloatArray, cotangent: FloatArray, *, squared: bool = False
    ) -> FloatArray:
        """Chain rule: derivatives for angles become derivatives for logical parameters.

        Args:
            parameters: logical parameters, shape ``(B, L)``.
            cotangent: one number for each sample and angle, shape ``(B, A)``.
            squared: whether to multiply by squared Jacobian entries, as variances need.

        Returns:
            Shape ``(B, L)``.
        """
        pulled = self._direct.pull_back(parameters, cotangent[:, self._columns], squared=squared)
        for piece in self._prepared:
            features = piece.features.values(parameters)
            for b, sample in enumerate(features):
                # The two maps are multiplied before squaring: a variance needs whole entries.
                total = piece.features.pull_back(
                    np.repeat(parameters[b : b + 1], piece.gate.num_angles, axis=0),
                    piece.gate.jacobian(sample),
                )
                pulled[b] += cotangent[b, piece.columns] @ (total**2 if squared else total)
        return pulled
