"""Trainings whose driver is killed (SIGKILL) at random moments, and started again until they end.

::

    undisturbed: driver --------------------------------> weights, jobs --+
    killed:      driver ---X  driver --X  driver -------> weights, jobs --+--> equal?
                 server ------------------------------->
"""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import qiskit_ibm_runtime  # noqa: F401  (what takes longest to import, and is forked with it)
import torch

from chaos_runs.harness import Report, fork_server, redirect_output
from chaos_runs.processes import actors, descendants, send, wait_until_gone
from chaos_runs.scenario import (
    SIZE,
    Scenario,
    completed,
    contents,
    draw,
    examine,
)
from chaos_runs.training import train
from qailab.backends import Budget
from qailab.rehearsal import JobRecord, RehearsalServer

_STEPS = 10
_MOST_KILLS, _MOST_KILLS_OF_POOL = 4, 2
_LONGEST = 120.0  # seconds of a driver, on a machine with other work
_GONE_SECONDS = 15.0


@dataclass(frozen=True)
class Driver:
    """A training in a process of its own."""

    scenario: Scenario
    steps: int
    folder: Path  # of the journal, checkpoints and the weights
    checkpoints: bool  # whether there are some
    jobs: int | None = None  # the budget

    @property
    def weights(self) -> Path:
        """The file of the weights; it is there when the training has ended."""
        return self.folder / "weights.pt"

    def main(self, environment: dict[str, str]) -> None:
        """Train, or go on where the last one was killed."""
        os.environ |= environment
        redirect_output(self.folder.parent / "log.txt")
        torch.set_num_threads(1)
        checkpoint = self.folder / "checkpoint.pt" if self.checkpoints else None
        options = {"seed": self.scenario.seed, "steps": self.steps, "checkpoint": checkpoint}
        budget = None if self.jobs is None else Budget(jobs=self.jobs)
        with self.scenario.places(self.folder, timeout=60.0, budget=budget) as places:
            training = train(places[0], SIZE, **options)
        torch.save(training.weights, f"{self.weights}.new")
        os.replace(f"{self.weights}.new", self.weights)

    def run(self, seconds: float, environment: dict[str, str]) -> tuple[bool, float, list[str]]:
        """Start it; kill it after a time.

        Returns:
            Whether it had to be killed, how long it ran, and problems.
        """
        process = fork_server().Process(target=self.main, args=(environment,))
        process.start()
        began = time.monotonic()
        process.join(seconds)
        took = time.monotonic() - began
        if process.exitcode is not None:
            return False, took, [] if self.weights.exists() else ["a driver failed"]
        assert process.pid is not None
        started, its_actors = descendants(process.pid), actors(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.join(_GONE_SECONDS)
        left = wait_until_gone(its_actors, _GONE_SECONDS)
        for each in started:  # Ray's agents would take minutes to notice
            send(each, signal.SIGKILL)
        return True, took, [f"{len(left)} actors outlived the driver"] * bool(left)


def run(report: Report, folder: Path, options: dict[str, Any]) -> None:
    """Run a training undisturbed, and once more with kills."""
    chance = random.Random(f"kills {report.seed}")
    every = options["pool_every"]
    in_pool = bool(every) and report.seed % every == every - 1
    drawn = draw(report.seed, "pool" if in_pool else "process")
    devices = drawn.devices if in_pool else drawn.devices[:1]
    scenario = replace(drawn, devices=devices, journal=True, queue_seconds=0.05, faults=())
    calm = Driver(scenario, options["steps"] or _STEPS, folder / "calm", chance.random() < 0.5)
    report.what = f"{scenario}, {'' if calm.checkpoints else 'no '}checkpoints"
    calm.folder.mkdir()
    with scenario.server() as server:
        _, usual, problems = calm.run(_LONGEST, server.environment)
        expected = contents(server.jobs)
    if problems or not calm.weights.exists():
        raise RuntimeError("the undisturbed training did not end")
    # No job may count twice, or the budget will not do.
    killed = replace(calm, folder=folder / "killed", jobs=None if in_pool else len(expected))
    killed.folder.mkdir()
    with scenario.server() as server:
        moments = _run_until_done(report, killed, server, chance, usual)
        examine(report, server, journal=scenario.journal_in(killed.folder), closed=False)
        if not in_pool:  # where two devices take what comes, not bit for bit
            report.problems += _differences(server.jobs, expected, killed, calm)
    report.figures |= {"kills": len(moments), "undisturbed": len(expected)}
    report.note = f"killed after {', '.join(f'{at:.2f}' for at in moments)} s of {usual:.2f} s"


def _run_until_done(
    report: Report, driver: Driver, server: RehearsalServer, chance: random.Random, usual: float
) -> list[float]:
    """Kill a driver and start it again, until the training ends; when it was killed."""
    moments: list[float] = []
    most = _MOST_KILLS if driver.jobs is not None else _MOST_KILLS_OF_POOL
    while len(moments) <= most:
        last = len(moments) == most
        seconds = _LONGEST if last else chance.uniform(0.0, usual)
        died, took, problems = driver.run(seconds, server.environment)
        report.problems += problems
        if not died:
            return moments
        moments.append(took)
    report.problems.append(f"hangs: nothing after {took:.0f} s")
    return moments[:-1]


def _differences(
    jobs: list[JobRecord], expected: set[str], killed: Driver, calm: Driver
) -> list[str]:
    """What differs between a killed training and the undisturbed one, in words."""
    found = []
    done = completed(jobs)
    if contents(jobs) != expected or len(done) != len(expected):
        found.append(f"{len(done)} jobs completed, {len(expected)} in the undisturbed run")
    if len(jobs) > len(done):
        found.append(f"{len(jobs) - len(done)} jobs were for nothing")
    if killed.weights.exists():
        mine, theirs = (torch.load(driver.weights) for driver in (killed, calm))
        found += ["weights differ"] * (not all(map(torch.equal, mine, theirs)))
    return found
