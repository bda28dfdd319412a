"""Budgets: what may be spent on hardware, and the guard that keeps to it, together with others.

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
import threading
import time
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Any

from qailab.arguments import checked_integer
from qailab.backends.cost import UNITS, Cost, UsageEstimate
from qailab.backends.shared import LocalState, SharedState
from qailab.errors import BudgetExceededError, InputError, InputTypeError
from qailab.journal import this_owner

__all__ = ["Budget", "BudgetGuard", "Cost", "UsageEstimate"]

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
