"""Jobs that arrive at the server long after they were sent, when nobody waits for them any more.

Within ``request_seconds + settle_seconds`` they must be found, and not be sent again. Nobody can
exclude that one arrives after that; then it must be cancelled before it runs, or be reported.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import tempfile
import time
import traceback
from pathlib import Path

from hardware_runs.inspection import completed, problems_of_journal
from hardware_runs.place import let_settle, server_for
from hardware_runs.proxy import LateProxy
from hardware_runs.report import Report
from hardware_runs.scenario import WAITS, Scenario, draw
from hardware_runs.watch import Hang, Watched
from hardware_runs.workload import derive, rows_asked

_QUEUE_SECONDS = 1.5  # so that what comes too late meets the job that was sent instead of it


def run(seed: int, deadline: float) -> Report:
    """Run a seed: odd ones are too late; errors are in the report."""
    chance = random.Random(f"late {seed}")
    patient = WAITS.request_seconds + WAITS.settle_seconds
    too_late = bool(seed % 2)
    seconds = chance.uniform(0.4, 0.85) * patient
    if too_late:
        seconds = patient + chance.uniform(0.7, 1.2)
    scenario = dataclasses.replace(
        draw(seed),
        devices=("ibm_lagos",),
        mode="job",
        plan="premium",
        faults=(),
        rows_per_job=None,
    )
    what = f"{scenario.sampler}, {'journal' if scenario.journal else 'no journal'}: a job arrives"
    report = Report("late", seed, f"{what} {seconds:.2f} s late")
    reported = _Reported()
    logging.getLogger("qailab").addHandler(reported)
    began = time.monotonic()
    try:
        _run(scenario, chance.randrange(2), seconds, deadline, report)
    except Hang as error:
        report.problems.append("hangs")
        report.detail = str(error)
    except Exception as error:
        report.problems.append(f"{type(error).__name__}: {str(error)[:300]}")
        report.detail = traceback.format_exc()
    finally:
        logging.getLogger("qailab").removeHandler(reported)
    doubles = report.figures.get("duplicates", 0)
    if doubles and not (too_late and reported.texts):
        report.problems.append(f"{doubles:g} rows were paid for twice, and nobody says so")
    report.figures["reported"] = len(reported.texts)
    report.seconds = time.monotonic() - began
    return report


def _run(scenario: Scenario, late: int, seconds: float, deadline: float, report: Report) -> None:
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        server_for(scenario.devices, seed=scenario.seed, queue_seconds=_QUEUE_SECONDS) as server,
    ):
        proxy = LateProxy(server.url, late, seconds)
        journal = str(Path(folder) / "jobs.db") if scenario.journal else None
        try:
            os.environ |= {
                name: value.replace(server.url, proxy.url)
                for name, value in server.environment.items()
            }
            backend = scenario.backend("ibm_lagos", journal, timeout=20.0)
            try:
                Watched(lambda: derive([backend], scenario.seed)).result(deadline)
            finally:
                backend.close()
            let_settle(server)
        finally:
            proxy.close()
        jobs = server.jobs
        report.figures = {
            "jobs": len(jobs),
            "completed": len(completed(jobs)),
            "delayed": proxy.delayed,
            "duplicates": len(server.duplicates()),
        }
        if not server.duplicates() and sum(job.rows for job in completed(jobs)) != rows_asked():
            report.problems.append("not every row was answered once")
        if journal is not None and not server.duplicates():
            report.problems += problems_of_journal(journal, server)


class _Reported(logging.Handler):
    """Keeps what is said of jobs that were sent twice."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "both were paid for" in text or "although its answer was lost" in text:
            self.texts.append(text)
