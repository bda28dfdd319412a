"""Jobs and sessions as the server keeps them, and as its API shows them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from qailab.rehearsal.devices import Device
from qailab.rehearsal.errors import RAN_TOO_LONG_CODE
from qailab.rehearsal.records import (
    CANCELLED,
    FINAL_STATES,
    QUEUED,
    RAN_TOO_LONG,
    JobRecord,
    Mode,
    SessionRecord,
)
from qailab.rehearsal.submissions import Submission


@dataclass
class Clock:
    """Seconds since the server started, and the times of day they are.

    Args:
        began: the time of day of second 0.
    """

    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def text(self, seconds: float | None) -> str | None:
        """A time as the API writes it."""
        if seconds is None:
            return None
        moment = self.began + timedelta(seconds=seconds)
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")

    def seconds(self, text: str) -> float:
        """A time of the API, as seconds since the server started."""
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return (moment - self.began).total_seconds()


@dataclass
class Session:
    """A session or a batch. All times are seconds since the server started.

    Args:
        device: its device.
        mode: ``"session"`` or ``"batch"``.
        max_time: seconds it may live from the start of its first job.
        interactive: seconds without jobs after which it becomes inactive.
        opened: when it was created.
        state: ``"open"`` until its first job starts, then ``"active"`` and ``"inactive"``, at last
            ``"closed"``.
        accepting: whether it takes jobs.
        started: when its first job started.
        activated: when it last became active.
        used: last time it had a job.
        closed: when it was closed.
        reason: who or what closed it.
        pending: its jobs that are queued or running.
        active_seconds: time it was active before it last became so.
        qpu_seconds: of its jobs that ended.
    """

    device: Device
    mode: Mode
    max_time: float
    interactive: float
    opened: float
    state: str = "open"
    accepting: bool = True
    started: float | None = None
    activated: float | None = None
    used: float = 0.0
    closed: float | None = None
    reason: str = ""
    pending: int = 0
    active_seconds: float = 0.0
    qpu_seconds: float = 0.0
    id: str = field(default_factory=lambda: secrets.token_hex(10))

    def activate(self, now: float) -> None:
        """A job of it starts."""
        if self.started is None:
            self.started = now
        if self.state != "active":
            self.state, self.activated = "active", now

    def deactivate(self, now: float) -> None:
        """It had no jobs for a while."""
        if self.state == "active" and self.activated is not None:
            self.active_seconds += now - self.activated
        self.state, self.activated = "inactive", None

    def close(self, now: float, reason: str) -> None:
        """It ends."""
        if self.state == "closed":
            return
        self.deactivate(now)
        self.state, self.accepting = "closed", False
        self.closed, self.reason = now, reason

    def elapsed(self, now: float) -> float:
        """Seconds it is charged: those it was active, or those of its jobs if it is a batch."""
        if self.mode == "batch":
            return self.qpu_seconds
        return self.active_seconds + (0.0 if self.activated is None else now - self.activated)

    def details(self, clock: Clock, now: float) -> dict[str, Any]:
        """The answer of ``GET /sessions/ID``."""
        return {
            "id": self.id,
            "backend_name": self.device.name,
            "mode": "dedicated" if self.mode == "session" else "batch",
            "state": self.state,
            "state_reason": self.reason,
            "accepting_jobs": self.accepting,
            "max_ttl": int(self.max_time),
            "active_ttl": int(self.max_time),
            "interactive_ttl": int(self.interactive),
            "created_at": clock.text(self.opened),
            "started_at": clock.text(self.started),
            "activated_at": clock.text(self.activated),
            "closed_at": clock.text(self.closed),
            "last_job_started": clock.text(self.used if self.started is not None else None),
            "last_job_completed": clock.text(None if self.pending else self.used),
            "elapsed_time": self.elapsed(now),
            "timestamps": [],
        }

    def record(self) -> SessionRecord:
        """A snapshot."""
        return SessionRecord(
            self.id,
            self.device.name,
            self.mode,
            self.state,
            self.max_time,
            self.opened,
            self.closed,
            self.reason,
        )


@dataclass
class Job:
    """A job. All times are seconds since the server started.

    Args:
        device: its device.
        submission: what it runs.
        params: its parameters as they came, JSON.
        mode: how it was submitted.
        session: its session or batch.
        tags: its tags.
        created: when it was accepted.
        max_seconds: most QPU seconds it may take.
        estimate: QPU seconds it takes.
        private: whether its parameters are never shown again.
        outcome: kind of the fault that decides how it ends, or ``""``.
        state: in IBM's words.
        reason: why it failed or was cancelled.
        reason_code: IBM's code of that.
        started: when it left the queue.
        ended: when it reached a final state.
        qpu_seconds: charged for it.
        run_seconds: wall time of its execution here.
        result: its result, JSON; empty until it has completed.
        stuck: whether it will never end by itself.
        deleted: whether it is not shown any more.
    """

    device: Device
    submission: Submission
    params: bytes
    mode: Mode
    session: Session | None
    tags: tuple[str, ...]
    created: float
    max_seconds: float
    estimate: float
    private: bool = False
    outcome: str = ""
    state: str = QUEUED
    reason: str = ""
    reason_code: int | None = None
    started: float | None = None
    ended: float | None = None
    qpu_seconds: float = 0.0
    run_seconds: float = 0.0
    result: bytes = b""
    stuck: bool = False
    deleted: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(10))

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL_STATES

    def details(self, clock: Clock) -> dict[str, Any]:
        """The answer of ``GET /jobs/ID`` without parameters."""
        # The API says Cancelled of a job that ran too long; the client goes by the reason's code.
        status = CANCELLED if self.state == RAN_TOO_LONG else self.state
        state: dict[str, Any] = {"status": status}
        if self.reason:
            state["reason"] = self.reason
        if self.reason_code is not None:
            state["reason_code"] = self.reason_code
        return {
            "id": self.id,
            "backend": self.device.name,
            "status": status,
            "state": state,
            "program": {"id": self.submission.program},
            "created": clock.text(self.created),
            "ended": clock.text(self.ended),
            "session_id": None if self.session is None else self.session.id,
            "tags": list(self.tags),
            "private": self.private,
            "cost": self.max_seconds,
            "estimated_running_time_seconds": self.estimate,
            "usage": {"seconds": self.qpu_seconds},
        }

    def metrics(self, clock: Clock) -> dict[str, Any]:
        """The answer of ``GET /jobs/ID/metrics``."""
        return {
            "timestamps": {
                "created": clock.text(self.created),
                "running": clock.text(self.started),
                "finished": clock.text(self.ended),
            },
            "usage": {
                "seconds": self.qpu_seconds,
                "quantum_seconds": self.qpu_seconds,
                "qpu_charge_time_seconds": self.qpu_seconds,
                "status": "complete" if self.is_final else "pending",
            },
            "bss": {"seconds": self.qpu_seconds},
            "executions": self.submission.executions,
            "num_circuits": self.submission.rows,
        }

    def error_text(self) -> str:
        """What ``GET /jobs/ID/results`` answers for a job that failed."""
        code = RAN_TOO_LONG_CODE if self.state == RAN_TOO_LONG else self.reason_code
        return f"{self.state}: error code {code}; {self.reason}"

    def record(self) -> JobRecord:
        """A snapshot."""
        submission = self.submission
        return JobRecord(
            id=self.id,
            backend=self.device.name,
            program=submission.program,
            mode=self.mode,
            session=None if self.session is None else self.session.id,
            tags=self.tags,
            rows=submission.rows,
            shots=submission.shots,
            content=submission.content,
            state=self.state,
            reason=self.reason,
            created=self.created,
            started=self.started,
            ended=self.ended,
            qpu_seconds=self.qpu_seconds,
            run_seconds=self.run_seconds,
            total_executions=submission.executions,
        )
