"""One IBM Quantum instance: its jobs and sessions, and the rules of its plan.

All of it is behind one lock; circuits run outside of it, on one thread for each device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qailab.rehearsal import errors
from qailab.rehearsal.account import Account
from qailab.rehearsal.devices import Device
from qailab.rehearsal.errors import ApiError
from qailab.rehearsal.jobs import Job, Session
from qailab.rehearsal.limits import qpu_seconds
from qailab.rehearsal.records import CANCELLED, FAILED, QUEUED, JobRecord, Mode, SessionRecord
from qailab.rehearsal.submissions import Submission


class Instance(Account):
    """An instance of the service."""

    # Sessions

    def open_session(self, device: str, mode: str, max_time: float | None) -> Session:
        """Create a session or a batch.

        Raises:
            ApiError: if the plan has none, or there is no such device.
        """
        where = self.device(device)
        if mode not in ("dedicated", "batch"):
            raise ApiError(400, errors.INVALID_REQUEST, f"Unknown mode {mode!r}.")
        if mode == "dedicated" and self.plan == "open":
            raise errors.open_plan_session_error()
        most = self.limits.session_seconds
        if max_time is not None and not 0 < max_time <= most:
            raise ApiError(
                400, errors.INVALID_REQUEST, f"max_ttl must be in (0, {most:g}], got {max_time}."
            )
        kind: Mode = "session" if mode == "dedicated" else "batch"
        limits = self.limits
        idle = limits.interactive_seconds
        if kind == "batch":
            idle = limits.batch_interactive_seconds
        with self.changed:
            now = self.now()
            session = Session(where, kind, max_time or most, idle, opened=now, used=now)
            self._sessions[session.id] = self._open[session.id] = session
            return session

    def session(self, session_id: str) -> Session:
        """A session by id.

        Raises:
            ApiError: 404 if there is none.
        """
        with self.changed:
            self.advance()
            if session_id not in self._sessions:
                raise ApiError(404, errors.SESSION_NOT_FOUND, f"Session {session_id} not found.")
            return self._sessions[session_id]

    def session_details(self, session_id: str) -> dict[str, Any]:
        """The answer of ``GET /sessions/ID``."""
        session = self.session(session_id)
        with self.changed:
            return session.details(self.clock, self.now())

    def end_session(self, session: Session, reason: str, *, drop_queued: bool) -> None:
        """Stop taking jobs.

        Args:
            session: the session.
            reason: who or what ends it.
            drop_queued: cancel its queued jobs too; else they finish and then it closes.
        """
        with self.changed:
            session.accepting = False
            if drop_queued:
                for job in self._queued(session):
                    self.end(job, CANCELLED, "The session was cancelled.", None)
            if session.pending == 0:
                self._close(session, reason)
            else:
                session.reason = reason
            self.changed.notify_all()

    def expire_session(self, session: Session, reason: str) -> None:
        """Close it now: queued jobs fail, a running one goes on."""
        with self.changed:
            self._close(session, reason)
            for job in self._queued(session):
                text = f"Session {session.id} has ended: {reason}."
                self.end(job, FAILED, text, errors.SESSION_TIME_OVER)
            self.changed.notify_all()

    def advance(self) -> None:
        """Let time pass for the sessions. The caller holds the lock."""
        now = self.now()
        for session in list(self._open.values()):
            if session.started is not None and now >= session.started + session.max_time:
                self.expire_session(session, "max_time reached")
            elif session.pending == 0:
                if now >= session.used + self.limits.idle_seconds:
                    self.expire_session(session, "not used for too long")
                elif session.state == "active" and now >= session.used + session.interactive:
                    session.deactivate(session.used + session.interactive)

    def _close(self, session: Session, reason: str) -> None:
        session.close(self.now(), reason)
        self._open.pop(session.id, None)

    def _queued(self, session: Session) -> list[Job]:
        pending = self._pending.values()
        return [job for job in pending if job.session is session and job.state == QUEUED]

    # Jobs

    def submit(
        self,
        device: Device,
        submission: Submission,
        params: bytes,
        session: Session | None,
        payload: Mapping[str, Any],
        outcome: str = "",
    ) -> Job:
        """Accept a job into the queue.

        Args:
            device: where to.
            submission: what it runs.
            params: its parameters as they came.
            session: its session.
            payload: the request: ``tags``, ``cost`` and ``private`` are looked at.
            outcome: the fault that decides how it ends.

        Raises:
            ApiError: if it breaks a rule of the session, the plan or the limits.
        """
        if submission.executions > self.limits.executions:
            raise ApiError(
                400,
                errors.TOO_MANY_EXECUTIONS,
                f"The number of executions {submission.executions} ({submission.rows} circuits) "
                f"is over the maximum of {self.limits.executions} of a job.",
                "Split the job.",
            )
        with self.changed:
            self.advance()
            self._check_session(device, session)
            limit = self.limits.pending_jobs_of(self.plan)
            if limit is not None and self.pending() >= limit:
                raise errors.pending_jobs_error(limit)
            most = min(payload.get("cost") or self.limits.job_seconds, self.limits.job_seconds)
            now = self.now()
            job = Job(
                device,
                submission,
                params,
                mode="job" if session is None else session.mode,
                session=session,
                tags=tuple(payload.get("tags") or ()),
                created=now,
                max_seconds=most,
                estimate=qpu_seconds(submission.executions, device.rep_delay),
                private=bool(payload.get("private")),
                outcome=outcome,
            )
            if session is not None:
                if session.pending == 0 and session.state != "active":
                    session.used = now  # it queues from now on
                session.pending += 1
            self._jobs[job.id] = self._pending[job.id] = job
            self.changed.notify_all()
            return job

    def _check_session(self, device: Device, session: Session | None) -> None:
        if session is None:
            return
        if session.device is not device:
            raise ApiError(
                400,
                errors.SESSION_OTHER_BACKEND,
                f"The session {session.id} is for backend {session.device.name}, not "
                f"{device.name}.",
            )
        if session.state == "closed" or not session.accepting:
            raise ApiError(
                400,
                errors.SESSION_CLOSED,
                f"The session {session.id} is closed ({session.reason}) and accepts no more jobs.",
                "Create a new session.",
            )

    def job(self, job_id: str) -> Job:
        """A job by id.

        Raises:
            ApiError: 404 if there is none.
        """
        with self.changed:
            if self._open:
                self.advance()
            job = self._jobs.get(job_id)
            if job is None or job.deleted:
                raise ApiError(404, errors.JOB_NOT_FOUND, f"Job not found. Job ID: {job_id}")
            return job

    def jobs(self) -> list[Job]:
        """All jobs that are not deleted, oldest first."""
        with self.changed:
            self.advance()
            return [job for job in self._jobs.values() if not job.deleted]

    def next_job(self, device: Device) -> tuple[Job | None, float | None]:
        """The next job of a device. The caller holds the lock.

        Returns:
            The job if one is ready, and else the seconds until one will be, ``None`` if none is
            queued.
        """
        self.advance()
        now, first, ready_at = self.now(), None, float("inf")
        for job in self._pending.values():
            if job.device is device and job.state == QUEUED:
                ready = self._ready_at(job)
                if ready < ready_at:
                    first, ready_at = job, ready
        if first is None:
            return None, None
        return (first, None) if ready_at <= now else (None, ready_at - now)

    def _ready_at(self, job: Job) -> float:
        session = job.session
        if session is None:
            return job.created + self.queue_seconds
        if session.state == "active":
            return job.created
        return session.used + self.queue_seconds

    def end(self, job: Job, state: str, reason: str, code: int | None) -> None:
        """A job reaches a final state. The caller holds the lock."""
        if job.is_final:
            return
        job.state, job.reason, job.reason_code = state, reason, code
        job.ended = self.now()
        del self._pending[job.id]
        session = job.session
        if session is not None:
            session.pending -= 1
            session.used = job.ended
            session.qpu_seconds += job.qpu_seconds
            if session.pending == 0 and not session.accepting:
                self._close(session, session.reason)
        self.changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Cancel a job.

        Raises:
            ApiError: 409 if it has ended.
        """
        with self.changed:
            if job.is_final:
                raise ApiError(
                    409, errors.NOT_CANCELLABLE, f"Job {job.id} is already in state {job.state}."
                )
            self.end(job, CANCELLED, "Cancelled by the user.", None)

    # Records

    def job_records(self) -> list[JobRecord]:
        """Snapshots of all jobs that were accepted, oldest first."""
        with self.changed:
            self.advance()
            return [job.record() for job in self._jobs.values()]

    def session_records(self) -> list[SessionRecord]:
        """Snapshots of all sessions, oldest first."""
        with self.changed:
            self.advance()
            return [session.record() for session in self._sessions.values()]
