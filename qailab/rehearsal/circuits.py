"""Circuits as a simulator takes them: compact, with one parameter for each angle.

Three things are put right before Aer sees a circuit: qubits that do nothing are left out, an angle
that is an expression (``2*a + b``) becomes a parameter of its own whose values are computed here
(Aer evaluates expressions one by one), and the global phase, which no measurement sees but which
makes binding exponentially slow when it is symbolic, is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qailab.rehearsal.errors import JobError

if TYPE_CHECKING:
    from qailab.rehearsal.devices import Device

NATIVE = frozenset({"rz", "rx", "ry", "rzz", "sx", "x", "cx", "cz", "ecr", "h", "id"})
"""Gates whose parameters Aer binds rightly; it binds those of crx or cp silently wrong."""

SILENT = frozenset({"barrier", "delay"})
"""Operations that change nothing without noise."""

SPECIAL = frozenset({"measure", "barrier", "delay", "reset", "store", "id", "rz"})
"""Operations that every device takes."""


@dataclass(frozen=True)
class Prepared:
    """A circuit that is ready to run.

    Args:
        circuit: on its active qubits only, if it is compact; a plain ``Parameter`` for each angle.
        angles: its parameters, with the expressions they stand for.
        parameters: the parameters of the submitted circuit, in the order of its values.
        qubits: of the measured classical bits, the qubits of ``circuit``.
        clbits: the classical bits that are measured, by index, in the order of ``qubits``.
        dynamic: whether shots must be simulated one by one: it measures and goes on.
    """

    circuit: Any
    angles: tuple[tuple[Any, Any], ...]
    parameters: tuple[Any, ...]
    qubits: tuple[int, ...]
    clbits: tuple[int, ...]
    dynamic: bool

    def bindings(self, values: NDArray[np.float64]) -> dict[Any, NDArray[np.float64]]:
        """Values of the angles.

        Args:
            values: of ``parameters``, shape ``(n, P)``.

        Returns:
            Of each angle, its values, shape ``(n,)``.
        """
        column = {parameter: index for index, parameter in enumerate(self.parameters)}
        return {angle: _evaluated(what, values, column) for angle, what in self.angles}


def circuit_text(circuit: Any) -> str:
    """A circuit as text that is the same for equal circuits, whoever built them and when.

    Files of equal circuits differ, as every parameter has a random identifier.
    """
    registers = ",".join(f"{register.name}:{len(register)}" for register in circuit.cregs)
    lines = [f"{circuit.num_qubits};{circuit.num_clbits};{registers}"]
    for instruction in circuit.data:
        operation = instruction.operation
        qubits = [circuit.find_bit(bit).index for bit in instruction.qubits]
        clbits = [circuit.find_bit(bit).index for bit in instruction.clbits]
        angles = [_angle_text(angle) for angle in operation.params]
        condition = getattr(operation, "condition", None)
        lines.append(f"{operation.name}{angles}{qubits}{clbits}{condition or ''}")
    return "\n".join(lines)


def _angle_text(angle: Any) -> str:
    if hasattr(angle, "data") and hasattr(angle, "find_bit"):  # a block of control flow
        return f"({circuit_text(angle)})"
    return repr(angle) if isinstance(angle, float | int) else str(angle)


def check_isa(circuit: Any, device: Device) -> None:
    """Check that a device can run a circuit as it is.

    Raises:
        JobError: with IBM's code 1517, if an operation is not one of the device.
    """
    if circuit.num_qubits > device.num_qubits:
        _not_isa(f"{circuit.num_qubits} qubits on a device of {device.num_qubits}", device)
    _check_block(circuit, list(range(circuit.num_qubits)), device)


def _check_block(circuit: Any, places: list[int], device: Device) -> None:
    for instruction in circuit.data:
        operation = instruction.operation
        qubits = tuple(places[circuit.find_bit(bit).index] for bit in instruction.qubits)
        blocks = [block for block in operation.params if hasattr(block, "find_bit")]
        for block in blocks:
            _check_block(block, list(qubits), device)
        if blocks or operation.name in SPECIAL:
            continue
        if operation.name not in device.operations:
            _not_isa(f"the instruction {operation.name} on qubits {qubits}", device)
        if len(qubits) == 2 and qubits not in device.edges and qubits[::-1] not in device.edges:
            _not_isa(f"the instruction {operation.name} on qubits {qubits}", device)


def _not_isa(what: str, device: Device) -> None:
    raise JobError(
        f"{what} is not supported by the target system {device.name}. Circuits that do not match "
        "the target hardware definition are not supported: transpile them.",
        code=1517,
    )


def prepare(circuit: Any, *, compact: bool) -> Prepared:
    """Make a circuit ready to run.

    Args:
        circuit: as submitted.
        compact: leave out idle qubits, barriers and delays; noise needs them.
    """
    from qiskit.circuit import Parameter, ParameterExpression, QuantumCircuit

    dynamic, last = _measurements(circuit)
    if dynamic:
        runnable = circuit.copy()
        runnable.global_phase = 0
        angles = tuple((parameter, parameter) for parameter in circuit.parameters)
        clbits = tuple(range(circuit.num_clbits))
        return Prepared(runnable, angles, tuple(circuit.parameters), (), clbits, True)
    steps = [
        (instruction.operation, [circuit.find_bit(bit).index for bit in instruction.qubits])
        for instruction in circuit.data
        if instruction.operation.name != "measure"
        and not (compact and instruction.operation.name in SILENT)
    ]
    active = list(range(circuit.num_qubits))
    if compact:
        active = sorted({qubit for _, qubits in steps for qubit in qubits} | set(last.values()))
    place = {qubit: index for index, qubit in enumerate(active)}
    runnable = QuantumCircuit(max(len(place), 1), circuit.num_clbits)
    made: dict[Any, Any] = {}  # by expression: the parameter that stands for it
    for operation, qubits in steps:
        if any(isinstance(angle, ParameterExpression) for angle in operation.params):
            angles_here = [
                made.setdefault(angle, Parameter(f"angle{len(made)}"))
                if isinstance(angle, ParameterExpression)
                else angle
                for angle in operation.params
            ]
            operation = operation.to_mutable()
            operation.params = angles_here
        runnable.append(operation, [place[qubit] for qubit in qubits], copy=False)
    clbits = tuple(sorted(last))
    measured = tuple(place[last[clbit]] for clbit in clbits)
    parameters = tuple(circuit.parameters)
    made_for = tuple((angle, what) for what, angle in made.items())
    return Prepared(runnable, made_for, parameters, measured, clbits, False)


def _measurements(circuit: Any) -> tuple[bool, dict[int, int]]:
    """Whether a circuit goes on after it measured, and the qubit each classical bit is of."""
    last: dict[int, int] = {}
    measured: set[int] = set()
    for instruction in circuit.data:
        operation = instruction.operation
        qubits = {circuit.find_bit(bit).index for bit in instruction.qubits}
        if operation.name in SILENT:
            continue
        if operation.name == "measure":
            clbit = circuit.find_bit(instruction.clbits[0]).index
            if qubits & measured or clbit in last:
                return True, {}
            measured |= qubits
            last[clbit] = qubits.pop()
        elif qubits & measured or instruction.clbits or operation.name in ("reset", "store"):
            return True, {}
    return False, last


def _evaluated(
    what: Any, values: NDArray[np.float64], column: dict[Any, int]
) -> NDArray[np.float64]:
    """An expression at all rows, shape ``(n,)``: by its slopes if it is affine."""
    if what in column:
        return np.ascontiguousarray(values[:, column[what]])
    names = list(what.parameters)
    slopes = [what.gradient(name) for name in names]
    if all(isinstance(slope, float | int) for slope in slopes):
        total = np.full(len(values), float(what.bind_all(dict.fromkeys(names, 0.0))))
        for name, slope in zip(names, slopes, strict=True):
            total += float(slope) * values[:, column[name]]
        return total
    rows = [{name: float(row[column[name]]) for name in names} for row in values]
    return np.array([float(what.bind_all(row)) for row in rows])
