"""IBM Quantum's REST API over an `Instance`: requests in, answers out, no sockets.

Paths, fields and status codes are those that qiskit-ibm-runtime 0.51 uses, found in its source.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import parse_qs

from qailab.rehearsal import errors
from qailab.rehearsal.errors import ApiError
from qailab.rehearsal.instance import Instance
from qailab.rehearsal.jobs import Job, Session
from qailab.rehearsal.messages import Answer, Request, error_answer, json_answer
from qailab.rehearsal.records import COMPLETED
from qailab.rehearsal.submissions import PayloadError, SubmissionReader
from qailab.rehearsal.tokens import TokenIssuer

INSTANCE_NAME = "rehearsal"

PRICING = {"open": "free", "pay-as-you-go": "paygo"}
"""Pricing types by plan; the others are subscriptions."""

DEFAULT_PAGE = 200
"""Jobs of a page of ``GET /jobs`` that asks for no number."""


class Api:
    """Answers requests.

    Args:
        instance: what they are about.
        tokens: the access tokens.
        crn: the instance's name at IBM Cloud.
    """

    def __init__(self, instance: Instance, tokens: TokenIssuer, crn: str) -> None:
        self._instance = instance
        self._tokens = tokens
        self._crn = crn
        self._reader = SubmissionReader()
        self._handlers: dict[str, Callable[[Request], Answer]] = {
            "POST /identity/token": self._token,
            "POST /v3/resources/search": self._resources,
            "GET /catalog/ID": self._catalog,
            "GET /instances/usage": lambda request: json_answer(instance.usage()),
            "GET /backends": self._backends,
            "GET /backends/ID/configuration": self._configuration,
            "GET /backends/ID/properties": self._properties,
            "GET /backends/ID/status": self._status,
            "POST /sessions": self._open_session,
            "GET /sessions/ID": lambda request: json_answer(instance.session_details(request.id)),
            "PATCH /sessions/ID": self._change_session,
            "DELETE /sessions/ID/close": self._cancel_session,
            "POST /jobs": self._submit,
            "GET /jobs": self._list,
            "GET /jobs/ID": self._job,
            "DELETE /jobs/ID": self._delete,
            "GET /jobs/ID/results": self._results,
            "GET /jobs/ID/metrics": self._metrics,
            "GET /jobs/ID/logs": lambda request: Answer(200, b"", job=request.id),
            "POST /jobs/ID/cancel": self._cancel,
            "PUT /jobs/ID/tags": self._retag,
        }

    def answer(self, request: Request) -> Answer:
        """Answer a request."""
        handler = self._handlers.get(request.endpoint)
        if handler is None:
            return error_answer(ApiError(404, errors.INVALID_REQUEST, "No such endpoint."))
        try:
            self._check_token(request)
            return handler(request)
        except ApiError as error:
            return error_answer(error)

    def _check_token(self, request: Request) -> None:
        if request.endpoint == "POST /identity/token":
            return
        if not self._tokens.is_valid(request.authorization):
            text = "Verify your credentials and try again."
            raise ApiError(401, errors.INVALID_CREDENTIALS, "Invalid credentials.", text)

    def session_of(self, request: Request) -> Session | None:
        """The session that a request is about, if it is about one."""
        try:
            if request.endpoint == "POST /jobs":
                session_id = request.json().get("session_id")
                return self._instance.session(session_id) if session_id else None
            if "/sessions/ID" in request.endpoint:
                return self._instance.session(request.id)
            if "/jobs/ID" in request.endpoint:
                return self._instance.job(request.id).session
        except ApiError:
            pass
        return None

    # Account

    def _token(self, request: Request) -> Answer:
        keys = parse_qs(request.body.decode(errors="replace")).get("apikey", [""])
        issued = self._tokens.issue(keys[0])
        if issued is None:
            return json_answer(
                {
                    "errorCode": "BXNIM0415E",
                    "errorMessage": "Provided API key could not be found.",
                    "context": {"url": "/identity/token"},
                },
                status=400,
            )
        return json_answer(issued)

    def _resources(self, request: Request) -> Answer:
        item = {
            "crn": self._crn,
            "name": INSTANCE_NAME,
            "service_plan_unique_id": self._instance.plan,
            "doc": {"extensions": [{"allocations": True}]},
            "tags": [],
        }
        return json_answer({"items": [item], "limit": 100})

    def _catalog(self, request: Request) -> Answer:
        plan = self._instance.plan
        return json_answer(
            {
                "id": request.id,
                "overview_ui": {"en": {"display_name": plan.title()}},
                "metadata": {"pricing": {"type": PRICING.get(plan, "subscription")}},
            }
        )

    # Devices

    def _backends(self, request: Request) -> Answer:
        listed = [
            {
                "name": device.name,
                "qubits": device.num_qubits,
                "is_simulator": False,
                "status": {"name": "online", "reason": "available"},
                "queue_length": self._instance.pending(device),
                "physical_qubits": device.num_qubits,
            }
            for device in self._instance.devices.values()
        ]
        return json_answer({"devices": listed})

    def _configuration(self, request: Request) -> Answer:
        device = self._instance.device(request.id)
        return Answer(200, device.configuration, {"Content-Type": "application/json"})

    def _properties(self, request: Request) -> Answer:
        device = self._instance.device(request.id)
        return Answer(200, device.properties, {"Content-Type": "application/json"})

    def _status(self, request: Request) -> Answer:
        device = self._instance.device(request.id)
        status = {
            "state": True,
            "status": "active",
            "message": "available",
            "backend_version": device.version,
            "length_queue": self._instance.pending(device),
        }
        return json_answer(status)

    # Sessions

    def _open_session(self, request: Request) -> Answer:
        given = request.json()
        session = self._instance.open_session(
            given.get("backend", ""), given.get("mode", "dedicated"), given.get("max_ttl")
        )
        return json_answer(self._instance.session_details(session.id), status=201)

    def _change_session(self, request: Request) -> Answer:
        session = self._instance.session(request.id)
        if request.json().get("accepting_jobs") is False:
            self._instance.end_session(session, "closed by the user", drop_queued=False)
        return Answer(204)

    def _cancel_session(self, request: Request) -> Answer:
        session = self._instance.session(request.id)
        self._instance.end_session(session, "cancelled by the user", drop_queued=True)
        return Answer(204)

    # Jobs

    def _submit(self, request: Request) -> Answer:
        given = request.json()
        device = self._instance.device(given.get("backend", ""))
        session_id = given.get("session_id")
        session = self._instance.session(session_id) if session_id else None
        try:
            submission = self._reader.read(given.get("program_id", ""), given.get("params"))
        except PayloadError as error:
            raise ApiError(400, errors.INVALID_REQUEST, str(error)) from error
        job = self._instance.submit(
            device, submission, request.body, session, given, request.outcome
        )
        answer = {
            "id": job.id,
            "backend": device.name,
            "session_id": session_id,
            "private": job.private,
        }
        return json_answer(answer, job=job.id)

    def _list(self, request: Request) -> Answer:
        query = parse_qs(request.query)
        clock = self._instance.clock
        checks: list[Callable[[Job], bool]] = []
        if "backend" in query:
            checks.append(lambda job: job.device.name == query["backend"][0])
        if "program" in query:
            checks.append(lambda job: job.submission.program == query["program"][0])
        if "pending" in query:
            checks.append(lambda job: (not job.is_final) == (query["pending"][0] == "true"))
        if "session_id" in query:
            sessions = query["session_id"]
            checks.append(lambda job: job.session is not None and job.session.id in sessions)
        if "tags" in query:
            checks.append(lambda job: set(query["tags"]) <= set(job.tags))
        if "created_after" in query:
            after = clock.seconds(query["created_after"][0])
            checks.append(lambda job: job.created >= after)
        if "created_before" in query:
            before = clock.seconds(query["created_before"][0])
            checks.append(lambda job: job.created <= before)
        found = [job for job in self._instance.jobs() if all(check(job) for check in checks)]
        if query.get("sort", ["DESC"])[0] != "ASC":
            found.reverse()
        start = int(query.get("offset", ["0"])[0])
        limit = int(query.get("limit", [str(DEFAULT_PAGE)])[0])
        page = [job.details(clock) for job in found[start : start + limit]]
        answer = {"jobs": page, "count": len(found), "limit": limit, "offset": start}
        return json_answer(answer)

    def _job(self, request: Request) -> Answer:
        job = self._instance.job(request.id)
        details = job.details(self._instance.clock)
        if "exclude_params=true" not in request.query and not job.private:
            details["params"] = json.loads(job.params)["params"]
        return json_answer(details, job=job.id)

    def _delete(self, request: Request) -> Answer:
        job = self._instance.job(request.id)
        if not job.is_final:
            self._instance.cancel(job)
        job.deleted = True
        return Answer(204, job=job.id)

    def _results(self, request: Request) -> Answer:
        job = self._instance.job(request.id)
        if not job.is_final:
            return Answer(204, job=job.id)
        body = job.result if job.state == COMPLETED else job.error_text().encode()
        return Answer(200, body, {"Content-Type": "application/json"}, job.id)

    def _metrics(self, request: Request) -> Answer:
        job = self._instance.job(request.id)
        return json_answer(job.metrics(self._instance.clock), job=job.id)

    def _cancel(self, request: Request) -> Answer:
        self._instance.cancel(self._instance.job(request.id))
        return Answer(204, job=request.id)

    def _retag(self, request: Request) -> Answer:
        job = self._instance.job(request.id)
        job.tags = tuple(request.json().get("tags") or ())
        return Answer(204, job=job.id)
