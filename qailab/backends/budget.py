"""Budgets: what may be spent on hardware, and ledgers that keep to it together.

Whoever sends a job reserves its estimated cost first and settles the real cost when it ended. All
ledgers of a budget write to one `SharedLog`, so each decides on what all others have reserved.
Jobs, rows and executions are known beforehand and never pass their limits. QPU seconds are only
estimated; with ``s`` spent, ``e`` estimated and ``b`` an upper bound, a job is sent

    alone                   if  s + e          <= limit    (then it alone can pass the limit)
    beside jobs in flight   if  s + sum of all their b, and its own  <= limit,

else it waits until others are settled. So as long as at most one of the jobs in flight at a time
takes longer than its bound, the limit is passed by no more than that one job's real usage.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import socket
import threading
import time
import uuid
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from qailab.arguments import checked_integer
from qailab.backends.cost import UNITS, Cost, Reservation, UsageEstimate
from qailab.backends.shared_log import LocalLog, SharedLog
from qailab.errors import BudgetExceededError, InputError, InputTypeError, JournalError

__all__ = ["Budget", "Cost", "Ledger", "Reservation", "UsageEstimate"]

BOUND_FACTOR = 2.0
"""An upper bound of a job's seconds, in estimates; for a certain one, set the device's own limit
of a job's time (IBM: ``max_execution_time``) and pass it as the bound."""

MAX_WAIT_SECONDS = 24 * 3600.0
"""For jobs in flight to be settled: a busy device's queue takes hours; one that died, for ever."""

_PAUSES = (0.02, 2.0)  # between two looks at the log, at first and at most, in seconds
_ROUNDING = 1e-9  # of a limit: sums of seconds that are equal on paper differ by less


@dataclass(frozen=True, kw_only=True, eq=False)
class Budget:
    """Limits to what may be spent. Backends that are given the same one share it.

    Args:
        qpu_seconds: seconds that devices may be busy.
        jobs: jobs that may be sent.
        shots: executions that may run, that is, rows times shots.
        rows: rows that may run.

    Attributes:
        id: names its log. Copies, in other processes too, have the same id and are equal.

    Raises:
        InputError: if there is no limit, or one is not positive.

    >>> Budget(qpu_seconds=600, jobs=50)
    Budget(qpu_seconds=600.0, jobs=50)
    """

    qpu_seconds: float | None = None
    jobs: int | None = None
    shots: int | None = None
    rows: int | None = None
    id: str = field(init=False, default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        hint = " (nothing can run on a budget of zero; leave it out for no limit)"
        for name in ("jobs", "shots", "rows"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, checked_integer(name, value, hint=hint))
        if (seconds := self.qpu_seconds) is not None:
            wrong = f"qpu_seconds must be a positive number of seconds{hint}, got {seconds!r}"
            if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real):
                raise InputTypeError(wrong)
            if not 0 < seconds < math.inf:
                raise InputError(wrong)
            object.__setattr__(self, "qpu_seconds", float(seconds))
        if not self.limits:
            raise InputError("a budget needs a limit: qpu_seconds=, jobs=, shots= or rows=")

    @cached_property
    def local_log(self) -> LocalLog:
        """The log of those who share it in this process, where no other one is."""
        return LocalLog()

    def __getstate__(self) -> dict[str, Any]:
        """Limits and id; what was spent in a process is in its own log."""
        return {name: value for name, value in self.__dict__.items() if name != "local_log"}

    @property
    def limits(self) -> dict[str, float]:
        """The limits there are, by name."""
        given = ((name, getattr(self, name)) for name in ("qpu_seconds", "jobs", "shots", "rows"))
        return {name: value for name, value in given if value is not None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={value}' for name, value in self.limits.items())})"


class Ledger:
    """Keeps to a budget in one process, together with the ledgers of others. Thread-safe.

    Args:
        budget: the limits. They may differ between runs that share a log: a budget that was
            raised goes on from what was spent.
        log: where all ledgers of the budget write what they reserve and spend.
    """

    def __init__(self, budget: Budget, log: SharedLog) -> None:
        self.budget = budget
        self._log = log
        self._lock = threading.Lock()
        self._number = 0  # entries read so far
        self._spent = Cost()
        self._in_flight: dict[str, Reservation] = {}
        self._settled: set[str] = set()

    @property
    def spent(self) -> Cost:
        """What ended jobs cost, those of other ledgers too."""
        with self._lock:
            self._catch_up()
            return self._spent

    @property
    def reserved(self) -> Cost:
        """The estimated cost of the jobs in flight, those of other ledgers too."""
        with self._lock:
            self._catch_up()
            return self._sum()

    def reserve(
        self,
        cost: Cost,
        *,
        what: str,
        key: str | None = None,
        bound: float | None = None,
        stop: threading.Event | None = None,
        timeout: float = MAX_WAIT_SECONDS,
    ) -> Reservation:
        """Reserve the cost of a job, to be called before it is sent; may wait for other jobs.

        Args:
            cost: the estimate.
            what: the job in words, such as "backward of step 12: 3,000 rows of 1,024 shots".
            key: the job's own name. A job that is reserved again, by a run that was resumed, say,
                goes on with its reservation: it counts once, even if it is settled already.
            bound: QPU seconds it takes at most; by default twice the estimate.
            stop: set it to give up waiting.
            timeout: seconds to wait at most.

        Returns:
            The reservation, to be settled when the job ended or released if it was not sent.

        Raises:
            BudgetExceededError: if the job would pass the budget; it must not be sent.
            CancelledError: if ``stop`` was set.
        """
        most = BOUND_FACTOR * cost.qpu_seconds if bound is None else max(bound, cost.qpu_seconds)
        if not most >= 0:  # NaN
            raise InputError(f"bound must be a number of seconds, got {bound!r}")
        name = uuid.uuid4().hex if key is None else key
        wanted = Reservation(name, cost, most, what, _owner(), time.time())
        end = time.monotonic() + timeout
        pause, longest = _PAUSES
        while True:
            if stop is not None and stop.is_set():
                raise CancelledError(f"waiting for the budget was cancelled ({what})")
            with self._lock:
                self._catch_up()
                if name in self._in_flight or name in self._settled:
                    return self._in_flight.get(name, wanted)
                if self._fits(wanted):
                    self._append("reserve", name, cost, bound=most, what=what, owner=wanted.owner)
                    continue  # either it is there, or the log has moved on
                left = end - time.monotonic()
                if left <= 0:
                    raise self._refusal(wanted, f"after {timeout:g} s of waiting for other jobs")
            (threading.Event() if stop is None else stop).wait(min(pause, left))
            pause = min(1.5 * pause, longest)

    def settle(self, reservation: Reservation, real: Cost) -> None:
        """Say what a job that ended did cost; nothing, perhaps, if it failed.

        Args:
            reservation: the job's. Settled again, it changes nothing.
            real: the real cost.
        """
        with self._lock:
            while reservation.key not in self._settled:
                self._append("settle", reservation.key, real)

    def release(self, reservation: Reservation) -> None:
        """Give back what was reserved for a job that was never sent."""
        with self._lock:
            self._catch_up()
            while reservation.key in self._in_flight:
                self._append("release", reservation.key, Cost())

    def _fits(self, wanted: Reservation) -> bool:
        """Whether the job may be sent now; an error if it may not however long it waits."""
        spent, reserved, need = self._spent, self._sum(), wanted.cost
        limit = self.budget.qpu_seconds or math.inf
        with_rounding = limit * (1 + _ROUNDING)
        for name, most in self.budget.limits.items():
            taken = getattr(spent + need, name)
            if name != "qpu_seconds":  # rows in flight will be paid for: no wait makes room
                taken += getattr(reserved, name)
            fits = taken <= (with_rounding if name == "qpu_seconds" else most)
            if getattr(spent, name) >= most or not fits:
                raise self._refusal(wanted, f"its limit of {UNITS[name]}")
        bounds = sum(other.bound for other in self._in_flight.values()) + wanted.bound
        return not self._in_flight or spent.qpu_seconds + bounds <= with_rounding

    def _sum(self) -> Cost:
        return sum((other.cost for other in self._in_flight.values()), Cost())

    def _refusal(self, wanted: Reservation, why: str) -> BudgetExceededError:
        spent, reserved, jobs = self._spent, self._sum(), list(self._in_flight.values())
        lines = [f"{wanted.what} does not fit the budget ({why}); it was not sent."]
        for name, limit in self.budget.limits.items():
            past, held, need = (getattr(cost, name) for cost in (spent, reserved, wanted.cost))
            lines.append(
                f"  {UNITS[name]}: {_amount(past)} of {_amount(limit)} spent, {_amount(held)} "
                f"reserved by jobs in flight, {_amount(need)} needed"
            )
        if jobs:
            first = min(jobs, key=lambda job: job.since)
            ago = f"{time.time() - first.since:,.0f} s ago by {first.owner}"
            lines.append(f"  {len(jobs)} in flight, the first reserved {ago}: {first.what}")
        lines.append(
            "Raise the budget, or take fewer shots, a smaller batch or SPSA gradients (2 rows a "
            "sample); then go on from the last checkpoint with --resume."
        )
        return BudgetExceededError("\n".join(lines))

    def _append(self, kind: str, key: str, cost: Cost, **more: Any) -> None:
        """Append an entry, unless somebody else was faster; read what is there then."""
        entry = {"kind": kind, "key": key, "time": time.time(), **more}
        entry |= {"cost": [getattr(cost, name) for name in UNITS]}
        data = json.dumps(entry, separators=(",", ":")).encode()
        if self._log.append(self._number, data):
            self._apply(data)
        else:
            self._catch_up()

    def _catch_up(self) -> None:
        for entry in self._log.read(self._number):
            self._apply(entry)

    def _apply(self, entry: bytes) -> None:
        # An entry may be there twice, if the answer to the first was lost: it counts once.
        try:
            said = json.loads(entry)
            key, cost = said["key"], Cost(*said["cost"])
            match said["kind"]:
                case "reserve" if key not in self._settled:
                    names = ("bound", "what", "owner", "time")
                    job = Reservation(key, cost, *(said[name] for name in names))
                    self._in_flight.setdefault(key, job)
                case "settle" if key not in self._settled:
                    self._in_flight.pop(key, None)
                    self._settled.add(key)
                    self._spent += cost
                case "release":
                    self._in_flight.pop(key, None)
                case kind if kind not in ("reserve", "settle"):
                    raise ValueError(kind)
            self._number += 1
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(
                f"entry {self._number} of the log of {self.budget!r} is not a budget's: "
                f"{entry[:80]!r}; give the budget a log of its own"
            ) from error


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _amount(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
