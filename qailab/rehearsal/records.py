"""What a rehearsal server remembers: its jobs, sessions, requests and injected faults.

All times are seconds since the server started, so that records of one run compare and plot
without a clock. Records are snapshots: they do not change after they were handed out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Program = Literal["sampler", "executor", "estimator"]
Mode = Literal["session", "batch", "job"]

QUEUED = "Queued"
RUNNING = "Running"
COMPLETED = "Completed"
FAILED = "Failed"
CANCELLED = "Cancelled"
RAN_TOO_LONG = "Cancelled - Ran too long"

FINAL_STATES = frozenset({COMPLETED, FAILED, CANCELLED, RAN_TOO_LONG})
"""States, in IBM's words, that a job does not leave."""


@dataclass(frozen=True)
class JobRecord:
    """A job that the server accepted.

    Args:
        id: the job's id.
        backend: the name of its device.
        program: what it runs: ``"executor"`` is the sampler (or estimator) on the client's side.
        mode: how it was submitted.
        session: the id of its session or batch.
        tags: its tags.
        rows: circuits with all parameters bound, over all its PUBs.
        shots: shots of each row (the most, if its PUBs differ).
        content: hash of circuits, parameter values and shots, without tags: two jobs with the
            same content ask for the same results.
        state: in IBM's words, one of `QUEUED`, `RUNNING` and `FINAL_STATES`.
        reason: why it failed or was cancelled.
        created: when it was accepted, seconds.
        started: when it left the queue, seconds.
        ended: when it reached a final state, seconds.
        qpu_seconds: seconds a device would charge for it, of the server's cost model.
        run_seconds: wall time of its execution here, encoding of the result included.
        total_executions: rows times shots, summed over its PUBs.
    """

    id: str
    backend: str
    program: Program
    mode: Mode
    session: str | None
    tags: tuple[str, ...]
    rows: int
    shots: int
    content: str
    state: str
    reason: str
    created: float
    started: float | None
    ended: float | None
    qpu_seconds: float
    run_seconds: float
    total_executions: int | None = None

    @property
    def executions(self) -> int:
        """Rows times shots."""
        if self.total_executions is not None:
            return self.total_executions
        return self.rows * self.shots

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL_STATES


@dataclass(frozen=True)
class SessionRecord:
    """A session or a batch.

    Args:
        id: its id.
        backend: the name of its device.
        mode: ``"session"`` (a dedicated one) or ``"batch"``.
        state: in IBM's words: ``"open"``, ``"active"``, ``"inactive"`` or ``"closed"``.
        max_time: seconds it may live, counted from the start of its first job.
        opened: when it was created, seconds.
        closed: when it was closed, seconds.
        reason: who or what closed it.
    """

    id: str
    backend: str
    mode: Mode
    state: str
    max_time: float
    opened: float
    closed: float | None
    reason: str


@dataclass(frozen=True)
class RequestRecord:
    """A request that the server saw.

    Args:
        time: when its answer was sent, seconds.
        method: the HTTP method.
        path: the path's template: ``"/jobs/ID/results"``.
        status: the HTTP status of the answer, 0 if the connection was dropped.
        fault: the kind of the fault that was injected, or ``""``.
        seconds: time from the request's first line to the answer's last byte.
    """

    time: float
    method: str
    path: str
    status: int
    fault: str
    seconds: float


@dataclass(frozen=True)
class FaultRecord:
    """A fault that was injected.

    Args:
        time: when, seconds.
        kind: the kind, as in `qailab.rehearsal.Fault`.
        where: the request (``"POST /jobs"``) and, where there is one, the job's or session's id.
        job: the id of the job it hit, if it hit one.
    """

    time: float
    kind: str
    where: str
    job: str | None = None
