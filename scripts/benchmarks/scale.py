"""Scale: how a pool uses many actors, and what it costs its driver.

The actors are real Ray actors on this machine, but they simulate nothing: they sleep for the time
that a device would take for a chunk, and answer what this process would have answered, which is
checked bit for bit. Pools have their default options, but for the fixed size of a chunk. What the
machine's cores cannot carry is not the scheduler's fault, but counts.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from tables import Column

from benchmarks.devices import (
    CHUNK_ROWS,
    ArithmeticBackend,
    Device,
    backward_rows,
    circuit_for,
    circuit_of_angles,
)
from benchmarks.gradients import measure_small, open_places
from benchmarks.report import Report
from benchmarks.timing import memory_mib, reset_peaks
from qailab.distributed import LauncherPool
from qailab.gradients import CanonicalCircuit, RowBatch

Row = dict[str, Any]

_EQUAL, _UNEQUAL, _KILLS = "equal", "1:2:4:8", "kills"
_RATIOS = (1, 2, 4, 8)
_SECONDS = 3.0  # of a run
_KILL_ACTORS, _KILL_SECONDS, _KILL_EVERY = 8, 12.0, 1.0
_KILL_LATENCIES = (50.0, 200.0)  # ms
_MOST_CHUNKS = 8_000  # of a run: where a machine cannot keep up, it would take minutes to say so
_INSTANT_CHUNKS = 2_500  # of devices that answer at once
_WARM_UP_CHUNKS = 4  # for each actor: the first of a circuit says nothing about its speed
_ANGLES = 50  # of the circuit of many rows
_READY_SECONDS = 300.0
_MIB = 1 << 20

_EFFICIENCY = (
    Column("actors"),
    Column("speeds", width=7),
    Column("ms/chunk", "g"),
    Column("chunks", ","),
    Column("seconds", ".2f"),
    Column("efficiency", ".3f"),
    Column("chunks/s", ",.0f"),
    Column("driver ms/chunk", ".2f"),
    Column("raced"),
    Column("again"),
    Column("killed"),
)
_FOOTNOTE = """\
efficiency: chunks over the sum of the devices' rates, over the time that it took; where actors are
killed: seconds of accepted chunks over the seconds that actors were ready. ms/chunk: of the slowest
actor; of 0 ms, what the driver can hand out. driver: CPU time of this process, all its threads."""
_READY = (Column("actors"), Column("ready after s", ".1f"))
_MANY_ROWS = (
    Column("rows", ",", 9),
    Column("chunks", ","),
    Column("seconds", ".2f"),
    Column("driver CPU s", ".2f"),
    Column("driver MiB more", ",.1f"),
    Column("answers MiB", ",.1f"),
)


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure what the options ask for."""
    with ExitStack() as stack:
        # Its Ray serves all other pools, so that no figure has the start of a Ray in it.
        arithmetic = LauncherPool(
            [ArithmeticBackend()] * 2,
            address="local",
            actor_options={"num_cpus": 0},
            progress=False,
        )
        stack.enter_context(arithmetic).wait(timeout=_READY_SECONDS)
        if {"efficiency", "kills"} & set(options.only):
            _measure_fleets(options, report)
        if "rows" in options.only:
            table = report.table("rows", _MANY_ROWS, "One evaluation of very many rows, 2 actors")
            table.add(_many_rows(arithmetic, options.rows, options.seed))
        if "small" in options.only:
            measure_small(open_places((1, 2), stack), options.repetitions, options.seed, report)


def _measure_fleets(options: argparse.Namespace, report: Report) -> None:
    """Everything that takes a pool of devices: each starts once."""
    calm = set(options.actors if "efficiency" in options.only else ())
    killed = {min(_KILL_ACTORS, max(options.actors))} if "kills" in options.only else set()
    table = report.table("efficiency", _EFFICIENCY, "Scheduling efficiency")
    ready = []
    for actors in sorted(calm | killed):
        with Fleet(actors, options.latencies, options.seed) as fleet:
            ready.append({"actors": actors, "ready after s": fleet.ready_seconds})
            measures: list[Callable[[], Row]] = []
            if actors in calm:
                measures += _calm(fleet, options)
            if actors in killed:
                measures += _disturbed(fleet, options)
            for measure in measures:
                rows = sorted((measure() for _ in range(options.rounds)), key=_quality)
                table.add(rows[(len(rows) - 1) // 2])
    print(_FOOTNOTE)
    starts = report.table("ready", _READY, "Until all actors of a pool are ready")
    for row in ready:
        starts.add(row)


def _calm(fleet: Fleet, options: argparse.Namespace) -> Iterator[Callable[[], Row]]:
    for speeds in (_EQUAL, _UNEQUAL):
        for latency in options.latencies:
            if speeds == _EQUAL or (latency and fleet.actors >= len(_RATIOS)):
                yield partial(fleet.measure, latency, speeds, options.seconds or _SECONDS)


def _disturbed(fleet: Fleet, options: argparse.Namespace) -> Iterator[Callable[[], Row]]:
    for latency in options.latencies:
        if latency in _KILL_LATENCIES:
            yield partial(fleet.measure_kills, latency, options.seconds or _KILL_SECONDS)


def _quality(row: Row) -> float:
    """The median of several rounds is that by efficiency, or by speed of what takes no time."""
    return row["chunks/s"] if row["efficiency"] is None else row["efficiency"]


class Fleet:
    """A pool of devices with a circuit for each latency and kind of speeds.

    Args:
        actors: how many.
        latencies: milliseconds of a chunk, on the slowest device.
        seed: of angles and kills.

    Attributes:
        ready_seconds: how long it took until all actors were ready.
    """

    def __init__(self, actors: int, latencies: Sequence[float], seed: int) -> None:
        self.actors = actors
        self._seed = seed
        cases = [(latency, speeds) for latency in latencies for speeds in (_EQUAL, _UNEQUAL)]
        self._circuits = {case: circuit_for(number) for number, case in enumerate(cases)}
        self._seconds = {case: seconds_of(actors, *case) for case in cases}
        devices = [
            Device({self._circuits[case].key: self._seconds[case][actor] for case in cases})
            for actor in range(actors)
        ]
        began = time.monotonic()
        self._pool = LauncherPool(devices, chunk_rows=CHUNK_ROWS, progress=False)
        self._pool.wait(timeout=_READY_SECONDS)
        self.ready_seconds = time.monotonic() - began

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def measure(self, latency: float, speeds: str, seconds: float) -> Row:
        """Measure with equal or unequal speeds; a row of the table.

        Args:
            latency: milliseconds of a chunk, on the slowest actor.
            speeds: ``"equal"`` or ``"1:2:4:8"``.
            seconds: how long it should take.
        """
        times = self._seconds[latency, speeds]
        chunks = chunks_for(times, seconds) if latency else max(_INSTANT_CHUNKS, 16 * self.actors)
        row = self._run(self._circuits[latency, speeds], chunks)
        ideal = chunks / sum(1.0 / each for each in times) if latency else None
        efficiency = None if ideal is None else ideal / row["seconds"]
        return row | {"speeds": speeds, "ms/chunk": latency, "efficiency": efficiency, "killed": 0}

    def measure_kills(self, latency: float, seconds: float) -> Row:
        """Measure while an actor is killed every second; a row of the table.

        The ideal is the time that actors were ready; useful are the accepted chunks.
        """
        self._pool.wait(timeout=_READY_SECONDS)  # for what earlier kills have left
        chunks = chunks_for(self._seconds[latency, _EQUAL], seconds)
        with Killer(self._pool, self._seed) as killer:
            row = self._run(self._circuits[latency, _EQUAL], chunks)
        efficiency = row["chunks"] * latency / 1000 / row["ready seconds"]
        own = {"speeds": _KILLS, "ms/chunk": latency, "efficiency": efficiency}
        return row | own | {"killed": killer.kills}

    def _run(self, circuit: CanonicalCircuit, chunks: int) -> Row:
        self._pool.run(
            circuit, backward_rows(circuit, _WARM_UP_CHUNKS * self.actors, self._seed + 1)
        )
        return {"actors": self.actors} | _timed(
            self._pool, circuit, backward_rows(circuit, chunks, self._seed)
        )


def seconds_of(actors: int, latency: float, speeds: str) -> tuple[float, ...]:
    """Each actor's seconds for a chunk; of ``1:2:4:8``, a quarter of the actors have each speed."""
    ratios = _RATIOS if speeds == _UNEQUAL else (1,)
    return tuple(latency / 1000 / ratios[actor % len(ratios)] for actor in range(actors))


def chunks_for(times: Sequence[float], seconds: float) -> int:
    """How many chunks keep all actors busy for about so long, and let them end together.

    Args:
        times: each actor's seconds for a chunk.
        seconds: how long the run should take.
    """
    slowest = max(times)
    of_a_round = round(sum(slowest / each for each in times))
    return of_a_round * max(1, min(round(seconds / slowest), _MOST_CHUNKS // of_a_round))


def _timed(pool: LauncherPool, circuit: CanonicalCircuit, batch: RowBatch) -> Row:
    """Run a batch, and check its answers against this process's.

    Raises:
        SystemExit: if one differs by a bit: figures of such a run mean nothing.
    """
    before = pool.stats()
    cpu, began = time.process_time(), time.perf_counter()
    answers = pool.run(circuit, batch)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    after = pool.stats()
    if not np.array_equal(answers, ArithmeticBackend().submit(circuit, batch).result()):
        raise SystemExit(f"{pool!r} answers other than this process does")
    ready = [sum(actor["ready_seconds"] for actor in each["actors"]) for each in (before, after)]
    chunks = after["chunks"] - before["chunks"]
    return {
        "rows": batch.num_rows,
        "chunks": chunks,
        "seconds": seconds,
        "chunks/s": chunks / seconds,
        "driver CPU s": cpu,
        "driver ms/chunk": 1e3 * cpu / chunks,
        "raced": after["races"] - before["races"],
        "again": after["retries"] - before["retries"],
        "ready seconds": ready[1] - ready[0],
    }


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


def _many_rows(pool: LauncherPool, rows: int, seed: int) -> Mapping[str, Any]:
    """Run so many rows on actors that compute next to nothing; a row of the table."""
    circuit = circuit_of_angles(_ANGLES)
    assert circuit.num_angles == _ANGLES, circuit.num_angles
    samples = max(1, rows // (2 * _ANGLES))
    batch = backward_rows(circuit, samples, seed)
    pool.run(circuit, backward_rows(circuit, max(1, samples // 50), seed + 1))
    here = [os.getpid()]
    gc.collect()
    reset_peaks(here)
    before = memory_mib(here, "VmRSS")
    answers = pool.run(circuit, batch)  # once for memory: to check answers takes more
    peak, answers_mib = memory_mib(here), answers.nbytes / _MIB
    del answers
    more = None if peak is None or before is None else peak - before - answers_mib
    memory = {"driver MiB more": more, "answers MiB": answers_mib}
    return _timed(pool, circuit, batch) | memory
