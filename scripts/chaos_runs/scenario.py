"""A rehearsal for IBM hardware: what a seed asks for, its server, and what that must have seen."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chaos_runs.harness import Report
from chaos_runs.training import SHOTS, Size
from qailab.backends import IBMBackend, IBMLimits, IBMTimeouts
from qailab.distributed import LauncherPool
from qailab.journal.report import read_report
from qailab.launchers import RowEvaluator
from qailab.rehearsal import Fault, FaultPlan, JobRecord, Limits, RehearsalServer

SIZE = Size(qubits=3, samples=4, reps=1)
JOB_SECONDS = 2.5
"""A job's time-out: beyond it one is stuck. An ordinary one takes a tenth of a second."""
TIMEOUTS = IBMTimeouts(
    request_seconds=0.8,  # some of the hangs are longer
    settle_seconds=1.0,
    retry_seconds=12.0,
    first_poll_seconds=0.01,
    job_failures=8,  # a schedule may end as many jobs as it has faults
)

Where = Literal["process", "pool", "killed actor"]

_DEVICES = ("ibmq_manila", "ibm_lagos")
_ROWS_PER_JOB = (None, 48, 30, 16)  # of 72 rows: one job, or up to five
_SETTLED_SECONDS = 3.0
_COMPLETED = "Completed"
_WITHOUT_RESULT = {"failed", "cancelled", "withdrawn"}
_REQUESTS = (  # of which `FaultPlan.random` has none
    "POST /identity/token", "GET /instances/usage", "GET /backends",
    "GET /backends/ID/configuration", "GET /backends/ID/properties", "GET /backends/ID/status",
    "GET /sessions/ID", "PATCH /sessions/ID", "GET /jobs/ID/metrics", "POST /jobs/ID/cancel",
)  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """What a seed asks for."""

    seed: int
    devices: tuple[str, ...]
    where: Where
    mode: Literal["session", "batch", "job"]
    plan: str  # of the account
    rows_per_job: int | None  # at most; None for all
    journal: bool
    queue_seconds: float
    faults: tuple[Fault, ...]

    def journal_in(self, folder: Path) -> Path | None:
        """The journal's file, if there is a journal."""
        return folder / "jobs.db" if self.journal else None

    @contextmanager
    def places(self, folder: Path, **options: Any) -> Iterator[list[RowEvaluator]]:
        """A backend for each device, with the journal in a folder, or a pool of them all."""
        limits: dict[str, Any] = {"pending_jobs": 3}
        if self.rows_per_job is not None:
            limits["executions_per_job"] = self.rows_per_job * SHOTS
        given = {
            "mode": self.mode, "max_time": "5m", "limits": IBMLimits(**limits),
            "timeouts": TIMEOUTS, "poll_interval": 0.1, "timeout": JOB_SECONDS,
            "journal": self.journal_in(folder),
        }  # fmt: skip
        backends = [IBMBackend(device, **given | options) for device in self.devices]
        with ExitStack() as stack:
            if self.where == "process":
                yield [stack.enter_context(closing(backend)) for backend in backends]
            else:
                yield [stack.enter_context(LauncherPool(backends, progress=False))]

    @contextmanager
    def server(self, *, calm: bool = False) -> Iterator[RehearsalServer]:
        """Its server, ``calm`` without faults and queue, to which the environment leads.

        Shots are a function of a job's content.
        """
        given: dict[str, Any] = {} if calm else {
            "faults": FaultPlan(self.faults),
            "plan": self.plan,
            "queue_seconds": self.queue_seconds,
            "limits": Limits(jobs_a_minute=10**6),
        }  # fmt: skip
        with RehearsalServer(self.devices, seed=self.seed, **given) as server:
            os.environ |= server.environment
            yield server

    def __str__(self) -> str:
        where = "" if self.where == "process" else f", {self.where}"
        faults = ", ".join(
            fault.label if fault.where == "POST /jobs" else f"{fault.label} {fault.where}"
            for fault in self.faults
        )
        return (
            f"{len(self.devices)} {self.mode}{where}, {self.rows_per_job or 'all'} rows a job, "
            f"{'journal' if self.journal else 'no journal'}, {self.plan}"
            + (f": {faults}" if faults else "")
        )


def draw(seed: int, where: Where = "process") -> Scenario:
    """The scenario of a seed, with faults that a program should survive."""
    chance = random.Random(f"hardware {seed}")
    second = chance.random() < 0.3  # drawn in any case: the rest is the same wherever it runs
    two = where != "process" or second
    mode = chance.choice(("session", "session", "batch", "job"))
    faults = FaultPlan.random(seed, chance.choice((0.5, 1.0, 1.0, 2.0))).faults
    return Scenario(
        seed=seed,
        devices=_DEVICES if two else (chance.choice(_DEVICES),),
        where=where,
        mode=mode,
        plan=chance.choice(("premium", "premium", "premium", "open")),
        rows_per_job=chance.choice(_ROWS_PER_JOB),
        journal=chance.random() < 0.5,
        queue_seconds=chance.choice((0.0, 0.0, 0.1)),
        faults=faults + tuple(_more(chance)),
    )


def _more(chance: random.Random) -> Iterator[Fault]:
    """Faults that `FaultPlan.random` leaves out: of the other requests, and jobs too long."""
    if chance.random() < 0.15:
        yield Fault("job-too-long", after=chance.randrange(3))
    for _ in range(chance.choice((0, 0, 1, 2))):
        kind = chance.choice(("http", "http", "drop", "answer-lost"))
        own = {"status": chance.choice((429, 500, 502, 503))} if kind == "http" else {}
        after, times = chance.randrange(3), chance.choice((1, 2))
        yield Fault(kind, chance.choice(_REQUESTS), after=after, times=times, **own)


def completed(jobs: Iterable[JobRecord]) -> list[JobRecord]:
    """The jobs that somebody pays for."""
    return [job for job in jobs if job.state == _COMPLETED]


def contents(jobs: Iterable[JobRecord]) -> set[str]:
    """What the completed jobs are about."""
    return {job.content for job in completed(jobs)}


def settle(server: RehearsalServer) -> None:
    """Wait a little for jobs that are on their way to an end."""
    end = time.monotonic() + _SETTLED_SECONDS
    while time.monotonic() < end and not all(job.is_final for job in server.jobs):
        time.sleep(0.02)


def examine(
    report: Report,
    server: RehearsalServer,
    *,
    rows: int | None = None,
    journal: Path | None = None,
    closed: bool = True,
) -> None:
    """Report what must not be at a server after an evaluation.

    Args:
        report: gets problems and figures.
        server: the server.
        rows: how many rows were asked for, if all were answered.
        journal: must agree with the server, if there is one.
        closed: whether all sessions must be closed.
    """
    settle(server)
    jobs, doubles = server.jobs, server.duplicates()
    found = [f"jobs {one.id}, {two.id} have the same rows" for one, two in doubles]
    found += [f"job {job.id} was left {job.state.lower()}" for job in jobs if not job.is_final]
    used = {job.session for job in jobs}
    found += [
        f"{session.mode} {session.id} was left {session.state}"
        for session in server.sessions
        if closed and session.id in used and session.state != "closed"
    ]
    answered = sum(job.rows for job in completed(jobs))
    if rows is not None and answered != rows:
        found.append(f"{answered} rows were answered, {rows} were asked for")
    if journal is not None:
        found += _differences(journal, jobs)
    report.problems += found
    report.figures |= {
        "jobs": len(jobs), "completed": len(completed(jobs)), "duplicates": len(doubles),
        "faults": len(server.faults_injected), "requests": len(server.requests),
    }  # fmt: skip


def _differences(journal: Path, jobs: Iterable[JobRecord]) -> list[str]:
    """Where a journal and the server differ, in words."""
    entries = read_report(journal).jobs
    by_job = {entry["job_id"]: entry for entry in entries if entry["job_id"]}
    found = [
        f"entry {entry['id']} was left {entry['state']}"
        for entry in entries
        if entry["state"] not in {"done", *_WITHOUT_RESULT}
    ]
    for job in jobs:
        paid, entry = job.state == _COMPLETED, by_job.pop(job.id, None)
        if entry is None:
            found += [f"completed job {job.id} is not in the journal"] * paid
            continue
        if entry["state"] not in ({"done"} if paid else _WITHOUT_RESULT):
            found.append(f"job {job.id} is {job.state}, {entry['state']} in the journal")
        usage = entry["qpu_seconds"]
        if paid and (usage is None or abs(usage - job.qpu_seconds) > 1e-6):
            found.append(f"job {job.id} took {job.qpu_seconds} QPU s, in the journal {usage}")
    return found + [f"job {job_id} of the journal is not at the server" for job_id in by_job]
