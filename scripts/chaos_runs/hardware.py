"""Gradients and trainings on a rehearsal server while requests, jobs and sessions fail."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from chaos_runs.harness import Logged, Report
from chaos_runs.processes import actors, send
from chaos_runs.scenario import (
    SIZE,
    TIMEOUTS,
    Scenario,
    Where,
    contents,
    draw,
    examine,
    settle,
)
from chaos_runs.training import SHOTS, Derivative, derive, train
from qailab.backends import Budget
from qailab.errors import BudgetExceededError
from qailab.rehearsal import Fault, JobRecord, RehearsalServer

_LONGEST_START = 60.0
_BUDGET_STEPS = 4


def run_faults(report: Report, folder: Path, options: dict[str, Any]) -> None:
    """A gradient while faults hit, against the same one without.

    ::

        fresh server, no faults --> gradients --+
        fresh server, faults    --> gradients --+--> equal? each row once? journal = server?
    """
    scenario = draw(report.seed, _where(report.seed, options["pool_every"]))
    report.what = str(scenario)
    alone = scenario  # without faults nobody needs a pool
    if scenario.where != "process":
        alone = replace(scenario, where="process", devices=scenario.devices[:1])
    with alone.server(calm=True) as calm:
        expected = _derive(alone, folder)
        calm_contents = contents(calm.jobs)
    faults = folder / "faults"
    faults.mkdir()
    with scenario.server() as server:
        # Nobody is left to close the session of an actor that was killed just before the end.
        closed = scenario.where != "killed actor"
        if not closed:
            threading.Thread(target=_kill_actor, args=(server, report), daemon=True).start()
        found = _derive(scenario, faults)
        rows, journal = SIZE.rows() * len(found), scenario.journal_in(faults)
        examine(report, server, rows=rows, journal=journal, closed=closed)
        same_jobs = contents(server.jobs) == calm_contents
    for mine, theirs in zip(found, expected, strict=True):
        report.problems += mine.problems(theirs, bitwise=same_jobs)
    report.figures["bitwise"] = int(same_jobs)


def _where(seed: int, pool_every: int) -> Where:
    if not pool_every or seed % pool_every != pool_every - 1:
        return "process"
    return "killed actor" if seed // pool_every % 3 == 2 else "pool"


def _derive(scenario: Scenario, folder: Path) -> list[Derivative]:
    with scenario.places(folder) as places:
        return derive(places, SIZE, scenario.seed)


def _kill_actor(server: RehearsalServer, report: Report) -> None:
    """Kill the process of an actor, a moment after the first job was sent."""
    end = time.monotonic() + _LONGEST_START
    while not server.jobs and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.02 * (report.seed % 11))
    found = actors()
    if found and send(found[report.seed % len(found)], signal.SIGKILL):
        report.figures["kills"] = 1


def run_late(report: Report, folder: Path, options: dict[str, Any]) -> None:
    """A job that arrives at the server when nobody waits for it any more.

    Within ``request_seconds + settle_seconds`` it must be found, and not be sent again. Nobody can
    exclude that one arrives after that (odd seeds); then it must be cancelled before it runs, or be
    reported.
    """
    chance = random.Random(f"late {report.seed}")
    patient, too_late = TIMEOUTS.request_seconds + TIMEOUTS.settle_seconds, bool(report.seed % 2)
    late = patient + chance.uniform(0.7, 1.2) if too_late else chance.uniform(0.4, 0.85) * patient
    scenario = replace(
        draw(report.seed), devices=("ibm_lagos",), mode="job", plan="premium", rows_per_job=None,
        faults=(Fault("late", seconds=late),),
        queue_seconds=1.5,  # what comes too late meets the job that was sent instead of it
    )  # fmt: skip
    report.what = f"a job arrives {late:.2f} s late, {'' if scenario.journal else 'no '}journal"
    warnings = Logged(logging.WARNING)
    with scenario.server() as server:
        with scenario.places(folder, timeout=20.0) as places:
            derive(places, SIZE, report.seed)
        settle(server)
        twice = {job.id for pair in server.duplicates() for job in pair}
        said = [text for text in warnings.texts if any(job in text for job in twice)]
        if too_late and said:
            report.note = said[0]
        else:
            examine(report, server, rows=SIZE.rows(), journal=scenario.journal_in(folder))


def run_budget(report: Report, folder: Path, options: dict[str, Any]) -> None:
    """A training with a budget: by the server's figures it is passed by one job at most."""
    chance = random.Random(f"budget {report.seed}")
    drawn = draw(report.seed)
    faults = tuple(fault for fault in drawn.faults if fault.kind != "job-stuck")
    scenario = replace(
        drawn, devices=drawn.devices[:1], rows_per_job=chance.choice((30, 16, 10)),
        queue_seconds=0.0, faults=faults if report.seed % 2 else (),
    )  # fmt: skip
    limits = _limits(chance)
    given = ", ".join(f"{limit:.6g} {name}" for name, limit in limits.items())
    report.what = f"{given}; {scenario}"
    with scenario.server() as server:
        with scenario.places(folder, budget=Budget(**limits)) as (backend,):
            try:
                train(backend, SIZE, seed=report.seed, steps=_BUDGET_STEPS)
            except BudgetExceededError as error:
                report.note = str(error).splitlines()[0]
        examine(report, server, journal=scenario.journal_in(folder))
        for name, limit in limits.items():
            spent = [_SPENT[name](job) for job in server.jobs]
            if sum(spent) > limit + max(spent, default=0) + 1e-6:
                report.problems.append(f"{sum(spent):g} {name} were spent of {limit:g}")


TRIALS: dict[str, Callable[[Report, Path, dict[str, Any]], None]] = {
    "faults": run_faults,
    "late": run_late,
    "budget": run_budget,
}

_SPENT: dict[str, Callable[[JobRecord], float]] = {
    "jobs": lambda job: 1,
    "rows": lambda job: job.rows,
    "shots": lambda job: job.executions,
    "qpu_seconds": lambda job: job.qpu_seconds,
}


def _limits(chance: random.Random) -> dict[str, float]:
    """Something between one job and all that the training takes."""
    share, rows = chance.uniform(0.05, 1.1), _BUDGET_STEPS * SIZE.rows()
    seconds = 3.0 + share * 80
    choices: tuple[dict[str, float], ...] = (
        {"jobs": max(1, round(share * 30))},
        {"rows": max(4, round(share * rows))},
        {"shots": max(4 * SHOTS, round(share * rows * SHOTS))},
        {"qpu_seconds": seconds},
        {"qpu_seconds": seconds, "jobs": max(1, round(share * 40))},
    )
    return chance.choice(choices)
