"""Expectation values of observables, exactly, for the older estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qailab.rehearsal.simulation import Simulator
from qailab.rehearsal.submissions import Pub

BASES = {"X": "X+-", "Y": "Yrl", "Z": "Z01"}
"""Letters of observables by the basis they are measured in: Paulis and projectors."""

WEIGHTS = {
    **dict.fromkeys("XYZ", (1.0, -1.0)),
    **dict.fromkeys("0+r", (1.0, 0.0)),
    **dict.fromkeys("1-l", (0.0, 1.0)),
}
"""Weight of either outcome of a letter."""


def expectation_values(
    simulator: Simulator, pub: Pub
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expectation values of a PUB's observables, and the variance of a single shot.

    Args:
        simulator: runs the circuits.
        pub: its ``observables`` are nested lists of ``{letters: coefficient}``, the first letter
            that of the last qubit; they broadcast with its rows.

    Returns:
        Two arrays of the shape that both broadcast to.
    """
    observables = np.array(_boxed(pub.observables), dtype=object)
    rows = np.arange(pub.rows).reshape(pub.shape)
    which, row = np.broadcast_arrays(np.arange(observables.size).reshape(observables.shape), rows)
    means = np.zeros((observables.size, pub.rows))
    variances = np.zeros_like(means)
    known: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for number, box in enumerate(observables.ravel()):
        for letters, coefficient in box.terms.items():
            if letters not in known:
                known[letters] = _term(simulator, pub, letters)
            mean, variance = known[letters]
            means[number] += coefficient * mean
            variances[number] += coefficient**2 * variance
    return means[which, row], variances[which, row]


class _Box:
    """Keeps numpy from looking into a dictionary."""

    def __init__(self, terms: dict[str, float]) -> None:
        self.terms = terms


def _boxed(observables: Any) -> Any:
    if isinstance(observables, dict):
        return _Box(observables)
    return [_boxed(one) for one in observables]


def _term(
    simulator: Simulator, pub: Pub, letters: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of one product of letters at all rows, each of shape ``(n,)``."""
    from qiskit import ClassicalRegister

    places = [(qubit, letter) for qubit, letter in enumerate(reversed(letters)) if letter != "I"]
    if not places:
        return np.ones(pub.rows), np.zeros(pub.rows)
    circuit = pub.circuit.remove_final_measurements(inplace=False)
    register = ClassicalRegister(len(places), "observable")
    circuit.add_register(register)
    weights: NDArray[np.float64] = np.ones(1)
    for clbit, (qubit, letter) in enumerate(places):
        if letter in BASES["Y"]:
            circuit.sdg(qubit)
        if letter not in BASES["Z"]:
            circuit.h(qubit)
        circuit.measure(qubit, register[clbit])
        weights = np.asarray(
            np.kron(WEIGHTS[letter], weights), dtype=np.float64
        )  # a later bit is a higher one
    exact = simulator.probabilities(circuit, pub.values.reshape(pub.rows, -1))
    mean = exact @ weights
    return mean, exact @ weights**2 - mean**2
