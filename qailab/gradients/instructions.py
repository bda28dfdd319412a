"""Qiskit's instructions: which may stay as they are, and what the others are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from qiskit.circuit import (
    Barrier,
    ControlFlowOp,
    ControlledGate,
    Delay,
    Gate,
    Instruction,
    Measure,
    Parameter,
    ParameterExpression,
    QuantumCircuit,
    Reset,
)
from qiskit.circuit.library import (
    C3XGate,
    C4XGate,
    DiagonalGate,
    GlobalPhaseGate,
    Initialize,
    MCPhaseGate,
    MCXGate,
    PauliEvolutionGate,
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
    get_standard_gate_name_mapping,
)
from qiskit.transpiler.passes import HighLevelSynthesis

from qailab.circuit.amplitude import AmplitudeEncodingGate
from qailab.errors import CircuitError

SHIFTABLE_GATES = {
    gate: gate.__name__.removesuffix("Gate").lower()
    for gate in (RXGate, RYGate, RZGate, RXXGate, RYYGate, RZZGate, RZXGate)
} | {PhaseGate: "p"}
"""Gates ``exp(-i t P / 2)`` with ``P @ P = 1``, up to a global phase."""

STANDARD_GATES = frozenset(
    gate.base_class for gate in get_standard_gate_name_mapping().values() if isinstance(gate, Gate)
) - {GlobalPhaseGate}
"""Gates that are their class, its arguments and a control state, and nothing else."""

FIXED_GATES = STANDARD_GATES | {C3XGate, C4XGate, DiagonalGate, MCPhaseGate, MCXGate, UnitaryGate}
"""Gates whose matrix follows from class, ``params`` and control state, as keys and simulators take
it to. Others of Qiskit's library keep what they do in attributes of their own."""

_MAX_DEPTH_OF_DEFINITIONS = 64  # deeper nesting means a definition that contains itself

Placed = tuple[Any, list[int], list[int]]  # an operation, its qubits and its classical bits


def kind_of(operation: Any) -> type:
    """The class of an operation; names are free for everybody to take."""
    return getattr(operation, "base_class", type(operation))


def is_canonical(operation: Any) -> bool:
    """Whether an operation may be in a canonical circuit."""
    kind = kind_of(operation)
    if kind in (Measure, Barrier, Delay):
        return True
    return kind in (SHIFTABLE_GATES if free_parameters(operation) else FIXED_GATES)


def is_written(operation: Any) -> bool:
    """Whether a noise model may have noise for an operation as a whole.

    That is gates of Qiskit's library. Composites are opened: the names Qiskit makes up for them
    differ from run to run. So are gates of others' classes, which simulators would take for the
    library's gate of the same name.
    """
    kind = kind_of(operation)
    if is_canonical(operation):
        return True
    if free_parameters(operation):
        return kind in STANDARD_GATES or operation.name == AmplitudeEncodingGate.NAME
    composite = kind in (Instruction, Gate, ControlledGate, GlobalPhaseGate, PauliEvolutionGate)
    return isinstance(operation, Gate) and not composite and kind.__module__.startswith("qiskit.")


def opened(
    operation: Any,
    qubits: Sequence[int],
    clbits: Sequence[int],
    whole: Callable[[Any], bool],
    owner: str,
    depth: int = 0,
) -> Iterator[Placed]:
    """Yield what an operation is made of, down to operations that stay whole.

    Args:
        operation: the operation.
        qubits: the qubits it acts on.
        clbits: the classical bits it writes.
        whole: whether an operation stays as it is.
        owner: the instruction of the user's circuit that it is, or is a part of.
        depth: how deep in that instruction's definition it is.

    Raises:
        CircuitError: if something in it cannot be differentiated; the message names it.
    """
    refusal = refused(operation)
    if refusal:
        inside = f" contains {operation.name!r}, which" if depth else ""
        raise CircuitError(f"{owner}{inside} {refusal}")
    if whole(operation):
        yield operation, list(qubits), list(clbits)
        return
    definition = definition_of(operation)
    matrix = matrix_of(operation) if definition is None else None
    if matrix is not None:
        yield UnitaryGate(matrix), list(qubits), []
        return
    if definition is None or depth >= _MAX_DEPTH_OF_DEFINITIONS:
        rotations = f"rotations with a shift rule ({', '.join(SHIFTABLE_GATES.values())})"
        raise CircuitError(
            f"{owner} has no decomposition into {rotations}, so its parameters "
            f"({_names(operation)}) cannot be differentiated"
            if free_parameters(operation)
            else f"{owner} has neither a definition nor a matrix, so nobody knows what it does; "
            "write it in gates that have"
        )
    for inner in definition.data:
        yield from opened(
            inner.operation,
            [qubits[definition.find_bit(qubit).index] for qubit in inner.qubits],
            [clbits[definition.find_bit(clbit).index] for clbit in inner.clbits],
            whole,
            owner,
            depth + 1,
        )


def refused(operation: Any) -> str | None:
    """Why an operation has no place in a circuit that is differentiated, or None if it has."""
    if isinstance(operation, ControlFlowOp) or operation.name == "store":
        return "is control flow, which has no gradient; unroll it"
    kind = kind_of(operation)
    if kind is Reset:
        return "is a reset, which is not supported"
    if kind is Initialize:
        return "contains a reset; use StatePreparation instead"
    if kind is Delay and free_parameters(operation):
        return f"has parameters ({_names(operation)}) that cannot be differentiated"
    plain = isinstance(operation, Instruction) and not isinstance(operation, Gate)
    if plain and kind not in (Barrier, Delay, Measure) and definition_of(operation) is None:
        return "is no unitary gate, so the circuit has no state to differentiate"
    return None


def used_qubits(circuit: QuantumCircuit) -> list[int]:
    """The qubits that anything but a barrier acts on, ascending."""
    return sorted(
        {
            circuit.find_bit(qubit).index
            for instruction in circuit.data
            if instruction.operation.name != "barrier"
            for qubit in instruction.qubits
        }
    )


def free_parameters(operation: Any) -> set[Parameter]:
    """The parameters of an operation, those of nested circuits and base gates included."""
    base = getattr(operation, "base_op", None)
    if base is not None:  # AnnotatedOperation
        return free_parameters(base)
    free: set[Parameter] = set()
    for value in getattr(operation, "params", ()):
        if isinstance(value, (ParameterExpression, QuantumCircuit)):
            free |= set(value.parameters)
    return free


def as_expression(value: Any) -> ParameterExpression:
    """A number as an expression without parameters."""
    return value if isinstance(value, ParameterExpression) else ParameterExpression({}, str(value))


def definition_of(operation: Any) -> QuantumCircuit | None:
    """What an operation is made of, or None if nobody knows."""
    kind = kind_of(operation)
    if not isinstance(operation, Instruction) or kind is PauliEvolutionGate:
        # Clifford and its like have no definition. The transpiler synthesises evolutions in fewer
        # gates than theirs, so that a noise model would find others than in plain Aer.
        wrapper = QuantumCircuit(operation.num_qubits)
        wrapper.append(operation, range(operation.num_qubits))
        with suppress(Exception):  # it fails for some syntheses, and for roots with parameters
            synthesised = HighLevelSynthesis()(wrapper)
            if synthesised != wrapper:
                return synthesised
    if kind is UGate:
        theta, phi, lam = operation.params
        rotations = QuantumCircuit(1)
        rotations.rz(lam, 0)
        rotations.ry(theta, 0)
        rotations.rz(phi, 0)
        return rotations
    try:
        return operation.definition
    except Exception:  # some library gates fail to define themselves, with free parameters mostly
        return None


def matrix_of(operation: Any) -> Any:
    """The unitary matrix of a gate without free parameters, or None if nobody knows it."""
    if free_parameters(operation) or not isinstance(operation, Gate):
        return None
    try:
        return operation.to_matrix()
    except Exception:  # CircuitError if it has none, whatever else its own code raises
        return None


def _names(operation: Any) -> str:
    return ", ".join(sorted(parameter.name for parameter in free_parameters(operation)))
