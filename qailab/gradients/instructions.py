"""Questions about Qiskit's instructions that Qiskit has no one call for."""

from __future__ import annotations

from typing import Any

from qiskit.circuit import (
    AnnotatedOperation,
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
from qiskit.circuit.library import Initialize
from qiskit.transpiler.passes import HighLevelSynthesis


def kind_of(operation: Any) -> type:
    """The class of an operation; names are free for everybody to take."""
    return getattr(operation, "base_class", type(operation))


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


def is_fixed_gate(operation: Any) -> bool:
    """Whether an operation can stay as it is: a gate of Qiskit's library without free parameters.

    Composites are opened: what they hold must be looked at, and the names Qiskit makes up for
    them differ from run to run. So are gates of others' classes, which simulators would take for
    the library's gate of the same name.
    """
    if free_parameters(operation):
        return False
    if not isinstance(operation, Instruction):
        return True  # Clifford and its like
    kind = kind_of(operation)
    composite = kind in (Instruction, Gate, ControlledGate)
    return isinstance(operation, Gate) and not composite and kind.__module__.startswith("qiskit.")


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
    if isinstance(operation, AnnotatedOperation):
        wrapper = QuantumCircuit(operation.num_qubits)
        wrapper.append(operation, range(operation.num_qubits))
        return HighLevelSynthesis()(wrapper)
    try:
        return operation.definition
    except Exception:  # some library gates fail to define themselves with free parameters
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
