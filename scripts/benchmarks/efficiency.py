"""Scheduling efficiency: the time that work should take at least, over the time it takes.

Each actor is a `Device` that sleeps; what is lost is the scheduler's, the wire's and, beyond what
its cores can carry, the machine's.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from benchmarks.devices import (
    CHUNK_ROWS,
    ArithmeticBackend,
    Device,
    backward_rows,
    circuit_for,
)
from qailab.distributed import LauncherPool
from qailab.gradients import CanonicalCircuit, RowBatch

EQUAL, UNEQUAL, KILLS = "equal", "1:2:4:8", "kills"
_RATIOS = (1, 2, 4, 8)
MOST_CHUNKS = 8_000
"""Of one run: where a machine cannot keep up, the run would take minutes to say so."""
_WARM_UP_CHUNKS = 4  # for each actor: the first of a circuit says nothing about its speed
_KILL_EVERY = 1.0  # seconds


class WrongAnswersError(Exception):
    """Answers that differ from those of this process: figures of such a run mean nothing."""


def latencies_of(actors: int, latency: float, speeds: str) -> tuple[float, ...]:
    """Each actor's seconds for a chunk; of ``1:2:4:8``, a quarter of the actors have each speed."""
    if speeds == UNEQUAL:
        return tuple(latency / _RATIOS[actor % len(_RATIOS)] for actor in range(actors))
    return (latency,) * actors


def chunks_for(latencies: Sequence[float], seconds: float, most: int = MOST_CHUNKS) -> int:
    """How many chunks keep all actors busy for about so long, and let them end together.

    Args:
        latencies: each actor's seconds for a chunk.
        seconds: how long the run should take.
        most: chunks of a run, unless each actor would have less than one.
    """
    slowest = max(latencies)
    of_a_round = round(sum(slowest / latency for latency in latencies))
    return of_a_round * max(1, min(round(seconds / slowest), most // of_a_round))


def ideal_seconds(chunks: int, latencies: Sequence[float]) -> float:
    """What chunks take at least: their number over the sum of the devices' rates."""
    return chunks / sum(1.0 / latency for latency in latencies)


@dataclass(frozen=True)
class Run:
    """One run of a batch through a pool.

    Args:
        chunks: chunks whose answers were accepted.
        rows: rows of the batch.
        seconds: wall time of ``pool.run``.
        cpu_seconds: of all threads of this process, meanwhile.
        races: chunks that a second actor was given as well.
        retries: chunks that had to run again.
        ready_seconds: time that actors could have worked, summed over them.
    """

    chunks: int
    rows: int
    seconds: float
    cpu_seconds: float
    races: int
    retries: int
    ready_seconds: float


@dataclass(frozen=True)
class Efficiency:
    """One figure: how well a pool uses its actors.

    Args:
        actors: how many.
        latency: seconds of a chunk, on the slowest actor.
        speeds: ``"equal"``, ``"1:2:4:8"``, or ``"kills"``.
        planned: chunks that the rows are.
        ideal: seconds it should take at least; device-seconds where actors are killed.
        value: the efficiency, 1 at best.
        run: what was measured.
        kills: actors that were killed.
    """

    actors: int
    latency: float
    speeds: str
    planned: int
    ideal: float
    value: float
    run: Run
    kills: int = 0


class Fleet:
    """A pool of devices with a circuit for each latency and kind of speeds.

    Args:
        actors: how many.
        latencies: seconds of a chunk.
        instant: how many circuits that are answered at once are wanted besides.
        seed: of angles and kills.
    """

    def __init__(self, actors: int, latencies: Sequence[float], instant: int, seed: int) -> None:
        self.actors = actors
        self._seed = seed
        wanted = [(latency, speeds) for latency in latencies for speeds in (EQUAL, UNEQUAL)]
        self._circuits = {case: circuit_for(number) for number, case in enumerate(wanted)}
        self.instant = [circuit_for(len(wanted) + number) for number in range(instant)]
        times: list[dict[str, float]] = [{} for _ in range(actors)]
        for (latency, speeds), circuit in self._circuits.items():
            for own, seconds in zip(times, latencies_of(actors, latency, speeds), strict=True):
                own[circuit.key] = seconds
        for own in times:
            own.update({circuit.key: 0.0 for circuit in self.instant})
        self._devices = [Device(own) for own in times]
        self._pool = LauncherPool(self._devices, chunk_rows=CHUNK_ROWS, progress=False)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def wait(self) -> None:
        """Wait until all actors are ready."""
        self._pool.wait()

    def measure(self, latency: float, speeds: str, seconds: float) -> Efficiency:
        """Measure the efficiency with equal or unequal speeds.

        Args:
            latency: seconds of a chunk, on the slowest actor.
            speeds: ``"equal"`` or ``"1:2:4:8"``.
            seconds: how long it should take.
        """
        latencies = latencies_of(self.actors, latency, speeds)
        circuit = self._circuits[latency, speeds]
        chunks = chunks_for(latencies, seconds)
        run = self.run(circuit, chunks)
        ideal = ideal_seconds(chunks, latencies)
        value = ideal / run.seconds
        return Efficiency(self.actors, latency, speeds, chunks, ideal, value, run)

    def measure_kills(self, latency: float, seconds: float) -> Efficiency:
        """Measure the efficiency while an actor is killed every second.

        The ideal is the time that actors were ready; useful are the accepted chunks.
        """
        latencies = latencies_of(self.actors, latency, EQUAL)
        chunks = chunks_for(latencies, seconds)
        self._pool.wait()  # for what earlier kills have left
        with Killer(self._pool, self._seed) as killer:
            run = self.run(self._circuits[latency, EQUAL], chunks)
        value = run.chunks * latency / run.ready_seconds
        return Efficiency(
            self.actors, latency, KILLS, chunks, run.ready_seconds, value, run, killer.kills
        )

    def run(self, circuit: CanonicalCircuit, chunks: int, call_seconds: float | None = None) -> Run:
        """Run chunks, and check their answers.

        Args:
            circuit: one of this fleet's circuits.
            chunks: how many.
            call_seconds: what the devices say that a call takes; None for the truth.

        Raises:
            WrongAnswersError: if an answer is not that of this process, bit for bit.
        """
        for device in self._devices:
            device.announce(circuit, call_seconds)
        warm_up = backward_rows(circuit, _WARM_UP_CHUNKS * self.actors, self._seed + 1)
        self._pool.run(circuit, warm_up)
        return timed_run(self._pool, circuit, backward_rows(circuit, chunks, self._seed))


def timed_run(pool: LauncherPool, circuit: CanonicalCircuit, batch: RowBatch) -> Run:
    """Run a batch, and check its answers against this process's.

    Raises:
        WrongAnswersError: if one differs by a bit.
    """
    before = pool.stats()
    cpu, began = time.process_time(), time.perf_counter()
    answers = pool.run(circuit, batch)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    after = pool.stats()
    if not np.array_equal(answers, ArithmeticBackend().evaluate(circuit, batch)):
        raise WrongAnswersError(f"{pool!r} answered other than this process does")
    ready = [sum(actor["ready_seconds"] for actor in each["actors"]) for each in (before, after)]
    return Run(
        chunks=after["chunks"] - before["chunks"],
        rows=batch.num_rows,
        seconds=seconds,
        cpu_seconds=cpu,
        races=after["races"] - before["races"],
        retries=after["retries"] - before["retries"],
        ready_seconds=ready[1] - ready[0],
    )


@dataclass
class Killer:
    """Kills an actor that is ready, chosen at random, every second, while it is entered.

    Not while fewer than half are ready: a machine that starts actors more slowly than they are
    killed would soon have none, and the pool would rightly give up.

    Args:
        pool: whose actors.
        seed: of the choice.
        kills: how many so far.
    """

    pool: LauncherPool
    seed: int
    kills: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Killer:
        self._thread = threading.Thread(target=self._loop, name="killer")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _loop(self) -> None:
        choice = random.Random(self.seed)
        while not self._over.wait(_KILL_EVERY):
            actors = self.pool.stats()["actors"]
            pids = [actor["pid"] for actor in actors if actor["state"] == "ready"]
            if len(pids) < len(actors) / 2:
                continue
            with suppress(ProcessLookupError):  # it ended by itself meanwhile
                os.kill(choice.choice(pids), signal.SIGKILL)
                self.kills += 1
