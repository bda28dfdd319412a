"""Asynchronous training: what `AsyncTrainer` gains on devices that mostly wait.

The devices are simulated (`Device`): a statevector's answers after a time that does not depend on
the rows, as where queues and fixed costs dominate. Seconds are scaled: 0.1 s stand for a queue of
2 s. The ordinary loop's weights do not depend on its device, so its losses are computed without
waiting; its time is a step's, measured on the device of *queue*, and the mean of the latencies in
*fleet*.

EQC's rule is its public code's (Stein et al., ISCA 2022): a job for each parameter, plain descent on
it as it arrives, weights from 0.75 to 1. It is given exact shifts and no wait of its own.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
from tables import Column, Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.report import Report
from qailab.backends import StatevectorBackend, Usage
from qailab.backends.base import Evaluation
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.errors import BackendError
from qailab.gradients import CanonicalCircuit, RowBatch
from qailab.gradients.rows import FloatArray
from qailab.launchers import BackwardPass, QuantumLauncher, StepContext
from qailab.torch import ObservableQLayer, QLayer
from qailab.training import AsyncTrainer

_QUEUE_SECONDS, _PLACES = 0.1, 5
_FASTEST, _SLOWEST, _DEVICES = 0.1, 2.0, 10
_TAIL = 0.75  # of the logarithm of a job's seconds: one of 100 takes 4 times the mean
_STEPS, _MOST_STEPS, _TIMED_STEPS = 90, 270, 15
_BATCH, _BATCHES, _FEATURES, _CLASSES = 8, 30, 8, 3
_RATE = 0.02  # of Adam
_EQC_RATE, _EQC_UPDATES, _EQC_FASTEST = 0.1, 320, 0.05
_VQE_RATE = 0.1
_COLUMNS = (
    Column("what", width=54), Column("measured", ".3g"), Column("asked", width=12),
    Column("holds", width=5),
)  # fmt: skip

Curve = list[tuple[float, float]]  # seconds (or steps), and a loss


class Device(StatevectorBackend):
    """A device whose every job takes a time of its own, whatever its rows; it can be killed."""

    def __init__(self, seconds: float, *, tail: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.seconds, self._tail = seconds, tail
        self._chance = np.random.default_rng(seed)
        self._live_killed = threading.Event()

    def kill(self) -> None:
        """Fail all jobs, also those that run."""
        self._live_killed.set()

    def answers(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        return self._late(super().answers, circuit, batch, stop)

    def expectations(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        return self._late(super().expectations, circuit, batch, stop)

    def run(self, circuit: CanonicalCircuit, batch: RowBatch) -> FloatArray:
        return self.submit(circuit, batch).result()

    def _late(self, answer: Callable[..., Evaluation], *job: Any) -> Evaluation:
        began = time.monotonic()
        draw = self._chance.normal(-(self._tail**2) / 2, self._tail)  # of mean 1 when exponentiated
        seconds = self.seconds * float(np.exp(draw))
        found = answer(*job)
        if self._live_killed.wait(max(0.0, began + seconds - time.monotonic())):
            raise BackendError("this device was killed")
        return Evaluation(found.answers, Usage(1, seconds))


class Work:
    """A hybrid classifier of Gaussian clouds, and its data."""

    def __init__(self, seed: int, shots: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        centres = torch.randn(_CLASSES, _FEATURES, generator=generator)
        labels = torch.arange(_BATCHES * _BATCH * 2) % _CLASSES
        noise = torch.randn(len(labels), _FEATURES, generator=generator)
        features = centres[labels] + 1.2 * noise
        half = len(labels) // 2
        self.batches = list(
            zip(features[:half].split(_BATCH), labels[:half].split(_BATCH), strict=True)
        )
        self.test = features[half:], labels[half:]
        torch.manual_seed(seed)
        blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=1)]
        layer = QLayer(build_circuit(4, blocks), shots=shots, seed=seed)
        self.model = nn.Sequential(
            nn.Linear(_FEATURES, 4), layer, nn.Linear(layer.out_features, _CLASSES)
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=_RATE)

    def tested(self) -> tuple[float, float]:
        """Loss and accuracy of the test samples, with exact probabilities."""
        layer = self.model[1]
        shots, layer.shots = layer.shots, None
        with torch.no_grad():
            logits = self.model(self.test[0])
        layer.shots = shots
        right = (logits.argmax(dim=1) == self.test[1]).float().mean()
        return cross_entropy(logits, self.test[1]).item(), right.item()

    def ordinary_steps(self) -> Iterator[int]:
        """The loop that everybody writes; numbers of the steps that are done, from 1."""
        for number in range(_STEPS):
            self.optimizer.zero_grad()
            loss_of(self.model, self.batches[number % _BATCHES]).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            yield number + 1


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """The loss of a batch."""
    return cross_entropy(model(batch[0]), batch[1])


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure what the options ask for, and print each figure beside what is asked."""
    seeds = range(options.seed, options.seed + options.seeds)
    table = report.table("async", _COLUMNS, f"Asynchronous training, means of {len(seeds)} seeds")
    if "queue" in options.only:
        _queue(table, seeds, options.shots)
    if "fleet" in options.only:
        _fleet(table, seeds, options.shots)
    if "eqc" in options.only:
        for name, make in (("Heisenberg VQE", heisenberg), ("QAOA ring", qaoa_ring)):
            _eqc(table, name, make, seeds, options.shots)


def _add(table: Table, what: str, measured: float, asked: float | None, *, most: bool) -> None:
    words, holds = "", ""
    if asked is not None:
        words = f"at {'most' if most else 'least'} {asked:.3g}"
        holds = "yes" if (measured <= asked if most else measured >= asked) else "NO"
    table.add({"what": what, "measured": measured, "asked": words, "holds": holds})


def _ordinary(seed: int, shots: int) -> tuple[Curve, float]:
    """The ordinary loop: test losses by steps, and the last accuracy."""
    work, curve = Work(seed, shots), list[tuple[float, float]]()
    for number in work.ordinary_steps():
        loss, accuracy = work.tested()
        curve.append((number, loss))
    return curve, accuracy


def _first(curve: Curve, loss: float) -> float:
    """When a curve first comes down to a loss; for ever if it does not."""
    return next((when for when, value in curve if value <= loss), float("inf"))


def _asynchronous(
    work: Work, places: Sequence[Device], kill: Sequence[Device] = ()
) -> tuple[Curve, float, float]:
    """Train on lanes: test losses by seconds, accuracy after `_STEPS` steps, seconds of a step."""
    trainer = AsyncTrainer(
        work.model, work.optimizer, loss_of, list(places), progress=False, max_staleness=20
    )
    curve, accuracy, seconds = list[tuple[float, float]](), 0.0, 0.0
    began = time.monotonic()
    for step in trainer.steps(work.batches, _MOST_STEPS // _BATCHES):
        work.optimizer.step()
        if step.number % 3 == 0:
            now = time.monotonic() - began
            loss, accuracy = work.tested()
            curve.append((now, loss))
        if step.number == _STEPS // 4:
            for device in kill:
                device.kill()
        if step.number == _STEPS:
            seconds = (time.monotonic() - began) / _STEPS
        if step.number >= _STEPS + 60:
            break
    return curve, accuracy, seconds


def _queue(table: Table, seeds: Sequence[int], shots: int) -> None:
    """One device with a queue, which takes several jobs at once."""
    faster, shares = [], []
    for seed in seeds:
        timed = Work(seed, shots)
        timed.model[1].backend = Device(_QUEUE_SECONDS)
        next(steps := timed.ordinary_steps())
        began = time.monotonic()
        for _ in range(_TIMED_STEPS):
            next(steps)
        ordinary_step = (time.monotonic() - began) / _TIMED_STEPS
        ordinary, _ = _ordinary(seed, shots)
        target = ordinary[-1][1]
        places = [Device(_QUEUE_SECONDS) for _ in range(_PLACES)]
        curve, _, step = _asynchronous(Work(seed, shots), places)
        faster.append(ordinary_step / step)
        shares.append(_first(curve, target) / (_first(ordinary, target) * ordinary_step))
    what = f"queue, {_PLACES} lanes on one device"
    _add(
        table, f"{what}: steps an hour, times the loop's", statistics.mean(faster), 4.5, most=False
    )
    _add(table, f"{what}: share of its time to its loss", statistics.mean(shares), 0.3, most=True)


def _latencies(fastest: float) -> list[float]:
    """Of devices from the fastest to 20 times as slow, in equal ratios."""
    ratio = _SLOWEST / _FASTEST
    return [fastest * ratio ** (place / (_DEVICES - 1)) for place in range(_DEVICES)]


def _fleet(table: Table, seeds: Sequence[int], shots: int) -> None:
    """Ten devices, from fast to 20 times as slow, with heavy tails; then three of them killed."""
    latencies = _latencies(_FASTEST)
    alone = 2 * statistics.mean(latencies)  # seconds of a step: a job forward, one backward
    for killed, asked in ((0, 1 / 8), (3, 1 / 5)):
        shares, losses = [], []
        for seed in seeds:
            ordinary, accuracy = _ordinary(seed, shots)
            target = ordinary[-1][1]
            devices = [
                Device(latency, tail=_TAIL, seed=100 * seed + place)
                for place, latency in enumerate(latencies)
            ]
            kill = np.random.default_rng(seed).permutation(_DEVICES)[:killed]
            curve, reached, _ = _asynchronous(
                Work(seed, shots), devices, [devices[place] for place in kill]
            )
            shares.append(_first(curve, target) / (_first(ordinary, target) * alone))
            losses.append(accuracy - reached)
        what = "fleet of ten, 1:20" + (f", {killed} killed" if killed else "")
        _add(table, f"{what}: share of their mean time alone", statistics.mean(shares), asked,
             most=True)  # fmt: skip
        if not killed:
            _add(table, f"{what}: accuracy lost", statistics.mean(losses), 0.02, most=True)


Ansatz = tuple[SparsePauliOp, QuantumCircuit]


def heisenberg() -> Ansatz:
    """EQC's work: XX + YY + ZZ on a square, a field Z, and a circuit of 16 parameters."""
    terms = [
        (pauli, [one, (one + 1) % 4], 1.0) for one in range(4) for pauli in ("XX", "YY", "ZZ")
    ] + [("Z", [qubit], 1.0) for qubit in range(4)]
    circuit, weights = QuantumCircuit(4), iter(ParameterVector("weight", 16))
    for layer in range(2):
        for qubit in range(4):
            circuit.ry(next(weights), qubit)
            circuit.rz(next(weights), qubit)
        for qubit in range(4 if layer == 0 else 0):
            circuit.cx(qubit, (qubit + 1) % 4)
    return SparsePauliOp.from_sparse_list(terms, num_qubits=4), circuit


def qaoa_ring() -> Ansatz:
    """EQC's other work: the largest cut of a ring of 4, by QAOA with one round."""
    edges = [[one, (one + 1) % 4] for one in range(4)]
    circuit, (gamma, beta) = QuantumCircuit(4), ParameterVector("weight", 2)
    circuit.h(range(4))
    for edge in edges:
        circuit.rzz(gamma, *edge)
    circuit.rx(2 * beta, range(4))
    terms = [("ZZ", edge, 1.0) for edge in edges]
    return SparsePauliOp.from_sparse_list(terms, num_qubits=4), circuit


def _eqc(
    table: Table, name: str, make: Callable[[], Ansatz], seeds: Sequence[int], shots: int
) -> None:
    """EQC's rule beside ours on the same devices: energies, and the time to EQC's last one."""
    shares, theirs, ours = [], [], []
    for seed in seeds:
        places = [
            [Device(latency, tail=_TAIL, seed=100 * seed + place)
             for place, latency in enumerate(_latencies(_EQC_FASTEST))]
            for _ in range(2)
        ]  # fmt: skip
        curve = _eqc_rule(_layer(make, shots, seed), places[0])
        theirs.append(curve[-1][1])
        mine = _vqe(_layer(make, shots, seed), places[1], until=curve[-1][0])
        ours.append(mine[-1][1])
        shares.append(_first(mine, theirs[-1]) / curve[-1][0])
    ground = float(np.linalg.eigvalsh(make()[0].to_matrix())[0])
    _add(table, f"{name}: EQC's rule, energy above the ground state",
         statistics.mean(theirs) - ground, None, most=True)  # fmt: skip
    _add(
        table, f"{name}: ours after the same time", statistics.mean(ours) - ground, None, most=True
    )
    _add(table, f"{name}: share of its time to its energy", statistics.mean(shares), 0.5, most=True)


def _layer(make: Callable[[], Ansatz], shots: int, seed: int) -> ObservableQLayer:
    torch.manual_seed(seed)
    hamiltonian, circuit = make()
    return ObservableQLayer(circuit, observables=hamiltonian, shots=shots, seed=seed).double()


_NOTHING = torch.empty(1, 0, dtype=torch.float64)


def _energy(layer: ObservableQLayer) -> float:
    """The true energy at the weights of a layer."""
    shots, layer.shots = layer.shots, None
    with torch.no_grad():
        energy = layer(_NOTHING).item()
    layer.shots = shots
    return float(energy)


def _eqc_rule(layer: ObservableQLayer, places: Sequence[Device]) -> Curve:
    """A job for each parameter in turn, at the newest weights; energies by seconds."""
    lock, curve, began = threading.Lock(), list[tuple[float, float]](), time.monotonic()
    count = len(layer.weight)
    numbers = iter(range(_EQC_UPDATES))
    weights = np.linspace(1.0, 0.75, len(places))  # of devices: the fastest has the best p

    def work(place: Device, weight: float) -> None:
        launcher = QuantumLauncher(layer.problem, BackwardPass(shots=layer.shots), place)
        while True:
            with lock:
                number, now = next(numbers, None), layer.weight.detach().numpy().copy()
            if number is None:
                return
            context = StepContext(int(layer.seed), number)
            found = launcher.at(context).submit_backward(
                np.empty((1, 0)), now, np.ones((1, 1)), for_inputs=False
            )
            slopes = found.result().weights
            assert slopes is not None
            with lock, torch.no_grad():
                index = number % count
                layer.weight[index] -= _EQC_RATE * weight * slopes[index]
                if index == count - 1:
                    curve.append((time.monotonic() - began, _energy(layer)))

    threads = [
        threading.Thread(target=work, args=each) for each in zip(places, weights, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return curve


def _vqe(layer: ObservableQLayer, places: Sequence[Device], until: float) -> Curve:
    """Gradients of all parameters, by Adam as they arrive; energies by seconds."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=_VQE_RATE)
    trainer = AsyncTrainer(
        layer, optimizer, lambda model, batch: model(batch).sum(), list(places), progress=False
    )
    curve, began = list[tuple[float, float]](), time.monotonic()
    for _ in trainer.steps([_NOTHING] * 1000, 1):
        optimizer.step()
        curve.append((time.monotonic() - began, _energy(layer)))
        if curve[-1][0] >= until:
            break
    return curve
