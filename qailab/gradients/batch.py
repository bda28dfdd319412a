"""A batch of rows with what is wanted of them: the value that every backend, near or far, gets.

The answers of a batch are, in row order,

* probabilities of the K outcomes, shape ``(num_rows, K)``, if it has no vectors (forward);
* ``sum_k vectors[sample, k] * p_k`` and the shot variance of that sum, shape ``(num_rows, 2)``,
  if it has (backward): two floats for a row, however many outcomes there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qailab.gradients.noise import NoiseStream
from qailab.gradients.rows import FloatArray, Rows


@dataclass(frozen=True)
class RowBatch:
    """Rows of one canonical circuit, ready to run anywhere.

    Args:
        rows: which angles to run.
        shots: shots for each row, or None for exact probabilities.
        noise: the stream that shot noise is drawn from, by row number.
        vectors: one row of ``grad_output`` for each sample in ``rows.base``, shape ``(S, K)``, or
            None if the probabilities themselves are wanted.
        resent: whether a process that is gone may have begun with them: where running costs,
            its jobs are looked for first.
        evaluation: names the evaluation that the rows are of; the same when they are sent again.
    """

    rows: Rows
    shots: int | None
    noise: NoiseStream
    vectors: FloatArray | None = None
    resent: bool = False
    evaluation: str = ""

    @property
    def num_rows(self) -> int:
        """How many rows the batch has."""
        return self.rows.num_rows

    def part(self, start: int, stop: int) -> RowBatch:
        """The rows numbered ``start .. stop - 1``, with only the data they need."""
        vectors = self.vectors
        if vectors is not None:
            vectors = vectors[self.rows.touched(start, stop)]
        return replace(self, rows=self.rows.part(start, stop), vectors=vectors)

    def answer_width(self, num_outcomes: int) -> int:
        """How many floats answer one row."""
        return num_outcomes if self.vectors is None else 2
