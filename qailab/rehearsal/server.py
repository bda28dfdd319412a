"""The rehearsal server: an IBM Quantum instance on loopback."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Self

from qailab.backends.budget import PRICE_PER_SECOND
from qailab.errors import InputError
from qailab.rehearsal.account import (
    INTERNAL,
    INVALID_REQUEST,
    PLANS,
    TOO_MANY_REQUESTS,
    ApiError,
    Limits,
    TokenIssuer,
    too_many_pending,
)
from qailab.rehearsal.api import BASE, CRN, Answer, Api, Request, error_answer, find_endpoint
from qailab.rehearsal.devices import load_devices
from qailab.rehearsal.faults import (
    JOB_KINDS,
    PROCESSED_KINDS,
    REQUEST_KINDS,
    SESSION_KINDS,
    Fault,
    FaultPlan,
)
from qailab.rehearsal.instance import Instance
from qailab.rehearsal.listener import HOST, POLL_SECONDS, Listener
from qailab.rehearsal.records import (
    FaultRecord,
    JobRecord,
    RequestRecord,
    SessionRecord,
    find_duplicates,
    snapshot,
)
from qailab.rehearsal.report import Report
from qailab.rehearsal.sampler import DeviceSampler

CODES = {400: INVALID_REQUEST, 401: 1201, 429: TOO_MANY_REQUESTS}
"""IBM's codes of injected statuses; `INTERNAL` for the others."""

LOST = Answer(0)
"""No answer: the connection is closed instead."""


class RehearsalServer:
    """Speaks IBM Quantum's REST API on 127.0.0.1 and runs submitted jobs on Aer.

    The unmodified client (qiskit-ibm-runtime, its client-side Sampler) is redirected to it by
    environment variables alone; set them before a process creates its ``QiskitRuntimeService``::

        with RehearsalServer(["manila", "lagos"], plan="premium", seed=1) as server:
            os.environ |= server.environment
            backend = QiskitRuntimeService().backend("ibmq_manila")
            ...
            print(server.report().table())

    What is like IBM's: endpoints, payloads, errors, limits, states of jobs and sessions, a queue
    for each device (first in, first out, one job at a time), refusal of circuits that a device
    cannot run. What is not: devices are as noisy as their calibration was when it was saved (with
    ``noise``), or not at all; nobody else is in the queue, and an active session does not shut out
    jobs from outside it; results are not compressed.

    Args:
        backends: devices to offer, by short name (``"manila"``) or the API's.
        plan: ``"open"`` (no sessions, three pending jobs, five a minute, 600 QPU seconds),
            ``"premium"``, ``"flex"`` or ``"pay-as-you-go"``.
        queue_seconds: time a job waits in the queue. In a session or batch only the first one
            waits, and the first after the session was inactive.
        noise: run with the noise of the device instead of ideally.
        seed: of the shots; a row's depend on it and on the row's circuit, values and number of
            shots, not on its job, nor on the order in which jobs arrive. ``None`` for other shots
            each time.
        faults: what goes wrong.
        token: the API key that clients must have.
        limits: what is refused, and after which times sessions end.
        realtime: whether a job holds its device for as long as it is charged.
        port: to listen on; 0 for one that is free.

    Raises:
        InputError: if an option is not valid; an unknown device lists those there are.
    """

    def __init__(
        self,
        backends: Iterable[str] = ("manila",),
        *,
        plan: str = "premium",
        queue_seconds: float = 0.0,
        noise: bool = False,
        seed: int | None = None,
        faults: FaultPlan | None = None,
        token: str = "rehearsal",
        limits: Limits | None = None,
        realtime: bool = False,
        port: int = 0,
    ) -> None:
        if plan not in PLANS:
            raise InputError(f"unknown plan {plan!r}; known: {', '.join(PLANS)}")
        if not 0 <= queue_seconds < float("inf"):
            raise InputError(f"queue_seconds must be 0 or more, got {queue_seconds!r}")
        limits = Limits() if limits is None else limits
        devices = load_devices(backends)
        self._token = token
        self._instance = Instance(
            {device: DeviceSampler(device, noise=noise, seed=seed) for device in devices},
            plan=plan,
            limits=limits,
            queue_seconds=queue_seconds,
            realtime=realtime,
        )
        self._api = Api(self._instance, TokenIssuer(token, limits.token_seconds))
        self._faults = faults or FaultPlan()
        self._requests: list[RequestRecord] = []
        self._injected: list[FaultRecord] = []
        self._port = port
        self._lock = threading.RLock()  # of what follows
        self._listener: Listener | None = None
        self._return: threading.Timer | None = None  # to be back after an absence
        self._started = False
        self._stopped = threading.Event()

    def start(self) -> Self:
        """Listen and run jobs. Loads the simulator first, a few seconds in a new process.

        Raises:
            InputError: if it was started before.
            OSError: if the port is taken.
        """
        if self._started:
            raise InputError("a rehearsal server starts once; make a new one")
        for module in ("qiskit_aer.primitives", "qiskit_ibm_runtime", "qiskit.qpy"):
            importlib.import_module(module)
        self._listen()
        self._started = True
        self._instance.start()
        return self

    def stop(self) -> None:
        """Stop listening, and running jobs after those that run now; records stay."""
        self._stopped.set()
        self._leave()
        self._instance.stop()

    def restart(self, seconds: float) -> None:
        """Let the API be gone for a while, connections with it; jobs go on.

        The call returns when it is gone, not when it is back.
        """
        with self._lock:
            self._leave()
            self._return = threading.Timer(seconds, self._come_back)
            self._return.daemon = True
            self._return.start()

    def _listen(self) -> None:
        with self._lock:
            if not self._stopped.is_set() and self._listener is None:
                self._listener = Listener(self._port, self.answer)
                self._port = self._listener.server_address[1]

    def _leave(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
            if self._return is not None:
                self._return.cancel()
            if listener is not None:
                listener.close()

    def _come_back(self) -> None:
        try:
            self._listen()
        except OSError:  # the port may be somebody's for a moment
            self.restart(POLL_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        plan = self._instance.plan
        return f"RehearsalServer({list(self.backends)!r}, plan={plan!r}, url={self.url!r})"

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://{HOST}:{self._port}"

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of its devices, as the client calls them."""
        return tuple(self._instance.devices)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that redirect the client, in any process of this machine."""
        return {
            "QISKIT_IBM_TOKEN": self._token,
            "QISKIT_IBM_CHANNEL": "ibm_quantum_platform",
            "QISKIT_IBM_INSTANCE": CRN,
            "QISKIT_IBM_URL": f"{self.url}{BASE}",
            "IAM_URL": self.url,
            "GLOBAL_SEARCH_URL": self.url,
            "GLOBAL_CATALOG_URL": f"{self.url}/catalog",
            "NO_PROXY": HOST,
            "no_proxy": HOST,
            # The client's version header costs a walk over the stack with every request.
            "USAGE_DATA_OPT_OUT": "True",
        }

    @property
    def jobs(self) -> list[JobRecord]:
        """Jobs that were accepted, oldest first."""
        with self._instance.changed:
            return [snapshot(JobRecord, job) for job in self._instance.jobs.values()]

    @property
    def sessions(self) -> list[SessionRecord]:
        """Sessions and batches, oldest first."""
        with self._instance.changed:
            self._instance.advance()
            return [snapshot(SessionRecord, one) for one in self._instance.sessions.values()]

    @property
    def requests(self) -> list[RequestRecord]:
        """Requests, in the order they were answered."""
        return list(self._requests)

    @property
    def faults_injected(self) -> list[FaultRecord]:
        """Faults that were injected."""
        return list(self._injected)

    def duplicates(self) -> list[tuple[JobRecord, JobRecord]]:
        """Pairs of jobs with the same content that somebody would pay for both."""
        return find_duplicates(self.jobs)

    def report(self, *, price_per_second: float | None = None) -> Report:
        """What happened so far, with a price (US dollars) or what the plan costs at most."""
        usual = 0.0 if self._instance.plan == "open" else PRICE_PER_SECOND
        return Report(
            backends=self.backends,
            jobs=tuple(self.jobs),
            sessions=tuple(self.sessions),
            requests=tuple(self.requests),
            faults=tuple(self.faults_injected),
            seconds=self._instance.now(),
            price_per_second=usual if price_per_second is None else price_per_second,
        )

    # Requests

    def answer(
        self, method: str, target: str, authorization: str, read_body: Callable[[], bytes]
    ) -> Answer:
        """Answer a request, and note it; its body is not read if it has no access."""
        path, _, query = target.partition("?")
        endpoint, name = find_endpoint(method, path)
        fault, began = None, self._instance.now()
        try:
            self._api.check_access(endpoint, authorization)
        except ApiError as error:
            answer = error_answer(error)
        else:
            request = Request(endpoint, name, query, read_body())
            began = self._instance.now()
            self._end_session(request)
            fault = self._faults.draw(endpoint, REQUEST_KINDS)
            answer = self._process(request) if fault is None else self._hit(request, fault)
        label, now = "" if fault is None else fault.label, self._instance.now()
        template = endpoint.partition(" ")[2] or path
        record = RequestRecord(now, method, template, answer.status, label, now - began)
        self._requests.append(record)
        return answer

    def _process(self, request: Request) -> Answer:
        with self._instance.changed:  # no device takes a job before its fault is known
            answer = self._api.answer(request)
            name = _job_of(request, answer)
            if name is not None and request.endpoint == "POST /jobs":
                fault = self._faults.draw(request.endpoint, JOB_KINDS)
                if fault is not None:
                    self._instance.jobs[name].outcome = fault.kind
                    self._note(fault, request, name)
        return answer

    def _end_session(self, request: Request) -> None:
        with self._instance.changed:
            session = self._api.session_of(request)
            if session is None or not session.accepting:
                return
            fault = self._faults.draw(request.endpoint, SESSION_KINDS)
            if fault is None:
                return
            self._note(fault, request, None, session.id)
            if fault.kind == "session-expired":
                self._instance.expire_session(session, "max_time reached")
            else:
                self._instance.end_session(session, "closed by the service", drop_queued=False)

    def _hit(self, request: Request, fault: Fault) -> Answer:
        """Answer a request as a fault asks for."""
        if fault.kind == "late":
            self._stopped.wait(fault.seconds)
        processed = fault.kind in PROCESSED_KINDS or fault.processed
        answer = self._process(request) if processed else LOST
        job = _job_of(request, answer)
        self._note(fault, request, job)
        if processed and job is not None and request.endpoint == "POST /jobs":
            with self._instance.changed:
                self._instance.jobs[job].answered = False
        if fault.kind == "hang":
            self._stopped.wait(fault.seconds)
            return answer if processed else _status(504)
        if fault.kind == "http":
            return _status(fault.status or 500, fault.retry_after)
        if fault.kind == "processed-then-500":
            return _status(500)
        if fault.kind == "pending-limit":
            limit = self._instance.limits.pending_jobs_of(self._instance.plan)
            return error_answer(too_many_pending(limit or 3))
        if fault.kind == "restart":
            self.restart(fault.seconds or 0.0)
        return LOST

    def _note(
        self, fault: Fault, request: Request, job: str | None, session: str | None = None
    ) -> None:
        where = " ".join(filter(None, (request.endpoint, session or job)))
        self._injected.append(FaultRecord(self._instance.now(), fault.label, where, job))


def _job_of(request: Request, answer: Answer) -> str | None:
    """The id of the job that a request is about, or that it submitted."""
    if "/jobs/ID" in request.endpoint:
        return request.id
    accepted = request.endpoint == "POST /jobs" and answer.status == 200
    return str(json.loads(answer.body)["id"]) if accepted else None


def _status(status: int, retry_after: int | None = None) -> Answer:
    error = ApiError(status, CODES.get(status, INTERNAL), HTTPStatus(status).phrase)
    error.retry_after = retry_after
    return error_answer(error)
