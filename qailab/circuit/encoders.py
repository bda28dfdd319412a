"""Blocks that load features: one rotation for each qubit, or amplitudes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from qiskit.circuit import Parameter, QuantumCircuit

from qailab.arguments import check_choice
from qailab.circuit.amplitude import AmplitudeEncodingGate
from qailab.circuit.block import Block, Role, check_role

Axis = Literal["x", "y", "z"]


@dataclass(frozen=True, eq=False)
class RotationalEncoder(Block):
    """One rotation for each qubit, by an angle each.

    Args:
        axis: axis of the rotations, ``"x"``, ``"y"`` or ``"z"``.
        role: whether the angles are features (``"input"``) or trained (``"weight"``).

    Raises:
        InputError: if the axis or the role is unknown.
    """

    axis: Axis = "y"
    role: Role = "input"

    def __post_init__(self) -> None:
        check_choice("axis", self.axis, get_args(Axis))
        check_role(self.role)

    def num_parameters(self, num_qubits: int) -> int:
        return num_qubits

    def append(self, circuit: QuantumCircuit, parameters: Sequence[Parameter]) -> None:
        rotate = {"x": circuit.rx, "y": circuit.ry, "z": circuit.rz}[self.axis]
        for qubit, parameter in enumerate(parameters):
            rotate(parameter, qubit)


@dataclass(frozen=True, eq=False)
class AmplitudeEncoder(Block):
    """``2**n`` features become the amplitudes of ``n`` qubits, normalised.

    Feature ``k`` is the amplitude of basis state ``|k>``. The block belongs first: it prepares its
    state from ``|0...0>`` (later, the same gates act on whatever state there is). Negative
    features are negative amplitudes, kept exactly. The scale of a sample has no effect (and its
    gradient none along the sample itself). A sample of zeros only has no state: it is an error
    that names the sample.

    The gradient is the exact derivative of the normalised amplitudes, by shifting the angles of
    the state preparation and the chain rule; see :class:`AmplitudeEncodingGate` for the points
    where it is undefined.

    Args:
        role: whether the amplitudes are features (``"input"``) or trained (``"weight"``).

    Raises:
        InputError: if the role is unknown.
    """

    role: Role = "input"

    def __post_init__(self) -> None:
        check_role(self.role)

    def num_parameters(self, num_qubits: int) -> int:
        return 1 << num_qubits

    def append(self, circuit: QuantumCircuit, parameters: Sequence[Parameter]) -> None:
        circuit.append(AmplitudeEncodingGate(parameters), range(circuit.num_qubits))
