"""What jobs use: reserved before they are sent, settled when they have ended."""

from __future__ import annotations

import threading

from qailab.backends.answers import NOTHING_USED, Usage
from qailab.backends.budget import BudgetGuard, Cost, UsageEstimate
from qailab.journal import Entry, State


class UsageMeter:
    """Counts what this process's jobs use, and keeps them to a budget, if there is a guard of one.

    ``max_seconds`` are the QPU seconds that the service allows a job, if the options say.
    """

    def __init__(self, guard: BudgetGuard | None, max_seconds: float | None) -> None:
        self._guard = guard
        self._max_seconds = max_seconds
        self._estimate = UsageEstimate()
        self._lock = threading.Lock()
        self._reserved: dict[str, float] = {}  # seconds of this process's jobs in flight
        self._unreported = NOTHING_USED

    def take(self) -> Usage:
        """What was used since the last call."""
        with self._lock:
            used, self._unreported = self._unreported, NOTHING_USED
        return used

    def reserve(self, entry: Entry, stop: threading.Event) -> None:
        """Reserve what a job will cost, before it is sent; see `BudgetGuard.reserve`."""
        cost = self._expected(entry)
        if self._guard is not None:
            bound = self._max_seconds
            self._guard.reserve(entry.tag, cost, what=_what(entry), bound=bound, stop=stop)
        with self._lock:
            self._reserved[entry.tag] = cost.qpu_seconds

    def adopt(self, entry: Entry) -> None:
        """Count a job that another process sent."""
        if self._guard is not None and entry.tag not in self._reserved:
            self._guard.adopt(entry.tag, self._expected(entry), what=_what(entry))

    def release(self, entry: Entry) -> None:
        """Give back what was reserved for a job that was never sent."""
        with self._lock:
            self._reserved.pop(entry.tag, None)
        if self._guard is not None:
            self._guard.settle(entry.tag, Cost())

    def sent(self) -> None:
        """Count a job."""
        with self._lock:
            self._unreported += Usage(jobs=1)

    def settle(self, entry: Entry) -> None:
        """Take in what a job did cost that has ended, here or in another process."""
        seconds = entry.usage_seconds
        with self._lock:
            expected = self._reserved.pop(entry.tag, None)
            if expected is not None:
                self._unreported += Usage(qpu_seconds=seconds or 0.0)
        if expected is not None and seconds and entry.state is State.DONE:
            self._estimate.learn(seconds, entry.executions)
        if self._guard is not None and entry.job_id is not None:
            if seconds is None:  # not known yet: what was reserved for it counts as spent
                seconds = self._estimate.seconds(entry.executions) if expected is None else expected
            self._guard.settle(entry.tag, _cost(entry, seconds))

    def _expected(self, entry: Entry) -> Cost:
        seconds = self._estimate.seconds(entry.executions)
        return _cost(entry, min(seconds, self._max_seconds or seconds))


def _cost(entry: Entry, seconds: float) -> Cost:
    return Cost(1, entry.work.num_rows, entry.executions, seconds)


def _what(entry: Entry) -> str:
    work = entry.work
    return f"{work.purpose} of step {work.step}: {work.num_rows:,} rows of {work.shots:,} shots"
