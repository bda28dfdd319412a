"""Questions about Qiskit's instructions that Qiskit has no one call for."""

from __future__ import annotations

from typing import Any

from qiskit.circuit import AnnotatedOperation, Parameter, ParameterExpression, QuantumCircuit
from qiskit.transpiler.passes import HighLevelSynthesis


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
