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

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence

import torch
from tables import Column

from benchmarks.gradients import Places
from benchmarks.report import Report
from benchmarks.timing import interleaved, medians
from benchmarks.workload import Backward, Case, Workload, backward_of
from qailab.torch import QLayer

_MOST_STANDARD_ERRORS = 6.0
"""That two right gradients may differ: exceeded by chance once in 10**8 entries."""
_ROUNDS = 3
_COLUMNS = (
    Column("n"), Column("batch"), Column("where", width=26), Column("ms", ",.1f", 8),
    Column("/ last pool", ",.2f"), Column("standard errors apart", ".1f"),
)  # fmt: skip


def measure_peers(cases: Iterable[Case], places: Places, report: Report) -> None:
    """Time qailab and its peers side by side, and check that their gradients agree.

    Raises:
        SystemExit: if a peer's gradient differs: the comparison would say nothing.
    """
    table = report.table("peers", _COLUMNS, "Other libraries")
    for case in cases:
        work = Workload(case)
        layers = {f"qailab, {name}": work.layer(backend) for name, backend in places.items()}
        ours: dict[str, Backward] = {name: work.backward(each) for name, each in layers.items()}
        gradients = [run() for run in ours.values()]
        seconds: dict[str, list[float]] = {name: [] for name in ours}
        apart: dict[str, float] = {}
        for name, build in _PEERS.items():
            run = build(work)
            theirs = run()  # warms up as well
            apart[name] = _standard_errors_apart(theirs, gradients[0], next(iter(layers.values())))
            if apart[name] > _MOST_STANDARD_ERRORS:
                raise SystemExit(
                    f"{case}: the gradient of {name} is {apart[name]:.1f} standard errors from "
                    f"qailab's (at most {_MOST_STANDARD_ERRORS:g})"
                )
            for each, times in interleaved(ours | {name: run}, _ROUNDS).items():
                seconds.setdefault(each, []).extend(times)
        base = statistics.median(seconds[list(ours)[-1]])
        for name, own in medians(seconds).items():
            table.add({
                "n": case.qubits, "batch": case.batch, "where": name, "ms": 1e3 * own,
                "/ last pool": own / base, "standard errors apart": apart.get(name),
            })  # fmt: skip


def _standard_errors_apart(
    theirs: Sequence[torch.Tensor], ours: Sequence[torch.Tensor], layer: QLayer
) -> float:
    """The largest difference of two gradients, in standard errors of the difference."""
    errors = (layer.input_std_error, layer.weight_std_error)
    return max(
        float(((other.double() - mine) / (math.sqrt(2) * error)).abs().max())
        for mine, other, error in zip(ours, theirs, errors, strict=True)
    )


def _pennylane(work: Workload, device: str) -> Backward:
    import pennylane as qml

    wires = list(reversed(range(work.case.qubits)))  # qubit 0 is the least significant bit

    @qml.set_shots(work.case.shots)
    @qml.qnode(
        qml.device(device, wires=work.case.qubits, seed=work.case.seed),
        interface="torch",
        diff_method="parameter-shift",
        gradient_kwargs={"broadcast": True},
    )
    def circuit(features: torch.Tensor, weights: torch.Tensor) -> qml.measurements.ProbabilityMP:
        apply_gates(work, features, weights)
        return qml.probs(wires=wires)

    inputs = work.inputs.clone().requires_grad_()
    weights = work.weights.clone().requires_grad_()
    outputs = torch.stack([circuit(features, weights) for features in inputs])
    return backward_of(outputs, [inputs, weights], work.grad_output)


def apply_gates(work: Workload, *groups: torch.Tensor) -> None:
    """PennyLane's gates of the circuit, whose groups of angles are features and weights."""
    import pennylane as qml

    for qubits, angle in _gates(work):
        if angle is None:
            qml.CNOT(wires=qubits)
        else:
            group, index = angle
            qml.RY(groups[group][index], wires=qubits)


@functools.cache
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


def _torch_connector(work: Workload) -> Backward:
    from qiskit_aer.primitives import SamplerV2
    from qiskit_machine_learning.connectors import TorchConnector
    from qiskit_machine_learning.gradients import ParamShiftSamplerGradient
    from qiskit_machine_learning.neural_networks import SamplerQNN

    sampler = SamplerV2(
        default_shots=work.case.shots,
        seed=work.case.seed,
        options={"backend_options": {"max_parallel_threads": 1}},
    )
    network = SamplerQNN(
        circuit=work.circuit,
        sampler=sampler,
        input_params=work.problem.input_parameters,
        weight_params=work.problem.weight_parameters,
        input_gradients=True,
        gradient=ParamShiftSamplerGradient(sampler),
    )
    layer = TorchConnector(network, initial_weights=work.weights.numpy())
    inputs = work.inputs.float().requires_grad_()  # its weights are float32
    return backward_of(layer(inputs), [inputs, layer.weight], work.grad_output)


_PEERS: dict[str, Callable[[Workload], Backward]] = {
    "PennyLane lightning.qubit": lambda work: _pennylane(work, "lightning.qubit"),
    "PennyLane default.qubit": lambda work: _pennylane(work, "default.qubit"),
    "qiskit-machine-learning": _torch_connector,
}
