"""A gradient while faults hit, against the same one without.

::

    fresh server, no faults --> gradients --+
    fresh server, faults    --> gradients --+--> equal? each row once? journal = server?
"""

from __future__ import annotations

import signal
import tempfile
import threading
import time
import traceback
from pathlib import Path

from chaos_runs.processes import descendants

from hardware_runs.inspection import completed, contents, problems_at_server, problems_of_journal
from hardware_runs.place import let_settle, server_for
from hardware_runs.report import Report
from hardware_runs.scenario import Scenario
from hardware_runs.watch import Hang, Watched
from hardware_runs.workload import Derivative, derive, rows_asked
from qailab.rehearsal import RehearsalServer

_ERRORS = 6.0
"""Standard errors that two gradients may differ by: one of 10**8 does by chance."""
ACTOR_TITLE = "ray::LauncherActor"
_LONGEST_START = 60.0


class ActorKiller(threading.Thread):
    """Kills the process of an actor that has sent a job, a moment later.

    Args:
        server: where jobs are seen.
        seed: which actor, and when.

    Attributes:
        killed: how many it has killed.
    """

    def __init__(self, server: RehearsalServer, seed: int) -> None:
        super().__init__(name="killer", daemon=True)
        self.killed = 0
        self._server = server
        self._seed = seed

    def run(self) -> None:
        end = time.monotonic() + _LONGEST_START
        while not self._server.jobs and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.02 * (self._seed % 11))
        actors = [process for process in descendants() if process.title.startswith(ACTOR_TITLE)]
        if actors and actors[self._seed % len(actors)].send(signal.SIGKILL):
            self.killed += 1


def run(scenario: Scenario, deadline: float) -> Report:
    """Run a scenario; errors are in the report.

    Args:
        scenario: what to run.
        deadline: seconds it may take.
    """
    report = Report("faults", scenario.seed, str(scenario))
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            _run(scenario, Path(folder), deadline, report)
    except Hang as error:
        report.problems.append("hangs")
        report.detail = str(error)
    except Exception as error:
        report.problems.append(f"{type(error).__name__}: {str(error)[:300]}")
        report.detail = traceback.format_exc()
    report.seconds = time.monotonic() - began
    return report


def _run(scenario: Scenario, folder: Path, deadline: float, report: Report) -> None:
    devices, seed = scenario.devices, scenario.seed
    with server_for(devices, seed=seed) as calm:
        expected = Watched(lambda: _derive(scenario, folder / "calm.db")).result(deadline)
        calm_contents = contents(calm.jobs)
    options = {"plan": scenario.plan, "queue_seconds": scenario.queue_seconds}
    with server_for(devices, seed=seed, faults=scenario.plan_of_faults(), **options) as server:
        journal = folder / "faults.db"
        killer = ActorKiller(server, seed)
        found = Watched(lambda: _derive(scenario, journal, killer)).result(deadline)
        let_settle(server)
        # Nobody is left to close the session of an actor that was killed just before the end.
        closed = scenario.where != "killed actor"
        report.problems += problems_at_server(server, rows_asked(len(found)), closed=closed)
        if scenario.journal:
            report.problems += problems_of_journal(str(journal), server)
        same_jobs = contents(server.jobs) == calm_contents
        report.figures = _figures(server)
        if scenario.where == "killed actor":
            report.figures["actors killed"] = killer.killed
    for mine, theirs in zip(found, expected, strict=True):
        report.problems += _differences(mine, theirs, same_jobs)
    report.figures["bitwise"] = int(same_jobs)


def _derive(
    scenario: Scenario, journal: Path, killer: ActorKiller | None = None
) -> list[Derivative]:
    path = str(journal) if scenario.journal else None
    backends = [scenario.backend(device, path) for device in scenario.devices]
    if scenario.where == "process" or killer is None:  # without faults nobody needs a pool
        if scenario.where != "process":
            backends = backends[:1]
        try:
            return derive(backends, scenario.seed)
        finally:
            for backend in backends:
                backend.close()
    from qailab.distributed import LauncherPool

    with LauncherPool(backends, progress=False) as pool:
        if scenario.where == "killed actor":
            killer.start()
        return derive([pool], scenario.seed)


def _figures(server: RehearsalServer) -> dict[str, float]:
    jobs = server.jobs
    return {
        "faults": len(server.faults_injected),
        "requests": len(server.requests),
        "jobs": len(jobs),
        "completed": len(completed(jobs)),
        "rows": sum(job.rows for job in completed(jobs)),
        "duplicates": len(server.duplicates()),
    }


def _differences(found: Derivative, expected: Derivative, same_jobs: bool) -> list[str]:
    if same_jobs:
        return [] if found.same(expected) else ["the same jobs gave other gradients"]
    distance = found.distance(expected)
    return [] if distance < _ERRORS else [f"gradients differ by {distance:.1f} standard errors"]
