"""Faults that do not pass: a typed error, before its deadline, and nothing left behind."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

from hardware_runs.inspection import problems_of_journal
from hardware_runs.place import let_settle, server_for
from hardware_runs.report import Report
from hardware_runs.scenario import JOB_SECONDS, WAITS, draw
from hardware_runs.watch import Hang, Watched
from hardware_runs.workload import derive
from qailab.errors import (
    BackendBuildError,
    EvaluationError,
    QailabError,
    TransientBackendError,
)
from qailab.rehearsal import Fault, FaultPlan, RehearsalServer

_PATIENCE = 2.0
_FAILURES = 3

CASES: dict[str, tuple[Fault, type[QailabError]]] = {
    "400 for every job": (Fault("http", status=400, times=0), EvaluationError),
    "401 for everything": (Fault("http", "*", status=401, times=0), BackendBuildError),
    "401 from the third job look on": (
        Fault("http", "GET /jobs/ID", status=401, times=0, after=2),
        BackendBuildError,
    ),
    "503 for every job": (Fault("http", status=503, times=0), TransientBackendError),
    "503 for everything": (Fault("http", "*", status=503, times=0), TransientBackendError),
    "503 for looks": (
        Fault("http", "GET /jobs/ID", status=503, times=0),
        TransientBackendError,
    ),
    "429 for every job": (Fault("http", status=429, times=0), TransientBackendError),
    "dropped connections": (Fault("drop", "*", times=0, after=8), TransientBackendError),
    "pending limit": (Fault("pending-limit", times=0), TransientBackendError),
    "hanging requests": (
        Fault("hang", "POST /jobs", seconds=30, processed=False, times=0),
        TransientBackendError,
    ),
    "stuck jobs": (Fault("job-stuck", times=0), TransientBackendError),
    "failing jobs": (Fault("job-failed", times=0), EvaluationError),
    "cancelled jobs": (Fault("job-cancelled", times=0), EvaluationError),
    "jobs that are too long": (Fault("job-too-long", times=0), EvaluationError),
}
"""The fault, and the error that it must come to."""


def run(seed: int) -> Report:
    """Run the case of a seed; errors are in the report."""
    name = list(CASES)[seed % len(CASES)]
    fault, kind = CASES[name]
    scenario = dataclasses.replace(draw(seed), plan="premium", faults=(fault,))
    report = Report("hopeless", seed, f"{name} ({scenario.mode}, {scenario.sampler})")
    began = time.monotonic()
    waits = dataclasses.replace(WAITS, patience_seconds=_PATIENCE, job_failures=_FAILURES)
    # The last request begins before patience ends; each job that is too long is cut in halves.
    deadline = _PATIENCE + _FAILURES * (JOB_SECONDS + 4 * waits.request_seconds) + 5.0
    plan = FaultPlan([fault], seed=seed)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        server_for(scenario.devices, seed=seed, faults=plan) as server,
    ):
        journal = str(Path(folder) / "jobs.db")

        def attempt() -> None:
            backends = [scenario.backend(d, journal, waits=waits) for d in scenario.devices]
            try:
                derive(backends, seed)
            finally:
                for backend in backends:
                    backend.close()

        try:
            Watched(attempt).result(deadline)
            report.problems.append("no error")
        except Hang as error:
            report.problems.append("hangs")
            report.detail = str(error)
        except kind as error:
            report.note = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
        except Exception as error:
            report.problems.append(
                f"{type(error).__name__} instead of {kind.__name__}: {str(error)[:300]}"
            )
        report.seconds = time.monotonic() - began
        report.figures = {"faults": len(server.faults_injected), "jobs": len(server.jobs)}
        _look(report, name, server, journal)
    return report


def _look(report: Report, name: str, server: RehearsalServer, journal: str) -> None:
    let_settle(server)
    left = [job for job in server.jobs if not job.is_final]
    if left and name != "dropped connections":  # which nobody could have cancelled
        report.problems.append(f"{len(left)} jobs left running")
    report.problems += [f"jobs {a.id}, {b.id} have the same rows" for a, b in server.duplicates()]
    if name in ("stuck jobs", "failing jobs", "cancelled jobs", "jobs that are too long"):
        report.problems += problems_of_journal(journal, server)
