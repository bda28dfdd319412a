"""Devices that take a known time for each chunk: what scheduling is measured on.

Actors take long to start (64 of them about a minute on 2 cores), so one pool serves all latencies:
a `Device` looks up how long a chunk takes by its circuit. Everything else, the sleeping included,
is `EmulatedBackend`'s.

This module is imported in actors, and must not import torch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache

import numpy as np

from qailab.backends import (
    ActorResources,
    Backend,
    BackendTraits,
    EmulatedBackend,
    Probabilities,
)
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.gradients import CanonicalCircuit, NoiseStream, RowBatch, ShiftedRows, canonicalize

CHUNK_ROWS = 12
"""The backward rows of one sample: two shifts for each of the six angles of `circuit_for`."""


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


class Device(Backend):
    """A device that takes a time of its own for a chunk of each circuit it knows.

    Args:
        seconds: the time of a chunk by the circuit's key.
    """

    traits = BackendTraits(
        supports_exact=True, idempotent=True, resources=ActorResources(num_cpus=0)
    )

    def __init__(self, seconds: Mapping[str, float]) -> None:
        inner = ArithmeticBackend()
        self._emulated = {
            key: EmulatedBackend(inner, latency=latency) for key, latency in seconds.items()
        }

    def open(self) -> None:
        for emulated in self._emulated.values():
            emulated.open()

    def probabilities(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Probabilities:
        return self._emulated[circuit.key].probabilities(circuit, batch, stop)

    def max_rows_per_call(self, circuit: CanonicalCircuit, shots: int | None) -> int:
        return self._emulated[circuit.key].max_rows_per_call(circuit, shots)

    def __repr__(self) -> str:
        return f"Device({len(self._emulated)} circuits)"


@cache
def circuit_for(number: int) -> CanonicalCircuit:
    """One of many circuits of 2 qubits and 6 angles that differ in nothing but their key."""
    blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=1)]
    circuit = build_circuit(2, blocks)
    told_apart = circuit.copy_empty_like()
    told_apart.rz(1.0 + number, 0)  # a fixed angle, which is no row's
    told_apart.compose(circuit, inplace=True)
    return canonicalize(told_apart, list(circuit.parameters))[0]


def circuit_of_angles(angles: int) -> CanonicalCircuit:
    """A circuit of 2 qubits with so many angles, an even number."""
    blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=angles // 2 - 2)]
    circuit = build_circuit(2, blocks)
    return canonicalize(circuit, list(circuit.parameters))[0]


def backward_rows(circuit: CanonicalCircuit, samples: int, seed: int) -> RowBatch:
    """The exact backward rows of some samples of random angles: two for each sample and angle."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0, 2 * np.pi, size=(samples, circuit.num_angles))
    rows = ShiftedRows(base=base, columns=np.arange(circuit.num_angles))
    cotangents = rng.normal(size=(samples, circuit.num_outcomes))
    return RowBatch(rows, None, NoiseStream(seed), cotangents)
