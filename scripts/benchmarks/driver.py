"""What a pool costs its driver: for each chunk, for a million rows, for one small backward pass."""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit

from benchmarks.devices import ArithmeticBackend, backward_rows
from benchmarks.efficiency import Fleet, Run, WrongAnswersError, timed_run
from benchmarks.memory import peak_mib, reset_peaks, resident_mib
from benchmarks.modes import IN_PROCESS, actors_name
from benchmarks.workload import backward_of
from qailab.backends import AerBackend
from qailab.circuit import RealAmplitudesBlock, RotationalEncoder, build_circuit
from qailab.distributed import LauncherPool
from qailab.distributed.chunks import PARCEL_SECONDS
from qailab.gradients import canonicalize
from qailab.launchers import RowEvaluator
from qailab.torch import QLayer

ANNOUNCED = (0.01, 0.1, 1.0)
"""Seconds that devices which answer at once say a chunk takes: parcels are made accordingly, and
the driver's cost for them is measured at its full speed."""
_CHUNKS = {0.01: 12_000, 0.1: 4_000, 1.0: 2_500}  # at least: 2 to 4 s each on 2 cores
_CALLS = 16  # of each actor, at least: parcels are smaller at the end
_QUICK_SHARE = 10
SAMPLES, ANGLES = 10_000, 50  # a million rows
_MIB = 1 << 20


def chunks_per_call(call_seconds: float) -> int:
    """How many chunks travel together where a call takes so long: a little more than that each."""
    return max(1, math.ceil(PARCEL_SECONDS / call_seconds) - 1)


@dataclass(frozen=True)
class DriverCost:
    """The driver's cost where actors answer at once.

    Args:
        actors: how many.
        announced: seconds that the actors say a chunk takes.
        run: what was measured.
    """

    actors: int
    announced: float
    run: Run

    @property
    def per_chunk(self) -> float:
        """CPU seconds of the driver for a chunk."""
        return self.run.cpu_seconds / self.run.chunks

    @property
    def per_call(self) -> float:
        """CPU seconds of the driver for a call."""
        return self.per_chunk * chunks_per_call(self.announced)


@dataclass(frozen=True)
class Feeding:
    """How many actors one core of the driver feeds, an estimate from its measured cost.

    Args:
        latency: seconds of a chunk.
        single: actors, with one chunk in each call.
        parcels: actors, with parcels as the pool makes them.
    """

    latency: float
    single: float
    parcels: float


def measure_driver(fleet: Fleet, *, quick: bool) -> list[DriverCost]:
    """Measure a fleet that answers at once, for each length of parcels."""
    costs = []
    for announced, circuit in zip(ANNOUNCED, fleet.instant, strict=True):
        chunks = max(_CHUNKS[announced], _CALLS * fleet.actors * chunks_per_call(announced))
        run = fleet.run(circuit, chunks // (_QUICK_SHARE if quick else 1), announced)
        costs.append(DriverCost(fleet.actors, announced, run))
    return costs


def estimate_feeding(costs: Sequence[DriverCost]) -> list[Feeding]:
    """From the driver's cost, how many actors keep one core of it busy."""
    by_announced = {
        announced: [(cost.actors, cost.per_chunk) for cost in costs if cost.announced == announced]
        for announced in ANNOUNCED
    }
    return [
        Feeding(
            latency,
            single=actors_fed(latency, by_announced[max(ANNOUNCED)]),
            parcels=actors_fed(latency, by_announced[latency]),
        )
        for latency in ANNOUNCED
    ]


def actors_fed(latency: float, costs: Sequence[tuple[int, float]]) -> float:
    """How many actors keep one core busy.

    Each of n actors wants a chunk every ``latency`` seconds, and a chunk costs ``a + b n``, as the
    scheduler looks at all actors: ``n (a + b n) = latency``.

    Args:
        latency: seconds of a chunk.
        costs: numbers of actors, and CPU seconds of a chunk with so many.
    """
    counts, seconds = np.array(costs, dtype=float).T
    growth, fixed = 0.0, float(seconds.mean())
    if len(set(counts)) > 1:
        growth, fixed = map(float, np.polyfit(counts, seconds, 1))
    if growth <= 0.0 or fixed <= 0.0:  # lost in the noise
        return latency / float(seconds.mean())
    return (math.sqrt(fixed * fixed + 4 * growth * latency) - fixed) / (2 * growth)


@dataclass(frozen=True)
class ManyRows:
    """A plan of very many rows through a pool of 2 actors.

    Args:
        run: what was measured.
        grown_mib: growth of the driver's peak memory beside the answers; None without ``/proc``.
        answers_mib: what the answers take.
    """

    run: Run
    grown_mib: float | None
    answers_mib: float


def measure_many_rows(samples: int = SAMPLES, *, seed: int) -> ManyRows:
    """Run a plan of ``2 * ANGLES * samples`` rows on 2 actors that compute next to nothing."""
    blocks = [RotationalEncoder("y", "input"), RealAmplitudesBlock("weight", reps=ANGLES // 2 - 2)]
    circuit = build_circuit(2, blocks)
    canonical, _ = canonicalize(circuit, list(circuit.parameters))
    assert canonical.num_angles == ANGLES, canonical.num_angles
    batch = backward_rows(canonical, samples, seed)
    here = os.getpid()
    with LauncherPool([ArithmeticBackend(), ArithmeticBackend()], progress=False) as pool:
        pool.wait()
        pool.run(canonical, backward_rows(canonical, max(1, samples // 50), seed + 1))
        gc.collect()
        reset_peaks([here])
        before = resident_mib(here)
        answers = pool.run(canonical, batch)  # once for memory: to check answers takes more
        peak = peak_mib([here])
        answers_mib = answers.nbytes / _MIB
        del answers
        run = timed_run(pool, canonical, batch)
    grown = None if peak is None or before is None else peak - before - answers_mib
    return ManyRows(run, grown, answers_mib)


@dataclass(frozen=True)
class Overhead:
    """What a pool adds to one small backward pass.

    Args:
        where: in this process, or on how many actors.
        seconds: median time.
        added: median time more than in this process.
        repetitions: how often it was measured.
    """

    where: str
    seconds: float
    added: float
    repetitions: int


def measure_overhead(repetitions: int, *, seed: int) -> list[Overhead]:
    """Measure a backward pass of 20 rows of 4 qubits, in process and on 1 and 2 actors, in turn.

    Raises:
        WrongAnswersError: if the gradients are not the same, bit for bit.
    """
    with (
        LauncherPool([AerBackend()], progress=False) as one,
        LauncherPool([AerBackend()] * 2, progress=False) as two,
    ):
        one.wait()
        two.wait()
        places: dict[str, RowEvaluator] = {
            IN_PROCESS: AerBackend(),
            actors_name(1): one,
            actors_name(2): two,
        }
        runs = {where: _small_backward(backend, seed) for where, backend in places.items()}
        for _ in range(5):
            gradients = [run().weights for run in runs.values()]
            if not all(torch.equal(gradients[0], other) for other in gradients):
                raise WrongAnswersError("the pools' gradients are other than this process's")
        seconds: dict[str, list[float]] = {where: [] for where in runs}
        for _ in range(repetitions):
            for where, run in runs.items():
                began = time.perf_counter()
                run()
                seconds[where].append(time.perf_counter() - began)
    medians = {where: statistics.median(times) for where, times in seconds.items()}
    return [
        Overhead(where, median, median - medians[IN_PROCESS], repetitions)
        for where, median in medians.items()
    ]


def _small_backward(backend: RowEvaluator, seed: int):
    """The backward pass for 10 weights of one sample."""
    features, weights = ParameterVector("x", 4), ParameterVector("w", 10)
    circuit = QuantumCircuit(4)
    for qubit in range(4):
        circuit.ry(features[qubit], qubit)
    for number, weight in enumerate(weights):
        circuit.ry(weight, number % 4)
        circuit.cx(number % 4, (number + 1) % 4)
    circuit.measure_all()
    layer = QLayer(
        circuit, backend=backend, seed=seed, input_params=features, weight_params=weights
    ).double()
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(1, 4, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(10, generator=generator, dtype=torch.float64))
    outputs = layer(inputs)
    vectors = torch.rand(outputs.shape, generator=generator, dtype=torch.float64)
    return backward_of(outputs, inputs, layer.weight, vectors)
