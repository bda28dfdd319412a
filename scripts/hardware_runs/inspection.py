"""What a server must have seen, and a journal must say of it."""

from __future__ import annotations

from collections.abc import Iterable

from qailab.journal.report import read_report
from qailab.rehearsal import JobRecord, RehearsalServer

COMPLETED = "Completed"
_ENTRY_STATES = {COMPLETED: {"done"}}  # all others end without a result
_WITHOUT_RESULT = {"failed", "cancelled", "withdrawn"}


def completed(jobs: Iterable[JobRecord]) -> list[JobRecord]:
    """The jobs that somebody pays for."""
    return [job for job in jobs if job.state == COMPLETED]


def contents(jobs: Iterable[JobRecord]) -> set[str]:
    """What the completed jobs are about."""
    return {job.content for job in completed(jobs)}


def problems_at_server(server: RehearsalServer, rows: int, *, closed: bool = True) -> list[str]:
    """What must not be at a server after an evaluation, in words.

    Args:
        server: the server.
        rows: how many rows were asked for.
        closed: whether all sessions must be closed.
    """
    jobs = server.jobs
    found = [
        f"jobs {one.id} and {two.id} have the same rows ({one.state}, {two.state})"
        for one, two in server.duplicates()
    ]
    found += [f"job {job.id} was left {job.state.lower()}" for job in jobs if not job.is_final]
    used = {job.session for job in jobs}
    found += [
        f"{session.mode} {session.id} was left {session.state}"
        for session in server.sessions
        if closed and session.id in used and session.state != "closed"
    ]
    answered = sum(job.rows for job in completed(jobs))
    if answered != rows:
        found.append(f"{answered} rows were answered, {rows} were asked for")
    return found


def problems_of_journal(path: str, server: RehearsalServer) -> list[str]:
    """Where a journal and the server differ, in words."""
    entries = read_report(path, price_per_second=0.0).jobs
    by_job = {entry["job_id"]: entry for entry in entries if entry["job_id"]}
    found = [
        f"entry {entry['id']} was left {entry['state']}"
        for entry in entries
        if entry["state"] in ("intended", "submitted")
    ]
    for job in server.jobs:
        entry = by_job.pop(job.id, None)
        if entry is None:
            if job.state == COMPLETED:
                found.append(f"completed job {job.id} is not in the journal")
            continue
        if entry["state"] not in _ENTRY_STATES.get(job.state, _WITHOUT_RESULT):
            found.append(f"job {job.id} is {job.state}, {entry['state']} in the journal")
        usage = entry["qpu_seconds"]
        if job.state == COMPLETED and (usage is None or abs(usage - job.qpu_seconds) > 1e-6):
            found.append(f"job {job.id} took {job.qpu_seconds} QPU s, in the journal {usage}")
    found += [f"job {job_id} of the journal is not at the server" for job_id in by_job]
    return found
