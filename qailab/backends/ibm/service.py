"""A device behind IBM's service, and its sessions, through the real client."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from qailab.backends.ibm.devices import Found, JobStatus, Mode, merged_options
from qailab.backends.ibm.faults import Fault, FaultKind, RequestError, redact
from qailab.backends.ibm.limits import IBMTimeouts
from qailab.backends.ibm.programs import Measured, Program, measured_bits
from qailab.backends.ibm.transport import bind_requests, call_within
from qailab.gradients.rows import FloatArray

logger = logging.getLogger("qailab.backends")

Result = TypeVar("Result")

_CALL_SHARE = 1.5  # of a call's deadline over a request's: a call may be a few requests


class ServiceDevice:
    """A `Device` behind IBM's service: a backend of a ``QiskitRuntimeService``."""

    def __init__(
        self, service: Any, backend: Any, options: Mapping[str, Any], timeouts: IBMTimeouts
    ) -> None:
        self.name = str(backend.name)
        self.target = backend
        limit = getattr(backend.configuration(), "max_shots", None)
        self.max_shots = int(limit) if isinstance(limit, int) and limit > 0 else None
        self.settle_seconds = timeouts.settle_seconds
        self._service = service
        self._options = options
        self._seconds = _CALL_SHARE * timeouts.request_seconds
        self._jobs: dict[str, Any] = {}  # threads share it: each use is one operation
        # The client makes another API client for the backend's instance, perhaps.
        bind_requests(service, timeouts.request_seconds)

    def submit(
        self, program: Program, angles: FloatArray, shots: int, *, tag: str, seed: int, mode: Any
    ) -> str:
        from qiskit_ibm_runtime.executor_sampler import Sampler

        tags = {"environment": {"job_tags": ["qailab", tag]}}
        options = merged_options(self._options, tags)

        def send() -> tuple[Any, Any]:
            sampler = Sampler(mode=self.target if mode is None else mode, options=options)
            job = sampler.run(program.pubs(angles), shots=shots)
            return job, job.job_id()

        job, job_id = self._call("sending a job", send)
        if not isinstance(job_id, str) or not job_id:
            raise RequestError(Fault(FaultKind.LOST, f"the server gave a job the id {job_id!r}"))
        self._jobs[job_id] = job
        return job_id

    def status(self, job_id: str) -> tuple[JobStatus, str]:
        return self._call(f"looking at job {job_id}", lambda: _status_of(self._job(job_id)))

    def measured(self, job_id: str, program: Program, num_rows: int, shots: int) -> Measured:
        def fetch() -> Measured:
            return program.measured(measured_bits(self._job(job_id)), num_rows, shots)

        return self._call(f"fetching the result of job {job_id}", fetch)

    def usage(self, job_id: str) -> float | None:
        metrics = self._call(f"usage of job {job_id}", lambda: self._job(job_id).metrics())
        usage = metrics.get("usage") or {}
        seconds = usage.get("quantum_seconds")
        if seconds is None:
            seconds = usage.get("qpu_charge_time_seconds")
        if seconds is None or usage.get("status") == "pending":
            return None
        if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            logger.warning("job %s: the service says that it used %r seconds", job_id, seconds)
            return None
        return float(seconds)

    def cancel(self, job_id: str) -> None:
        self._call(f"cancelling job {job_id}", lambda: self._job(job_id).cancel())

    def find(self, tag: str) -> list[Found]:
        def look() -> list[Found]:
            jobs = self._service.jobs(job_tags=[tag], limit=None)
            found = []
            for job in jobs:
                if tag in (job.tags or ()):
                    self._jobs[str(job.job_id())] = job
                    found.append(Found(str(job.job_id()), _status_of(job)[0], job.session_id))
            return found

        return self._call(f"looking for jobs tagged {tag}", look)

    def forget(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    def _job(self, job_id: str) -> Any:
        job = self._jobs.get(job_id)
        if job is None:
            job = self._jobs[job_id] = self._service.job(job_id)
        return job

    def _call(self, what: str, call: Callable[[], Result]) -> Result:
        return call_within(self._seconds, what, call)


def _status_of(job: Any) -> tuple[JobStatus, str]:
    from qiskit_ibm_runtime.exceptions import RuntimeJobMaxTimeoutError

    said = str(job.status())
    status = meaning_of(said)
    if status is JobStatus.FAILED:
        try:
            job.result()  # says why: no request, as the client knows that it is final
        except RuntimeJobMaxTimeoutError as error:
            return JobStatus.TOO_LONG, redact(str(error))
        except Exception as error:
            return status, redact(str(error))
    return status, said if status.is_final else ""


def meaning_of(said: str) -> JobStatus:
    """What a status means; the client passes on those of the server that it does not know."""
    word = said.upper()
    for beginnings, status in _STATUSES.items():
        if word.startswith(beginnings):
            too_long = status is JobStatus.CANCELLED and "TOO LONG" in word
            return JobStatus.TOO_LONG if too_long else status
    return JobStatus.RUNNING


_STATUSES = {
    ("INITIALIZING", "QUEUED"): JobStatus.WAITING,
    ("DONE", "COMPLETE"): JobStatus.DONE,
    ("ERROR", "FAIL"): JobStatus.FAILED,
    ("CANCEL", "ABORT"): JobStatus.CANCELLED,
}


class ServiceSessions:
    """Sessions and batches of a backend at the service; they live for ``max_seconds``."""

    def __init__(
        self, service: Any, backend: Any, max_seconds: int, request_seconds: float
    ) -> None:
        self._service = service
        self._backend = backend
        self._max_seconds = max_seconds
        self._seconds = 2 * request_seconds

    def open(self, mode: Mode) -> Any:
        """Open one; it must be closed, or it costs until its time is up."""
        kind = session_kind(mode)
        return call_within(
            self._seconds,
            f"opening a {mode}",
            lambda: kind(self._backend, max_time=self._max_seconds),
        )

    def attach(self, session_id: str, mode: Mode) -> Any:
        """One that was opened elsewhere; a `RequestError` of status 404 if there is none."""
        return call_within(
            self._seconds,
            f"looking for {mode} {session_id}",
            lambda: session_kind(mode).from_id(session_id, self._service),
        )

    def close(self, session: Any) -> None:
        """Close one: it takes no more jobs, and those that wait are still run."""
        call_within(self._seconds, "closing a session", session.close)

    def takes_jobs(self, session_id: str, mode: Mode) -> bool:
        """Whether it takes more jobs."""
        try:
            session = self.attach(session_id, mode)
        except RequestError as error:
            if error.fault.kind is FaultKind.REFUSED:
                return error.fault.status != 404
            raise
        what = f"looking at session {session_id}"
        details = call_within(self._seconds, what, session.details) or {}
        closed = details.get("state") in ("closed", "pending_closed")
        return not closed and details.get("accepting_jobs") is not False


def session_kind(mode: Mode) -> Any:
    """The client's class of a mode."""
    from qiskit_ibm_runtime import Batch, Session

    return Batch if mode == "batch" else Session
