"""Trainings whose driver is killed (SIGKILL) at random moments, and started again until they end.

::

    undisturbed: driver --------------------------------> weights, jobs --+
    killed:      driver ---X  driver --X  driver -------> weights, jobs --+--> equal?
                 server ------------------------------->
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import tempfile
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch
from chaos_runs.processes import Process, descendants, wait_until_gone

from hardware_runs.driver import Order, main
from hardware_runs.faults import ACTOR_TITLE
from hardware_runs.inspection import completed, contents, problems_of_journal
from hardware_runs.place import let_settle, server_for
from hardware_runs.report import Report
from hardware_runs.scenario import Scenario, draw
from qailab.rehearsal import RehearsalServer

_GONE_SECONDS = 15.0


class Drivers:
    """Starts drivers, from a process that has all that they import.

    Attributes:
        left: actors of the driver that was killed last, which did not end with it.
    """

    def __init__(self) -> None:
        self.left: list[Process] = []
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["hardware_runs.driver"])

    def run(self, order: Order, seconds: float) -> tuple[bool, float]:
        """Start a driver; kill it after a time.

        Returns:
            Whether it had to be killed, and how long it ran.
        """
        process = self._context.Process(target=main, args=(order,), daemon=False)
        process.start()
        began = time.monotonic()
        process.join(seconds)
        took = time.monotonic() - began
        if process.exitcode is not None:
            return False, took
        assert process.pid is not None
        started = descendants(process.pid)  # of Ray
        actors = [each for each in started if each.title.startswith(ACTOR_TITLE)]
        os.kill(process.pid, signal.SIGKILL)
        process.join(_GONE_SECONDS)
        self.left = wait_until_gone(actors, _GONE_SECONDS)
        for each in started:  # Ray's agents would take minutes to notice
            each.send(signal.SIGKILL)
        return True, took


def scenario_of(seed: int, ray: bool) -> Scenario:
    """Of what a training is: no faults but kills."""
    drawn = draw(seed)
    return dataclasses.replace(
        drawn,
        devices=("ibmq_manila", "ibm_lagos") if ray else drawn.devices[:1],
        where="pool" if ray else "process",
        journal=True,
        queue_seconds=0.05,
        faults=(),
    )


def run(
    seed: int,
    drivers: Drivers,
    deadline: float,
    *,
    most: int,
    ray: bool = False,
    steps: int = 10,
) -> Report:
    """Run a training undisturbed, and once more with kills; errors are in the report.

    Args:
        seed: of the training and the moments.
        drivers: starts the drivers.
        deadline: seconds that a driver may run.
        most: how often to kill.
        ray: whether the backends are in the actors of a pool.
        steps: optimizer steps.
    """
    chance = random.Random(f"kills {seed}")
    scenario, checkpoints = scenario_of(seed, ray), chance.random() < 0.5
    what = f"{scenario} {'checkpoints' if checkpoints else 'no checkpoints'}"
    report = Report("kills", seed, what.replace(":", ""))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        calm, killed = (Path(folder) / name for name in ("calm", "killed"))
        order = Order(scenario, steps, calm, checkpoints, {})
        with _server(order) as server:
            there = dataclasses.replace(order, environment=server.environment)
            timed_out, usual = drivers.run(there, deadline)
            expected = contents(server.jobs)
        if timed_out or not there.weights.exists():
            report.problems.append("the undisturbed training did not end")
            report.detail = _log(calm)
            return report
        again = dataclasses.replace(order, folder=killed)
        with _server(again) as server:
            # No job may count twice, or the budget will not do.
            jobs = None if ray else len(expected)
            again = dataclasses.replace(again, environment=server.environment, jobs=jobs)
            moments = _killed(again, drivers, deadline, chance, usual, most, report)
            let_settle(server)
            _compare(report, server, again, there, expected, exact=not ray)
        report.figures = {"kills": len(moments), **report.figures}
        report.note = "killed after " + (", ".join(f"{at:.2f}" for at in moments) or "-")
        report.note += f" s (undisturbed {usual:.2f} s)"
        if report.problems and not report.detail:
            report.detail = _log(killed)
    report.seconds = time.monotonic() - began
    return report


def _server(order: Order) -> object:
    order.folder.mkdir()
    scenario = order.scenario
    return server_for(
        scenario.devices,
        seed=scenario.seed,
        plan=scenario.plan,
        queue_seconds=scenario.queue_seconds,
    )


def _killed(
    order: Order,
    drivers: Drivers,
    deadline: float,
    chance: random.Random,
    usual: float,
    most: int,
    report: Report,
) -> list[float]:
    """Kill and start again, until the training ends."""
    moments: list[float] = []
    while True:
        last = len(moments) >= most
        seconds = deadline if last else chance.uniform(0.0, usual)
        killed, took = drivers.run(order, seconds)
        if killed and drivers.left:
            report.problems.append(f"{len(drivers.left)} actors outlived the driver")
        if not killed:
            if not order.weights.exists():
                report.problems.append("a driver failed")
            return moments
        if last:
            report.problems.append(f"hangs: nothing after {took:.0f} s")
            return moments
        moments.append(took)


def _compare(
    report: Report,
    server: RehearsalServer,
    killed: Order,
    calm: Order,
    expected: set[str],
    *,
    exact: bool,
) -> None:
    """Compare a killed training with the undisturbed one.

    Args:
        report: where problems go.
        server: that of the killed one.
        killed: the killed one.
        calm: the undisturbed one.
        expected: what the jobs of the undisturbed one were about.
        exact: whether all must be the same bits: not where two devices take what comes.
    """
    jobs = server.jobs
    done = completed(jobs)
    report.figures = {
        "jobs": len(jobs),
        "distinct": len({job.content for job in jobs}),
        "undisturbed": len(expected),
        "duplicates": len(server.duplicates()),
    }
    found = [f"jobs {a.id}, {b.id} have the same rows" for a, b in server.duplicates()]
    if report.problems:
        report.problems += found
        return
    report.problems += found + problems_of_journal(str(killed.journal), server)
    if exact:
        if contents(jobs) != expected or len(done) != len(expected):
            text = f"{len(done)} jobs completed, {len(expected)} in the undisturbed run"
            report.problems.append(text)
        if len(jobs) > len(done):
            report.problems.append(f"{len(jobs) - len(done)} jobs were for nothing")
        mine, theirs = (torch.load(order.weights) for order in (killed, calm))
        if not all(map(torch.equal, mine, theirs)):
            report.problems.append("weights differ")


def _log(folder: Path) -> str:
    path = folder / "driver.log"
    return path.read_text(errors="replace")[-6000:] if path.exists() else "no log"
