"""Other libraries on the same circuit, values, shots and ``grad_output``.

Each is used in the fastest correct way that was found:

* PennyLane does not differentiate the inputs of a batched circuit by parameter shifts
  (PennyLaneAI/pennylane#4462), so, as its users have to, one QNode call for each sample and one
  backward pass through all of them. ``broadcast=True`` puts both shifts of a gate into one tape
  (half the time on default.qubit, level on lightning.qubit).
* qiskit-machine-learning's ``SamplerQNN`` takes the batch, with input gradients, on Aer's
  ``SamplerV2`` with one thread (several threads for small circuits are slower).

Before they are timed, their gradient is compared with qailab's: both are estimates from the same
number of shots, so their difference has sqrt(2) times qailab's standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Report
from benchmarks.timing import milliseconds
from benchmarks.workload import Backward, Case, Places, Workload, backward_of
from qailab.torch import QLayer

_MOST_STANDARD_ERRORS = 6.0
"""That two right gradients may differ: exceeded by chance once in 10**8 entries."""
_ROUNDS = 3


def measure_peers(cases: Iterable[Case], places: Places, report: Report) -> None:
    """Time qailab and its peers side by side, and check that their gradients agree.

    Raises:
        SystemExit: if a peer's gradient differs: the comparison would say nothing.
    """
    table = report.table("peers", title="Other libraries")
    for case in cases:
        work = Workload(case)
        layers = {f"qailab, {name}": work.layer(backend) for name, backend in places.items()}
        runs: dict[str, Backward] = {name: work.backward(each) for name, each in layers.items()}
        first, layer = next(iter(runs.values()))(), next(iter(layers.values()))
        apart: dict[str, float] = {}
        for name, build in _PEERS.items():
            runs[name] = build(work)
            apart[name] = _standard_errors_apart(runs[name](), first, layer)
            if apart[name] > _MOST_STANDARD_ERRORS:
                raise SystemExit(
                    f"{case}: the gradient of {name} is {apart[name]:.1f} standard errors from "
                    f"qailab's (at most {_MOST_STANDARD_ERRORS:g})"
                )
        times = milliseconds(runs, _ROUNDS, warm_up=0)
        for name, ms in times.items():
            table.add({
                "n": case.qubits, "batch": case.batch, "ms": ms,
                "/ last pool": ms / times[list(layers)[-1]],
                "standard errors apart": apart.get(name), "where": name,
            })  # fmt: skip


def _standard_errors_apart(
    theirs: Sequence[Tensor], ours: Sequence[Tensor], layer: QLayer
) -> float:
    """The largest difference of two gradients, in standard errors of the difference."""
    errors = (layer.input_std_error, layer.weight_std_error)
    return max(
        float(((other.double() - mine) / (math.sqrt(2) * error)).abs().max())
        for mine, other, error in zip(ours, theirs, errors, strict=True)
    )


def pennylane(
    work: Workload, device: str, method: str, *, of_z: bool = False, **options: Any
) -> Callable[[Tensor, Tensor], Tensor]:
    """The circuit in PennyLane: a function of inputs and weights.

    Args:
        work: its gates and shots.
        device: name of PennyLane's device.
        method: PennyLane's name of how it is differentiated.
        of_z: whether to give <Z> of each qubit, instead of probabilities.
        options: of the differentiation.
    """
    import pennylane as qml

    n, gates = work.case.qubits, _gates(work)

    @qml.set_shots(work.case.shots)
    @qml.qnode(
        qml.device(device, wires=n, seed=work.case.seed), interface="torch", diff_method=method,
        gradient_kwargs=options,
    )  # fmt: skip
    def circuit(*groups: Tensor) -> Any:
        for qubits, angle in gates:
            if angle is None:
                qml.CNOT(wires=qubits)
            else:
                group, index = angle
                qml.RY(groups[group][index], wires=qubits)
        if of_z:
            return [qml.expval(qml.PauliZ(wire)) for wire in range(n)]
        return qml.probs(wires=list(reversed(range(n))))  # qubit 0 is the least significant bit

    def outputs(inputs: Tensor, weights: Tensor) -> Tensor:
        if method == "backprop":  # with which it broadcasts the batch
            return circuit(inputs.T, weights).reshape(len(inputs), -1)
        each = [circuit(features, weights) for features in inputs]
        return torch.stack([torch.stack(values) for values in each] if of_z else each)

    return outputs


def _gates(work: Workload) -> list[tuple[list[int], tuple[int, int] | None]]:
    """The circuit's gates: qubits, and for an RY its group (inputs, weights) and index in it."""
    groups = (work.problem.input_parameters, work.problem.weight_parameters)
    place = {
        parameter: (group, index)
        for group, parameters in enumerate(groups)
        for index, parameter in enumerate(parameters)
    }
    gates: list[tuple[list[int], tuple[int, int] | None]] = []
    for instruction in work.circuit.data:
        operation = instruction.operation
        if operation.name in ("measure", "barrier"):
            continue
        assert operation.name in ("ry", "cx"), operation.name
        qubits = [work.circuit.find_bit(qubit).index for qubit in instruction.qubits]
        gates.append((qubits, place[operation.params[0]] if operation.params else None))
    return gates


def _shift_rule(work: Workload, device: str) -> Backward:
    inputs, weights = (each.clone().requires_grad_() for each in (work.inputs, work.weights))
    outputs = pennylane(work, device, "parameter-shift", broadcast=True)(inputs, weights)
    return backward_of(outputs, [inputs, weights], work.grad_output)


def _sampler_network(work: Workload) -> Backward:
    from qiskit_aer.primitives import SamplerV2
    from qiskit_machine_learning.gradients import ParamShiftSamplerGradient
    from qiskit_machine_learning.neural_networks import SamplerQNN

    options = {"backend_options": {"max_parallel_threads": 1}}
    sampler = SamplerV2(default_shots=work.case.shots, seed=work.case.seed, options=options)
    gradient = ParamShiftSamplerGradient(sampler)
    return connected(work, work.grad_output, SamplerQNN, work.circuit, sampler=sampler,
                     gradient=gradient)  # fmt: skip


def connected(
    work: Workload, grad_output: Tensor, kind: Any, circuit: Any, **options: Any
) -> Backward:
    """The backward pass of a network of qiskit-machine-learning, through its TorchConnector."""
    from qiskit_machine_learning.connectors import TorchConnector

    network = kind(
        circuit=circuit, input_params=work.problem.input_parameters,
        weight_params=work.problem.weight_parameters, input_gradients=True, **options,
    )  # fmt: skip
    layer = TorchConnector(network, initial_weights=work.weights.numpy())
    inputs = work.inputs.float().requires_grad_()  # its weights are float32
    return backward_of(layer(inputs), [inputs, layer.weight], grad_output)


_PEERS: dict[str, Callable[[Workload], Backward]] = {
    "PennyLane lightning.qubit": lambda work: _shift_rule(work, "lightning.qubit"),
    "PennyLane default.qubit": lambda work: _shift_rule(work, "default.qubit"),
    "qiskit-machine-learning": _sampler_network,
}
