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
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.modes import Mode
from benchmarks.timing import Figure, Series
from benchmarks.workload import Gradients, Workload, backward_of
from qailab.torch import QLayer

MOST_STANDARD_ERRORS = 6.0
"""That two right gradients may differ: exceeded by chance once in 10**8 entries."""

_SLOW_SECONDS = 8.0  # a peer that takes longer is measured once more, not three times
_ROUNDS = 3

Build = Callable[[Workload], Callable[[], Gradients]]


@dataclass(frozen=True)
class Peer:
    """Another library.

    Args:
        name: what the report calls it.
        build: runs its forward pass; the function returned runs its backward pass.
    """

    name: str
    build: Build


def all_peers() -> tuple[Peer, ...]:
    """The libraries that are compared.

    Raises:
        SystemExit: if one is not installed; the message says how to install it.
    """
    try:
        import pennylane  # noqa: F401
        import pennylane_lightning  # noqa: F401
        import qiskit_machine_learning  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f"--peers needs the extra 'bench' ({error}); run scripts/benchmark --peers, or "
            "install it with: pip install 'qailab[bench]'"
        ) from error
    return (
        Peer(LIGHTNING, lambda work: _pennylane(work, "lightning.qubit")),
        Peer("PennyLane default.qubit", lambda work: _pennylane(work, "default.qubit")),
        Peer(TORCH_CONNECTOR, _torch_connector),
    )


LIGHTNING = "PennyLane lightning.qubit"
TORCH_CONNECTOR = "qiskit-machine-learning"


def measure_peers(work: Workload, modes: Sequence[Mode], peers: Sequence[Peer]) -> list[Figure]:
    """Measure qailab and its peers side by side, and check that they agree.

    Returns:
        One figure for each mode and each peer.

    Raises:
        SystemExit: if a peer's gradient is another one than qailab's: the comparison would say
            nothing.
    """
    ours = [Series(mode, work.backward(work.layer(mode.backend))) for mode in modes]
    for each in ours:
        each.run()
    seconds: dict[str, list[float]] = {}
    layer = work.layer(modes[0].backend)
    reference = work.backward(layer)()
    for peer in peers:
        run = peer.build(work)
        began = time.perf_counter()
        gradients = run()  # warms up as well
        slow = time.perf_counter() - began > _SLOW_SECONDS
        _check_agreement(work, peer, gradients, reference, layer)
        seconds[peer.name] = []
        for _ in range(1 if slow else _ROUNDS):
            began = time.perf_counter()
            run()
            seconds[peer.name].append(time.perf_counter() - began)
            for each in ours:
                each.measure()
    rows = work.shifted_rows().num_rows
    times = {each.mode.name: each.seconds for each in ours} | seconds
    return [
        Figure(
            mode=name,
            case=work.case,
            rows=rows,
            seconds=statistics.median(measured),
            fastest=min(measured),
            rounds=len(measured),
            in_process_seconds=statistics.median(ours[0].seconds),
        )
        for name, measured in times.items()
    ]


def _check_agreement(
    work: Workload, peer: Peer, theirs: Gradients, ours: Gradients, layer: QLayer
) -> None:
    worst = []
    for mine, other, error in (
        (ours.inputs, theirs.inputs, layer.input_std_error),
        (ours.weights, theirs.weights, layer.weight_std_error),
    ):
        assert mine is not None
        assert other is not None
        assert error is not None
        worst.append(float(((other.double() - mine) / (math.sqrt(2) * error)).abs().max()))
    entries = work.inputs.numel() + work.weights.numel()
    agree = max(worst) <= MOST_STANDARD_ERRORS
    print(
        f"  {work.case.name}, {peer.name}: gradient {'agrees' if agree else 'DISAGREES'}; largest "
        f"difference of {entries} entries: inputs {worst[0]:.1f}, weights {worst[1]:.1f} standard "
        f"errors (at most {MOST_STANDARD_ERRORS:g})"
    )
    if not agree:
        raise SystemExit(f"{peer.name} computes another gradient; comparing times says nothing")


def _pennylane(work: Workload, device: str) -> Callable[[], Gradients]:
    import pennylane as qml

    gates = _gates(work)
    wires = list(reversed(range(work.case.qubits)))  # qubit 0 is the least significant bit

    @qml.set_shots(work.case.shots)
    @qml.qnode(
        qml.device(device, wires=work.case.qubits, seed=work.case.seed),
        interface="torch",
        diff_method="parameter-shift",
        gradient_kwargs={"broadcast": True},
    )
    def circuit(features: torch.Tensor, weights: torch.Tensor) -> qml.measurements.ProbabilityMP:
        groups = (features, weights)
        for qubits, angle in gates:
            if angle is None:
                qml.CNOT(wires=qubits)
            else:
                group, index = angle
                qml.RY(groups[group][index], wires=qubits)
        return qml.probs(wires=wires)

    inputs = work.inputs.clone().requires_grad_()
    weights = work.weights.clone().requires_grad_()
    outputs = torch.stack([circuit(features, weights) for features in inputs])
    return backward_of(outputs, inputs, weights, work.grad_output)


def _gates(work: Workload) -> list[tuple[list[int], tuple[int, int] | None]]:
    """The circuit's gates: qubits, and for an RY its group (inputs, weights) and index in it."""
    place = {
        parameter: (group, index)
        for group, parameters in enumerate(
            (work.problem.input_parameters, work.problem.weight_parameters)
        )
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


def _torch_connector(work: Workload) -> Callable[[], Gradients]:
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
    return backward_of(layer(inputs), inputs, layer.weight, work.grad_output)
