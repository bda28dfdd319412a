"""What came of the runs: a report of each, what is wrong with it, a table of all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Report:
    """One run.

    Args:
        seed: its seed.
        planned: how many faults of each kind the seed asks for.
        happened: how many there were.
        events: each of them: kind, share of the rows, seconds, pids.
        pool: options of the pool.
        rows_asked: rows that the training, while faults hit it, asked for.
        rows_answered: rows that the pool says it has answered then.
        rows_again: rows that were sent more than once.
        retries: chunks that ran again.
        races: chunks that a second actor was given as well.
        replaced: actors that were replaced.
        seconds: how long the training took.
        calm_seconds: how long the same training took afterwards, on the same pool, undisturbed.
        weights_equal: whether the weights are those of the undisturbed run in process.
        gradients_equal: the same of the hash of all gradients.
        difference: the largest difference between two weights.
        calm_equal: whether all that is so for the undisturbed training on the pool.
        recovered: whether all actors were ready again afterwards.
        hang: whether the run did not end in time.
        error: what was raised.
        left_behind: processes of the pool that were there after it was closed, and stopped ones
            that it did not end.
        complaints: what the pool logged as an error.
        stuck: where all threads were, if it hangs, and the pool's counts.
    """

    seed: int
    planned: dict[str, int] = field(default_factory=dict)
    happened: dict[str, int] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    pool: dict[str, Any] = field(default_factory=dict)
    rows_asked: int = 0
    rows_answered: int = 0
    rows_again: int = 0
    retries: int = 0
    races: int = 0
    replaced: int = 0
    seconds: float = 0.0
    calm_seconds: float = 0.0
    weights_equal: bool = False
    gradients_equal: bool = False
    difference: float = 0.0
    calm_equal: bool = False
    recovered: bool = False
    hang: bool = False
    error: str = ""
    left_behind: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    stuck: str = ""

    @property
    def problems(self) -> list[str]:
        """What must not be, in words; empty if all is well."""
        if self.hang:
            return ["hangs"]
        if self.error:
            return [self.error.strip().splitlines()[-1]]
        missing = self.rows_asked - self.rows_answered
        found = {
            f"lost {missing} rows": missing > 0,
            f"answered {-missing} rows twice": missing < 0,
            f"weights differ by up to {self.difference:.2g}": not self.weights_equal,
            "gradients differ": not self.gradients_equal,
            "differs on the pool afterwards": not self.calm_equal,
            "not all actors came back": not self.recovered,
            f"{len(self.left_behind)} processes left behind": bool(self.left_behind),
            f"{len(self.complaints)} errors logged": bool(self.complaints),
        }
        return [text for text, holds in found.items() if holds]


@dataclass(frozen=True)
class _Column:
    title: str
    text: Callable[[Report], str]
    left: bool = False


def _faults(report: Report) -> str:
    """Faults by kind; those that found nobody to hit are told apart."""
    words = []
    for kind, planned in report.planned.items():
        count = report.happened.get(kind, 0)
        words.append(f"{kind} {count}" + (f"/{planned}" if count != planned else ""))
    return ", ".join(words) or "none"


_COLUMNS = (
    _Column("seed", lambda r: str(r.seed)),
    _Column("faults", _faults, left=True),
    _Column("asked", lambda r: f"{r.rows_asked:,}"),
    _Column("answered", lambda r: f"{r.rows_answered:,}"),
    _Column("again", lambda r: f"{r.rows_again:,}"),
    _Column("retries", lambda r: str(r.retries)),
    _Column("races", lambda r: str(r.races)),
    _Column("replaced", lambda r: str(r.replaced)),
    _Column("s", lambda r: f"{r.seconds:.1f}"),
    _Column("lost s", lambda r: f"{r.seconds - r.calm_seconds:.1f}" if r.calm_seconds else "-"),
    _Column("equal", lambda r: "yes" if r.weights_equal and r.gradients_equal else "NO"),
    _Column("verdict", lambda r: "; ".join(r.problems) or "ok", left=True),
)

FOOTNOTE = """\
asked, answered: rows of the training while faults hit it. again: rows that were sent more than
once. lost s: seconds beyond the same training on the same pool without sudden faults. equal:
weights and gradients, bit for bit those of the run in process."""


def table(reports: Sequence[Report]) -> str:
    """All runs, a line for each."""
    lines = [[column.title for column in _COLUMNS]]
    lines += [[column.text(report) for column in _COLUMNS] for report in reports]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column.left else cell.rjust(width)
            for cell, width, column in zip(line, widths, _COLUMNS, strict=True)
        ).rstrip()
        for line in lines
    )


def line(report: Report) -> str:
    """One run in one line, as it ends."""
    verdict = "; ".join(report.problems) or "ok"
    return f"seed {report.seed}: {_faults(report)}; {report.seconds:.1f} s: {verdict}"


def summary(reports: Sequence[Report]) -> str:
    """All runs in one sentence."""
    kinds: dict[str, int] = {}
    for report in reports:
        for kind, count in report.happened.items():
            kinds[kind] = kinds.get(kind, 0) + count
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "no"
    bad = [str(report.seed) for report in reports if report.problems]
    rows = sum(report.rows_answered for report in reports)
    return (
        f"{len(reports)} runs, {rows:,} rows, {faults} faults: "
        f"{len(reports) - len(bad)} ok, {len(bad)} not"
        + (f" (seeds {', '.join(bad)})" if bad else "")
    )


def exit_code(reports: Sequence[Report]) -> int:
    """0 if all went well, 1 if not."""
    return int(not reports or any(report.problems for report in reports))


def write(folder: Path, report: Report) -> None:
    """Write a run's report as JSON."""
    content = {**asdict(report), "problems": report.problems}
    (folder / f"seed-{report.seed}.json").write_text(json.dumps(content, indent=1) + "\n")


def write_all(folder: Path, reports: Sequence[Report]) -> None:
    """Write the table and all reports."""
    (folder / "table.txt").write_text(f"{table(reports)}\n\n{FOOTNOTE}\n\n{summary(reports)}\n")
    content = [{**asdict(report), "problems": report.problems} for report in reports]
    (folder / "reports.json").write_text(json.dumps(content, indent=1) + "\n")
