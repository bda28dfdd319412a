"""Asynchronous training: what `AsyncTrainer` gains on devices that mostly wait.

The devices are simulated (`Device`): a statevector's answers after a time that does not depend on
the rows, as where queues and fixed costs dominate. Seconds are a tenth: 0.2 s stand for a queue of
2 s. All layers prefetch, so that a step is one job. The ordinary loop's weights do not depend on
its device, so its losses are computed without waiting; its time is that of its steps: measured in
*queue* (medians), their devices' mean latency in *fleet*.

EQC's rule is its public code's (Stein et al., ISCA 2022): a job for each parameter, plain descent
along it as it arrives, weights from 0.75 to 1; with exact shifts and the true energy. On QAOA its
rate of 0.1 does not settle, so both get 0.01; at more, ten jobs of the fastest device decide.
It has two parameters: a whole gradient is worth two of EQC's jobs, and half of its time is the
least that plain descent can take.
"""

from __future__ import annotations

import argparse
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
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
from qailab.backends.base import RowFuture
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.errors import BackendError
from qailab.gradients import CanonicalCircuit, RowBatch
from qailab.gradients.rows import FloatArray
from qailab.launchers import BackwardPass, QuantumLauncher, StepContext
from qailab.torch import ObservableQLayer, QLayer
from qailab.training import AsyncTrainer

_QUEUE_SECONDS, _PLACES = 0.2, 5
_FASTEST, _SLOWEST, _DEVICES = 0.2, 4.0, 10
_TAIL = 0.75  # of the logarithm of a job's seconds: one of 100 takes 4 times the mean
_STEPS, _MOST_STEPS, _TIMED_STEPS = 180, 240, 15
_EVERY = 3  # steps between tests
_BATCH, _BATCHES, _FEATURES, _CLASSES = 8, 30, 8, 3
_RATE = 0.01  # of Adam
_MAX_STALENESS = 8
_EQC_FASTEST = 0.05
_EQC_STALENESS = 30  # gradients of all but the slowest devices count, as theirs do
_NEAR = 0.05  # of an energy, in J
_COLUMNS = (
    Column("what", width=58), Column("measured", ".3g"), Column("asked", width=12),
    Column("holds", width=5),
)  # fmt: skip

Curve = list[tuple[float, float]]  # seconds (or steps), and a loss


class Device:
    """A device whose every job takes a time of its own, whatever its rows; it can be killed."""

    supports_exact = noiseless = True
    supports_adjoint = False

    def __init__(self, seconds: float, *, tail: float = 0.0, seed: int = 0) -> None:
        self._inner, self._seconds, self._tail = StatevectorBackend(), seconds, tail
        self._chance = np.random.default_rng(seed)
        self._jobs, self._killed = ThreadPoolExecutor(1), threading.Event()

    def kill(self) -> None:
        """Fail all jobs, also those that run."""
        self._killed.set()

    def validate(self, circuit: CanonicalCircuit, shots: int | None) -> None:
        """Raise if rows of the circuit cannot run."""
        self._inner.validate(circuit, shots)

    def submit(self, circuit: CanonicalCircuit, batch: RowBatch) -> RowFuture:
        """Answer a batch as one job."""
        future = RowFuture(on_cancel=lambda: None)
        self._jobs.submit(self._work, future, circuit, batch)
        return future

    def run(self, circuit: CanonicalCircuit, batch: RowBatch) -> FloatArray:
        """``submit(...).result()``."""
        return self.submit(circuit, batch).result()

    def _work(self, future: RowFuture, circuit: CanonicalCircuit, batch: RowBatch) -> None:
        began = time.monotonic()
        draw = self._chance.normal(-(self._tail**2) / 2, self._tail)  # its exponential has mean 1
        seconds = self._seconds * float(np.exp(draw))
        answers = self._inner.run(circuit, batch)
        killed = self._killed.wait(max(0.0, began + seconds - time.monotonic()))
        future.usage = Usage(1, seconds)
        with suppress(InvalidStateError):  # cancelled
            if killed:
                future.set_exception(BackendError("this device was killed"))
            else:
                future.set_result(answers)


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
        layer = QLayer(build_circuit(4, blocks), shots=shots, seed=seed, prefetch=True)
        self.model = nn.Sequential(
            nn.Linear(_FEATURES, 4), layer, nn.Linear(layer.out_features, _CLASSES)
        )
        exact = QLayer(build_circuit(4, blocks), shots=None)
        exact.weight = layer.weight
        self._exact = nn.Sequential(self.model[0], exact, self.model[2])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=_RATE)

    def tested(self) -> tuple[float, float]:
        """Loss and accuracy of the test samples, with exact probabilities."""
        with torch.no_grad():
            logits = self._exact(self.test[0])
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
    torch.set_num_threads(1)  # with more, they wait for each other on busy cores, in the loop alone
    seeds = range(options.seed, options.seed + options.seeds)
    table = report.table("async", _COLUMNS, f"Asynchronous training, means of {len(seeds)} seeds")
    if "queue" in options.only:
        _queue(table, seeds, options.shots)
    if "fleet" in options.only:
        _fleet(table, seeds, options.shots)
    if "eqc" in options.only:
        _eqc(table, "VQE", heisenberg, (0.1, 0.05), seeds, options.shots)
        _eqc(table, "QAOA", qaoa_ring, (0.01, 0.01), seeds, options.shots)


def _add(table: Table, what: str, measured: float, asked: float | None, *, most: bool) -> None:
    words, holds = "", ""
    if asked is not None:
        words = f"at {'most' if most else 'least'} {asked:.3g}"
        holds = "yes" if (measured <= asked if most else measured >= asked) else "NO"
    table.add({"what": what, "measured": measured, "asked": words, "holds": holds})


def _ordinary(seed: int, shots: int) -> tuple[Curve, float]:
    """The ordinary loop: test losses by steps, and the last accuracy."""
    work, curve, accuracy = Work(seed, shots), list[tuple[float, float]](), 0.0
    for number in work.ordinary_steps():
        if number % _EVERY == 0:
            loss, accuracy = work.tested()
            curve.append((number, loss))
    return curve, accuracy


def _first(curve: Curve, loss: float) -> float:
    """When a curve first comes down to a loss; for ever if it does not."""
    return next((when for when, value in curve if value <= loss), math.inf)


def _asynchronous(
    work: Work, places: Sequence[Device], until: float, kill: Sequence[Device] = ()
) -> tuple[Curve, float, float]:
    """Train on lanes: test losses by seconds, accuracy after `_STEPS` steps, seconds of a step."""
    trainer = AsyncTrainer(
        work.model,
        work.optimizer,
        loss_of,
        list(places),
        progress=False,
        max_staleness=_MAX_STALENESS,
    )
    curve, accuracy, seconds = list[tuple[float, float]](), 0.0, 0.0
    began = time.monotonic()
    for step in trainer.steps(work.batches, _MOST_STEPS // _BATCHES):
        work.optimizer.step()
        if step.number % _EVERY == 0:
            now = time.monotonic() - began
            loss, right = work.tested()
            curve.append((now, loss))
        if step.number == _STEPS // 4:
            for device in kill:
                device.kill()
        if step.number == _STEPS:
            seconds, accuracy = (time.monotonic() - began) / _STEPS, right
        if step.number >= _STEPS and _first(curve, until) < math.inf:
            break
    return curve, accuracy, seconds


def _queue(table: Table, seeds: Sequence[int], shots: int) -> None:
    """One device with a queue, which takes several jobs at once."""
    faster, shares = [], []
    for seed in seeds:
        timed = Work(seed, shots)
        timed.model[1].backend = Device(_QUEUE_SECONDS)
        times = [
            time.monotonic()
            for _, _ in zip(range(_TIMED_STEPS), timed.ordinary_steps(), strict=False)
        ]
        ordinary_step = statistics.median(np.diff(times))
        ordinary, _ = _ordinary(seed, shots)
        target = ordinary[-1][1]
        places = [Device(_QUEUE_SECONDS) for _ in range(_PLACES)]
        curve, _, step = _asynchronous(Work(seed, shots), places, target)
        faster.append(ordinary_step / step)
        shares.append(_first(curve, target) / (_first(ordinary, target) * ordinary_step))
    what = f"queue, {_PLACES} lanes on one device"
    _add(table, f"{what}: steps an hour / the loop's", statistics.mean(faster), 4.5, most=False)
    _add(table, f"{what}: time to its loss / its", statistics.mean(shares), 0.3, most=True)


def _latencies(fastest: float) -> list[float]:
    """Of devices from the fastest to 20 times as slow, in equal ratios."""
    ratio = _SLOWEST / _FASTEST
    return [fastest * ratio ** (place / (_DEVICES - 1)) for place in range(_DEVICES)]


def _fleet(table: Table, seeds: Sequence[int], shots: int) -> None:
    """Ten devices, from fast to 20 times as slow, with heavy tails; then three of them killed."""
    latencies = _latencies(_FASTEST)
    alone = statistics.mean(latencies)  # seconds of a step
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
                Work(seed, shots), devices, target, [devices[place] for place in kill]
            )
            shares.append(_first(curve, target) / (_first(ordinary, target) * alone))
            losses.append(accuracy - reached)
        what = "fleet of ten, 1:20" + (f", {killed} killed" if killed else "")
        _add(table, f"{what}: time / mean alone", statistics.mean(shares), asked, most=True)
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
    table: Table, name: str, make: Callable[[], Ansatz], rates: tuple[float, float],
    seeds: Sequence[int], shots: int,
) -> None:  # fmt: skip
    """EQC's rule beside ours on the same devices: energies, and the time to near EQC's last one."""
    times, theirs, ours = [], [], []
    for seed in seeds:
        places = [
            [Device(latency, tail=_TAIL, seed=100 * seed + place)
             for place, latency in enumerate(_latencies(_EQC_FASTEST))]
            for _ in range(2)
        ]  # fmt: skip
        eqc = _eqc_rule(*_layers(make, shots, seed), places[0], rates[0])
        mine = _descent(*_layers(make, shots, seed), places[1], rates[1], until=eqc[-1][0])
        theirs.append(eqc[-1][1])
        ours.append(mine[-1][1])
        near = theirs[-1] + _NEAR
        times.append((_first(mine, near), _first(eqc, near)))
    ground = float(np.linalg.eigvalsh(make()[0].to_matrix())[0])
    for who, energies in (("EQC's rule", theirs), ("ours, same time", ours)):
        what = f"{name}: energy over the ground state, {who}"
        _add(table, what, statistics.mean(energies) - ground, None, most=True)
    mean_times = np.mean(times, axis=0)
    share = mean_times[0] / mean_times[1]
    _add(table, f"{name}: time to EQC's energy / its", share, 0.5, most=True)


def _layers(
    make: Callable[[], Ansatz], shots: int, seed: int
) -> tuple[ObservableQLayer, Callable[[], float]]:
    """A layer whose output is the energy, and a function that tells the true one."""
    torch.manual_seed(seed)
    hamiltonian, circuit = make()
    layer, exact = (
        ObservableQLayer(
            circuit, observables=hamiltonian, shots=each, seed=seed, prefetch=True
        ).double()
        for each in (shots, None)
    )
    exact.weight = layer.weight

    def energy() -> float:
        with torch.no_grad():
            return float(exact(_NOTHING).item())

    return layer, energy


_NOTHING = torch.empty(1, 0, dtype=torch.float64)


def _eqc_rule(
    layer: ObservableQLayer, energy: Callable[[], float], places: Sequence[Device], rate: float
) -> Curve:
    """A job for each parameter in turn, at the newest weights; energies by seconds."""
    lock, curve, began = threading.Lock(), list[tuple[float, float]](), time.monotonic()
    count = len(layer.weight)
    numbers = iter(range(max(20 * count, 160)))
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
                layer.weight[index] -= rate * weight * slopes[index]
                if index == count - 1:
                    curve.append((time.monotonic() - began, energy()))

    with ThreadPoolExecutor(len(places)) as threads:
        list(threads.map(work, places, weights))
    return curve


def _descent(
    layer: ObservableQLayer, energy: Callable[[], float], places: Sequence[Device], rate: float,
    until: float,
) -> Curve:  # fmt: skip
    """Plain descent along whole gradients, as they arrive; energies by seconds."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate)
    trainer = AsyncTrainer(
        layer, optimizer, lambda model, batch: model(batch).sum(), list(places), progress=False,
        max_staleness=_EQC_STALENESS,
    )  # fmt: skip
    curve, began = list[tuple[float, float]](), time.monotonic()
    for _ in trainer.steps([_NOTHING] * 1000, 1):
        optimizer.step()
        curve.append((time.monotonic() - began, energy()))
        if curve[-1][0] >= until:
            break
    return curve
