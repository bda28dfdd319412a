"""Scale: how a pool uses many actors, and what it costs its driver.

The actors are real Ray actors on this machine, but they simulate nothing: they sleep for the time
that a device would take for a chunk (`EmulatedBackend`), and answer what this process would have
answered, which is checked bit for bit. Pools have their default options, but for the fixed size of
a chunk. What the machine's cores cannot carry is not the scheduler's fault, but counts.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress

import numpy as np
from tables import Table

from benchmarks.arithmetic import ArithmeticBackend
from benchmarks.gradients import open_pool
from benchmarks.report import Report
from benchmarks.timing import memory_mib, reset_peaks
from benchmarks.workload import Case, Workload
from qailab.backends import EmulatedBackend
from qailab.distributed import LauncherPool
from qailab.gradients import CanonicalCircuit, NoiseStream, RowBatch

_SPEEDS = {"equal": (1,), "1:2:4:8": (1, 2, 4, 8), "kills": (1,)}
_KILL_ACTORS, _KILL_EVERY = 8, 1.0
_SECONDS = {"equal": 3.0, "1:2:4:8": 3.0, "kills": 12.0}  # of a run
_MOST_CHUNKS = 8_000  # of a run: where a machine cannot keep up, it would take minutes to say so
_WARM_UP_CHUNKS = 4  # for each actor: the first of a circuit says nothing about its speed
_CHUNK = 6  # angles: a chunk has the backward rows of one sample
_MANY = 50  # angles
_READY_SECONDS = 300.0
_FOOTNOTE = """\
ready: until all actors of the pool were. efficiency: chunks over the sum of the devices' rates,
over the time that it took; where actors are killed: seconds of accepted chunks over the seconds
that actors were ready. ms/chunk: of the slowest actor. driver ms: CPU time of its threads, for a
chunk."""


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure what the options ask for."""
    with ExitStack() as stack:
        # Its Ray serves all other pools, so that no figure has the start of a Ray in it.
        two = open_pool([ArithmeticBackend()] * 2, stack)
        if {"efficiency", "kills"} & set(options.only):
            table = report.table("efficiency", title="Scheduling efficiency")
            for actors, speeds, latency in _cases(options):
                _measure(table, actors, speeds, latency, options)
            print(_FOOTNOTE)
        if "rows" in options.only:
            table = report.table("rows", title="One evaluation of very many rows, 2 actors")
            _many_rows(table, two, options.rows, options.seed)


def _cases(options: argparse.Namespace) -> Iterator[tuple[int, str, float]]:
    """Number of actors, kind of speeds, and milliseconds of a chunk."""
    if "efficiency" in options.only:
        for actors in sorted(options.actors):
            for speeds in ("equal", "1:2:4:8") if actors >= 4 else ("equal",):
                for latency in sorted(options.latencies):
                    yield actors, speeds, latency
    if "kills" in options.only:
        for latency in sorted(options.latencies):
            yield min(_KILL_ACTORS, max(options.actors)), "kills", latency


def _work(angles: int, samples: int, seed: int) -> tuple[CanonicalCircuit, RowBatch]:
    """A circuit of 2 qubits with so many angles, at least 6, and exact backward rows of samples."""
    work = Workload(Case(qubits=2, batch=samples, seed=seed, reps=angles // 2 - 2))
    batch = RowBatch(work.shifted, None, NoiseStream(seed), work.grad_output.numpy())
    return work.problem.canonical, batch


def _measure(
    table: Table, actors: int, speeds: str, latency: float, options: argparse.Namespace
) -> None:
    """Measure a pool of devices of their own."""
    ratios = _SPEEDS[speeds]
    times = [latency / 1000 / ratios[actor % len(ratios)] for actor in range(actors)]
    devices = [EmulatedBackend(ArithmeticBackend(), latency=seconds) for seconds in times]
    chunks = chunks_for(times, options.seconds or _SECONDS[speeds])
    circuit, batch = _work(_CHUNK, chunks, options.seed)
    _, first = _work(_CHUNK, _WARM_UP_CHUNKS * actors, options.seed + 1)
    began = time.monotonic()
    with LauncherPool(devices, chunk_rows=2 * _CHUNK, progress=False) as pool:
        pool.wait(timeout=_READY_SECONDS)
        ready = time.monotonic() - began
        pool.run(circuit, first)
        with _killer(pool, options.seed) if speeds == "kills" else nullcontext([]) as kills:
            run = _timed(pool, circuit, batch)
    ideal = chunks / sum(1.0 / seconds for seconds in times)
    efficiency = ideal / run["seconds"]
    if speeds == "kills":
        efficiency = run["chunks"] * latency / 1000 / run["ready_seconds"]
    table.add({
        "actors": actors, "speeds": speeds, "ms/chunk": latency, "ready s": ready,
        "chunks": run["chunks"], "seconds": run["seconds"], "efficiency": efficiency,
        "driver ms": 1e3 * run["cpu"] / run["chunks"], "raced": run["races"],
        "again": run["retries"], "kills": len(kills),
    })  # fmt: skip


def chunks_for(times: Sequence[float], seconds: float) -> int:
    """How many chunks keep all actors busy for about so long, and let them end together.

    Args:
        times: each actor's seconds for a chunk.
        seconds: how long the run should take.
    """
    slowest = max(times)
    of_a_round = round(sum(slowest / each for each in times))
    return of_a_round * max(1, min(round(seconds / slowest), _MOST_CHUNKS // of_a_round))


def _timed(pool: LauncherPool, circuit: CanonicalCircuit, batch: RowBatch) -> dict[str, float]:
    """Run a batch; its seconds, those of CPU of this process, and what the pool counted.

    Raises:
        SystemExit: if an answer differs from this process's by a bit: figures of such a run mean
            nothing.
    """
    before = _counted(pool)
    cpu, began = time.process_time(), time.perf_counter()
    answers = pool.run(circuit, batch)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    counted = {name: after - before[name] for name, after in _counted(pool).items()}
    if not np.array_equal(answers, ArithmeticBackend().submit(circuit, batch).result()):
        raise SystemExit(f"{pool!r} answers other than this process does")
    return {"seconds": seconds, "cpu": cpu, **counted}


def _counted(pool: LauncherPool) -> dict[str, float]:
    stats = pool.stats()
    ready = sum(actor["ready_seconds"] for actor in stats["actors"])
    return {name: stats[name] for name in ("chunks", "races", "retries")} | {"ready_seconds": ready}


@contextmanager
def _killer(pool: LauncherPool, seed: int) -> Iterator[list[int]]:
    """Kill an actor that is ready, chosen at random, every second; their process ids.

    Not while fewer than half are ready: a machine that starts actors more slowly than they are
    killed would soon have none, and the pool would rightly give up.
    """
    over, choice, killed = threading.Event(), random.Random(seed), list[int]()

    def loop() -> None:
        while not over.wait(_KILL_EVERY):
            actors = pool.stats()["actors"]
            pids = [actor["pid"] for actor in actors if actor["state"] == "ready"]
            if len(pids) >= len(actors) / 2:
                with suppress(ProcessLookupError):  # it ended by itself meanwhile
                    os.kill(pid := choice.choice(pids), signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=loop, name="killer")
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def _many_rows(table: Table, pool: LauncherPool, rows: int, seed: int) -> None:
    """Run so many rows on actors that compute next to nothing."""
    samples = max(1, rows // (2 * _MANY))
    circuit, batch = _work(_MANY, samples, seed)
    pool.run(circuit, _work(_MANY, max(1, samples // 50), seed + 1)[1])
    here = [os.getpid()]
    gc.collect()
    reset_peaks(here)
    before = memory_mib(here, "VmRSS")
    answers_mib = pool.run(circuit, batch).nbytes / 2**20  # once for memory: checks take more
    peak = memory_mib(here)
    run = _timed(pool, circuit, batch)
    table.add({
        "rows": batch.num_rows, "chunks": run["chunks"], "seconds": run["seconds"],
        "driver CPU s": run["cpu"],
        "driver MiB more": before and peak and peak - before - answers_mib,
        "answers MiB": answers_mib,
    })  # fmt: skip
