"""A backend that computes next to nothing: what scheduling is measured on.

This module is imported in actors, and must not import torch.
"""

from __future__ import annotations

import threading

import numpy as np

from qailab.backends import Backend, BackendTraits, Probabilities
from qailab.gradients import CanonicalCircuit, RowBatch


class ArithmeticBackend(Backend):
    """Probabilities that tell all rows apart, at nearly no cost.

    They are not those of the circuit. Only sums, products and quotients are used, so that a row's
    bits depend neither on the machine nor on which rows it is answered with.
    """

    traits = BackendTraits(supports_exact=True, idempotent=True)

    def open(self) -> None:
        """Nothing is live."""

    def probabilities(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Probabilities:
        angles = batch.rows.angles()
        total = (angles * np.arange(1.0, angles.shape[1] + 1.0)).sum(axis=1)
        tilt = np.linspace(-1.0, 1.0, circuit.num_outcomes)
        table = 1.0 + tilt / (1.0 + total * total)[:, None]
        return Probabilities(table / circuit.num_outcomes)

    def max_rows_per_call(self, circuit: CanonicalCircuit, shots: int | None) -> int:
        return 4096

    def __repr__(self) -> str:
        return "ArithmeticBackend()"
