"""The canonical circuit: rotations with a two-term shift rule, an angle of its own for each.

``canonicalize`` turns any circuit of standard gates into a `CanonicalCircuit` (what runs: one
circuit with parameters ``a0 .. a<A-1>``, compiled once by each backend) and an `AngleMap` (where
the angles come from: the user's parameters). Shared, scaled and combined parameters and
controlled rotations thereby all become plain angles with a plain rule.

Where observables are asked for, angles of their bases come last; no parameter reaches them.

Noise models go by the gates that the user wrote. Where the canonical circuit has others, the
circuit as it was written is kept beside it, with parameters of its own for each gate.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from qiskit import qpy
from qiskit.circuit import (
    Barrier,
    ClassicalRegister,
    ControlledGate,
    Delay,
    Measure,
    Parameter,
    ParameterExpression,
    QuantumCircuit,
    QuantumRegister,
)
from qiskit.circuit.library import RYGate, RZGate

from qailab.circuit.amplitude import AmplitudeEncodingGate
from qailab.errors import CircuitError
from qailab.gradients.angles import AngleMap, ExpressionMap, PreparedAngles
from qailab.gradients.instructions import (
    as_expression,
    free_parameters,
    is_canonical,
    is_written,
    kind_of,
    opened,
    used_qubits,
)
from qailab.gradients.observables import Observables
from qailab.gradients.rows import IntArray

_ANGLE_NAMESPACE = uuid.UUID("3d0a3d0e-7d56-5b8e-8a53-5b1c1b0f6a11")
_KEY_DIGITS = 10  # of synthesised gates: another processor may round them otherwise


@dataclass(frozen=True, eq=False)
class CanonicalCircuit:
    """One circuit, to be compiled once and run with many angles, and what is asked of it.

    Args:
        circuit: gates with angle parameters ``angles`` and one measurement for each outcome bit
            into a single register; no global phase (a symbolic one makes binding exponentially
            slow after transpilation).
        angles: the parameters of the circuit, in the order of the columns of a row of angles.
        measured_qubits: the qubit that each outcome bit is read from, least significant first.
        written: the same circuit in the user's own gates, each with parameters of its own; None
            if ``circuit`` is that already. Its canonical circuit is ``circuit``.
        observables: whose values are asked for, instead of the probabilities of the outcomes.
    """

    circuit: QuantumCircuit
    angles: tuple[Parameter, ...]
    measured_qubits: tuple[int, ...]
    written: QuantumCircuit | None = None
    observables: Observables | None = None

    @property
    def num_angles(self) -> int:
        """The number of angles, A, those of bases included."""
        return len(self.angles)

    @property
    def num_outcomes(self) -> int:
        """The number of outcomes, K."""
        return 1 << len(self.measured_qubits)

    @property
    def num_outputs(self) -> int:
        """How many numbers are asked for: K probabilities, or the values of O observables."""
        return self.num_outcomes if self.observables is None else self.observables.num_observables

    @cached_property
    def active_qubits(self) -> tuple[int, ...]:
        """The qubits that anything acts on, ascending; idle ones cost a simulator nothing."""
        return tuple(used_qubits(self.circuit))

    @cached_property
    def key(self) -> str:
        """A content hash of the circuit and its observables.

        Equal ones have equal keys, on every machine and in every run.
        """
        if self.observables is None:
            return self.run_key
        content = f"{self.run_key} {self.observables.key}"
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    @cached_property
    def run_key(self) -> str:
        """A content hash of what is run: of the circuit, and of the form of what is measured.

        With observables that is the bits of each shot, else counts; whatever their coefficients,
        they may be evaluated from the same bits. It is of gates whose matrix it can see, and of the
        names that noise models go by. Numbers that come out of a decomposition count to ten digits,
        below the exactness of results.
        """
        if self.written is None:
            buffer = io.BytesIO()
            qpy.dump(self.circuit, buffer)
            content = buffer.getvalue()
        else:
            gates = [(words, _rounded(values)) for words, values in _described(self.circuit)]
            # Of gates with parameters, which keep nothing to themselves, all; names of the others.
            written = [
                (words, _rounded(values) if any(isinstance(v, Parameter) for v in values) else [])
                for words, values in _described(self.written)
            ]
            content = repr((gates, written)).encode()
        if self.observables is not None:
            content += b"bits"
        return hashlib.sha256(content).hexdigest()[:32]


def canonicalize(
    circuit: QuantumCircuit,
    parameters: Sequence[Parameter],
    observables: Observables | None = None,
) -> tuple[CanonicalCircuit, AngleMap]:
    """Decompose a circuit so that every angle has a two-term shift rule.

    Args:
        circuit: a measured circuit.
        parameters: the logical parameters, in the order of the columns of their values.
        observables: what to measure instead of what the circuit measures at its end.

    Returns:
        The canonical circuit, and the map from logical parameters to its angles but those of bases.

    Raises:
        CircuitError: if nothing is measured, or the circuit has an instruction that cannot be
            differentiated; the message names it.
    """
    builder = _Builder(circuit.num_qubits)
    for position, instruction in enumerate(circuit.data):
        qubits = [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        clbits = [circuit.find_bit(clbit).index for clbit in instruction.clbits]
        name = instruction.operation.name
        owner = f"instruction {position} ({name} on qubits {', '.join(map(str, qubits))})"
        for placed in opened(instruction.operation, qubits, clbits, is_written, owner):
            builder.add(*placed, owner)
    return builder.finish(parameters, observables)


class _Builder:
    """Collects canonical gates, the expressions of their angles, and measurements."""

    def __init__(self, num_qubits: int) -> None:
        self._circuit = QuantumCircuit(QuantumRegister(num_qubits, "q"), name="canonical")
        self._written = self._circuit.copy()
        self._is_written = True  # whether the two are the same so far
        self._arguments = 0
        self._measured: dict[int, int] = {}  # clbit -> qubit
        self._expressions: list[tuple[int, ParameterExpression, str]] = []
        self._prepared: list[tuple[AmplitudeEncodingGate, list[int], str]] = []
        self._angles: list[Parameter] = []

    def add(self, operation: Any, qubits: list[int], clbits: list[int], owner: str) -> None:
        """Add one operation that is whole in the circuit as it was written.

        Args:
            operation: the operation.
            qubits: the qubits it acts on.
            clbits: the classical bits it writes.
            owner: the instruction of the user's circuit that it is, or is a part of.
        """
        kind = kind_of(operation)
        if kind is Measure:
            self._measure(qubits[0], clbits[0], owner)
            return
        if kind in (Barrier, Delay):
            waiting = [qubit for qubit in qubits if qubit not in self._measured.values()]
            if waiting:
                self._append(Barrier(len(waiting)) if kind is Barrier else operation, waiting)
            return
        self._check_not_measured(qubits, owner)
        if operation.name == AmplitudeEncodingGate.NAME:
            self._prepare(operation, qubits, owner)
        elif not is_canonical(operation):
            self._decompose(operation, qubits, owner)
        elif free_parameters(operation):
            self._append(self._with_angle(operation, operation.params[0], owner), qubits)
        else:
            self._append(operation, qubits)

    def finish(
        self, parameters: Sequence[Parameter], observables: Observables | None
    ) -> tuple[CanonicalCircuit, AngleMap]:
        """The canonical circuit and the map to its angles."""
        if observables is not None:
            measured = observables.measured_qubits
        elif self._measured:
            measured = tuple(self._measured[clbit] for clbit in sorted(self._measured))
        else:
            raise CircuitError(
                "the circuit has no measurement, so it has no outcomes; call measure_all() or "
                "measure the qubits you want"
            )
        relevant = self._angles_that_reach(set(measured))
        num_angles = len(self._angles)
        for gate, qubit in () if observables is None else observables.turns:
            turn = (RZGate if gate == "rz" else RYGate)(self._fresh())
            self._append(turn, [qubit])
        for circuit in (self._circuit, self._written):
            circuit.add_register(ClassicalRegister(len(measured), "meas"))
            circuit.measure(list(measured), list(range(len(measured))))
        written = None if self._is_written else self._written
        canonical = CanonicalCircuit(
            self._circuit, tuple(self._angles), measured, written, observables
        )
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
        return canonical, AngleMap(num_angles, columns, direct, prepared, relevant)

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

    def _append(self, operation: Any, qubits: list[int]) -> None:
        """Append to both circuits what is the same in both."""
        self._circuit.append(operation, qubits)
        self._written.append(operation, qubits)

    def _with_angle(self, rotation: Any, expression: Any, owner: str) -> Any:
        """The rotation by an angle of its own, which takes the expression's value."""
        rotation = rotation.to_mutable()
        rotation.params = [self._fresh()]
        self._expressions.append((len(self._angles) - 1, expression, owner))
        return rotation

    def _fresh(self) -> Parameter:
        self._angles.append(_numbered("a", len(self._angles)))
        return self._angles[-1]

    def _decompose(self, operation: Any, qubits: list[int], owner: str) -> None:
        """Append what an operation is made of, and the operation itself to what was written."""
        meaning: dict[Parameter, ParameterExpression] = {}
        if free_parameters(operation):
            operation, meaning = self._with_arguments(operation)
        self._is_written = False
        self._written.append(operation, qubits)
        for piece, where, _ in opened(operation, qubits, [], is_canonical, owner):
            if free_parameters(piece):
                angle = piece.params[0]
                known = {p: meaning[p] for p in angle.parameters if p in meaning}
                angle = angle.subs(known) if known else angle
                piece = self._with_angle(piece, angle, owner)
            self._circuit.append(piece, where)

    def _with_arguments(self, gate: Any) -> tuple[Any, dict[Parameter, ParameterExpression]]:
        """A standard gate of parameters of its own, and the expressions they stand for."""
        meaning: dict[Parameter, ParameterExpression] = {}
        arguments = list(gate.params)
        for i, value in enumerate(arguments):
            if isinstance(value, ParameterExpression) and value.parameters:
                arguments[i] = _numbered("s", self._arguments)
                meaning[arguments[i]] = value
                self._arguments += 1
        control = {"ctrl_state": gate.ctrl_state} if isinstance(gate, ControlledGate) else {}
        return kind_of(gate)(*arguments, label=gate.label, **control), meaning

    def _prepare(self, operation: Any, qubits: list[int], label: str) -> None:
        gate = AmplitudeEncodingGate(operation.params)  # the class is lost on the way through QPY
        first = len(self._angles)
        angles = [self._fresh() for _ in range(gate.num_angles)]
        for circuit in (self._circuit, self._written):
            circuit.compose(gate.angle_circuit(angles), qubits, inplace=True)
        self._prepared.append((gate, list(range(first, len(self._angles))), label))

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


def _numbered(letter: str, number: int) -> Parameter:
    """A parameter with a numbered name and identifier: equal circuits have equal content."""
    name = f"{letter}{number}"
    return Parameter(name, uuid=uuid.uuid5(_ANGLE_NAMESPACE, name))


def _described(circuit: QuantumCircuit) -> Iterator[tuple[tuple[Any, ...], list[Any]]]:
    """Each instruction in words, and its parameters."""
    for instruction in circuit.data:
        operation = instruction.operation
        qubits = tuple(circuit.find_bit(qubit).index for qubit in instruction.qubits)
        control, unit = (getattr(operation, name, None) for name in ("ctrl_state", "unit"))
        words = (kind_of(operation).__name__, operation.label, control, unit, qubits)
        yield words, operation.params


def _rounded(values: list[Any]) -> list[Any]:
    """Parameters by name, numbers and matrices to ten digits."""
    return [
        value.name
        if isinstance(value, Parameter)
        else (np.round(np.asarray(value, dtype=complex), _KEY_DIGITS) + 0.0).tolist()
        for value in values
    ]
