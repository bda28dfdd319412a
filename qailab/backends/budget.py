"""What jobs on hardware cost: estimates, what they did use, and budgets that all processes keep to.

Whoever sends a job reserves its estimated cost first and settles the real cost when it ended. All
guards of a budget share one value, so each decides on what all others have reserved. Jobs, rows
and executions are known beforehand and never pass their limits. QPU seconds are only estimated;
with ``s`` spent, ``e`` estimated and ``b`` an upper bound, a job is sent

    alone                   if  s + e          <= limit    (then it alone can pass the limit)
    beside jobs in flight   if  s + sum of all their b, and its own  <= limit,

else it waits until others are settled. So as long as at most one of the jobs in flight at a time
takes longer than its bound, the limit is passed by no more than that one job's real usage.
"""

from __future__ import annotations

import json
import math
import numbers
import statistics
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Any

from qailab.arguments import checked_integer
from qailab.backends.answers import NOTHING_USED, Usage
from qailab.backends.shared import LocalState, SharedState
from qailab.errors import BudgetExceededError, InputError, InputTypeError
from qailab.journal import Entry, State, this_owner
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


BOUND_FACTOR = 2.0
"""An upper bound of a job's seconds, in estimates; for a certain one, set the device's own limit
of a job's time (IBM: ``max_execution_time``) and pass it as the bound."""

MAX_WAIT_SECONDS = 24 * 3600.0
"""For jobs in flight to be settled: a busy device's queue takes hours; one that died, for ever."""

_PAUSES = (0.02, 2.0)  # between two looks at the value, at first and at most, in seconds
_SETTLED = 64  # keys that are remembered
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
        id: names what is shared. Copies, in other processes too, have the same id and are equal.

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
    def local_state(self) -> LocalState:
        """What those share who have it in this process, where no other one has."""
        return LocalState()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "local_state"}

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


class BudgetGuard:
    """Keeps to a budget in one process, together with the guards of others. Thread-safe.

    What they share is ``{"spent": cost, "jobs": {key: [cost, bound, what, owner, since]},
    "settled": [key, ...]}``, a cost being its four numbers; of the settled the last are kept, as an
    actor that takes over from another one may name them again.

    Args:
        budget: the limits. They may differ between runs that share a journal: a budget that was
            raised goes on from what was spent.
        state: where all guards of the budget agree.
        name: the value's name in it.
        spent_beside: what all ended jobs cost but those of the given keys, as a journal knows it:
            jobs of runs without a budget count as well.
    """

    def __init__(
        self,
        budget: Budget,
        state: SharedState,
        name: str = "budget",
        spent_beside: Callable[[Collection[str]], Cost] | None = None,
    ) -> None:
        self.budget = budget
        self._state = state
        self._name = name
        if spent_beside is not None:
            self._change(lambda account: account.spend_at_least(spent_beside(account.jobs)))

    @property
    def spent(self) -> Cost:
        """What ended jobs cost, those of other guards too."""
        return self._read()[1].spent

    @property
    def reserved(self) -> Cost:
        """The estimated cost of the jobs in flight, those of other guards too."""
        return self._read()[1].reserved

    def reserve(
        self,
        key: str,
        cost: Cost,
        *,
        what: str,
        bound: float | None = None,
        stop: threading.Event | None = None,
        timeout: float = MAX_WAIT_SECONDS,
    ) -> None:
        """Reserve the cost of a job before it is sent; may wait for other jobs.

        Args:
            key: the job's own name. One that is in flight, by a run that died, say, counts once.
            cost: the estimate.
            what: the job in words, such as "backward of step 12: 3,000 rows of 1,024 shots".
            bound: QPU seconds it takes at most; by default twice the estimate.
            stop: set it to give up waiting.
            timeout: seconds to wait at most.

        Raises:
            BudgetExceededError: if the job would pass the budget; it must not be sent.
            CancelledError: if ``stop`` was set.
        """
        job = _job(cost, what, bound)
        stop = threading.Event() if stop is None else stop
        end = time.monotonic() + timeout
        pause, longest = _PAUSES
        while True:
            if stop.is_set():
                raise CancelledError(f"waiting for the budget was cancelled ({what})")
            version, account = self._read()
            if account.knows(key):
                return
            if self._fits(account, cost, job):
                account.jobs[key] = job
                if self._put(version, account):
                    return
                continue
            if time.monotonic() >= end:
                why = f"after {timeout:g} s of waiting for other jobs"
                raise self._refusal(account, cost, what, why)
            stop.wait(min(pause, max(0.0, end - time.monotonic())))
            pause = min(1.5 * pause, longest)

    def adopt(self, key: str, cost: Cost, *, what: str) -> None:
        """Count a job that is at the server already, sent by a run without a budget, say."""

        def adopt(account: _Account) -> bool:
            unknown = not account.knows(key)
            if unknown:
                account.jobs[key] = _job(cost, what, None)
            return unknown

        self._change(adopt)

    def settle(self, key: str, real: Cost) -> None:
        """Say what a job in flight did cost; nothing, perhaps, if it failed or was never sent.

        A job that is not in flight is settled already, or was never reserved: nothing changes.
        """

        def settle(account: _Account) -> bool:
            if key not in account.jobs:
                return False
            del account.jobs[key]
            account.spent += real
            if real != Cost():
                account.settled.append(key)
            return True

        self._change(settle)

    def _read(self) -> tuple[int, _Account]:
        version, content = self._state.get(self._name)
        return version, _Account(json.loads(content) if content else {})

    def _put(self, version: int, account: _Account) -> bool:
        return self._state.put(self._name, version, account.encode())

    def _change(self, change: Callable[[_Account], bool]) -> None:
        while True:
            version, account = self._read()
            if not change(account) or self._put(version, account):
                return

    def _fits(self, account: _Account, need: Cost, job: list[Any]) -> bool:
        """Whether the job may be sent now; an error if it may not however long it waits."""
        limit = self.budget.qpu_seconds or math.inf
        with_rounding = limit * (1 + _ROUNDING)
        for name, most in self.budget.limits.items():
            past = getattr(account.spent, name)
            taken = past + getattr(need, name)
            if name != "qpu_seconds":  # rows in flight will be paid for: no wait makes room
                taken += getattr(account.reserved, name)
            fits = taken <= (with_rounding if name == "qpu_seconds" else most)
            if past >= most or not fits:
                raise self._refusal(account, need, job[_WHAT], f"its limit of {UNITS[name]}")
        bounds = sum(other[_BOUND] for other in account.jobs.values()) + job[_BOUND]
        return not account.jobs or account.spent.qpu_seconds + bounds <= with_rounding

    def _refusal(self, account: _Account, need: Cost, what: str, why: str) -> BudgetExceededError:
        lines = [f"{what} does not fit the budget ({why}); it was not sent."]
        for name, limit in self.budget.limits.items():
            costs = (account.spent, account.reserved, need)
            past, held, needed = (_amount(getattr(cost, name)) for cost in costs)
            lines.append(
                f"  {UNITS[name]}: {past} of {_amount(limit)} spent, {held} reserved by jobs in "
                f"flight, {needed} needed"
            )
        if account.jobs:
            *_, first, owner, since = min(account.jobs.values(), key=lambda job: job[-1])
            ago = f"{time.time() - since:,.0f} s ago by {owner}"
            lines.append(f"  {len(account.jobs)} in flight, first reserved {ago}: {first}")
        lines.append(
            "Raise the budget, or take fewer shots, a smaller batch or SPSA gradients (2 rows a "
            "sample); then go on from the last checkpoint with --resume."
        )
        return BudgetExceededError("\n".join(lines))


_BOUND, _WHAT = 1, 2  # places in a job


def _job(cost: Cost, what: str, bound: float | None) -> list[Any]:
    """A job in flight: its cost, the QPU seconds it takes at most, and for people what it is."""
    most = BOUND_FACTOR * cost.qpu_seconds if bound is None else max(bound, cost.qpu_seconds)
    if not most >= 0:  # NaN
        raise InputError(f"bound must be a number of seconds, got {bound!r}")
    return [astuple(cost), most, what, this_owner(), time.time()]


class _Account:
    """The shared value, as it was read."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.spent = Cost(*value.get("spent", ()))
        self.jobs: dict[str, list[Any]] = value.get("jobs", {})
        self.settled: list[str] = value.get("settled", [])

    @property
    def reserved(self) -> Cost:
        return sum((Cost(*cost) for cost, *_ in self.jobs.values()), Cost())

    def knows(self, key: str) -> bool:
        return key in self.jobs or key in self.settled

    def spend_at_least(self, cost: Cost) -> bool:
        before = self.spent
        self.spent = Cost(*map(max, astuple(before), astuple(cost)))
        return self.spent != before

    def encode(self) -> bytes:
        settled = self.settled[-_SETTLED:]
        value = {"spent": astuple(self.spent), "jobs": self.jobs, "settled": settled}
        return json.dumps(value, separators=(",", ":")).encode()


def _amount(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


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
