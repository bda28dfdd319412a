"""What jobs on hardware cost, and an estimate of it that learns from what they did cost."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from qailab.arguments import checked_integer
from qailab.errors import InputError
from qailab.journal.report import PRICE_PER_SECOND as PRICE_PER_SECOND

UNITS = {
    "jobs": "jobs",
    "rows": "rows",
    "shots": "executions (rows x shots)",
    "qpu_seconds": "QPU seconds",
}
"""What is counted, in words."""

JOB_SECONDS = 2.0
"""QPU seconds a job takes whatever is in it. See `UsageEstimate`."""

EXECUTION_SECONDS = 350e-6
"""QPU seconds of one execution: the devices' default repetition delay of 250 us, and about 100 us
for the circuit, its readout and the reset. See `UsageEstimate`."""

OPEN_PLAN_SECONDS = 600
"""QPU seconds of the open plan in 28 days (IBM Quantum documentation, plans)."""

_REMEMBERED = 32  # jobs: enough for a median, few enough to follow a device that changes
_ALIKE = 4.0  # jobs of up to so many times the executions tell most about one another


@dataclass(frozen=True)
class Cost:
    """What jobs cost, or are expected to.

    Args:
        jobs: how many jobs.
        rows: rows in all of them.
        shots: executions: rows times shots.
        qpu_seconds: seconds a device is busy with them.

    Raises:
        InputError: if one is negative or not finite, which would spoil every later sum.

    >>> Cost(jobs=1, rows=4, shots=400) + Cost(jobs=1, rows=2, shots=200, qpu_seconds=2.5)
    Cost(jobs=2, rows=6, shots=600, qpu_seconds=2.5)
    >>> Cost(jobs=1, rows=4, shots=400) * 10
    Cost(jobs=10, rows=40, shots=4000, qpu_seconds=0.0)
    """

    jobs: int = 0
    rows: int = 0
    shots: int = 0
    qpu_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("jobs", "rows", "shots"):  # numpy's integers become Python's
            number = checked_integer(f"a cost's {name}", getattr(self, name), least=0)
            object.__setattr__(self, name, number)
        if not 0 <= self.qpu_seconds < math.inf:
            raise InputError(f"a cost's qpu_seconds must be at least 0 and finite, got {self!r}")
        object.__setattr__(self, "qpu_seconds", float(self.qpu_seconds))

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in UNITS))

    def __mul__(self, times: int) -> Cost:
        return Cost(*(getattr(self, name) * times for name in UNITS))


def price_in_words(qpu_seconds: float) -> str:
    """QPU seconds in hours, dollars and the share of the open plan.

    >>> price_in_words(1149.0)
    "0.32 hours, 1,838 dollars, 192% of the open plan's 600 s in 28 days"
    """
    dollars, share = qpu_seconds * PRICE_PER_SECOND, qpu_seconds / OPEN_PLAN_SECONDS
    plan = f"{share:,.0%} of the open plan's {OPEN_PLAN_SECONDS} s in 28 days"
    return f"{qpu_seconds / 3600:,.2f} hours, {dollars:,.0f} dollars, {plan}"


class UsageEstimate:
    """How many QPU seconds jobs will take, at first by rule of thumb, then by what others took.

    The rule is ``jobs * JOB_SECONDS + executions * EXECUTION_SECONDS``; it is scaled by how much
    longer than that measured jobs took: the median over the last jobs of about the same size, or
    of any size if there were none. So one job that was held up does not spoil it, and short jobs,
    whose usage is rounded to seconds, say nothing about long ones.

    References:
        IBM Quantum documentation, Workload usage: "2 + 0.00035 * <num executions>",
        https://quantum.cloud.ibm.com/docs/guides/estimate-job-run-time. The repetition delay of
        250 us is ``default_rep_delay`` of 51 of the 68 configurations that IBM's client packages.

    >>> estimate = UsageEstimate()
    >>> estimate.seconds(1_000_000)
    352.0
    >>> estimate.learn(704.0, 1_000_000)
    >>> estimate.seconds(500_000)
    354.0
    """

    def __init__(self) -> None:
        self._measured: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)

    def seconds(self, executions: int, jobs: int = 1) -> float:
        """QPU seconds that ``jobs`` with so many executions in all of them will take."""
        return _by_rule(executions, jobs) * self._scale(executions / max(jobs, 1))

    def learn(self, seconds: float, executions: int) -> None:
        """Take in what a job took, in QPU seconds.

        Zero says that nothing was measured: devices report it until they have settled it.
        """
        if 0 < seconds < math.inf:
            self._measured.append((executions, seconds / _by_rule(executions, 1)))

    def _scale(self, size: float) -> float:
        measured = tuple(self._measured)  # other threads may be learning
        alike = [ratio for other, ratio in measured if size <= _ALIKE * other <= _ALIKE**2 * size]
        ratios = alike or [ratio for _, ratio in measured]
        return statistics.median(ratios) if ratios else 1.0


def _by_rule(executions: int, jobs: int) -> float:
    return jobs * JOB_SECONDS + executions * EXECUTION_SECONDS
