"""How much a lane's gradients count: by its device's calibration, or by measured standard errors.

References:
    Stein, Wiebe, Ding, Bo, Kowalski, Baker, Ang, Li, EQC: ensembled quantum computing for
    variational quantum algorithms, ISCA 2022, doi 10.1145/3470496.3527434.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from qiskit import transpile
from qiskit.circuit import QuantumCircuit
from qiskit.providers import BackendV2

from qailab.arguments import check_choice
from qailab.errors import InputError
from qailab.launchers import RowEvaluator
from qailab.training.log import plain

Weighting = Literal["uniform", "quality", "standard_error"] | Mapping[int, float]

LEAST = 0.75
"""EQC's weight of the worst device; the best one's is 1."""
_MEMORY = 0.9  # of a lane's mean standard error, from gradient to gradient
_NOT_GATES = ("measure", "reset", "delay", "id", "barrier")


def circuit_quality(circuit: QuantumCircuit, device: BackendV2) -> float:
    """EQC's probability that a circuit runs without an error on a device, by its calibration.

    ``p = exp(-t d / (T1 T2)) (1 - e1)^g1 (1 - e2)^g2 (1 - em)^m`` with depth ``d``, numbers of
    gates ``g1``, ``g2`` and measured bits ``m`` of the circuit transpiled for the device, and the
    device's means of gate times, T1 and T2 (in ns, as in EQC's code: the first factor is nearly 1),
    and of errors.

    Raises:
        InputError: if the device tells no error rates.
    """
    target = device.target
    errors: dict[int, list[float]] = {1: [], 2: []}
    times: dict[int, list[float]] = {1: [], 2: []}
    for name in target.operation_names:
        for qubits, known in (target[name] or {}).items():
            if name in _NOT_GATES or qubits is None or len(qubits) > 2 or known is None:
                continue
            if known.error is not None and known.duration is not None:
                errors[len(qubits)].append(known.error)
                times[len(qubits)].append(known.duration * 1e9)
    readout = [known.error for known in (target["measure"] or {}).values() if known is not None]
    readout = [error for error in readout if error is not None]
    qubits = [each for each in target.qubit_properties or [] if each and each.t1 and each.t2]
    if not (errors[1] and errors[2] and readout and qubits):
        raise InputError(f"{device.name} tells no times and errors of its gates, or none of qubits")
    t1, t2 = (np.mean([getattr(each, name) for each in qubits]) * 1e9 for name in ("t1", "t2"))
    compiled = transpile(circuit, device, optimization_level=1, seed_transpiler=0)
    counts = {1: 0, 2: 0, "measure": 0}
    for instruction in compiled.data:
        name, size = instruction.operation.name, len(instruction.qubits)
        if name == "measure":
            counts[name] += 1
        elif name not in _NOT_GATES and size in (1, 2):
            counts[size] += 1
    gate = (np.mean(times[1]) + np.mean(times[2])) / 2
    log = -gate * compiled.depth() / (t1 * t2)
    for size in (1, 2):
        log += counts[size] * np.log1p(-np.mean(errors[size]))
    return float(np.exp(log + counts["measure"] * np.log1p(-np.mean(readout))))


def spread(values: Sequence[float]) -> list[float]:
    """EQC's weights: linear from 0.75 for the least value to 1 for the largest."""
    least, most = min(values), max(values)
    if least == most:
        return [1.0] * len(values)
    return [LEAST + (1 - LEAST) * (value - least) / (most - least) for value in values]


class LaneWeights:
    """The weight of each lane's gradients.

    Args:
        weighting: ``"quality"`` by `circuit_quality`, ``"standard_error"`` by the mean shot noise
            of a lane's last gradients, both mapped to 0.75 to 1; or each lane's own weight (1 for
            lanes that are not named).
        circuits: the model's circuits.

    Raises:
        InputError: if a weight is not a positive number, or the weighting is none of these.
    """

    def __init__(self, weighting: Weighting, circuits: Sequence[QuantumCircuit]) -> None:
        self._given: Mapping[int, float] = {}
        if isinstance(weighting, Mapping):
            self._given, weighting = plain(dict(weighting)), "uniform"
            for lane, weight in self._given.items():
                number = isinstance(lane, int) and isinstance(weight, int | float)
                if not number or not 0 < weight < math.inf:
                    raise InputError(
                        f"weighting must give positive numbers by lanes' numbers: the weight of "
                        f"lane {lane!r} must be positive, got {weight!r}"
                    )
        check_choice("weighting", weighting, ("uniform", "quality", "standard_error"))
        self._kind, self._circuits = weighting, circuits
        self._merits: dict[int, float] = {}  # the larger, the better

    def add(self, lane: int, place: RowEvaluator) -> None:
        """Know a lane.

        Raises:
            InputError: if the weights go by calibration, and it has none.
        """
        if self._kind != "quality":
            return
        devices = list(_devices_of(place))
        if not devices:
            raise InputError(
                f'weighting="quality" needs a calibration, which lane {lane} ({place!r}) does not '
                f"have here: give weighting={{lane: weight}}, from circuit_quality(circuit, device)"
            )
        self._merits[lane] = float(
            np.mean([math.prod(circuit_quality(c, d) for c in self._circuits) for d in devices])
        )

    def of(self, lane: int, error: float | None) -> float:
        """The weight of a gradient that has arrived.

        Args:
            lane: whose it is.
            error: its standard error, if it has one: the root of the entries' mean variance.
        """
        if self._kind == "standard_error" and error is not None:
            before = self._merits.get(lane, -error)
            self._merits[lane] = _MEMORY * before - (1 - _MEMORY) * error
        if lane not in self._merits:
            return self._given.get(lane, 1.0)
        return dict(zip(self._merits, spread(list(self._merits.values())), strict=True))[lane]

    def state(self) -> list[list[float]]:
        """Plain data that `restore` reads."""
        return [[lane, merit] for lane, merit in self._merits.items()]

    def restore(self, state: list[list[float]]) -> None:
        """Go on from a `state`."""
        if self._kind == "standard_error":
            self._merits = {int(lane): merit for lane, merit in state}


def _devices_of(place: Any) -> Iterator[BackendV2]:
    """The devices whose calibration is known in this process."""
    for inner in getattr(place, "backends", (getattr(place, "inner", None),)):
        if inner is not None:
            yield from _devices_of(inner)
    for name in ("from_backend", "name"):
        device = getattr(place, name, None)
        if isinstance(device, BackendV2):
            yield device
