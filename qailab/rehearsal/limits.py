"""What IBM Quantum allows and charges, as numbers with their sources.

None of it was measured on hardware; every number can be replaced.
"""

from __future__ import annotations

from dataclasses import dataclass

from qailab.errors import InputError

PLANS = ("open", "premium", "flex", "pay-as-you-go")
"""Plans by the names that ``GET /catalog`` answers, in lower case."""

PRICE_PER_SECOND = 1.60
"""US dollars for a second of a QPU on the pay-as-you-go plan, 96 USD a minute
(https://www.ibm.com/quantum/pricing, 2025); other plans are cheaper, the open one is free."""

JOB_OVERHEAD_SECONDS = 2.0
"""Seconds a QPU is held for a job besides its executions: "an overhead for each sub-job, about two
seconds" (IBM Quantum documentation, workload usage, 2024)."""

REP_DELAY_SECONDS = 250e-6
"""Delay between executions where a device states none; the default of almost all of them
(``default_rep_delay`` of their configurations)."""

OPEN_PLAN_PENDING_JOBS = 3
"""Queued and running jobs of the open plan, over all devices; one more is refused with code 3458
(IBM Quantum documentation, instances)."""

OPEN_PLAN_SECONDS = 600
"""QPU seconds of the open plan in 28 days (IBM Quantum documentation, plans)."""


@dataclass(frozen=True)
class Limits:
    """What the server refuses, and when it closes what is not used.

    Args:
        executions: most executions (rows times shots) of a job: 10 million (IBM Quantum
            documentation, job limits; 5 million in older ones).
        pending_jobs: most queued and running jobs, or ``None`` for what the plan allows.
        job_seconds: most QPU seconds of a job: 3 hours (maximum execution time).
        session_seconds: most seconds a session may ask for, and has if it asks for none: 8 hours
            (maximum execution time, paid plans).
        interactive_seconds: a session without jobs for so long becomes inactive: its next job
            waits in the queue again. One minute (run jobs in a session).
        batch_interactive_seconds: the same for a batch: one second (``interactive_ttl`` of one).
        idle_seconds: a session without jobs for so long is closed: 30 minutes (run jobs in a
            session).
        token_seconds: lifetime of an access token: one hour (IBM Cloud IAM).

    Raises:
        InputError: if a limit is not positive.
    """

    executions: int = 10_000_000
    pending_jobs: int | None = None
    job_seconds: float = 3 * 3600.0
    session_seconds: float = 8 * 3600.0
    interactive_seconds: float = 60.0
    batch_interactive_seconds: float = 1.0
    idle_seconds: float = 1800.0
    token_seconds: float = 3600.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise InputError(f"limit {name} must be positive, got {value!r}")

    def pending_jobs_of(self, plan: str) -> int | None:
        """Most queued and running jobs under a plan, ``None`` for no limit."""
        if self.pending_jobs is None and plan == "open":
            return OPEN_PLAN_PENDING_JOBS
        return self.pending_jobs


def qpu_seconds(executions: int, rep_delay: float) -> float:
    """Seconds a QPU is held for a job.

    The time of a circuit itself (microseconds) is left out: it is small beside the delay between
    executions.

    Args:
        executions: rows times shots.
        rep_delay: seconds between the starts of two executions.
    """
    return JOB_OVERHEAD_SECONDS + executions * rep_delay
