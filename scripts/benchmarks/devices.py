"""Devices that take a known time for each chunk: what scheduling is measured on.

Actors take long to start (64 of them about a minute on 2 cores), so one pool serves all latencies:
a `Device` looks up how long a chunk takes by its circuit. Everything else, the sleeping included,
is `RehearsalBackend`'s.

This module is imported in actors, and must not import torch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache

import numpy as np

from qailab.backends import Backend, Outcomes, RehearsalBackend
from qailab.backends.base import ActorResources
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.gradients import CanonicalCircuit, NoiseStream, RowBatch, ShiftedRows, canonicalize
from qailab.gradients.rows import FloatArray

CHUNK_ROWS = 12
"""The backward rows of one sample: two shifts for each of the six angles of `circuit_for`."""


class ArithmeticBackend(Backend):
    """Probabilities that tell all rows apart, at nearly no cost.

    They are not those of the circuit. Only sums, products and quotients are used, so that a row's
    bits depend neither on the machine nor on which rows it is answered with.
    """

    supports_exact = True
    repeatable = True

    def open(self) -> None:
        """Nothing is live."""

    def outcomes(self, circuit: CanonicalCircuit, batch: RowBatch) -> Outcomes:
        angles = batch.rows.angles()
        total = (angles * np.arange(1.0, angles.shape[1] + 1.0)).sum(axis=1)
        tilt = np.linspace(-1.0, 1.0, circuit.num_outcomes)
        table = 1.0 + tilt / (1.0 + total * total)[:, None]
        return Outcomes(table / circuit.num_outcomes)

    def rows_at_once(self, circuit: CanonicalCircuit) -> int:
        return 4096

    def __repr__(self) -> str:
        return "ArithmeticBackend()"


class Device(Backend):
    """A device that takes a time of its own for a chunk of each circuit it knows.

    Args:
        seconds: the time of a chunk by the circuit's key.
    """

    supports_exact = True
    repeatable = True

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self._rehearsals = {
            key: RehearsalBackend(ArithmeticBackend(), latency=latency)
            for key, latency in seconds.items()
        }

    @property
    def resources(self) -> ActorResources:
        return ActorResources(num_cpus=0)

    def announce(self, circuit: CanonicalCircuit, call_seconds: float | None = None) -> None:
        """Say how long a call takes, as a backend that had only this circuit would.

        A pool reads `call_seconds` in the driver, where this is called, between two runs.

        Args:
            circuit: the circuit of the next run.
            call_seconds: what to announce; None for the truth.
        """
        truth = self._rehearsals[circuit.key].call_seconds
        self.call_seconds = truth if call_seconds is None else call_seconds

    def open(self) -> None:
        for rehearsal in self._rehearsals.values():
            rehearsal.open()

    def outcomes(self, circuit: CanonicalCircuit, batch: RowBatch) -> Outcomes:
        return self._rehearsals[circuit.key].outcomes(circuit, batch)

    def rows_at_once(self, circuit: CanonicalCircuit) -> int:
        return self._rehearsals[circuit.key].rows_at_once(circuit)

    def evaluate(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event | None = None
    ) -> FloatArray:
        return self._rehearsals[circuit.key].evaluate(circuit, batch, stop)

    def __repr__(self) -> str:
        return f"Device({len(self._rehearsals)} circuits)"


@cache
def circuit_for(number: int) -> CanonicalCircuit:
    """One of many circuits of 2 qubits and 6 angles that differ in nothing but their key."""
    blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=1)]
    circuit = build_circuit(2, blocks)
    told_apart = circuit.copy_empty_like()
    told_apart.rz(1.0 + number, 0)  # a fixed angle, which is no row's
    told_apart.compose(circuit, inplace=True)
    return canonicalize(told_apart, list(circuit.parameters))[0]


def backward_rows(circuit: CanonicalCircuit, samples: int, seed: int) -> RowBatch:
    """The exact backward rows of some samples of random angles: two for each sample and angle."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0, 2 * np.pi, size=(samples, circuit.num_angles))
    rows = ShiftedRows(base=base, columns=np.arange(circuit.num_angles))
    vectors = rng.normal(size=(samples, circuit.num_outcomes))
    return RowBatch(rows, None, NoiseStream(seed), vectors)
