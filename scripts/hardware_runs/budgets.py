"""Trainings with a budget: by the server's figures it is passed by no more than one job."""

from __future__ import annotations

import dataclasses
import random
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from hardware_runs.inspection import problems_of_journal
from hardware_runs.place import let_settle, server_for
from hardware_runs.report import Report
from hardware_runs.scenario import SHOTS, Scenario, draw
from hardware_runs.watch import Hang, Watched
from hardware_runs.workload import rows_asked, train
from qailab.backends import Budget
from qailab.errors import BudgetExceededError
from qailab.rehearsal import RehearsalServer

STEPS = 4


def run(seed: int, deadline: float) -> Report:
    """Train on a random budget; errors are in the report.

    Args:
        seed: of the training, the budget and the faults.
        deadline: seconds it may take.
    """
    chance = random.Random(f"budget {seed}")
    drawn = draw(seed)
    faults = tuple(f for f in drawn.faults if f.kind != "job-stuck") if seed % 2 else ()
    scenario = dataclasses.replace(
        drawn, devices=drawn.devices[:1], rows_per_job=chance.choice((30, 16, 10)), faults=faults
    )
    budget = _budget(chance)
    report = Report("budget", seed, f"{budget}; {scenario}")
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        server_for(
            scenario.devices,
            seed=seed,
            faults=scenario.plan_of_faults(),
            plan=scenario.plan,
            realtime=False,
        ) as server,
    ):
        journal = str(Path(folder) / "jobs.db") if scenario.journal else None
        try:
            Watched(lambda: _train(scenario, journal, budget)).result(deadline)
            report.note = "it was enough"
        except BudgetExceededError as error:
            report.note = str(error).splitlines()[0]
        except Hang as error:
            report.problems.append("hangs")
            report.detail = str(error)
        except Exception as error:
            report.problems.append(f"{type(error).__name__}: {str(error)[:300]}")
            report.detail = traceback.format_exc()
        report.seconds = time.monotonic() - began
        let_settle(server)
        _compare(report, server, budget)
        if journal is not None:
            report.problems += problems_of_journal(journal, server)
    return report


def _budget(chance: random.Random) -> Budget:
    """Something between one job and all that the training takes."""
    rows = STEPS * rows_asked()
    share = chance.uniform(0.05, 1.1)
    given: dict[str, Any] = chance.choice(
        (
            {"jobs": max(1, round(share * 30))},
            {"rows": max(4, round(share * rows))},
            {"shots": max(4 * SHOTS, round(share * rows * SHOTS))},
            {"qpu_seconds": 3.0 + share * 80},
            {"qpu_seconds": 3.0 + share * 80},
            {"qpu_seconds": 3.0 + share * 80, "jobs": max(1, round(share * 40))},
        )
    )
    return Budget(**given)


def _train(scenario: Scenario, journal: str | None, budget: Budget) -> None:
    backend = scenario.backend(scenario.devices[0], journal, budget=budget)
    try:
        train(backend, seed=scenario.seed, steps=STEPS)
    finally:
        backend.close()


def _compare(report: Report, server: RehearsalServer, budget: Budget) -> None:
    """Compare what the server saw with what was allowed."""
    jobs = server.jobs
    spent = {
        "jobs": len(jobs),
        "rows": sum(job.rows for job in jobs),
        "shots": sum(job.executions for job in jobs),
        "qpu_seconds": sum(job.qpu_seconds for job in jobs),
    }
    largest = {
        "jobs": 1,
        "rows": max((job.rows for job in jobs), default=0),
        "shots": max((job.executions for job in jobs), default=0),
        "qpu_seconds": max((job.qpu_seconds for job in jobs), default=0.0),
    }
    for name, limit in budget.limits.items():
        if spent[name] > limit + largest[name] + 1e-6:
            report.problems.append(f"{spent[name]:g} {name} were spent of {limit:g}")
    over = max(spent[name] / limit for name, limit in budget.limits.items())
    report.figures = {"jobs": len(jobs), "faults": len(server.faults_injected)}
    report.figures["over"] = int(over > 1)
    report.note += f" ({100 * over:.0f}% spent)"
