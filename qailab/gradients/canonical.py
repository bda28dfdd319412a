"""The canonical circuit: rotations with a two-term shift rule, an angle of its own for each.

``canonicalize`` turns any circuit of standard gates into a `CanonicalCircuit` (what runs: one
circuit with parameters ``a0 .. a<A-1>``, compiled once by each backend) and an `AngleMap` (where
the angles come from: the user's parameters). Shared, scaled and combined parameters and
controlled rotations thereby all become plain angles with a plain rule.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from qiskit import qpy
from qiskit.circuit import (
    Barrier,
    ClassicalRegister,
    Delay,
    Measure,
    Parameter,
    ParameterExpression,
    QuantumCircuit,
    QuantumRegister,
)
from qiskit.circuit.library import (
    PhaseGate,
    RXGate,
    RXXGate,
    RYGate,
    RYYGate,
    RZGate,
    RZXGate,
    RZZGate,
    UGate,
    UnitaryGate,
)

from qailab.circuit.amplitude import AmplitudeEncodingGate
from qailab.errors import CircuitError
from qailab.gradients.angles import AngleMap, ExpressionMap, PreparedAngles
from qailab.gradients.instructions import (
    as_expression,
    definition_of,
    free_parameters,
    is_fixed_gate,
    kind_of,
    matrix_of,
    refused,
    used_qubits,
)
from qailab.gradients.rows import IntArray

SHIFTABLE_GATES = {
    gate: gate.__name__.removesuffix("Gate").lower()
    for gate in (RXGate, RYGate, RZGate, RXXGate, RYYGate, RZZGate, RZXGate)
} | {PhaseGate: "p"}
"""Gates ``exp(-i t P / 2)`` with ``P @ P = 1``, up to a global phase."""

_ANGLE_NAMESPACE = uuid.UUID("3d0a3d0e-7d56-5b8e-8a53-5b1c1b0f6a11")
_MAX_DEPTH_OF_DEFINITIONS = 64  # deeper nesting means a definition that contains itself


@dataclass(frozen=True, eq=False)
class CanonicalCircuit:
    """One circuit, to be compiled once and run with many angles.

    Args:
        circuit: gates with angle parameters ``angles`` and one measurement for each outcome bit
            into a single register; no global phase (a symbolic one makes binding exponentially
            slow after transpilation).
        angles: the parameters of the circuit, in the order of the columns of a row of angles.
        measured_qubits: the qubit that each outcome bit is read from, least significant first.
    """

    circuit: QuantumCircuit
    angles: tuple[Parameter, ...]
    measured_qubits: tuple[int, ...]

    @property
    def num_angles(self) -> int:
        """The number of angles, A."""
        return len(self.angles)

    @property
    def num_outcomes(self) -> int:
        """The number of outcomes, K."""
        return 1 << len(self.measured_qubits)

    @cached_property
    def active_qubits(self) -> tuple[int, ...]:
        """The qubits that anything acts on, ascending; idle ones cost a simulator nothing."""
        return tuple(used_qubits(self.circuit))

    @cached_property
    def key(self) -> str:
        """A content hash: equal circuits have equal keys, on every machine and in every run."""
        buffer = io.BytesIO()
        try:
            qpy.dump(self.circuit, buffer)
            content = buffer.getvalue()
        except Exception:  # an instruction QPY has no form for; its pickle will do as content
            content = pickle.dumps(self.circuit)
        return hashlib.sha256(content).hexdigest()[:32]


def canonicalize(
    circuit: QuantumCircuit, parameters: Sequence[Parameter]
) -> tuple[CanonicalCircuit, AngleMap]:
    """Decompose a circuit so that every angle has a two-term shift rule.

    Args:
        circuit: a measured circuit.
        parameters: the logical parameters, in the order of the columns of their values.

    Returns:
        The canonical circuit, and the map from logical parameters to its angles.

    Raises:
        CircuitError: if the circuit measures nothing, or has an instruction that cannot be
            differentiated; the message names it.
    """
    builder = _Builder(circuit.num_qubits)
    for position, instruction in enumerate(circuit.data):
        qubits = [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        clbits = [circuit.find_bit(clbit).index for clbit in instruction.clbits]
        name = instruction.operation.name
        owner = f"instruction {position} ({name} on qubits {', '.join(map(str, qubits))})"
        builder.add(instruction.operation, qubits, clbits, owner)
    return builder.finish(parameters)


class _Builder:
    """Collects canonical gates, the expressions of their angles, and measurements."""

    def __init__(self, num_qubits: int) -> None:
        self._circuit = QuantumCircuit(QuantumRegister(num_qubits, "q"), name="canonical")
        self._measured: dict[int, int] = {}  # clbit -> qubit
        self._expressions: list[tuple[int, ParameterExpression, str]] = []
        self._prepared: list[tuple[AmplitudeEncodingGate, list[int], str]] = []
        self._angles: list[Parameter] = []

    def add(
        self, operation: Any, qubits: list[int], clbits: list[int], owner: str, depth: int = 0
    ) -> None:
        """Add one instruction, or what it is made of.

        Args:
            operation: the instruction.
            qubits: the qubits it acts on.
            clbits: the classical bits it writes.
            owner: the instruction of the user's circuit that it is, or is a part of.
            depth: how deep in that instruction's definition it is.
        """
        kind = kind_of(operation)
        refusal = refused(operation)
        if refusal:
            inside = f" contains {operation.name!r}, which" if depth else ""
            raise CircuitError(f"{owner}{inside} {refusal}")
        if kind is Measure:
            self._measure(qubits[0], clbits[0], owner)
            return
        if kind in (Barrier, Delay):
            waiting = [qubit for qubit in qubits if qubit not in self._measured.values()]
            if waiting:
                self._circuit.append(
                    Barrier(len(waiting)) if kind is Barrier else operation, waiting
                )
            return
        self._check_not_measured(qubits, owner)
        if operation.name == AmplitudeEncodingGate.NAME and free_parameters(operation):
            self._prepare(operation, qubits, owner)
        elif kind in SHIFTABLE_GATES and free_parameters(operation):
            shiftable = operation.to_mutable()
            shiftable.params = [self._new_angle(operation.params[0], owner)]
            self._circuit.append(shiftable, qubits)
        elif kind is UGate and free_parameters(operation):
            theta, phi, lam = operation.params
            self._add_rotations(qubits, [("rz", lam), ("ry", theta), ("rz", phi)], owner)
        elif is_fixed_gate(operation):
            self._circuit.append(operation, qubits)
        else:
            self._expand(operation, qubits, clbits, owner, depth)

    def finish(self, parameters: Sequence[Parameter]) -> tuple[CanonicalCircuit, AngleMap]:
        """The canonical circuit and the map to its angles."""
        if not self._measured:
            raise CircuitError(
                "the circuit has no measurement, so it has no outcomes; call measure_all() or "
                "measure the qubits you want"
            )
        measured = tuple(self._measured[clbit] for clbit in sorted(self._measured))
        relevant = self._angles_that_reach(set(measured))
        self._circuit.add_register(ClassicalRegister(len(measured), "meas"))
        self._circuit.measure(list(measured), list(range(len(measured))))
        canonical = CanonicalCircuit(self._circuit, tuple(self._angles), measured)
        columns = np.array([column for column, _, _ in self._expressions], dtype=np.int64)
        direct = ExpressionMap(
            [expression for _, expression, _ in self._expressions],
            parameters,
            [label for _, _, label in self._expressions],
        )
        prepared = [
            PreparedAngles(
                gate,
                ExpressionMap(
                    [as_expression(p) for p in gate.params], parameters, [label] * len(gate.params)
                ),
                np.array(angle_columns, dtype=np.int64),
            )
            for gate, angle_columns, label in self._prepared
        ]
        return canonical, AngleMap(len(self._angles), columns, direct, prepared, relevant)

    def _measure(self, qubit: int, clbit: int, label: str) -> None:
        if clbit in self._measured:
            raise CircuitError(f"{label} measures into classical bit {clbit} a second time")
        if qubit in self._measured.values():
            raise CircuitError(f"{label} measures qubit {qubit} a second time")
        self._measured[clbit] = qubit

    def _check_not_measured(self, qubits: list[int], label: str) -> None:
        late = sorted(set(qubits) & set(self._measured.values()))
        if late:
            raise CircuitError(
                f"{label} acts on qubit {late[0]} after it was measured; mid-circuit measurement "
                "is not supported"
            )

    def _new_angle(self, expression: Any, label: str) -> Parameter:
        angle = self._fresh()
        self._expressions.append((len(self._angles) - 1, as_expression(expression), label))
        return angle

    def _fresh(self) -> Parameter:
        # Numbered names and identifiers, so that equal circuits have equal content everywhere.
        name = f"a{len(self._angles)}"
        self._angles.append(Parameter(name, uuid=uuid.uuid5(_ANGLE_NAMESPACE, name)))
        return self._angles[-1]

    def _add_rotations(
        self, qubits: list[int], rotations: Sequence[tuple[str, Any]], label: str
    ) -> None:
        for name, angle in rotations:
            free = isinstance(angle, ParameterExpression) and angle.parameters
            value = self._new_angle(angle, label) if free else float(angle)
            getattr(self._circuit, name)(value, *qubits)

    def _prepare(self, operation: Any, qubits: list[int], label: str) -> None:
        gate = AmplitudeEncodingGate(operation.params)  # the class is lost on the way through QPY
        first = len(self._angles)
        angles = [self._fresh() for _ in range(gate.num_angles)]
        self._circuit.compose(gate.angle_circuit(angles), qubits, inplace=True)
        self._prepared.append((gate, list(range(first, len(self._angles))), label))

    def _expand(
        self, operation: Any, qubits: list[int], clbits: list[int], label: str, depth: int
    ) -> None:
        definition = definition_of(operation)
        matrix = matrix_of(operation) if definition is None else None
        if matrix is not None:
            self._circuit.append(UnitaryGate(matrix), qubits)
            return
        if definition is None or depth >= _MAX_DEPTH_OF_DEFINITIONS:
            raise CircuitError(
                f"{label} has no decomposition into rotations with a shift rule "
                f"({', '.join(SHIFTABLE_GATES.values())}), so its parameters "
                f"({', '.join(sorted(p.name for p in free_parameters(operation)))}) cannot be "
                "differentiated"
            )
        for inner in definition.data:
            self.add(
                inner.operation,
                [qubits[definition.find_bit(qubit).index] for qubit in inner.qubits],
                [clbits[definition.find_bit(clbit).index] for clbit in inner.clbits],
                label,
                depth + 1,
            )

    def _angles_that_reach(self, cone: set[int]) -> IntArray:
        """Columns of the angles inside the measured qubits' light cone; others have no effect."""
        column_of = {angle: column for column, angle in enumerate(self._angles)}
        relevant: set[int] = set()
        for instruction in reversed(self._circuit.data):
            qubits = {self._circuit.find_bit(qubit).index for qubit in instruction.qubits}
            if instruction.operation.name == "barrier" or not qubits & cone:
                continue
            cone |= qubits
            relevant |= {column_of[p] for p in free_parameters(instruction.operation)}
        return np.array(sorted(relevant), dtype=np.int64)
