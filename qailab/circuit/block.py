"""The building block of circuits, and how blocks become one circuit.

A block of your own takes ten lines::

    @dataclass(frozen=True)
    class ZZFeatures(Block):
        role: Role = "input"

        def num_parameters(self, num_qubits: int) -> int:
            return num_qubits - 1

        def append(self, circuit: QuantumCircuit, parameters: Sequence[Parameter]) -> None:
            for qubit, parameter in enumerate(parameters):
                circuit.rzz(parameter, qubit, qubit + 1)
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
from qiskit.circuit import ClassicalRegister, Parameter, QuantumCircuit, QuantumRegister

from qailab.arguments import check_choice, checked_integer
from qailab.errors import CircuitError, InputError, InputTypeError

Role = Literal["input", "weight"]

# Parameters are the same object in two builds of the same blocks, so that two builds are equal.
_NAMESPACE = uuid.UUID("8f6c33f0-6f0c-5f0a-9e0d-3a9f5a3c1b57")


class Block(ABC):
    """A piece of a circuit: how many parameters it has, and how it is put onto qubits.

    A block only holds its configuration. The same block object used twice in one circuit gets the
    same parameters both times (data re-uploading); two objects get parameters of their own, also
    if they are equal.

    Attributes:
        role: whose values the parameters take: ``"input"`` (features) or ``"weight"`` (trained).
            A block without parameters may leave it out.
    """

    role: Role = "weight"

    @abstractmethod
    def num_parameters(self, num_qubits: int) -> int:
        """How many parameters the block has on ``num_qubits`` qubits."""

    @abstractmethod
    def append(self, circuit: QuantumCircuit, parameters: Sequence[Parameter]) -> None:
        """Append the block to all qubits of ``circuit``.

        Args:
            circuit: the circuit to extend, in place.
            parameters: this block's ``num_parameters`` parameters.
        """


def build_circuit(
    num_qubits: int, blocks: Sequence[Block], measure_qubits: Sequence[int] | None = None
) -> QuantumCircuit:
    """Put blocks one after the other and measure.

    Parameters are called ``input<i>_<j>`` and ``weight<i>_<j>``: the ``j``-th parameter of the
    ``i``-th distinct block with parameters. The numbers are padded with zeros, so Qiskit's
    alphabetical order is the order of the blocks.

    Args:
        num_qubits: number of qubits.
        blocks: the blocks, in the order they are applied.
        measure_qubits: the qubits to measure, into classical bits 0, 1, ...; all by default. Bit 0
            is the least significant bit of the outcome.

    Returns:
        A new circuit with classical register ``meas``.

    Raises:
        InputError: if the number of qubits, a block or a measured qubit is not usable.

    >>> from qailab.circuit import RealAmplitudesBlock, RotationalEncoder
    >>> circuit = build_circuit(2, [RotationalEncoder("y", "input"), RealAmplitudesBlock(reps=1)])
    >>> [parameter.name for parameter in circuit.parameters]
    ['input0_0', 'input0_1', 'weight1_0', 'weight1_1', 'weight1_2', 'weight1_3']
    """
    num_qubits = checked_integer("num_qubits", num_qubits)
    if not isinstance(blocks, Iterable):
        raise InputTypeError(f"blocks must be a list of blocks, got {blocks!r}")
    blocks = tuple(blocks)
    for position, block in enumerate(blocks):
        if not isinstance(block, Block):
            raise InputError(
                f"blocks[{position}] must be a qailab.circuit.Block, got {type(block).__name__}"
            )
    measured = _measured(num_qubits, measure_qubits)

    distinct: list[Block] = []
    for block in blocks:
        if block.num_parameters(num_qubits) and not any(block is known for known in distinct):
            distinct.append(block)
    ordinal_width = len(str(max(len(distinct) - 1, 0)))
    parameters = {
        id(block): _parameters(f"{block.role}{i:0{ordinal_width}d}", block, num_qubits)
        for i, block in enumerate(distinct)
    }

    circuit = QuantumCircuit(QuantumRegister(num_qubits, "q"), name="model")
    for block in blocks:
        block.append(circuit, parameters.get(id(block), []))
    circuit.add_register(ClassicalRegister(len(measured), "meas"))
    circuit.measure(measured, circuit.cregs[-1])
    return circuit


def check_role(role: object) -> None:
    """Raise an error if ``role`` is not one of the valid roles.

    Raises:
        InputError: if the role is unknown.
    """
    check_choice("role", role, get_args(Role))


def _measured(num_qubits: int, measure_qubits: Sequence[int] | None) -> list[int]:
    if measure_qubits is None:
        return list(range(num_qubits))
    if not isinstance(measure_qubits, Sequence | np.ndarray):
        raise InputTypeError(
            f"measure_qubits must be a sequence of qubit numbers, got {measure_qubits!r}"
        )
    measured = [
        checked_integer(f"measure_qubits[{i}]", qubit, least=0, most=num_qubits - 1)
        for i, qubit in enumerate(measure_qubits)
    ]
    if not measured:
        raise CircuitError("measure_qubits is empty: a circuit without measurement has no outcomes")
    if len(set(measured)) < len(measured):
        raise InputError(f"measure_qubits names a qubit twice: {', '.join(map(str, measured))}")
    return measured


def _parameters(prefix: str, block: Block, num_qubits: int) -> list[Parameter]:
    check_role(block.role)
    count = block.num_parameters(num_qubits)
    names = [f"{prefix}_{j:0{len(str(count - 1))}d}" for j in range(count)]
    return [Parameter(name, uuid=uuid.uuid5(_NAMESPACE, name)) for name in names]
