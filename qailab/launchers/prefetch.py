"""Prefetching: the rows of a backward pass run with those of its forward pass.

On hardware a pass is a job, and a job waits in a queue. What the backward pass measures does not
depend on ``grad_output``, which only weighs it: so both passes' rows can be one evaluation, and the
gradient is made of what it measured, by the code that backends use::

    forward:   rows of both passes --Backend.measure--> measured --> outputs
    backward:  grad_output, measured --contract_measured--> gradient
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qailab.backends.answers import answer_width, contract_measured
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray, JoinedRows, RowBatch
from qailab.launchers.algorithms import BackwardPass
from qailab.launchers.problem import CircuitProblem


@dataclass(eq=False)
class Prefetch:
    """What a forward pass does for its backward pass; one for each forward pass.

    Args:
        algorithm: of the backward pass.
        wanted: the parameters whose gradient will be asked for, shape ``(L,)``.
        most_bytes: of what is measured; above, the backward pass runs its rows itself.
    """

    algorithm: BackwardPass
    wanted: NDArray[np.bool_]
    most_bytes: int
    _rows: JoinedRows | None = field(default=None, init=False)
    _measured: tuple[FloatArray, FloatArray] | None = field(default=None, init=False)

    def joined(
        self,
        problem: CircuitProblem,
        parameters: FloatArray,
        forward: RowBatch,
        *,
        noiseless: bool,
    ) -> RowBatch:
        """The batch of both passes; that of the forward pass alone if both are too much.

        Args:
            problem: the circuit.
            parameters: logical parameters of each sample, shape ``(B, L)``.
            forward: the batch of the forward pass.
            noiseless: as for `BackwardPass.plan`.
        """
        if forward.num_rows == 0 or self.algorithm.shots != forward.shots:
            return forward
        noise, first = forward.noise.for_purpose("backward"), forward.rows.first_sample
        plan = self.algorithm.plan(
            problem, parameters, self.wanted, noise, first, noiseless=noiseless
        )
        if plan.rows.num_rows == 0:
            return forward
        rows = JoinedRows.of(forward.rows, plan.rows)
        both = replace(forward, rows=rows, noise=noise.for_purpose("both"))
        needed = 8 * both.num_rows * answer_width(problem.canonical, both)
        if needed > self.most_bytes:
            warnings.warn(
                f"the backward pass is not prefetched, and takes a job of its own: what its "
                f"{both.num_rows:,} rows measure takes {needed / 2**20:,.0f} MiB, more than "
                f"prefetch_bytes ({self.most_bytes / 2**20:,.0f} MiB); raise that, or use smaller "
                f"batches",
                stacklevel=2,
            )
            return forward
        return both

    def keep(self, both: RowBatch, measured: FloatArray) -> FloatArray:
        """Keep what was measured; the part of the forward pass."""
        assert isinstance(both.rows, JoinedRows)
        self._rows, self._measured = both.rows, both.rows.split(measured)
        return self._measured[0]

    def answers(self, circuit: CanonicalCircuit, batch: RowBatch) -> FloatArray | None:
        """The answers of a backward pass; None if its rows were not measured."""
        if (
            self._rows is None
            or self._measured is None
            or not batch.rows.same_as(self._rows.backward)
        ):
            return None
        return contract_measured(circuit, batch, self._measured[1])
