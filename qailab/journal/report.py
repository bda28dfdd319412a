"""What a journal's jobs came to, read from the file without changing it: values, and as tables."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qailab.journal.database import Database

Values = dict[str, Any]

PRICE_PER_SECOND = 1.60
"""US dollars for a second of a QPU on the pay-as-you-go plan, 96 USD a minute
(https://www.ibm.com/quantum/pricing, 2025); other plans are cheaper, the open one is free."""

_LONGEST_REASON = 60
_REHEARSED = "job_id GLOB 'rehearsal-*'"  # the jobs of `qailab.rehearsal`
# The mode is not in the table: it is the session's.
_JOBS = f"""
SELECT id, step, purpose AS pass, start, stop, shots, backend, NULL AS mode, session, job_id, tag,
       {_REHEARSED} IS TRUE AS rehearsed, attempt, state, cause, usage_seconds AS qpu_seconds,
       reason, circuit, seed, owner, created, updated
FROM entries ORDER BY id"""
_STEPS = f"""
SELECT step, count(job_id) AS jobs, count(CASE WHEN {_REHEARSED} THEN 1 END) AS rehearsed,
       sum(CASE WHEN job_id IS NULL THEN 0 ELSE stop - start END) AS rows,
       sum(CASE WHEN job_id IS NULL THEN 0 ELSE (stop - start) * shots END) AS executions,
       total(usage_seconds) AS qpu_seconds,
       total(CASE WHEN {_REHEARSED} THEN 0 ELSE usage_seconds END) AS cost,  -- in seconds
       count(job_id) - sum(job_id IS NOT NULL AND usage_seconds IS NOT NULL) AS usage_unknown
FROM entries GROUP BY step ORDER BY step"""
_STATES = "SELECT name, value FROM states WHERE name GLOB 'session/*' ORDER BY name"
_SUMMED = ("jobs", "rows", "executions", "qpu_seconds", "usage_unknown", "cost", "rehearsed")


@dataclass(frozen=True)
class Report:
    """What is in a journal.

    Args:
        path: the file.
        jobs: one for each entry, in the order they were recorded.
        steps: what each step's jobs come to.
        totals: what all come to.
        sessions: those that were opened for them.
    """

    path: str
    jobs: list[Values]
    steps: list[Values]
    totals: Values
    sessions: list[Values]

    def as_json(self) -> Values:
        """For programs: see `qailab.journal.__main__`."""
        return {"version": 1, "price_per_second": PRICE_PER_SECOND, **asdict(self)}


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a journal, also one that is in use.

    Raises:
        JournalError: if there is no journal.
    """
    database = Database(path, read_only=True)
    try:
        with database.reading():
            jobs, steps, states = (_values(database.execute(q)) for q in (_JOBS, _STEPS, _STATES))
    finally:
        database.close()
    sessions = _sessions(states)
    modes = {session["session"]: session["mode"] for session in sessions}
    for job in jobs:
        job["mode"] = modes.get(job["session"])
        job["rehearsed"] = bool(job["rehearsed"])
    for step in steps:
        step["cost"] *= PRICE_PER_SECOND
    totals: Values = {name: sum(step[name] for step in steps) for name in _SUMMED}
    totals["states"] = dict(Counter(job["state"] for job in jobs))
    return Report(os.path.abspath(path), jobs, steps, totals, sessions)


def _values(cursor: Any) -> list[Values]:
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _sessions(states: Iterable[Values]) -> list[Values]:
    """Each session, in the order they were opened.

    Several states tell of one that somebody opened and gave to others: closed for one, it is for
    all, and it is given only if all say so.
    """
    found: dict[str, Values] = {}
    for state in states:
        backend = state["name"].split("/")[1]
        for session in json.loads(state["value"])["sessions"]:
            known = found.setdefault(session["session"], {"backend": backend, **session})
            known["given"] &= session["given"]
            known["mode"] = known["mode"] or session["mode"]
            known["created"] = min(known["created"], session["created"])
            known["updated"] = max(known["updated"], session["updated"])
            if session["state"] == "closed":
                known["state"] = "closed"
    return sorted(found.values(), key=lambda session: session["created"])


def tables(report: Report, *, jobs: bool) -> str:
    """The report as text for people, with a line for each job or only what they come to."""
    parts = []
    if jobs and report.jobs:
        parts.append(_aligned(_JOB_COLUMNS, map(_job_cells, report.jobs)))
    if report.steps:
        parts.append(_aligned(_STEP_COLUMNS, map(_step_cells, report.steps)))
    parts.append(_summary(report))
    return "\n\n".join(parts) + "\n"


_JOB_COLUMNS = (
    "time", "step>", "pass", "rows>", "shots>", "backend", "mode/session", "job id", "state",
    "QPU s>", "reason",
)  # fmt: skip
_STEP_COLUMNS = ("step>", "jobs>", "rows>", "executions>", "QPU s>", "cost ($)>")


def _job_cells(job: Values) -> list[str]:
    # What is not printable (a server's colours) could garble the terminal.
    reason = "".join(c if c.isprintable() else " " for c in " ".join(job["reason"].split()))
    if len(reason) > _LONGEST_REASON:
        reason = reason[: _LONGEST_REASON - 3] + "..."
    where = "job" if job["session"] is None else _named(job)
    used = "-" if job["qpu_seconds"] is None else f"{job['qpu_seconds']:.2f}"
    rows = f"{job['start']}-{job['stop'] - 1}"
    return [
        _local_time(job["created"]), str(job["step"]), job["pass"], rows, str(job["shots"]),
        job["backend"], where, job["job_id"] or "-", job["state"], used, reason,
    ]  # fmt: skip


def _step_cells(step: Values) -> list[str]:
    counts = [f"{step[name]:,}" for name in ("jobs", "rows", "executions")]
    return [str(step["step"]), *counts, f"{step['qpu_seconds']:,.2f}", f"{step['cost']:,.2f}"]


def _named(session: Values) -> str:
    return f"{session['mode'] or 'session'} {session['session']}"  # IBM counts batches among them


def _local_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _summary(report: Report) -> str:
    """What all jobs come to, and the sessions that may still cost."""
    totals = report.totals
    lines = [f"{report.path}: no jobs yet"]
    if report.jobs:
        price = f"{totals['cost']:,.2f} $ ({PRICE_PER_SECOND:g} $ a second)"
        if totals["rehearsed"]:
            price += f", {totals['rehearsed']:,} jobs rehearsed: nothing was paid for them"
        states = ", ".join(f"{count} {state}" for state, count in sorted(totals["states"].items()))
        lines = [
            f"{totals['jobs']:,} jobs were sent: {totals['rows']:,} rows, "
            f"{totals['executions']:,} executions, {totals['qpu_seconds']:,.2f} QPU seconds, "
            f"{price}; {states}"
        ]
    if totals["usage_unknown"]:
        lines.append(f"QPU seconds of {totals['usage_unknown']:,} jobs are not known yet")
    left = [
        f"{_named(session)} on {session['backend']} since {_local_time(session['created'])}"
        for session in report.sessions
        if session["state"] == "open" and not session["given"]  # or whoever gave it closes it
    ]
    if left:
        counted = "1 session is" if len(left) == 1 else f"{len(left)} sessions are"
        # The service ends them by itself, and does not tell the journal.
        lines.append(f"{counted} open: {', '.join(left)} (unless max_time has passed)")
    return "\n".join(lines)


def _aligned(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of columns; those whose title ends in ``>`` are aligned to the right."""
    cells = [[title.rstrip(">") for title in columns], *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    aligns = [">" if title.endswith(">") else "<" for title in columns]
    return "\n".join(
        "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, aligns, widths, strict=True)).rstrip()
        for row in cells
    )
