"""What came of the runs: a line for each, figures of all, and the exit status."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Report:
    """One run.

    Args:
        kind: "faults", "hopeless", "kills" or "budget".
        seed: its seed.
        what: the scenario in words.
        problems: what must not be, in words; empty if all is well.
        figures: numbers by name; those of all runs of a kind are added up.
        note: what else there is to say.
        detail: for whoever looks into it: stacks, tracebacks.
        seconds: how long it took.
    """

    kind: str
    seed: int
    what: str = ""
    problems: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""
    detail: str = ""
    seconds: float = 0.0


def line(report: Report) -> str:
    """One run in one line."""
    figures = ", ".join(f"{name} {value:g}" for name, value in report.figures.items())
    verdict = "ok" if not report.problems else "; ".join(report.problems)
    note = f"; {report.note}" if report.note else ""
    return (
        f"{report.kind} {report.seed}: {report.what}; {figures}; {report.seconds:.1f} s{note}: "
        f"{verdict}"
    )


def summary(reports: Sequence[Report]) -> str:
    """All runs, a line for each kind."""
    lines = []
    for kind in dict.fromkeys(report.kind for report in reports):
        those = [report for report in reports if report.kind == kind]
        figures: Counter[str] = Counter()
        for report in those:
            figures.update(report.figures)
        bad = [str(report.seed) for report in those if report.problems]
        seconds = sorted(report.seconds for report in those)
        lines.append(
            f"{kind}: {len(those)} runs, {len(those) - len(bad)} ok, {len(bad)} not"
            + (f" (seeds {', '.join(bad)})" if bad else "")
            + "".join(f", {name} {round(value, 3):,g}" for name, value in figures.items())
            + f"; {seconds[len(seconds) // 2]:.1f} s each (median), {seconds[-1]:.1f} s at most"
        )
    return "\n".join(lines)


def exit_code(reports: Sequence[Report]) -> int:
    """0 if all went well, 1 if not."""
    return int(not reports or any(report.problems for report in reports))


def write(folder: Path, report: Report) -> None:
    """Write a run's report as JSON."""
    path = folder / f"{report.kind}-{report.seed}.json"
    path.write_text(json.dumps(asdict(report), indent=1) + "\n")
