"""What a seed asks for: device, mode, sampler, limits, journal, and which faults happen when."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

from qailab.backends import IBMBackend, IBMLimits, IBMWaits
from qailab.rehearsal import Fault, FaultPlan

Where = Literal["process", "pool", "killed actor"]

SHOTS = 128
WAITS = IBMWaits(
    request_seconds=0.8,  # some of the hangs are longer
    settle_seconds=1.0,
    patience_seconds=12.0,
    first_poll_seconds=0.01,
    job_failures=8,  # a schedule may end as many jobs as it has faults
)
JOB_SECONDS = 2.5
"""A job's time-out: beyond it one is stuck. An ordinary one takes a tenth of a second."""

_DEVICES = ("ibmq_manila", "ibm_lagos")
_ROWS_PER_JOB = (None, 48, 30, 16)  # of 72 rows: one job, or up to five
_ELSEWHERE = (
    "POST /identity/token",
    "GET /instances/usage",
    "GET /backends",
    "GET /backends/ID/configuration",
    "GET /backends/ID/properties",
    "GET /backends/ID/status",
    "GET /sessions/ID",
    "PATCH /sessions/ID",
    "GET /jobs/ID/metrics",
    "POST /jobs/ID/cancel",
)


@dataclass(frozen=True)
class Scenario:
    """A run.

    Args:
        seed: names it.
        devices: names of the devices.
        where: in this process, or in the actors of a pool.
        mode: of the backends.
        sampler: of the backends.
        plan: of the account.
        rows_per_job: most rows of a job; None for all.
        journal: whether there is one.
        queue_seconds: time in the queue.
        faults: what goes wrong.
    """

    seed: int
    devices: tuple[str, ...]
    where: Where
    mode: Literal["session", "batch", "job"]
    sampler: Literal["client", "server"]
    plan: str
    rows_per_job: int | None
    journal: bool
    queue_seconds: float
    faults: tuple[Fault, ...]

    def backend(self, device: str, journal: str | None, **options: Any) -> IBMBackend:
        """A backend as the scenario has it."""
        limits = IBMLimits(pending_jobs=3)
        if self.rows_per_job is not None:
            limits = IBMLimits(pending_jobs=3, executions_per_job=self.rows_per_job * SHOTS)
        given = {
            "mode": self.mode,
            "max_time": "5m",
            "sampler": self.sampler,
            "limits": limits,
            "waits": WAITS,
            "poll_interval": 0.1,
            "timeout": JOB_SECONDS,
            "journal": journal,
        }
        return IBMBackend(device, **given | options)

    def plan_of_faults(self) -> FaultPlan:
        """A fresh plan: they count what they have hit."""
        return FaultPlan(self.faults, seed=self.seed)

    def __str__(self) -> str:
        rows = "all" if self.rows_per_job is None else str(self.rows_per_job)
        faults = ", ".join(
            f"{fault.label} {fault.where}" if fault.where != "POST /jobs" else fault.label
            for fault in self.faults
        )
        return (
            f"{'+'.join(self.devices)} {self.where} {self.mode} {self.sampler} {self.plan} "
            f"{rows} rows a job, {'journal' if self.journal else 'no journal'}: {faults}"
        )


def draw(seed: int, where: Where = "process") -> Scenario:
    """The scenario of a seed; faults that a program should survive.

    Args:
        seed: the same seed gives the same scenario.
        where: where it runs; a pool has two devices.
    """
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
        sampler=chance.choice(("client", "server")),
        plan=chance.choice(("premium", "premium", "premium", "open")),
        rows_per_job=chance.choice(_ROWS_PER_JOB),
        journal=chance.random() < 0.5,
        queue_seconds=chance.choice((0.0, 0.0, 0.1)),
        faults=faults + _more(chance),
    )


def _more(chance: random.Random) -> tuple[Fault, ...]:
    """Faults that `FaultPlan.random` leaves out: of the other requests, and jobs too long."""
    more = []
    if chance.random() < 0.15:
        more.append(Fault("job-too-long", after=chance.randrange(3)))
    for _ in range(chance.choice((0, 0, 1, 2))):
        kind = chance.choice(("http", "http", "drop", "answer-lost"))
        own = {"status": chance.choice((429, 500, 502, 503))} if kind == "http" else {}
        where = chance.choice(_ELSEWHERE)
        more.append(
            Fault(kind, where, after=chance.randrange(3), times=chance.choice((1, 2)), **own)
        )
    return tuple(more)
