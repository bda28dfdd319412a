"""What jobs cost: reserved before they are sent, settled when they have ended."""

from __future__ import annotations

import threading

from qailab.backends.base import Usage
from qailab.backends.budget import Ledger, Reservation
from qailab.backends.cost import Cost, UsageEstimate
from qailab.journal import Entry


class Spending:
    """Keeps account of this process's jobs, and to the budget that it shares with others.

    Args:
        ledger: the budget's; None if there is none.
        most_seconds: QPU seconds that the service allows a job, if the options say.
    """

    def __init__(self, ledger: Ledger | None, most_seconds: float | None) -> None:
        self._ledger = ledger
        self._most_seconds = most_seconds
        self._estimate = UsageEstimate()
        self._lock = threading.Lock()
        self._jobs = 0
        self._seconds = 0.0
        self._reserved: dict[str, Reservation] = {}
        self._own: set[int] = set()

    @property
    def usage(self) -> Usage:
        """What this process has used."""
        with self._lock:
            return Usage(self._jobs, self._seconds)

    def reserve(self, entry: Entry, stop: threading.Event) -> None:
        """Reserve what a job will cost, before it is sent.

        Raises:
            BudgetExceededError: if it would pass the budget.
            CancelledError: if it was stopped while it waited for other jobs to be settled.
        """
        with self._lock:
            self._own.add(entry.id)
        if self._ledger is None:
            return
        seconds = self._estimate.seconds(entry.num_rows * entry.shots)
        if self._most_seconds is not None:
            seconds = min(seconds, self._most_seconds)
        reservation = self._ledger.reserve(
            _cost(entry, seconds),
            what=(
                f"{entry.purpose} of step {entry.step}: {entry.num_rows:,} rows of "
                f"{entry.shots:,} shots"
            ),
            key=entry.tag,
            bound=self._most_seconds,
            stop=stop,
        )
        with self._lock:
            self._reserved[entry.tag] = reservation

    def release(self, entry: Entry) -> None:
        """Give back what was reserved for a job that was never sent."""
        with self._lock:
            reservation = self._reserved.pop(entry.tag, None)
        if self._ledger is not None:  # it may be that of a process that is gone
            cost = _cost(entry, 0.0)
            named = reservation or Reservation(entry.tag, cost, 0.0, "", entry.owner, 0.0)
            self._ledger.release(named)

    def sent(self) -> None:
        """Count a job."""
        with self._lock:
            self._jobs += 1

    def seen(self, entry: Entry) -> None:
        """Settle what a job did cost that has ended, here or in another process, now or before."""
        executions = entry.num_rows * entry.shots
        seconds = entry.usage_seconds
        with self._lock:
            own = entry.id in self._own
            self._own.discard(entry.id)
            reservation = self._reserved.pop(entry.tag, None)
            if own:
                self._seconds += seconds or 0.0
        if own and seconds and entry.state == "done":
            self._estimate.learn(seconds, executions)
        if self._ledger is None or entry.job_id is None:
            return
        if seconds is None:  # not known yet: what was reserved for it is held to be spent
            seconds = self._estimate.seconds(executions)
            if reservation is not None:
                seconds = reservation.cost.qpu_seconds
        cost = _cost(entry, seconds)
        named = reservation or Reservation(entry.tag, cost, seconds, "", entry.owner, 0.0)
        self._ledger.settle(named, cost)


def _cost(entry: Entry, seconds: float) -> Cost:
    return Cost(
        jobs=1, rows=entry.num_rows, shots=entry.num_rows * entry.shots, qpu_seconds=seconds
    )
