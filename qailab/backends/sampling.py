"""From exact probabilities to shots, and from counts to probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qailab.gradients.noise import NoiseStream
from qailab.gradients.rows import FloatArray


def sample_frequencies(
    probabilities: FloatArray, shots: int, noise: NoiseStream, first_row: int
) -> FloatArray:
    """Draw ``shots`` outcomes for each row and return their frequencies.

    Args:
        probabilities: exact probabilities of each row, shape ``(n, K)``.
        shots: how many outcomes to draw for each row.
        noise: where the randomness comes from, by row number.
        first_row: the number of the first row.

    Returns:
        Frequencies, shape ``(n, K)``, each row summing to one.
    """
    clipped = np.maximum(probabilities, 0.0)  # density matrices give -1e-17 now and then
    clipped /= clipped.sum(axis=1, keepdims=True)
    counts = np.empty(clipped.shape, dtype=np.int64)
    generators = noise.generators(first_row, len(clipped))
    for row, generator in enumerate(generators):
        counts[row] = generator.multinomial(shots, clipped[row])
    frequencies: FloatArray = counts / shots
    return frequencies


def counts_to_frequencies(counts: Sequence[Mapping[str, int]], num_outcomes: int) -> FloatArray:
    """Frequencies of outcomes from Aer's counts.

    Args:
        counts: for each row, counts by outcome in hexadecimal.
        num_outcomes: the number of outcomes, K.

    Returns:
        Frequencies, shape ``(n, K)``.
    """
    frequencies = np.zeros((len(counts), num_outcomes))
    for row, table in enumerate(counts):
        outcomes = [int(outcome, 16) for outcome in table]
        frequencies[row, outcomes] = list(table.values())
    frequencies /= frequencies.sum(axis=1, keepdims=True)
    return frequencies


def measured_marginal(probabilities: FloatArray, measured_qubits: Sequence[int]) -> FloatArray:
    """Probabilities of the measured bits, from those of all qubits.

    Args:
        probabilities: shape ``(n, 2**num_qubits)``, qubit 0 least significant.
        measured_qubits: the qubit of each outcome bit, bit 0 (least significant) first.

    Returns:
        Shape ``(n, 2**len(measured_qubits))``.
    """
    rows, size = probabilities.shape
    num_qubits = size.bit_length() - 1
    if tuple(measured_qubits) == tuple(range(num_qubits)):
        return probabilities
    # Axis 1 + i of the tensor is qubit num_qubits - 1 - i.
    tensor = probabilities.reshape(rows, *[2] * num_qubits)
    kept = [num_qubits - qubit for qubit in reversed(measured_qubits)]
    dropped = [axis for axis in range(1, num_qubits + 1) if axis not in kept]
    ordered = np.ascontiguousarray(tensor.transpose(0, *kept, *dropped))
    marginal: FloatArray = ordered.reshape(rows, 1 << len(kept), -1).sum(axis=2)
    return marginal
