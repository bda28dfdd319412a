"""One IBM Quantum instance: its sessions and jobs, and a queue with a thread for each device.

All of it is behind one lock, `Instance.changed`, which callers of its methods hold; circuits run
outside of it. Times are seconds since the server started.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from qailab.backends.budget import EXECUTION_SECONDS, JOB_SECONDS, OPEN_PLAN_SECONDS
from qailab.rehearsal.account import (
    INTERNAL,
    INVALID_REQUEST,
    ApiError,
    Limits,
    too_many_jobs,
    too_many_pending,
)
from qailab.rehearsal.devices import Device
from qailab.rehearsal.records import JobRecord, Mode, SessionRecord, State
from qailab.rehearsal.sampler import DeviceSampler, Submission

logger = logging.getLogger("qailab.rehearsal")

_MINUTE = 60.0  # seconds


@dataclass(kw_only=True)
class Session(SessionRecord):
    """A session or a batch."""

    device: Device
    interactive: float  # seconds without jobs after which it is inactive
    used: float  # when it last had a job
    turn: float = 0.0  # when its jobs may leave the queue
    started: float | None = None  # when its first job started
    accepting: bool = True  # whether it takes jobs
    pending: int = 0  # its jobs that are queued or running
    active_seconds: float = 0.0
    qpu_seconds: float = 0.0  # of its jobs that ended


@dataclass(kw_only=True)
class Job(JobRecord):
    """A job."""

    device: Device
    submission: Submission
    owner: Session | None
    params: Mapping[str, Any]  # as they came
    max_seconds: float  # QPU seconds it may take
    ready: float = 0.0  # when it may leave the queue
    outcome: str = ""  # kind of the fault that decides how it ends
    reason_code: int | None = None  # IBM's code of why it failed
    result: bytes = b""  # JSON; empty until it has completed

    @property
    def estimate(self) -> float:
        """QPU seconds it takes."""
        return JOB_SECONDS + self.executions * EXECUTION_SECONDS


class Instance:
    """What an account has and may do.

    Args:
        samplers: what runs the jobs of each device.
        plan: its plan, one of `qailab.rehearsal.account.PLANS`.
        limits: what it allows.
        queue_seconds: time in the queue, of a job on its own and of the first of a session.
        realtime: whether a job holds its device for its QPU seconds.
    """

    def __init__(
        self,
        samplers: Mapping[Device, DeviceSampler],
        *,
        plan: str,
        limits: Limits,
        queue_seconds: float,
        realtime: bool,
    ) -> None:
        self.devices = {device.name: device for device in samplers}
        self.plan = plan
        self.limits = limits
        self.began = datetime.now(UTC)
        self.jobs: dict[str, Job] = {}
        self.sessions: dict[str, Session] = {}
        self.changed = threading.Condition()  # notified when a job or session changes
        self._zero = time.monotonic()
        self._advanced = 0.0
        self._queue_seconds = queue_seconds
        self._realtime = realtime
        self._stopping = False
        self._pending: dict[str, Job] = {}  # jobs that are queued or running
        self._threads = [
            threading.Thread(
                target=self._serve, args=one, name=f"rehearsal-{one[0].name}", daemon=True
            )
            for one in samplers.items()
        ]

    def start(self) -> None:
        """Run jobs."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Run no more jobs after those that run now."""
        with self.changed:
            self._stopping = True
            self.changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=60)

    def now(self) -> float:
        """Seconds since the server started."""
        return time.monotonic() - self._zero

    def pending(self, device: Device | None = None) -> int:
        """Count the jobs that are queued or running."""
        return sum(device in (None, job.device) for job in self._pending.values())

    def consumed(self) -> float:
        """QPU seconds of all jobs."""
        return sum(job.qpu_seconds for job in self.jobs.values())

    # Sessions

    def open_session(self, device: Device, mode: Mode, max_time: float | None) -> Session:
        """Create a session or a batch.

        Raises:
            ApiError: if the plan has no sessions, or the time is too long.
        """
        limits, name, now = self.limits, secrets.token_hex(10), self.now()
        if mode == "session" and self.plan == "open":
            text = "You are not authorized to run a session when using the open plan."
            advice = "Create an instance of a different plan type or use a different mode."
            raise ApiError(400, 1352, text, advice)
        seconds = limits.session_seconds if max_time is None else max_time
        if not 0 < seconds <= limits.session_seconds:
            text = f"max_ttl must be in (0, {limits.session_seconds:g}], got {seconds}."
            raise ApiError(400, INVALID_REQUEST, text)
        idle = limits.interactive_seconds
        if mode == "batch":
            idle = limits.batch_interactive_seconds
        self.sessions[name] = Session(
            name, device.name, mode, "open", seconds, now, device=device, interactive=idle, used=now
        )
        return self.sessions[name]

    def end_session(self, session: Session, reason: str, *, drop_queued: bool) -> None:
        """Take no more jobs, cancel queued ones or not, and close when all have ended."""
        if session.closed is None:
            session.accepting, session.reason = False, reason
            if drop_queued:
                self._end_queued(session, State.CANCELLED, "The session was cancelled.")
            self._close_if_done(session)

    def expire_session(self, session: Session, reason: str) -> None:
        """Close it now: queued jobs fail, a running one goes on."""
        session.accepting, session.reason = False, reason
        session.state, session.closed = "closed", self.now()
        self._end_queued(session, State.FAILED, f"The session has ended: {reason}.", 4001)

    def advance(self) -> None:
        """Let time pass for the sessions."""
        before, self._advanced = self._advanced, self.now()
        now = self._advanced
        for session in self.sessions.values():
            if session.closed is not None:
                continue
            if session.state == "active":
                until = now if session.pending else min(now, session.used + session.interactive)
                session.active_seconds += max(0.0, until - before)
                session.state = "active" if until == now else "inactive"
            if session.started is not None and now >= session.started + session.max_time:
                self.expire_session(session, "max_time reached")
            elif session.pending == 0 and now >= session.used + self.limits.idle_seconds:
                self.expire_session(session, "not used for too long")

    def _close_if_done(self, session: Session) -> None:
        if session.pending == 0 and not session.accepting and session.closed is None:
            session.state, session.closed = "closed", self.now()

    def _end_queued(self, session: Session, *end: Any) -> None:
        for job in list(self._pending.values()):
            if job.owner is session and job.state == State.QUEUED:
                self.end(job, *end)

    # Jobs

    def accept(self, job: Job) -> None:
        """Take a job into the queue.

        Raises:
            ApiError: if it breaks a rule of the session, the plan or the limits.
        """
        self._check(job, job.owner)
        job.ready = job.created + self._queue_seconds
        session = job.owner
        if session is not None:
            if session.pending == 0 and session.state != "active":
                session.turn = job.ready
            job.ready = session.turn
            session.pending += 1
        self.jobs[job.id] = self._pending[job.id] = job
        self.changed.notify_all()

    def _check(self, job: Job, session: Session | None) -> None:
        most, pending = self.limits.executions, self.limits.pending_jobs_of(self.plan)
        if job.executions > most:
            text = f"The number of executions {job.executions} is over the maximum of {most}."
            raise ApiError(400, 8044, text, "Split the job.")
        if session is not None and session.device is not job.device:
            text = f"is for backend {session.backend}, not {job.backend}."
            raise ApiError(400, 1211, f"The session {session.id} {text}")
        if session is not None and not session.accepting:
            text = f"is closed ({session.reason}) and accepts no more jobs."
            raise ApiError(400, 1217, f"The session {session.id} {text}")
        rate = self.limits.jobs_a_minute_of(self.plan)
        if rate is not None and len(self.jobs) >= rate:
            first = list(self.jobs.values())[-rate].created
            if (left := first + _MINUTE - job.created) > 0:
                raise too_many_jobs(rate, math.ceil(left))
        if pending is not None and len(self._pending) >= pending:
            raise too_many_pending(pending)
        if self.plan == "open" and self.consumed() >= OPEN_PLAN_SECONDS:
            raise ApiError(403, 4317, "Job create exceeds open plan job usage limits.")

    def end(
        self, job: Job, state: State, reason: str = "", code: int | None = None, used: float = 0.0
    ) -> None:
        """Put a job into a final state, if it is in none."""
        if job.is_final:
            return
        job.state, job.reason, job.reason_code = state, reason, code
        job.ended, job.qpu_seconds = self.now(), used
        del self._pending[job.id]
        session = job.owner
        if session is not None:
            session.pending -= 1
            session.used = job.ended
            session.qpu_seconds += used
            self._close_if_done(session)
        self.changed.notify_all()

    # Devices

    def _serve(self, device: Device, sampler: DeviceSampler) -> None:
        """Take the jobs of a device off its queue, one at a time, and run them."""
        with self.changed:
            while (job := self._next_job(device)) is not None:
                self._begin(job)
                if job.outcome == "job-cancelled":
                    self.end(job, State.CANCELLED, "Cancelled by the service.")
                elif job.outcome == "job-failed":
                    self.end(job, State.FAILED, "Internal error: the device failed.", INTERNAL)
                elif job.outcome == "job-too-long" or job.estimate > job.max_seconds:
                    used = min(job.estimate, job.max_seconds)
                    reason = f"Ran too long: the job was stopped after {used:g} s."
                    self.end(job, State.RAN_TOO_LONG, reason, 1305, used)
                elif job.outcome != "job-stuck":  # it stays running; the device goes on
                    self._run(job, sampler)

    def _begin(self, job: Job) -> None:
        job.state, job.started = State.RUNNING, self.now()
        session = job.owner
        if session is not None and session.closed is None:
            session.state, session.used = "active", job.started
            session.started = session.started or job.started

    def _next_job(self, device: Device) -> Job | None:
        """Wait for the next job of a device; None if the server stops."""
        while not self._stopping:
            self.advance()
            jobs = [job for job in self._pending.values() if job.device is device]
            queued = [job for job in jobs if job.state == State.QUEUED]
            first = min(queued, key=lambda job: job.ready, default=None)
            wait = None if first is None else first.ready - self.now()
            if wait is not None and wait <= 0:
                return first
            self.changed.wait(wait)
        return None

    def _run(self, job: Job, sampler: DeviceSampler) -> None:
        began = self.now()
        self.changed.release()
        try:
            job.result = sampler.run(job.submission)
            failed = None
        except ApiError as error:
            failed = error
        except Exception as error:
            logger.exception("job %s failed in the simulator", job.id)
            failed = ApiError(500, INTERNAL, f"Internal error: {error!r}")
        finally:
            self.changed.acquire()
            self.advance()
        if failed is not None:
            self.end(job, State.FAILED, failed.message, failed.code)
            return
        job.run_seconds = self.now() - began
        until = began + job.estimate
        while self._realtime and self.now() < until and not job.is_final:
            self.changed.wait(until - self.now())
            if self._stopping:
                break
        self.end(job, State.COMPLETED, used=job.estimate)
