"""IBM Quantum's REST API over an `Instance`: requests in, answers out, no sockets.

Paths, fields and status codes are those that qiskit-ibm-runtime 0.51 uses, found in its source.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs

from qailab.backends.budget import OPEN_PLAN_SECONDS
from qailab.rehearsal.account import INVALID_REQUEST, ApiError, TokenIssuer
from qailab.rehearsal.devices import Device
from qailab.rehearsal.instance import Instance, Job, Session
from qailab.rehearsal.records import State
from qailab.rehearsal.sampler import read_submission

BASE = "/experimental"
"""Where the API is. The client takes a URL as it is, port included, only with this word in it."""

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/rehearsal:rehearsal::"
"""Name of the instance, in the form of IBM Cloud."""

PRICING = {"open": "free", "pay-as-you-go": "paygo"}
"""Pricing types by plan; the others are subscriptions."""

DEFAULT_PAGE = "200"
"""Jobs of a page of ``GET /jobs`` that asks for no number."""


@dataclass(frozen=True)
class Request:
    """A request: one of `ENDPOINTS`, the id in its path, its query and body."""

    endpoint: str
    id: str = ""
    query: str = ""
    body: bytes = b""

    @cached_property
    def _fields(self) -> dict[str, Any]:
        fields = json.loads(self.body or b"{}")
        if not isinstance(fields, dict):
            raise ValueError("the body must be an object")
        return fields

    def field(self, name: str, kind: type, default: Any = None) -> Any:
        """A field of the JSON body; null counts as left out.

        Raises:
            ValueError: if it is of another kind, or the body is not JSON.
        """
        value = self._fields.get(name)
        if value is not None and type(value) is not kind:
            raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}")
        return default if value is None else value

    def queried(self, name: str, *default: str) -> list[str]:
        """Values of a name in the query."""
        return parse_qs(self.query).get(name, list(default))


@dataclass(frozen=True)
class Answer:
    """An answer; status 0 is none, the connection is closed instead."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)  # beside those of every answer


def json_answer(value: Any, status: int = 200) -> Answer:
    """An answer of JSON, or of bytes that are."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Answer(status, body, {"Content-Type": "application/json"})


def error_answer(error: ApiError) -> Answer:
    """An error in the form IBM's API has them."""
    what = {"code": error.code, "message": error.message, "solution": error.solution}
    answer = json_answer({"errors": [what], "trace": "rehearsal"}, error.status)
    if error.retry_after is None:
        return answer
    return replace(answer, headers=answer.headers | {"Retry-After": str(error.retry_after)})


class Api:
    """Answers requests about an instance."""

    def __init__(self, instance: Instance, tokens: TokenIssuer) -> None:
        self._instance = instance
        self._tokens = tokens

    def check_access(self, endpoint: str, authorization: str) -> None:
        """Raise an ApiError if there is no such endpoint, or the header gives no access to it."""
        if endpoint not in HANDLERS:
            raise ApiError(404, INVALID_REQUEST, "No such endpoint.")
        if endpoint != "POST /identity/token" and not self._tokens.accepts(authorization):
            text = "Verify your credentials and try again."
            raise ApiError(401, 1201, "Invalid credentials.", text)

    def answer(self, request: Request) -> Answer:
        """Answer a request."""
        kind, name = request.endpoint.split("/")[1], request.id
        try:
            with self._instance.changed:
                self._instance.advance()
                subject = self.find(kind, name) if name and kind != "catalog" else None
                value = HANDLERS[request.endpoint](self, request, subject)
        except ApiError as error:
            return error_answer(error)
        except ValueError as error:  # of the body, the query or the job's parameters
            return error_answer(ApiError(400, INVALID_REQUEST, str(error)))
        if value is None:
            return Answer(204)
        return value if isinstance(value, Answer) else json_answer(value)

    def find(self, kind: str, name: str) -> Any:
        """A device, session or job; the caller holds the lock.

        Raises:
            ApiError: 404 if there is none.
        """
        tables: dict[str, tuple[int, str, dict[str, Any]]] = {
            "backends": (1007, "Backend", self._instance.devices),
            "sessions": (1215, "Session", self._instance.sessions),
            "jobs": (1291, "Job", self._instance.jobs),
        }
        code, what, table = tables[kind]
        if name not in table:
            raise ApiError(404, code, f"{what} {name} not found.")
        return table[name]

    def session_of(self, request: Request) -> Session | None:
        """The session that a request is about, if it is about one; the caller holds the lock."""
        job = self._instance.jobs.get(request.id)
        with contextlib.suppress(ValueError):
            name = request.id or request.field("session_id", str, "")
            return self._instance.sessions.get(name) if job is None else job.owner
        return None

    # The account

    def issue_token(self, request: Request) -> Any:
        keys = parse_qs(request.body.decode(errors="replace")).get("apikey", [""])
        issued = self._tokens.issue(keys[0])
        text = "Provided API key could not be found."
        refused = {"errorCode": "BXNIM0415E", "errorMessage": text, "context": {}}
        return json_answer(refused, status=400) if issued is None else issued

    def resources(self) -> Any:
        item = {"crn": CRN, "name": "rehearsal", "service_plan_unique_id": self._instance.plan}
        extensions = [{"allocations": True}]
        return {"items": [{**item, "doc": {"extensions": extensions}, "tags": []}], "limit": 100}

    def plan(self, plan_id: str) -> Any:
        pricing = {"type": PRICING.get(self._instance.plan, "subscription")}
        shown = {"overview_ui": {"en": {"display_name": self._instance.plan.title()}}}
        return {"id": plan_id, "metadata": {"pricing": pricing}, **shown}

    def usage(self) -> Any:
        instance = self._instance
        used, most = instance.consumed(), OPEN_PLAN_SECONDS if instance.plan == "open" else None
        shown = {
            "plan_id": instance.plan,
            "pending_jobs": instance.pending(),
            "max_pending_jobs": instance.limits.pending_jobs_of(instance.plan),
            "usage_consumed_seconds": used,
            "usage_limit_seconds": most,
            "usage_limit_reached": most is not None and used >= most,
        }
        return {name: value for name, value in shown.items() if value is not None}

    # Devices

    def devices(self) -> Any:
        listed = [
            {
                "name": device.name,
                "qubits": device.num_qubits,
                "is_simulator": False,
                "status": {"name": "online", "reason": "available"},
                "queue_length": self._instance.pending(device),
            }
            for device in self._instance.devices.values()
        ]
        return {"devices": listed}

    def status(self, device: Device) -> Any:
        shown = {"backend_version": device.version, "length_queue": self._instance.pending(device)}
        return {"state": True, "status": "active", "message": "available", **shown}

    # Sessions

    def open_session(self, request: Request) -> Any:
        session = self._instance.open_session(
            self.find("backends", request.field("backend", str, "")),
            "batch" if request.field("mode", str) == "batch" else "session",
            request.field("max_ttl", int),
        )
        return json_answer(self.details(session), status=201)

    def change_session(self, request: Request, session: Session) -> Any:
        if request.field("accepting_jobs", bool) is False:
            self._instance.end_session(session, "closed by the user", drop_queued=False)

    def cancel_session(self, session: Session) -> Any:
        self._instance.end_session(session, "cancelled by the user", drop_queued=True)

    def details(self, session: Session) -> Any:
        used, batch = session.used, session.mode == "batch"
        return {
            "id": session.id,
            "backend_name": session.backend,
            "mode": "batch" if batch else "dedicated",
            "state": session.state,
            "accepting_jobs": session.accepting,
            "max_ttl": int(session.max_time),
            "active_ttl": int(session.max_time),
            "interactive_ttl": int(session.interactive),
            "started_at": self._time(session.started),
            "closed_at": self._time(session.closed),
            "last_job_started": self._time(None if session.started is None else used),
            "last_job_completed": self._time(None if session.pending else used),
            # What is charged: a session while it is active, a batch for its jobs.
            "elapsed_time": session.qpu_seconds if batch else session.active_seconds,
        }

    # Jobs

    def submit(self, request: Request) -> Any:
        device = self.find("backends", request.field("backend", str, ""))
        session_id, params = request.field("session_id", str), request.field("params", dict, {})
        session = self.find("sessions", session_id) if session_id else None
        submission = read_submission(request.field("program_id", str, ""), params)
        most = self._instance.limits.job_seconds
        job = Job(
            id=f"rehearsal-{secrets.token_hex(10)}",  # journals tell by it that nothing was paid
            backend=device.name,
            program=submission.program,
            mode="job" if session is None else session.mode,
            session=session_id,
            tags=tuple(map(str, request.field("tags", list, []))),
            rows=submission.rows,
            shots=submission.shots,
            content=submission.content,
            created=self._instance.now(),
            device=device,
            submission=submission,
            owner=session,
            params=params,
            max_seconds=min(request.field("cost", int) or most, most),
        )
        self._instance.accept(job)
        return {"id": job.id, "backend": job.backend, "session_id": job.session}

    def list_jobs(self, request: Request) -> Any:
        found = [job for job in self._instance.jobs.values() if self._matches(job, request)]
        if request.queried("sort") != ["ASC"]:
            found.reverse()
        start = max(0, int(request.queried("offset", "0")[0]))
        limit = max(0, int(request.queried("limit", DEFAULT_PAGE)[0]))
        page = [self.facts(job) for job in found[start : start + limit]]
        return {"jobs": page, "count": len(found), "limit": limit, "offset": start}

    def _matches(self, job: Job, request: Request) -> bool:
        pending = "false" if job.is_final else "true"
        exact = {"backend": job.backend, "program": job.program, "pending": pending}
        exact["session_id"] = job.session or ""
        after, before = request.queried("created_after"), request.queried("created_before")
        return (
            all(request.queried(name) in ([], [value]) for name, value in exact.items())
            and set(request.queried("tags")) <= set(job.tags)
            and all(job.created >= self._seconds(text) for text in after)
            and all(job.created <= self._seconds(text) for text in before)
        )

    def job(self, request: Request, job: Job) -> Any:
        hidden = request.queried("exclude_params") == ["true"]
        return self.facts(job) | ({} if hidden else {"params": job.params})

    def facts(self, job: Job) -> dict[str, Any]:
        # The API says Cancelled of a job that ran too long; the client goes by the reason's code.
        status = State.CANCELLED if job.state == State.RAN_TOO_LONG else job.state
        why = {"reason": job.reason, "reason_code": job.reason_code}
        return {
            "id": job.id,
            "backend": job.backend,
            "status": status,
            "state": {"status": status} | {name: value for name, value in why.items() if value},
            "program": {"id": job.program},
            "created": self._time(job.created),
            "ended": self._time(job.ended),
            "session_id": job.session,
            "tags": list(job.tags),
            "cost": job.max_seconds,
            "estimated_running_time_seconds": job.estimate,
            "usage": {"seconds": job.qpu_seconds},
        }

    def results(self, job: Job) -> Any:
        error = f"{job.state}: error code {job.reason_code}; {job.reason}".encode()
        result = job.result if job.state == State.COMPLETED else error
        return result if job.is_final else None

    def metrics(self, job: Job) -> Any:
        names = ("seconds", "quantum_seconds", "qpu_charge_time_seconds")
        times = {"created": job.created, "running": job.started, "finished": job.ended}
        status = {"status": "complete" if job.is_final else "pending"}
        return {
            "timestamps": {name: self._time(moment) for name, moment in times.items()},
            "usage": dict.fromkeys(names, job.qpu_seconds) | status,
            "executions": job.executions,
            "num_circuits": job.rows,
        }

    def cancel(self, job: Job) -> Any:
        if job.is_final:
            raise ApiError(409, 1292, f"Job {job.id} is already {job.state}.")
        self._instance.end(job, State.CANCELLED, "Cancelled by the user.")

    def change_tags(self, request: Request, job: Job) -> Any:
        job.tags = tuple(map(str, request.field("tags", list, [])))

    # Times

    def _time(self, seconds: float | None) -> str | None:
        if seconds is None:
            return None
        moment = self._instance.began + timedelta(seconds=seconds)
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")

    def _seconds(self, text: str) -> float:
        moment = datetime.fromisoformat(text)
        known = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return (known - self._instance.began).total_seconds()


HANDLERS: dict[str, Callable[[Api, Request, Any], Any]] = {
    "POST /identity/token": lambda api, request, _: api.issue_token(request),
    "POST /v3/resources/search": lambda api, request, _: api.resources(),
    "GET /catalog/ID": lambda api, request, _: api.plan(request.id),
    "GET /instances/usage": lambda api, request, _: api.usage(),
    "GET /backends": lambda api, request, _: api.devices(),
    "GET /backends/ID/configuration": lambda api, request, device: device.configuration,
    "GET /backends/ID/properties": lambda api, request, device: device.properties,
    "GET /backends/ID/status": lambda api, request, device: api.status(device),
    "POST /sessions": lambda api, request, _: api.open_session(request),
    "GET /sessions/ID": lambda api, request, session: api.details(session),
    "PATCH /sessions/ID": lambda api, request, session: api.change_session(request, session),
    "DELETE /sessions/ID/close": lambda api, request, session: api.cancel_session(session),
    "POST /jobs": lambda api, request, _: api.submit(request),
    "GET /jobs": lambda api, request, _: api.list_jobs(request),
    "GET /jobs/ID": lambda api, request, job: api.job(request, job),
    "GET /jobs/ID/results": lambda api, request, job: api.results(job),
    "GET /jobs/ID/metrics": lambda api, request, job: api.metrics(job),
    "GET /jobs/ID/logs": lambda api, request, job: Answer(200),
    "POST /jobs/ID/cancel": lambda api, request, job: api.cancel(job),
    "PUT /jobs/ID/tags": lambda api, request, job: api.change_tags(request, job),
}
"""What answers a request, by method and path template.

A handler gets the request and what the id in its path names; it returns an answer, or what one of
status 200 is made of, or None for 204.
"""

ENDPOINTS = tuple(HANDLERS)

NO_BASE = ENDPOINTS[:3]
"""Endpoints of IBM Cloud; all others are under `BASE`."""


def find_endpoint(method: str, path: str) -> tuple[str, str]:
    """The endpoint of a request, and the id in its path, each ``""`` if there is none.

    >>> find_endpoint("GET", "/experimental/jobs/d1b2/results")
    ('GET /jobs/ID/results', 'd1b2')
    """
    for endpoint in ENDPOINTS:
        known, template = endpoint.split()
        base = "" if endpoint in NO_BASE else BASE
        found = re.fullmatch(base + template.replace("ID", "([^/]+)"), path)
        if found and known == method:
            return endpoint, "".join(found.groups())
    return "", ""
