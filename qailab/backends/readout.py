"""Readout errors, applied to exact probabilities.

Aer applies them when it draws shots; exact probabilities come out of the simulator without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qailab.gradients.rows import FloatArray


@dataclass(frozen=True)
class ReadoutErrors:
    """Confusion matrices of single qubits.

    Args:
        by_qubit: for a qubit, ``matrix[true, read]``, shape ``(2, 2)``.
        default: the matrix of all other qubits, or None.
    """

    by_qubit: Mapping[int, FloatArray]
    default: FloatArray | None = None

    @classmethod
    def of(cls, noise_model: Any) -> ReadoutErrors | None:
        """The readout errors of an Aer noise model.

        Returns:
            None if measuring has errors that are not single-qubit confusion matrices.
        """
        by_qubit: dict[int, FloatArray] = {}
        default = None
        for error in noise_model.to_dict()["errors"]:
            if "measure" not in error["operations"]:
                continue
            matrix = np.asarray(error["probabilities"], dtype=object)
            if error["type"] != "roerror" or matrix.shape != (2, 2):
                return None
            if "gate_qubits" in error:
                for (qubit,) in error["gate_qubits"]:
                    by_qubit[qubit] = matrix.astype(np.float64)
            else:
                default = matrix.astype(np.float64)
        return cls(by_qubit, default)

    def twirled(self) -> ReadoutErrors:
        """The same where each shot flips random qubits first and their bits afterwards."""
        both = {qubit: (one + one[::-1, ::-1]) / 2 for qubit, one in self.by_qubit.items()}
        rest = self.default
        return ReadoutErrors(both, None if rest is None else (rest + rest[::-1, ::-1]) / 2)

    def apply(self, probabilities: FloatArray, measured_qubits: Sequence[int]) -> FloatArray:
        """Probabilities of what is read, from those of what is there, both ``(n, K)``."""
        rows = len(probabilities)
        for bit, qubit in enumerate(measured_qubits):
            matrix = self.by_qubit.get(qubit, self.default)
            if matrix is not None:
                tensor = probabilities.reshape(rows, -1, 2, 1 << bit)
                zero, one = tensor[:, :, 0, :], tensor[:, :, 1, :]
                read = [zero * matrix[0, i] + one * matrix[1, i] for i in (0, 1)]
                probabilities = np.stack(read, axis=2).reshape(rows, -1)
        return probabilities
