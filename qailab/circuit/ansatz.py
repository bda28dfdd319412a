"""Blocks that are trained, and blocks that entangle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.circuit.library import real_amplitudes

from qailab.arguments import check_choice, checked_integer
from qailab.circuit.block import Block, Role, check_role

Entanglement = Literal["full", "linear", "reverse_linear", "circular", "sca", "pairwise"]


@dataclass(frozen=True, eq=False)
class RealAmplitudesBlock(Block):
    """Layers of RY rotations with CX gates between them.

    Args:
        role: whether the angles are trained (``"weight"``) or features (``"input"``).
        entanglement: which qubits the CX gates of a layer join, in Qiskit's words.
        reps: how many times rotations and entanglement are repeated.
        skip_final_rotation_layer: whether to leave out the rotations after the last entanglement.

    Raises:
        InputError: if the role, the entanglement or ``reps`` is not valid.

    References:
        Qiskit, ``qiskit.circuit.library.real_amplitudes``.
    """

    role: Role = "weight"
    entanglement: Entanglement = "reverse_linear"
    reps: int = 3
    skip_final_rotation_layer: bool = False

    def __post_init__(self) -> None:
        check_role(self.role)
        check_choice("entanglement", self.entanglement, get_args(Entanglement))
        checked_integer("reps", self.reps, least=0)

    def num_parameters(self, num_qubits: int) -> int:
        layers = self.reps + (0 if self.skip_final_rotation_layer else 1)
        return num_qubits * layers

    def append(self, circuit: QuantumCircuit, parameters: Sequence[Parameter]) -> None:
        template = real_amplitudes(
            circuit.num_qubits,
            entanglement=self.entanglement,
            reps=self.reps,
            skip_final_rotation_layer=self.skip_final_rotation_layer,
        )
        # `template.parameters` is a vector: sorted by index, which is the order of the gates.
        circuit.compose(template.assign_parameters(list(parameters)), inplace=True)


@dataclass(frozen=True, eq=False)
class CXEntangler(Block):
    """A ring of CX gates: qubit ``i`` controls qubit ``i + 1``, and the last one the first.

    On two qubits it is the single CX from 0 to 1, on one qubit nothing.
    """

    def num_parameters(self, num_qubits: int) -> int:
        return 0

    def append(self, circuit: QuantumCircuit, parameters: Sequence[Parameter]) -> None:
        n = circuit.num_qubits
        for qubit in range(n if n > 2 else n - 1):
            circuit.cx(qubit, (qubit + 1) % n)
