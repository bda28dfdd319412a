"""Benchmark: how a pool scales to many actors, and what it costs its driver.

::

    scripts/benchmark_scale                          about 9 minutes on 2 cores
    scripts/benchmark_scale --quick                  under 40 s: 4 actors, short runs
    scripts/benchmark_scale --actors 32 --latencies 50 200 --seconds 10 --rounds 3

The actors are real Ray actors on this machine, but they simulate nothing: they sleep for the time
that a device would take for a chunk (`RehearsalBackend`), and answer what this process would have
answered, which is checked bit for bit. Pools have their default options, but for the fixed size of
a chunk. All actors know the circuit, and the pool their speed, before anything is measured.

1. *Scheduling efficiency*: with equal speeds, with speeds of 1:2:4:8, and while one actor, chosen
   at random, is killed every second (8 actors; the time that a new one takes to start is nobody's).
2. *The driver*: actors that answer at once. As devices that say how long they take they get parcels
   of 24 chunks (10 ms each), of 2 (100 ms), or single chunks (1 s). From what the driver's CPU does
   for a chunk, growing with the number of actors, follows how many actors keep one core of it busy.
3. *A million rows*: 10,000 samples of 50 angles, two shifts each, on 2 actors that compute next to
   nothing; the driver's CPU time and memory.
4. *Overhead*: one backward pass of 20 rows of 4 qubits on Aer, in this process and on pools, in
   turn.

What the machine's cores cannot carry is not the scheduler's fault, but counts: each chunk costs
its actor some tenths of a millisecond, and 64 processes that wake up share the cores. Other work
on the machine lowers all figures.

The last section says plainly what must hold, and whether it does. The run folder holds
``scale.json`` (all figures), ``must_hold.csv`` and ``scale.png``.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import report, scale_report
from benchmarks.driver import (
    ANNOUNCED,
    SAMPLES,
    estimate_feeding,
    measure_driver,
    measure_many_rows,
    measure_overhead,
)
from benchmarks.efficiency import EQUAL, UNEQUAL, Efficiency, Fleet
from benchmarks.scale_report import KILL_ACTORS, Figures, Lines

from qailab.distributed.connection import connect, disconnect

_CPUS = 3  # of the pools that compute: two for the overhead live at once, with 3 actors
_KILL_LATENCIES = (0.05, 0.2)
_KILL_SECONDS = 12.0  # at least: one in a second
_UNEQUAL_ACTORS = 4  # at least: one of each speed


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        actors: sizes of pools.
        latencies: seconds of a chunk.
        seconds: how long each run should take.
        rounds: how often each efficiency is measured; the median counts.
        driver_actors: sizes of the pools that the driver's cost is measured on.
        kill_actors: size of the pool whose actors are killed.
        kill_latencies: seconds of a chunk there.
        kill_seconds: how long a run takes there.
        samples: of the plan of many rows.
        repetitions: of the small backward pass.
        seed: of angles and kills.
        quick: whether this is a smoke run.
        folder: where files go.
    """

    actors: tuple[int, ...]
    latencies: tuple[float, ...]
    seconds: float
    rounds: int
    driver_actors: tuple[int, ...]
    kill_actors: int
    kill_latencies: tuple[float, ...]
    kill_seconds: float
    samples: int
    repetitions: int
    seed: int
    quick: bool
    folder: Path


def parse_plan(arguments: Sequence[str] | None = None) -> Plan:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--actors", type=_count, nargs="+", metavar="A", help="pools (1 2 4 8 16 32 64)"
    )
    parser.add_argument(
        "--latencies", type=_positive, nargs="+", metavar="MS", help="ms a chunk (1 10 50 200)"
    )
    parser.add_argument(
        "--seconds", type=_positive, metavar="S", help="how long a run should take at least (3)"
    )
    parser.add_argument(
        "--rounds", type=_count, default=1, metavar="N", help="runs of each, the median counts (1)"
    )
    parser.add_argument("--quick", action="store_true", help="4 actors, 10 and 50 ms, short runs")
    parser.add_argument("--out", type=Path, help="folder for the files (runs/scale-<date>-<time>)")
    parser.add_argument("--seed", type=int, default=7, help="seed of angles and kills (7)")
    options = parser.parse_args(arguments)
    quick = options.quick
    actors = sorted(set(options.actors or ([4] if quick else [2**power for power in range(7)])))
    latencies = sorted(set(options.latencies or ([10.0, 50.0] if quick else [1, 10, 50, 200])))
    seconds = options.seconds or (0.5 if quick else 3.0)
    known = tuple(latency / 1000 for latency in latencies)
    return Plan(
        actors=tuple(actors),
        latencies=known,
        seconds=seconds,
        rounds=options.rounds,
        driver_actors=tuple(actors[::-1][::2][::-1]),
        kill_actors=actors[-1] if quick else KILL_ACTORS,
        kill_latencies=tuple(latency for latency in known if latency in _KILL_LATENCIES),
        kill_seconds=2.5 if quick else max(seconds, _KILL_SECONDS),
        samples=SAMPLES // 10 if quick else SAMPLES,
        repetitions=20 if quick else 200,
        seed=options.seed,
        quick=quick,
        folder=options.out or Path("runs") / time.strftime("scale-%Y%m%d-%H%M%S"),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    plan = parse_plan(arguments)
    _quieten()
    plan.folder.mkdir(parents=True, exist_ok=True)
    began, machine = time.monotonic(), _machine()
    print(f"{machine}, about {plan.seconds:g} s a run, seed {plan.seed}")
    session = connect("local", _CPUS)  # one Ray for all pools
    try:
        figures = measure(plan)
    finally:
        disconnect(session)
    claims = scale_report.all_claims(figures)
    report.print_claims(claims)
    minutes = (time.monotonic() - began) / 60
    print(f"\nat the end, after {minutes:.1f} minutes: {_machine()} (this run's own part included)")
    about = {
        "machine": machine,
        "at the end": _machine(),
        "minutes": minutes,
        "plan": {**asdict(plan), "folder": str(plan.folder)},
    }
    _write(plan, figures, claims, about)


def measure(plan: Plan) -> Figures:
    """Measure everything, and print it as it comes."""
    figures = Figures()
    lines = Lines("Scheduling efficiency", scale_report.EFFICIENCY_TABLE)
    for actors in plan.actors:
        _measure_fleet(plan, actors, figures, lines)
    print(scale_report.EFFICIENCY_FOOTNOTE)
    figures.feeding.extend(estimate_feeding(figures.costs))
    Lines("The driver, with actors that answer at once", scale_report.COST_TABLE).add(
        *figures.costs
    )
    Lines("Actors that keep one core of the driver busy (an estimate)",
          scale_report.FEEDING_TABLE).add(*figures.feeding)  # fmt: skip
    figures.many_rows.append(measure_many_rows(plan.samples, seed=plan.seed))
    print(f"\n{scale_report.describe(figures.many_rows[0])}")
    figures.overheads.extend(measure_overhead(plan.repetitions, seed=plan.seed))
    Lines("One backward pass of 20 rows of 4 qubits", scale_report.OVERHEAD_TABLE).add(
        *figures.overheads
    )
    return figures


def _measure_fleet(plan: Plan, actors: int, figures: Figures, lines: Lines) -> None:
    """Everything that takes a pool of so many devices: they start once."""
    began = time.monotonic()
    with Fleet(actors, plan.latencies, len(ANNOUNCED), plan.seed) as fleet:
        fleet.wait()
        figures.start_seconds[actors] = time.monotonic() - began
        for speeds in (EQUAL, UNEQUAL) if actors >= _UNEQUAL_ACTORS else (EQUAL,):
            for latency in plan.latencies:
                measure = partial(fleet.measure, latency, speeds, plan.seconds)
                figures.efficiencies.append(_median(measure, plan.rounds))
                lines.add(figures.efficiencies[-1])
        if actors in plan.driver_actors:
            figures.costs.extend(measure_driver(fleet, quick=plan.quick))
        if actors == plan.kill_actors:
            for latency in plan.kill_latencies:
                measure = partial(fleet.measure_kills, latency, plan.kill_seconds)
                figures.efficiencies.append(_median(measure, plan.rounds))
                lines.add(figures.efficiencies[-1])


def _median(measure: Callable[[], Efficiency], rounds: int) -> Efficiency:
    figures = sorted((measure() for _ in range(rounds)), key=lambda figure: figure.value)
    return figures[(rounds - 1) // 2]


def _quieten() -> None:
    """Keep what is expected here out of the tables: many processes, and killed ones."""
    # Lines of Ray that are not printed (see its guide on logging); read when Ray is imported.
    os.environ.setdefault(
        "RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started|worker died or was killed"
    )
    logging.getLogger("qailab.distributed").setLevel(logging.ERROR)


def _machine() -> str:
    """How busy the machine is: times from one that has other work mean little."""
    return f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"


def _write(
    plan: Plan, figures: Figures, claims: Sequence[scale_report.Claim], about: dict[str, Any]
) -> None:
    from benchmarks.scale_plot import plot  # matplotlib would add to the memory that is measured

    scale_report.write_json(plan.folder / "scale.json", figures, claims, about)
    report.write_claims(plan.folder / "must_hold.csv", claims)
    plot(plan.folder / "scale.png", figures.efficiencies)
    print(f"scale.json, must_hold.csv and scale.png are in {plan.folder}")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


if __name__ == "__main__":
    main()
