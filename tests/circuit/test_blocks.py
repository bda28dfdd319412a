from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.circuit.library import real_amplitudes

from qailab.circuit import (
    AmplitudeEncoder,
    Block,
    CXEntangler,
    RealAmplitudesBlock,
    RotationalEncoder,
    build_circuit,
)
from qailab.circuit.block import Role
from qailab.errors import CircuitError, InputError


def names(circuit):
    return [parameter.name for parameter in circuit.parameters]


def blocks():
    encoder = RotationalEncoder("y", "input")
    return [encoder, RealAmplitudesBlock("weight", reps=2), CXEntangler(), encoder]


def test_two_builds_are_equal():
    assert build_circuit(3, blocks()) == build_circuit(3, blocks())
    assert build_circuit(3, blocks()).parameters == build_circuit(3, blocks()).parameters


def test_the_same_object_uploads_again_and_an_equal_one_does_not():
    encoder = RotationalEncoder("x", "input")
    again = build_circuit(2, [encoder, CXEntangler(), encoder])
    fresh = build_circuit(2, [encoder, CXEntangler(), RotationalEncoder("x", "input")])
    assert again.num_parameters == 2
    assert fresh.num_parameters == 4


def test_qiskit_order_is_the_order_of_blocks_and_qubits_beyond_ten():
    many = [RotationalEncoder("y", "weight") for _ in range(12)]
    circuit = build_circuit(11, many)
    in_order = [i.operation.params[0].name for i in circuit.data if i.operation.params]
    assert names(circuit) == in_order


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotational_encoder_rotates_about_its_axis(axis):
    circuit = build_circuit(2, [RotationalEncoder(axis, "input")])
    assert circuit.count_ops()[f"r{axis}"] == 2


@pytest.mark.parametrize("skip", [False, True])
def test_real_amplitudes_is_qiskits(skip):
    block = RealAmplitudesBlock("weight", "circular", reps=2, skip_final_rotation_layer=skip)
    ours = build_circuit(3, [block]).remove_final_measurements(inplace=False)
    theirs = real_amplitudes(3, entanglement="circular", reps=2, skip_final_rotation_layer=skip)
    values = np.linspace(0, 1, block.num_parameters(3))
    assert ours.assign_parameters(values) == theirs.assign_parameters(values)


@pytest.mark.parametrize(
    ("qubits", "ring"), [(1, []), (2, [(0, 1)]), (3, [(0, 1), (1, 2), (2, 0)])]
)
def test_entangler_is_a_ring(qubits, ring):
    circuit = build_circuit(qubits, [CXEntangler()])
    pairs = [
        tuple(circuit.find_bit(q).index for q in instruction.qubits)
        for instruction in circuit.get_instructions("cx")
    ]
    assert pairs == ring


def test_measured_qubits_go_to_clbits_in_order():
    circuit = build_circuit(3, [RotationalEncoder()], measure_qubits=[2, 0])
    wires = [
        (circuit.find_bit(i.qubits[0]).index, circuit.find_bit(i.clbits[0]).index)
        for i in circuit.get_instructions("measure")
    ]
    assert wires == [(2, 0), (0, 1)]


def test_a_block_of_ones_own_is_ten_lines():
    @dataclass(frozen=True)
    class ZZFeatures(Block):
        role: Role = "input"

        def num_parameters(self, num_qubits: int) -> int:
            return num_qubits - 1

        def append(self, circuit: QuantumCircuit, parameters: Sequence[Parameter]) -> None:
            for qubit, parameter in enumerate(parameters):
                circuit.rzz(parameter, qubit, qubit + 1)

    circuit = build_circuit(3, [ZZFeatures()])
    assert names(circuit) == ["input0_0", "input0_1"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RotationalEncoder("w", "input"), r"'x', 'y', 'z'; got 'w'"),
        (lambda: RotationalEncoder("x", "angle"), r"'input', 'weight'; got 'angle'"),
        (lambda: AmplitudeEncoder("angle"), r"'input', 'weight'"),
        (lambda: RealAmplitudesBlock("weight", "ring"), r"'circular'.*got 'ring'"),
        (lambda: RealAmplitudesBlock("weight", reps=-1), r"at least 0, got -1"),
        (lambda: build_circuit(0, []), r"positive integer, got 0"),
        (lambda: build_circuit(2, ["ry"]), r"blocks\[0\].*str"),
        (lambda: build_circuit(2, [], measure_qubits=[2]), r"\[0\].*at most 1, got 2"),
        (lambda: build_circuit(2, [], measure_qubits=1), r"sequence of qubit numbers, got 1"),
        (lambda: build_circuit(2, [], measure_qubits=[1, 1]), r"twice"),
    ],
)
def test_bad_options_list_what_is_valid(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_blocks_may_come_from_a_generator():
    circuit = build_circuit(2, (block for block in [RotationalEncoder()]))
    assert circuit.num_parameters == 2


def test_nothing_measured_is_an_error():
    with pytest.raises(CircuitError, match="without measurement"):
        build_circuit(2, [], measure_qubits=[])
