"""A device behind IBM's service, through the real client.

No call waits for ever, and no request is sent twice without the caller's doing (`transport`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qailab.backends.ibm.devices import JobState, Mode, State
from qailab.backends.ibm.faults import RAN_TOO_LONG_CODE
from qailab.backends.ibm.programs import Program
from qailab.backends.ibm.results import counts_of_job
from qailab.backends.ibm.samplers import Kind, make_sampler, merged
from qailab.backends.ibm.transport import bound_requests, within
from qailab.gradients.rows import FloatArray

Result = TypeVar("Result")

_STATES: dict[str, State] = {
    "INITIALIZING": "waiting",
    "QUEUED": "waiting",
    "RUNNING": "running",
    "DONE": "done",
    "ERROR": "failed",
    "CANCELLED": "cancelled",
}
_TOO_LONG = f"{RAN_TOO_LONG_CODE}"
_SLACK = 1.5  # of a call's deadline over a request's: a call may be a few requests


def _state_of(status: str) -> State:
    """What a status means; the client passes on those that it does not know."""
    known = _STATES.get(status)
    if known is not None:
        return known
    word = status.upper()
    if word.startswith(("CANCEL", "ABORT")):
        return "cancelled"
    if word.startswith(("FAIL", "ERROR")):
        return "failed"
    return "done" if word.startswith(("COMPLETE", "DONE")) else "running"


def open_service(
    account: str | None, instance: str | None, channel: str | None, seconds: float
) -> Any:
    """IBM's service, with the credentials that the client finds on this machine.

    Args:
        account: the name of a saved account.
        instance: the instance, by name or CRN.
        channel: the client's channel.
        seconds: how long the server may be silent.
    """
    # Read at import. Without it the client inspects the whole call stack for every request.
    os.environ.setdefault("USAGE_DATA_OPT_OUT", "True")
    # It warns of what is meant: an account from the environment, a deprecated sampler.
    logging.getLogger("qiskit_ibm_runtime").setLevel(logging.ERROR)

    def open_it() -> Any:
        from qiskit_ibm_runtime import QiskitRuntimeService

        given = {"name": account, "instance": instance, "channel": channel}
        return QiskitRuntimeService(**{k: v for k, v in given.items() if v is not None})

    service = within(2 * seconds, open_it, what="connecting to IBM Quantum")
    bound_requests(service, seconds)
    return service


def backend_names(service: Any) -> list[str]:
    """The names of all backends; the client's own list leaves out those it had trouble with.

    Args:
        service: a ``QiskitRuntimeService``.
    """
    # The API's clients have no public name.
    clients = list(service._api_clients.values()) or [service._active_api_client]
    return sorted({str(each["name"]) for client in clients for each in client.list_backends(True)})


class ServiceDevice:
    """A `Device` behind IBM's service.

    Args:
        service: a ``QiskitRuntimeService``.
        backend: a backend of it.
        sampler: which Sampler to use.
        options: its options.
        seconds: how long the server may be silent.
    """

    is_local = False

    def __init__(
        self, service: Any, backend: Any, sampler: Kind, options: Mapping[str, Any], seconds: float
    ) -> None:
        self.service = service
        self.target = backend
        self._sampler = sampler
        self._options = options
        self._seconds = seconds
        self._jobs: dict[str, Any] = {}
        self._lock = threading.Lock()
        bound_requests(service, seconds)  # a client may have been added for the backend's instance

    @property
    def name(self) -> str:
        return str(self.target.name)

    @property
    def max_shots(self) -> int | None:
        limit = getattr(self.target.configuration(), "max_shots", None)
        return int(limit) if isinstance(limit, int) and limit > 0 else None

    def submit(
        self, program: Program, angles: FloatArray, shots: int, *, tag: str, seed: int, mode: Any
    ) -> str:
        tags = {"environment": {"job_tags": ["qailab", tag]}}
        sampler = make_sampler(
            self._sampler, self.target if mode is None else mode, merged(self._options, tags)
        )
        job = self._within(lambda: sampler.run(program.pubs(angles), shots=shots), "sending a job")
        job_id = str(job.job_id())
        with self._lock:
            self._jobs[job_id] = job
        return job_id

    def state(self, job_id: str) -> JobState:
        job = self._job(job_id)
        status = str(self._within(job.status, f"looking at job {job_id}"))
        state = _state_of(status)
        if state in ("waiting", "running", "done"):
            return JobState(state)
        # What `status` has just fetched; it has no public name beside an error's text.
        reason = str(getattr(job, "_reason", None) or getattr(job, "_error_message", None) or "")
        code = getattr(job, "_reason_code", None)
        said = f"{status} {reason}".lower()
        too_long = code == RAN_TOO_LONG_CODE or "ran too long" in said or _TOO_LONG in said
        return JobState("too long" if too_long else state, reason or f"no reason given ({status})")

    def counts(self, job_id: str, num_bits: int, num_rows: int, shots: int) -> NDArray[np.uint32]:
        job = self._job(job_id)
        return self._within(
            lambda: counts_of_job(job, num_bits, num_rows, shots),
            f"fetching the result of job {job_id}",
        )

    def usage(self, job_id: str) -> float | None:
        usage = self._within(self._job(job_id).metrics, f"usage of job {job_id}").get("usage") or {}
        seconds = usage.get("quantum_seconds")
        if seconds is None:
            seconds = usage.get("qpu_charge_time_seconds")
        if seconds is None or usage.get("status") == "pending":
            return None
        return float(seconds)

    def cancel(self, job_id: str) -> None:
        self._within(self._job(job_id).cancel, f"cancelling job {job_id}")

    def find(self, tag: str) -> list[str]:
        jobs = self._within(
            lambda: self.service.jobs(job_tags=[tag], limit=None), f"looking for jobs tagged {tag}"
        )
        with self._lock:
            self._jobs.update({str(job.job_id()): job for job in jobs})
        return [str(job.job_id()) for job in jobs]

    def session_of(self, job_id: str) -> str | None:
        # The public property asks the server where there is none.
        session = getattr(self._jobs.get(job_id), "_session_id", None)
        return str(session) if session else None

    def forget(self, job_id: str) -> None:
        with self._lock:
            self._jobs.pop(job_id, None)

    def _job(self, job_id: str) -> Any:
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None:
            job = self._within(lambda: self.service.job(job_id), f"looking for job {job_id}")
            with self._lock:
                self._jobs[job_id] = job
        return job

    def _within(self, call: Callable[[], Result], what: str) -> Result:
        return within(_SLACK * self._seconds, call, what=what)


class ServiceSessions:
    """Sessions and batches of a backend at the service.

    Args:
        service: a ``QiskitRuntimeService``.
        backend: the backend.
        max_seconds: how long a session may live.
        seconds: how long the server may be silent.
    """

    def __init__(self, service: Any, backend: Any, max_seconds: int, seconds: float) -> None:
        self._service = service
        self._backend = backend
        self._max_seconds = max_seconds
        self._seconds = seconds

    def open(self, mode: Mode) -> Any:
        """Open one; it must be closed, or it costs until its time is up."""
        kind = _session_kind(mode)
        return within(
            _SLACK * self._seconds,
            lambda: kind(self._backend, max_time=self._max_seconds),
            what=f"opening a {mode}",
        )

    def attach(self, session_id: str, mode: Mode) -> Any:
        """One that was opened elsewhere."""
        kind = _session_kind(mode)
        return within(
            2 * self._seconds,
            lambda: kind.from_id(session_id, self._service),
            what=f"looking for {mode} {session_id}",
        )

    def takes_jobs(self, session_id: str) -> bool:
        """Whether it takes more jobs."""
        from qiskit_ibm_runtime import Session

        session = Session(self._backend, create_new=False)
        session._session_id = session_id
        details = within(
            _SLACK * self._seconds, session.details, what=f"looking at session {session_id}"
        )
        closed = (details or {}).get("state") in ("closed", "pending_closed")
        return not closed and (details or {}).get("accepting_jobs") is not False


def _session_kind(mode: Mode) -> Any:
    from qiskit_ibm_runtime import Batch, Session

    return Batch if mode == "batch" else Session
