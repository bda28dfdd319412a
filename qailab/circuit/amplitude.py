"""Amplitude encoding as a gate whose angles are differentiable functions of its features.

The state is prepared by a binary tree of rotations. Node ``j`` of level ``l`` splits the norm of
its ``2**(n - l)`` features between the two halves:

    theta = 2 * atan2(right, left)

with the norms of the halves, and on the last level the two features themselves, sign included.
Level ``l`` is a uniformly controlled RY on qubit ``n - 1 - l``, written as ``2**l`` RY gates with
CX gates between them; their angles ``alpha`` are a Walsh-Hadamard transform of ``theta``.

References:
    M. Mottonen, J. J. Vartiainen, V. Bergholm, M. M. Salomaa, Transformation of quantum states
    using uniformly controlled rotations, Quantum Inf. Comput. 5, 467 (2005),
    arXiv:quant-ph/0407010.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Gate, ParameterExpression, QuantumCircuit

from qailab.errors import InputError

FloatArray = NDArray[np.float64]

_SMALLEST_BLOCK = 1e-7  # rounding of 1e-15 in the angles' gradient is then 1e-8 in the features'
_SMALLEST_SCALE = 1e-300  # the gradient is as large as the features are small


class AmplitudeEncodingGate(Gate):  # type: ignore[misc]  # qiskit ships no types
    """Prepare ``sum_k x_k |k> / |x|`` from ``|0...0>``.

    Negative features are negative amplitudes. The gradient with respect to the features is exact
    except where a whole block of the tree vanishes: two neighbours ``x[2j]``, ``x[2j + 1]``, or an
    aligned block of 4, 8, ... features, are all zero. There the angles have no derivative (though
    the probabilities may), and the gradient for the features of that block is given as zero; the
    features of other blocks are not affected. For padding, and behind a ReLU, zero is what is
    needed. Next to zero, the derivatives of the angles grow as fast as those of the probabilities
    for them fall, and rounding takes what is left: two neighbours below 1e-7 of the largest
    feature, but not zero, are an error where their gradient is wanted.

    Args:
        features: ``2**n`` parameters, expressions or numbers; feature ``k`` is the amplitude
            of basis state ``k`` before normalisation.

    Raises:
        InputError: if the number of features is not a power of two, or less than two.
    """

    NAME = "amplitude_encoding"  # survives QPY, where the class does not

    def __init__(self, features: Sequence[ParameterExpression | float]) -> None:
        size = len(features)
        if size < 2 or size & (size - 1):
            raise InputError(
                f"amplitude encoding needs 2**n features for n >= 1 qubits, got {size}"
            )
        super().__init__(self.NAME, size.bit_length() - 1, list(features))

    def validate_parameter(self, parameter: Any) -> Any:
        return parameter

    def _define(self) -> None:
        if not any(isinstance(p, ParameterExpression) and p.parameters for p in self.params):
            features = np.array([[float(p) for p in self.params]])
            self.definition = self.angle_circuit(self.angles(features)[0].tolist())

    @property
    def num_angles(self) -> int:
        """The number of angles of the state preparation, ``2**n - 1``."""
        return len(self.params) - 1

    def angle_circuit(self, angles: Sequence[ParameterExpression | float]) -> QuantumCircuit:
        """The preparation as RY and CX gates.

        Args:
            angles: the ``num_angles`` angles ``alpha``, level by level, in radians.
        """
        n = self.num_qubits
        circuit = QuantumCircuit(n, name=self.name)
        position = 0
        for level in range(n):
            target = n - 1 - level
            for i in range(1 << level):
                circuit.ry(angles[position + i], target)
                if level:
                    # Gray code: the bit that changes between i and i + 1 (the top one closes).
                    bit = min(_trailing_zeros(i + 1), level - 1)
                    circuit.cx(target + 1 + bit, target)
            position += 1 << level
        return circuit

    def angles(self, features: FloatArray) -> FloatArray:
        """Angles ``alpha`` of samples.

        Args:
            features: shape ``(B, 2**n)``.

        Returns:
            Angles in radians, shape ``(B, num_angles)``.

        Raises:
            InputError: if a sample has only zeros; its number is named.
        """
        empty = np.flatnonzero(~features.any(axis=1))
        if empty.size:
            raise InputError(
                f"sample {empty[0]} of the amplitude encoding has only zeros, so it cannot be "
                f"normalised ({empty.size} of {len(features)} samples); leave it out or add a "
                "constant feature"
            )
        # Angles do not depend on the scale; without it, squares of tiny features would underflow.
        values = features / np.abs(features).max(axis=1, keepdims=True)
        levels = []
        while values.shape[1] > 1:
            left, right = values[:, 0::2], values[:, 1::2]
            levels.append(2.0 * np.arctan2(right, left))
            values = np.hypot(left, right)
        levels.reverse()
        return np.concatenate([theta @ _walsh(theta.shape[1]).T for theta in levels], axis=1)

    def check_slopes(self, features: FloatArray) -> None:
        """Raise an error where rounding would take the gradient for features.

        Args:
            features: shape ``(B, 2**n)``.

        Raises:
            InputError: naming the sample and the features.
        """
        largest = np.abs(features).max(axis=1, keepdims=True)
        pairs = np.abs(features).reshape(len(features), -1, 2).max(axis=2)
        lost = (pairs > 0) & ((pairs < _SMALLEST_BLOCK * largest) | (largest < _SMALLEST_SCALE))
        if lost.any():
            sample, pair = np.argwhere(lost)[0]
            first, second = features[sample, 2 * pair : 2 * pair + 2]
            raise InputError(
                f"sample {sample} of the amplitude encoding has {first:.3g} and {second:.3g} as "
                f"features {2 * pair} and {2 * pair + 1}, too small beside the largest, "
                f"{largest[sample, 0]:.3g}, for their gradient to survive rounding; make one of "
                f"them at least {max(_SMALLEST_BLOCK * largest[sample, 0], _SMALLEST_SCALE):.3g}, "
                "or both zero, which gives them the gradient zero"
            )

    def jacobian(self, features: FloatArray) -> FloatArray:
        """Derivatives of the angles of one sample.

        Args:
            features: shape ``(2**n,)``.

        Returns:
            ``d alpha[a] / d x[k]``, shape ``(num_angles, 2**n)``.
        """
        scale = float(np.abs(features).max())
        values = features / scale
        slopes = np.eye(len(features))  # d values / d x of the current level (times scale)
        levels = []
        while len(values) > 1:
            left, right = values[0::2, None], values[1::2, None]
            d_left, d_right = slopes[0::2], slopes[1::2]
            norm = np.hypot(left, right)
            inverse = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
            cosine, sine = left * inverse, right * inverse
            levels.append(2.0 * inverse * (cosine * d_right - sine * d_left))
            slopes = cosine * d_left + sine * d_right
            values = norm[:, 0]
        levels.reverse()
        rows: FloatArray = np.concatenate([_walsh(len(theta)) @ theta for theta in levels])
        return rows / scale


def _walsh(size: int) -> FloatArray:
    """``alpha = walsh @ theta``: entry ``(i, j)`` is ``(-1)**(bits of j & gray(i)) / size``."""
    index = np.arange(size)
    gray = index ^ (index >> 1)
    parity = np.bitwise_count(index[None, :] & gray[:, None]) & 1
    matrix: FloatArray = (1.0 - 2.0 * parity) / size
    return matrix


def _trailing_zeros(number: int) -> int:
    return (number & -number).bit_length() - 1
