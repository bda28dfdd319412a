"""The report of ``scripts/benchmark_scale.py``: tables, what must hold, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.claims import Claim
from benchmarks.driver import DriverCost, Feeding, ManyRows, Overhead, chunks_per_call
from benchmarks.efficiency import EQUAL, KILLS, UNEQUAL, Efficiency
from benchmarks.modes import IN_PROCESS

KILL_ACTORS = 8
_MILLION = 1_000_000
_CLAIMED_ACTORS, _CLAIMED = 32, ((0.2, 0.95), (0.05, 0.85))


@dataclass(frozen=True)
class Figures:
    """Everything that was measured, as far as it was.

    Args:
        efficiencies: of each pool, latency and kind of speeds.
        costs: of the driver, where actors answer at once.
        feeding: what follows from that.
        overheads: of one small backward pass.
        many_rows: of a plan of a million rows.
        start_seconds: how long all actors of a pool took to start, by their number.
    """

    efficiencies: list[Efficiency] = field(default_factory=list)
    costs: list[DriverCost] = field(default_factory=list)
    feeding: list[Feeding] = field(default_factory=list)
    overheads: list[Overhead] = field(default_factory=list)
    many_rows: list[ManyRows] = field(default_factory=list)
    start_seconds: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A column of a table: its title, how wide it is, and what stands in it."""

    title: str
    width: int
    text: Callable[[Any], str]


EFFICIENCY_TABLE = (
    Cell("actors", 6, lambda e: str(e.actors)),
    Cell("speeds", 7, lambda e: e.speeds),
    Cell("ms/chunk", 8, lambda e: f"{1e3 * e.latency:g}"),
    Cell("chunks", 6, lambda e: f"{e.run.chunks:,}"),
    Cell("seconds", 7, lambda e: f"{e.run.seconds:.2f}"),
    Cell("efficiency", 10, lambda e: f"{e.value:.3f}"),
    Cell("chunks/s", 8, lambda e: f"{e.run.chunks / e.run.seconds:,.0f}"),
    Cell("driver ms/chunk", 15, lambda e: f"{1e3 * e.run.cpu_seconds / e.run.chunks:.2f}"),
    Cell("driver CPU", 10, lambda e: f"{100 * e.run.cpu_seconds / e.run.seconds:.0f} %"),
    Cell("raced", 5, lambda e: str(e.run.races)),
    Cell("again", 5, lambda e: str(e.run.retries)),
    Cell("killed", 6, lambda e: str(e.kills)),
)
EFFICIENCY_FOOTNOTE = """\
efficiency: chunks over the sum of the devices' rates, over the time that it took; where actors are
killed: seconds of accepted chunks over the seconds that actors were ready. ms/chunk: of the slowest
actor. driver: CPU time of this process, Ray's threads in it included."""

COST_TABLE = (
    Cell("actors", 6, lambda c: str(c.actors)),
    Cell("chunks a call", 13, lambda c: str(chunks_per_call(c.announced))),
    Cell("chunks/s", 8, lambda c: f"{c.run.chunks / c.run.seconds:,.0f}"),
    Cell("rows/s", 8, lambda c: f"{c.run.rows / c.run.seconds:,.0f}"),
    Cell("driver ms/chunk", 15, lambda c: f"{1e3 * c.per_chunk:.3f}"),
    Cell("driver ms/call", 14, lambda c: f"{1e3 * c.per_call:.3f}"),
    Cell("driver CPU", 10, lambda c: f"{100 * c.run.cpu_seconds / c.run.seconds:.0f} %"),
)
FEEDING_TABLE = (
    Cell("ms/chunk", 8, lambda f: f"{1e3 * f.latency:g}"),
    Cell("one chunk a call", 16, lambda f: f"{f.single:,.0f}"),
    Cell("parcels", 8, lambda f: f"{f.parcels:,.0f}"),
)
OVERHEAD_TABLE = (
    Cell("where", 10, lambda o: o.where),
    Cell("ms", 7, lambda o: f"{1e3 * o.seconds:.2f}"),
    Cell("more than in-process", 20, lambda o: f"{1e3 * o.added:.2f}"),
    Cell("repetitions", 11, lambda o: str(o.repetitions)),
)


class Lines:
    """Prints lines of a table as they come.

    Args:
        title: what the table is about.
        cells: its columns.
    """

    def __init__(self, title: str, cells: Sequence[Cell]) -> None:
        self._cells = cells
        print(f"\n{title}")
        print("  ".join(cell.title.rjust(cell.width) for cell in cells))
        print("  ".join("-" * cell.width for cell in cells), flush=True)

    def add(self, *values: object) -> None:
        """Print a line for each value."""
        for value in values:
            line = "  ".join(cell.text(value).rjust(cell.width) for cell in self._cells)
            print(line.rstrip(), flush=True)


def all_claims(figures: Figures) -> list[Claim]:
    """What must hold."""
    return [
        *(
            _least(
                f"{_CLAIMED_ACTORS} actors, {1e3 * latency:g} ms a chunk: efficiency",
                least,
                [
                    each
                    for each in figures.efficiencies
                    if (each.actors, each.latency, each.speeds) == (_CLAIMED_ACTORS, latency, EQUAL)
                ],
            )
            for latency, least in _CLAIMED
        ),
        _least(
            f"speeds 1:2:4:8, to {_CLAIMED_ACTORS} actors, {1e3 * _CLAIMED[0][0]:g} ms: efficiency",
            0.9,
            [
                each
                for each in figures.efficiencies
                if each.speeds == UNEQUAL
                and each.latency == _CLAIMED[0][0]
                and each.actors <= _CLAIMED_ACTORS
            ],
        ),
        _least(
            f"{KILL_ACTORS} actors, one killed every second: efficiency",
            0.85,
            [
                each
                for each in figures.efficiencies
                if each.speeds == KILLS and each.actors == KILL_ACTORS
            ],
        ),
        _many_rows_claim(figures.many_rows),
        _overhead_claim(figures.overheads),
    ]


def write_json(path: Path, figures: Figures, claims: Iterable[Claim], about: object) -> None:
    """Write everything.

    Args:
        path: the file.
        figures: what was measured.
        claims: what must hold.
        about: the machine and the options.
    """
    content = {
        "about": about,
        "figures": asdict(figures),
        "must_hold": [{**asdict(claim), "verdict": claim.verdict} for claim in claims],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _least(what: str, least: float, found: Sequence[Efficiency]) -> Claim:
    """The worst of some figures must be at least this."""
    required = f"at least {least:g}"
    if not found:
        return Claim(what, required)
    worst = min(found, key=lambda each: each.value)
    detail = ", ".join(
        f"{each.value:.3f} ({each.actors} x {1e3 * each.latency:g} ms)" for each in found
    )
    return Claim(what, required, f"{worst.value:.3f}", worst.value >= least, detail)


def _many_rows_claim(measured: Sequence[ManyRows]) -> Claim:
    what, required = "a million rows: driver CPU", "under 1 s"
    if not measured or measured[0].run.rows < _MILLION:
        return Claim(what, required)
    figure = measured[0]
    cpu = figure.run.cpu_seconds
    return Claim(what, required, f"{cpu:.2f} s", cpu < 1.0, describe(figure))


def describe(figure: ManyRows) -> str:
    """A plan of many rows in one line."""
    run = figure.run
    grown = "unknown" if figure.grown_mib is None else f"{figure.grown_mib:.1f} MiB"
    return (
        f"{run.rows:,} rows in {run.chunks} chunks and {run.seconds:.1f} s; driver CPU "
        f"{run.cpu_seconds:.2f} s, peak memory +{grown} beside {figure.answers_mib:.1f} MiB of "
        "answers"
    )


def _overhead_claim(overheads: Sequence[Overhead]) -> Claim:
    what, required = "20 rows, n=4: pool - in-process", "at most 5 ms"
    pools = [each for each in overheads if each.where != IN_PROCESS]
    if not pools:
        return Claim(what, required)
    worst = max(pools, key=lambda each: each.added)
    detail = ", ".join(f"{each.where} {1e3 * each.added:.2f} ms" for each in pools)
    return Claim(what, required, f"{1e3 * worst.added:.2f} ms", worst.added <= 0.005, detail)
