"""Faults to inject, and when.

A fault plan is a list of faults. From a file, it is one table for each:

```toml
seed = 7                      # of the faults with a probability; 0 if left out

[[fault]]
kind = "http"                 # answer this status instead of processing the request
status = 503
where = "GET /jobs/ID"        # which requests; "POST /jobs" if left out, "*" for all
after = 2                     # let the first two pass; 0 if left out
times = 3                     # then hit three; 1 if left out, 0 for all that follow

[[fault]]
kind = "hang"
where = "GET /jobs/ID/results"
seconds = 20
processed = true
probability = 0.05            # of each request it could hit; 1 if left out
times = 0
```

Kinds that decide how a request is answered:

* ``http``: ``status`` (400, 401, 429, 500, 502, 503 or 504) and, if given, a header
  ``Retry-After`` of ``retry_after`` seconds; nothing is processed.
* ``drop``: the connection is closed, nothing is processed.
* ``processed-then-500``: the request is processed, the answer is status 500.
* ``answer-lost``: the request is processed, then the connection is closed.
* ``late``: the same ``seconds`` after the request came, when perhaps nobody waits for it any more.
* ``hang``: with ``processed = true`` the request is processed at once and its answer is held back
  for ``seconds``; with ``false`` nothing is processed and after ``seconds`` a gateway answers 504.
* ``pending-limit``: refused with IBM's code 3458, as if too many jobs were pending.
* ``restart``: the API is gone for ``seconds``, all connections with it; jobs go on.

Kinds that decide how an accepted job ends: ``job-failed``, ``job-cancelled``, ``job-too-long``
(reason code 1305) and ``job-stuck`` (it runs until it is cancelled). They count accepted jobs.

Kinds that close the session which a request is about, before it is processed: ``session-expired``
(its queued jobs fail) and ``session-closed`` (they finish, no more are taken).
"""

from __future__ import annotations

import random
import threading
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qailab.errors import InputError
from qailab.rehearsal.api import ENDPOINTS

PROCESSED_KINDS = ("processed-then-500", "answer-lost", "late")
REQUEST_KINDS = ("http", "drop", *PROCESSED_KINDS, "hang", "pending-limit", "restart")
JOB_KINDS = ("job-failed", "job-cancelled", "job-too-long", "job-stuck")
SESSION_KINDS = ("session-expired", "session-closed")
KINDS = REQUEST_KINDS + JOB_KINDS + SESSION_KINDS

STATUSES = (400, 401, 429, 500, 502, 503, 504)

NEEDED = {
    "http": ("status",),
    "hang": ("seconds", "processed"),
    "late": ("seconds",),
    "restart": ("seconds",),
}
"""Options that a kind must have; the others have none of them."""


@dataclass(frozen=True)
class Fault:
    """A fault to inject.

    Raises:
        InputError: if an option is not valid, or not one of its kind.
    """

    kind: str  # one of `KINDS`
    where: str = "POST /jobs"  # method and path template of the requests it may hit, or "*"
    after: int = 0  # how many of them pass before
    times: int = 1  # how many it hits, 0 for all that follow
    probability: float = 1.0  # with which it hits each of those, in (0, 1]
    status: int | None = None  # of "http"
    retry_after: int | None = None  # of "http": whole seconds of the header, if it is to have one
    seconds: float | None = None  # of "hang", "late" and "restart"
    processed: bool | None = None  # of "hang": whether the request is processed

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown fault {self.kind!r}; known: {', '.join(KINDS)}")
        if self.where not in ("*", *ENDPOINTS):
            known = ", ".join(map(repr, ("*", *ENDPOINTS)))
            raise self._wrong(f"unknown request {self.where!r}; known: {known}")
        if self.kind in (*JOB_KINDS, "pending-limit") and self.where != "POST /jobs":
            raise self._wrong(f"is one of 'POST /jobs', not of {self.where!r}")
        for name in ("after", "times", "retry_after"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | None) or (value or 0) < 0:
                raise self._wrong(f"{name} must be a whole number of 0 or more, got {value!r}")
        if not 0 < self.probability <= 1:
            raise self._wrong(f"probability must be in (0, 1], got {self.probability!r}")
        needed = NEEDED.get(self.kind, ())
        for name in ("status", "retry_after", "seconds", "processed"):
            given = getattr(self, name) is not None
            if not given and name in needed:
                raise self._wrong(f"needs {name}")
            if given and name not in needed and (self.kind, name) != ("http", "retry_after"):
                raise self._wrong(f"has no {name}")
        if self.status not in (None, *STATUSES):
            raise self._wrong(f"status must be one of {STATUSES}, got {self.status!r}")
        if not 0 <= (self.seconds or 0) < float("inf"):
            raise self._wrong(f"seconds must be 0 or more, got {self.seconds!r}")

    def _wrong(self, text: str) -> InputError:
        return InputError(f"fault {self.kind!r}: {text}")

    @property
    def label(self) -> str:
        """Its kind, with the status if it has one: ``"http 503"``."""
        return self.kind if self.status is None else f"{self.kind} {self.status}"


class FaultPlan:
    """Decides which requests are hit. Safe to use from several threads.

    Args:
        faults: the faults; of several that could hit a request, the first does.
        seed: of those with a probability: what the n-th matching request meets depends on it only.
    """

    def __init__(self, faults: Iterable[Fault] = (), *, seed: int = 0) -> None:
        self.faults = tuple(faults)
        self.seed = seed
        self._seen = [0] * len(self.faults)
        self._hit = [0] * len(self.faults)
        self._lock = threading.Lock()

    def draw(self, endpoint: str, kinds: Sequence[str]) -> Fault | None:
        """Count a request, and say which fault of these kinds hits it."""
        chosen: Fault | None = None
        with self._lock:
            for number, fault in enumerate(self.faults):
                if fault.kind not in kinds or fault.where not in ("*", endpoint):
                    continue
                self._seen[number] += 1
                over = fault.times and self._hit[number] >= fault.times
                if chosen is not None or over or self._seen[number] <= fault.after:
                    continue
                chance = random.Random(f"{self.seed} {number} {self._seen[number]}")
                if fault.probability == 1 or chance.random() < fault.probability:
                    self._hit[number] += 1
                    chosen = fault
        return chosen

    @classmethod
    def random(cls, seed: int, intensity: float = 1.0) -> FaultPlan:
        """A schedule of faults that a program should survive, for soak tests.

        Faults of the account and of the request itself (400, 401) and jobs that ran too long are
        left out, as to send the same again does not help; so are requests that come late.

        Args:
            seed: the same seed gives the same schedule.
            intensity: about four faults for each 1.

        Raises:
            InputError: if the intensity is negative.
        """
        if intensity < 0:
            raise InputError(f"intensity must be 0 or more, got {intensity!r}")
        chance = random.Random(f"fault plan {seed}")
        count = max(1, round(4 * intensity * chance.uniform(0.5, 1.5))) if intensity else 0
        return cls([_random_fault(chance) for _ in range(count)], seed=seed)

    @classmethod
    def from_toml(cls, path: str | Path) -> FaultPlan:
        """Read a plan from a file; the module's docstring has the format.

        Raises:
            InputError: if the file cannot be read, or has a key or value that is not valid.
        """
        try:
            with open(path, "rb") as file:
                found = tomllib.load(file)
            tables, seed = found.pop("fault", []), found.pop("seed", 0)
            if found or not isinstance(tables, list):
                unknown = ", ".join(map(repr, found)) or "fault"
                raise InputError(f"unknown {unknown}; it has 'seed' and tables '[[fault]]'")
            return cls([_from_table(table) for table in tables], seed=seed)
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"fault plan {path} cannot be read: {error}") from error
        except InputError as error:
            raise InputError(f"fault plan {path}: {error}") from None


def _from_table(table: dict[str, Any]) -> Fault:
    known = [option.name for option in fields(Fault)]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise InputError(f"unknown {unknown}; known: {', '.join(known)}")
    if "kind" not in table:
        raise InputError(f"a fault without kind; known: {', '.join(KINDS)}")
    return Fault(**table)


def _random_fault(chance: random.Random) -> Fault:
    kinds = ["http", "http", *REQUEST_KINDS, "job-failed", "job-cancelled", "job-stuck"]
    kinds.remove("late")
    kind = chance.choice((*kinds, *SESSION_KINDS))
    after = chance.randrange(6)
    where = "POST /jobs"
    if kind in ("http", "drop", "answer-lost", "hang", "restart"):
        where = chance.choice(
            ("POST /jobs", "GET /jobs/ID", "GET /jobs/ID/results", "GET /jobs", "POST /sessions")
        )
        if where == "POST /sessions":
            after = chance.randrange(2)
    own: dict[str, Any] = {}
    if kind == "http":
        own = {"status": chance.choice((429, 429, 500, 502, 503))}
        if own["status"] == 429 and chance.random() < 0.5:
            own["retry_after"] = 1
    elif kind == "hang":
        own = {"seconds": chance.uniform(0.2, 1.5), "processed": chance.random() < 0.5}
    elif kind == "restart":
        own = {"seconds": chance.uniform(0.1, 1.0)}
    return Fault(kind, where, after=after, **own)
