"""What a rehearsal server remembers: its jobs, sessions, requests and injected faults.

All times are seconds since the server started, so that records of one run compare and plot
without a clock. What the server hands out are snapshots: they do not change.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Literal, TypeVar

Mode = Literal["session", "batch", "job"]

WORK_TAG = "qailab-"
"""Tags of qailab that name the rows of a job begin with it: the same tag, the same rows."""


class State(StrEnum):
    """State of a job, in IBM's words."""

    QUEUED = "Queued"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    RAN_TOO_LONG = "Cancelled - Ran too long"


@dataclass
class JobRecord:
    """A job that the server accepted."""

    id: str
    backend: str  # the name of its device
    program: str  # "executor", which the client-side Sampler asks for
    mode: Mode  # how it was submitted
    session: str | None  # the id of its session or batch
    tags: tuple[str, ...]
    rows: int  # circuits with all parameters bound, over all its PUBs
    shots: int  # of each row
    content: str  # hash of circuits, values and shots, without tags: the same, the same results
    state: State = State.QUEUED
    reason: str = ""  # why it failed or was cancelled
    created: float = 0.0  # when it was accepted
    started: float | None = None  # when it left the queue
    ended: float | None = None
    qpu_seconds: float = 0.0  # what a device would charge for it, by `qailab.backends.budget`
    run_seconds: float = 0.0  # wall time of its execution here, encoding of the result included
    answered: bool = True  # whether its submission was; if not, the client sends it again

    @property
    def executions(self) -> int:
        """Rows times shots."""
        return self.rows * self.shots

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.state not in (State.QUEUED, State.RUNNING)


@dataclass
class SessionRecord:
    """A session or a batch."""

    id: str
    backend: str  # the name of its device
    mode: Mode  # "session" for a dedicated one, or "batch"
    state: str  # "open" until its first job starts, then "active", "inactive", at last "closed"
    max_time: float  # seconds it may live from the start of its first job
    opened: float
    closed: float | None = None
    reason: str = ""  # who or what closed it


@dataclass(frozen=True)
class RequestRecord:
    """A request that the server saw."""

    time: float  # when it was answered
    method: str
    path: str  # the path's template: "/jobs/ID/results"
    status: int  # the HTTP status of the answer, 0 if the connection was dropped
    fault: str  # the kind of the fault that was injected, or ""
    seconds: float  # from the request's last byte to the answer


@dataclass(frozen=True)
class FaultRecord:
    """A fault that was injected."""

    time: float
    kind: str  # as in `qailab.rehearsal.Fault`
    where: str  # the request, "POST /jobs", and the job's or session's id where there is one
    job: str | None = None  # the id of the job it hit, if it hit one


R = TypeVar("R", JobRecord, SessionRecord)


def snapshot(kind: type[R], live: R) -> R:
    """A copy of what a kind of record has, of an object that has more and changes."""
    return kind(**{one.name: getattr(live, one.name) for one in fields(kind)})


def find_duplicates(jobs: Iterable[JobRecord]) -> list[tuple[JobRecord, JobRecord]]:
    """Pairs of jobs with the same content of which neither failed nor was cancelled."""
    return [pair for same in _equal(jobs) for pair in itertools.combinations(same, 2)]


def find_resent(jobs: Iterable[JobRecord]) -> list[tuple[JobRecord, JobRecord]]:
    """Pairs of jobs of which the second is the first, sent again, and both count.

    It is if the first one's submission was not answered, or if both bear one tag of qailab's. Two
    steps of a training that are equal are no such pair.
    """
    pairs = [pair for same in _equal(jobs) for pair in itertools.pairwise(same)]
    return [pair for pair in pairs if not pair[0].answered or _share_work(*pair)]


def _share_work(one: JobRecord, two: JobRecord) -> bool:
    return any(tag.startswith(WORK_TAG) for tag in set(one.tags) & set(two.tags))


def _equal(jobs: Iterable[JobRecord]) -> list[list[JobRecord]]:
    """Jobs that neither failed nor were cancelled, by their content."""
    by_content: dict[str, list[JobRecord]] = {}
    for job in jobs:
        if job.state == State.COMPLETED or not job.is_final:
            by_content.setdefault(job.content, []).append(job)
    return list(by_content.values())
