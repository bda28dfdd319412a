"""From exact probabilities to shots, and from shots to probabilities and expectation values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qailab.backends.trex import TwirledReadout, variance_of_mean
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.noise import NoiseStream
from qailab.gradients.observables import Bits, Observables, words_of
from qailab.gradients.rows import FloatArray, RowBatch

MAX_EXACT_OUTCOMES = 1 << 13
"""Up to here exact probabilities and numpy's multinomial beat Aer's own sampling (measured: 7 to
10 times at 10 bits, level at about 14); beyond, copying 2**m probabilities costs more."""


def is_wide(circuit: CanonicalCircuit) -> bool:
    """Whether probabilities of all outcomes cost more than the bits of the shots."""
    return circuit.num_outcomes > MAX_EXACT_OUTCOMES


def from_bits(circuit: CanonicalCircuit, shots: int | None) -> bool:
    """Whether observables are evaluated from the bits of each shot, without probabilities."""
    return circuit.observables is not None and shots is not None and is_wide(circuit)


def measured_width(circuit: CanonicalCircuit, shots: int | None) -> int:
    """How many floats hold what `Backend.measure` finds of a row: its probabilities, or bits."""
    if not from_bits(circuit, shots):
        return circuit.num_outcomes
    return -(-(shots or 0) * bytes_of(circuit) // 8)


def bits_as_floats(bits: Bits) -> FloatArray:
    """The bits of shots, ``(n, shots, bytes)``, as floats that nobody calculates with."""
    rows, shots, size = bits.shape
    padded = np.zeros((rows, -(-shots * size // 8) * 8), dtype=np.uint8)
    padded[:, : shots * size] = bits.reshape(rows, shots * size)
    return padded.view(np.float64)


def floats_as_bits(floats: FloatArray, shots: int, size: int) -> Bits:
    """What `bits_as_floats` was given, ``size`` bytes for each shot."""
    packed = np.ascontiguousarray(floats).view(np.uint8)
    return packed[:, : shots * size].reshape(len(floats), shots, size)


def bytes_of(circuit: CanonicalCircuit) -> int:
    """The bytes of a shot's bits."""
    return -(-len(circuit.measured_qubits) // 8)


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


def frequencies_to_bits(frequencies: FloatArray, shots: int) -> Bits:
    """The bits of each shot, in some order, from frequencies ``(n, K)``."""
    counts = np.rint(frequencies * shots).astype(np.int64)
    outcomes = np.tile(np.arange(frequencies.shape[1], dtype=">u8"), len(counts))
    drawn = np.repeat(outcomes, counts.ravel()).reshape(len(counts), shots, 1)
    return drawn.view(np.uint8)


def counts_to_bits(counts: Sequence[Mapping[str, int]], num_bits: int) -> Bits:
    """The bits of each shot, in some order, from Aer's counts.

    Args:
        counts: for each row, counts by outcome in hexadecimal; equally many shots in each.
        num_bits: measured bits, as many as you like.
    """
    size = -(-num_bits // 8)
    rows = []
    for table in counts:
        outcomes = b"".join(int(outcome, 16).to_bytes(size) for outcome in table)
        once = np.frombuffer(outcomes, dtype=np.uint8).reshape(-1, size)
        rows.append(np.repeat(once, list(table.values()), axis=0))
    return np.stack(rows)


@np.errstate(invalid="ignore", over="ignore")  # of a grad_output that is nearly infinite
def contract_bits(
    observables: Observables, batch: RowBatch, bits: Bits, readout: TwirledReadout | None = None
) -> FloatArray:
    """What a batch wants of observables, from the shots of its rows.

    The variance is that of the whole sum from shot to shot, so terms may be correlated.

    Args:
        observables: the observables.
        batch: the rows, in all bases.
        bits: their shots, shape ``(n, shots, bytes)``.
        readout: what it leaves of each term, where it is twirled to be mitigated.

    Returns:
        Answers as `RowBatch` has them.
    """
    samples, cotangents = batch.rows.samples(), batch.cotangents
    answers = np.empty((batch.num_rows, batch.answer_width(observables.num_observables)))
    if readout is not None:
        observables = replace(observables, coefficients=observables.coefficients / readout.factors)
    for basis in range(observables.num_bases):
        terms = observables.terms(basis)
        if cotangents is None:
            weights = observables.coefficients[:, terms]
            table = np.broadcast_to(weights, (len(batch.rows.base), *weights.shape))
        else:
            table = observables.weights(basis, cotangents)[:, None]
        for row in range(basis, batch.num_rows, observables.num_bases):
            wanted, signs = table[samples[row]], observables.signs(basis, words_of(bits[row]))
            shares = wanted * signs.mean(axis=1)
            answers[row, : len(wanted)] = shares.sum(axis=1)
            for place in range(answers.shape[1] - len(wanted)):
                shots = (wanted[place][:, None] * signs).sum(axis=0)
                answers[row, len(wanted) + place] = (
                    variance_of_mean(shots)
                    if readout is None
                    else readout.variance(shots, terms, shares[place])
                )
    return answers


def bits_to_counts(bits: Bits, num_outcomes: int) -> NDArray[np.uint32]:
    """How often each outcome came, shape ``(n, K)``."""
    outcomes = (words_of(shots)[:, 0].astype(np.int64) for shots in bits)
    return np.array([np.bincount(row, minlength=num_outcomes) for row in outcomes], np.uint32)


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
