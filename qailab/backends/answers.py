"""From what rows measured to their answers: probabilities, bits, and contractions of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from qailab.backends.sampling import (
    bytes_of,
    contract_bits,
    floats_as_bits,
    from_bits,
    measured_width,
)
from qailab.errors import EvaluationError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.observables import Observables
from qailab.gradients.rows import FloatArray, JoinedRows, RowBatch, SlopeRows

PARTIAL_SUMS = 32
"""Of a contraction: quick for numpy and for compiled kernels, and in one order for both."""


@dataclass(frozen=True)
class Usage:
    """What a device was used for.

    Args:
        jobs: jobs that were submitted to it.
        qpu_seconds: seconds it was busy with them.
    """

    jobs: int = 0
    qpu_seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.jobs + other.jobs, self.qpu_seconds + other.qpu_seconds)


NOTHING_USED = Usage()


@dataclass(frozen=True)
class Probabilities:
    """The probabilities of some rows' outcomes.

    Args:
        sampled: estimates from shots, shape ``(n, K)``; the exact ones if ``shots`` is None.
        exact: the probabilities that the shots were drawn from, shape ``(n, K)``, where the backend
            knows them; the shot variance is then exact as well.
        usage: what a device was used for since the last call returned.
    """

    sampled: FloatArray
    exact: FloatArray | None = None
    usage: Usage = NOTHING_USED


class Evaluation(NamedTuple):
    """The answers of a batch, in row order, and what they took.

    Args:
        answers: outputs, or values and variances ``(n, 2)``; see `RowBatch`.
        usage: what a device was used for.
    """

    answers: FloatArray
    usage: Usage


def answer_width(circuit: CanonicalCircuit, batch: RowBatch) -> int:
    """How many floats answer a row of a batch."""
    if isinstance(batch.rows, JoinedRows):
        return measured_width(circuit, batch.shots)
    return batch.answer_width(circuit.num_outputs)


@np.errstate(invalid="ignore", over="ignore")  # of a grad_output that is nearly infinite
def contract(found: Probabilities, batch: RowBatch) -> FloatArray:
    """What a batch wants of its probabilities.

    Args:
        found: probabilities of the batch's rows, shape ``(n, K)``.
        batch: the rows, with or without cotangents.

    Returns:
        The probabilities ``(n, K)``; or with cotangents ``c`` of each row's sample the value
        ``sum_k c[k] p[k]`` and its shot variance, ``(n, 2)``.
    """
    if batch.cotangents is None:
        return found.sampled
    if isinstance(batch.rows, SlopeRows):
        raise EvaluationError("slopes are no function of probabilities; shift the angles instead")
    cotangents = batch.cotangents[batch.rows.samples()]
    values = _row_sums(found.sampled * cotangents)
    if batch.shots is None:
        return np.stack([values, np.zeros_like(values)], axis=1)
    if found.exact is not None:
        probabilities, degrees = found.exact, batch.shots
        means = _row_sums(probabilities * cotangents)
    else:  # the sample variance of one shot has no value
        probabilities, means = found.sampled, values
        degrees = batch.shots - 1
    spread = (probabilities * (cotangents - means[:, None]) ** 2).sum(axis=1)
    variances = spread / degrees if degrees else np.full_like(spread, np.nan)
    return np.stack([values, variances], axis=1)


def _row_sums(products: FloatArray) -> FloatArray:
    """The sum of each row, in an order that K alone decides: that of the statevector kernels.

    Unlike those of a matrix product, the bits are the same however many rows there are.
    """
    rows, outcomes = products.shape
    partial = products.reshape(rows, -1, min(outcomes, PARTIAL_SUMS)).sum(axis=1)
    sums: FloatArray = np.add.accumulate(partial, axis=1)[:, -1]
    return sums


def contract_measured(
    circuit: CanonicalCircuit, batch: RowBatch, measured: FloatArray
) -> FloatArray:
    """The answers of rows that were measured before, by the code that a backend uses.

    Args:
        circuit: the circuit.
        batch: the rows of one pass, with or without cotangents.
        measured: what `Backend.measure` found of them, in row order.
    """
    observables, shots = circuit.observables, batch.shots
    if observables is None:
        return contract(Probabilities(measured), batch)
    if from_bits(circuit, shots):
        bits = floats_as_bits(measured, shots or 0, bytes_of(circuit))
        return contract_bits(observables, batch, bits)
    bases = observables.num_bases

    def answer(basis: int, piece: RowBatch) -> Evaluation:
        return Evaluation(contract(Probabilities(measured[basis::bases]), piece), NOTHING_USED)

    return in_bases(circuit, batch, answer).answers


def in_bases(
    circuit: CanonicalCircuit, batch: RowBatch, answer: Callable[[int, RowBatch], Evaluation]
) -> Evaluation:
    """Values of observables from the answers in each basis, which ``answer`` gives."""
    observables = circuit.observables
    assert observables is not None
    answers = np.empty((batch.num_rows, batch.answer_width(circuit.num_outputs)))
    used = NOTHING_USED
    for basis in range(observables.num_bases):
        cotangents = batch.cotangents
        if cotangents is not None:
            cotangents = observables.outcome_cotangents(basis, cotangents)
        found = answer(basis, batch.in_basis(basis, cotangents))
        shares = found.answers
        if cotangents is None:
            shares = _shares(observables, basis, shares, batch)
        answers[basis :: observables.num_bases] = shares
        used += found.usage
    return Evaluation(answers, used)


def _shares(
    observables: Observables, basis: int, probabilities: FloatArray, batch: RowBatch
) -> FloatArray:
    """What a batch without cotangents wants of the probabilities in a basis, ``(n, K)``."""
    values = observables.of_probabilities(basis, probabilities)
    if not batch.variances:
        return values
    rows, found, variances = batch.rows.in_basis(basis), Probabilities(probabilities), []
    for unit in np.eye(observables.num_observables)[:, None]:
        table = observables.outcome_cotangents(basis, unit)
        table = np.broadcast_to(table, (len(rows.base), table.shape[1]))
        variances.append(contract(found, replace(batch, rows=rows, cotangents=table))[:, 1])
    return np.column_stack([values, *variances])
