"""<Z> of each qubit beside the probabilities of the same circuit, and beside EstimatorQNN.

qiskit-machine-learning's network runs on Aer's estimator through its ``TorchConnector``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.peers import connected
from benchmarks.report import Report
from benchmarks.timing import milliseconds
from benchmarks.workload import Backward, Case, Workload, backward_of
from qailab.backends import AerBackend, Backend, StatevectorBackend
from qailab.torch import ObservableQLayer

_PEER_QUBITS = 6  # 5,760 circuits; more take minutes
_FOOTNOTE = """\
ms: one backward pass for inputs and weights, in process, one thread; medians of rounds in which all
take turns, of EstimatorQNN one. circuits: with all angles bound, in all bases."""


def measure_observables(cases: Iterable[Case], report: Report, rounds: int | None) -> None:
    """Measure cases on both simulators, and EstimatorQNN beside them where it is quick enough."""
    title = "<Z> of each qubit, and all probabilities, in ms"
    table = report.table("observables", title=title)
    for case in cases:
        work = Workload(case)
        backends = {"Aer": AerBackend(), "statevector": StatevectorBackend()}
        runs: dict[str, Backward] = {}
        for name, backend in backends.items():
            runs[f"{name} probabilities"] = work.backward(work.layer(backend))
            runs[f"{name} <Z>"] = _values(work, backend)
        times = milliseconds(runs, rounds)
        their_ms, their_circuits = None, None
        if case.qubits <= _PEER_QUBITS and importlib.util.find_spec("qiskit_machine_learning"):
            their_ms, their_circuits = _peer(work)
        for name, backend in backends.items():
            ours, probabilities = times[f"{name} <Z>"], times[f"{name} probabilities"]
            table.add({
                "n": case.qubits, "batch": case.batch, "backend": name, "all prob.": probabilities,
                "<Z>": ours, "/ prob.": ours / probabilities,
                "circuits": _counted(backend, runs[f"{name} <Z>"]), "EstimatorQNN": their_ms,
                "its circuits": their_circuits, "faster": their_ms and their_ms / ours,
            })  # fmt: skip
    print(_FOOTNOTE)


def _values(work: Workload, backend: Backend) -> Backward:
    """The backward pass of <Z> of each qubit."""
    case = work.case
    layer = ObservableQLayer(work.circuit, backend=backend, shots=case.shots, seed=case.seed)
    with torch.no_grad():
        layer.double().weight.copy_(work.weights)
    inputs = work.inputs.clone().requires_grad_()
    return backward_of(layer(inputs), [inputs, layer.weight], work.grad_output[:, : case.qubits])


def _counted(backend: Backend, run: Backward) -> int:
    """How many rows a backward pass has."""
    rows, expectations = [], backend.expectations

    def counting(circuit: Any, batch: Any, stop: Any) -> Any:
        rows.append(batch.num_rows)
        return expectations(circuit, batch, stop)

    backend.expectations = counting  # type: ignore[method-assign]
    run()
    backend.expectations = expectations  # type: ignore[method-assign]
    return sum(rows)


def _peer(work: Workload) -> tuple[float, int]:
    """The time and the circuits of EstimatorQNN's backward pass, which runs once."""
    from qiskit.primitives.containers.estimator_pub import EstimatorPub
    from qiskit.quantum_info import SparsePauliOp
    from qiskit_aer.primitives import EstimatorV2
    from qiskit_machine_learning.gradients import ParamShiftEstimatorGradient
    from qiskit_machine_learning.neural_networks import EstimatorQNN

    n, circuits = work.case.qubits, []

    class Counting(EstimatorV2):  # type: ignore[misc]
        def run(self, pubs: Any, **options: Any) -> Any:
            made = [EstimatorPub.coerce(pub, options.get("precision")) for pub in pubs]
            circuits.append(sum(pub.size for pub in made))
            return super().run(made, **options)

    precision = (work.case.shots or 1) ** -0.5
    estimator = Counting(options={
        "default_precision": precision,
        "backend_options": {"max_parallel_threads": 1, "seed_simulator": work.case.seed},
    })  # fmt: skip
    run = connected(
        work, work.grad_output[:, :n], EstimatorQNN,
        work.circuit.remove_final_measurements(inplace=False), estimator=estimator,
        observables=[SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], n) for q in range(n)],
        gradient=ParamShiftEstimatorGradient(estimator), default_precision=precision,
    )  # fmt: skip
    circuits.clear()
    return milliseconds({"peer": run}, 1, warm_up=0)["peer"], sum(circuits)
