"""HTTP on loopback in front of an `Api`, with the faults of a plan.

::

    connection -> Gateway.handle: endpoint -> faults -> Api.answer -> faults -> bytes
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qailab.rehearsal import errors
from qailab.rehearsal.api import Api
from qailab.rehearsal.endpoints import find_endpoint
from qailab.rehearsal.errors import ApiError
from qailab.rehearsal.faults import JOB_KINDS, REQUEST_KINDS, SESSION_KINDS, Fault, FaultPlan
from qailab.rehearsal.instance import Instance
from qailab.rehearsal.messages import Answer, Request, error_answer
from qailab.rehearsal.records import FaultRecord, RequestRecord

HOST = "127.0.0.1"
"""The only address it listens on."""

POLL_SECONDS = 0.02
"""How long the listener may take to notice that it is to stop."""

MESSAGES = {
    400: (errors.INVALID_REQUEST, "Bad request."),
    401: (errors.INVALID_CREDENTIALS, "Invalid credentials."),
    429: (errors.TOO_MANY_REQUESTS, "Too many requests received."),
    500: (errors.INTERNAL, "Internal server error."),
    502: (errors.INTERNAL, "Bad gateway."),
    503: (errors.INTERNAL, "Service unavailable."),
    504: (errors.INTERNAL, "Gateway timeout."),
}

LOST = Answer(0)
"""No answer: the connection is closed instead."""


class Gateway:
    """Listens, answers, injects faults and keeps records.

    Args:
        api: answers requests.
        instance: for times and sessions.
        faults: what is injected.
        port: to listen on, 0 for any that is free.
    """

    def __init__(self, api: Api, instance: Instance, faults: FaultPlan, port: int) -> None:
        self._api = api
        self._instance = instance
        self._faults = faults
        self._port = port
        self._listener: _Listener | None = None
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._absences = 0
        self._requests: list[RequestRecord] = []
        self._injected: list[FaultRecord] = []

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def requests(self) -> list[RequestRecord]:
        """Requests so far, in the order they were answered."""
        return list(self._requests)

    @property
    def injected(self) -> list[FaultRecord]:
        """Faults so far."""
        return list(self._injected)

    def up(self) -> None:
        """Start to listen.

        Raises:
            OSError: if the port is taken.
        """
        with self._lock:
            if self._listener is None:
                self._listener = _Listener(self._port, self.handle)
                self._port = self._listener.server_address[1]

    def down(self) -> None:
        """Close the listening socket and all connections."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def restart(self, seconds: float) -> None:
        """Be gone for a while; returns when it is gone."""
        with self._lock:
            self._absences += 1
            absence = self._absences
        self.down()
        threading.Thread(target=self._return, args=(seconds, absence), daemon=True).start()

    def _return(self, seconds: float, absence: int) -> None:
        while not self._stopped.wait(seconds):
            with self._lock:
                if self._stopped.is_set() or absence != self._absences:
                    return  # a later absence is longer
                with contextlib.suppress(OSError):  # the port may be somebody's for a moment
                    self.up()
                    return
            seconds = POLL_SECONDS

    def stop(self) -> None:
        """Be gone for good."""
        with self._lock:
            self._stopped.set()
        self.down()

    def handle(self, method: str, target: str, authorization: str, body: bytes) -> Answer:
        """Answer one request.

        Args:
            method: the HTTP method.
            target: path and query.
            authorization: the header of that name.
            body: the body.

        Returns:
            The answer; status 0 says that the connection is to be closed without one.
        """
        began = time.perf_counter()
        path, _, query = target.partition("?")
        endpoint, where = find_endpoint(method, path)
        request = Request(endpoint, where, query, authorization, body)
        self._end_session(request)
        fault = self._faults.draw(endpoint, REQUEST_KINDS) if endpoint else None
        answer = self._process(request) if fault is None else self._hit(request, fault)
        self._requests.append(
            RequestRecord(
                self._instance.now(),
                method,
                endpoint.partition(" ")[2] or path,
                answer.status,
                "" if fault is None else fault.label,
                time.perf_counter() - began,
            )
        )
        return answer

    def _process(self, request: Request) -> Answer:
        if request.endpoint != "POST /jobs" or not self._faults.expects(JOB_KINDS):
            return self._api.answer(request)
        fault = self._faults.draw(request.endpoint, JOB_KINDS)
        if fault is None:
            return self._api.answer(request)
        answer = self._api.answer(replace(request, outcome=fault.kind))
        if answer.job is None:
            self._faults.give_back(fault)  # no job was accepted that it could hit
        else:
            self._note(fault, request, answer.job)
        return answer

    def _end_session(self, request: Request) -> None:
        if not self._faults.expects(SESSION_KINDS):
            return
        session = self._api.session_of(request)
        if session is None or session.state == "closed" or not session.accepting:
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
        job = request.id if "/jobs/ID" in request.endpoint else None
        if fault.kind in ("processed-then-500", "answer-lost") or fault.processed:
            answer = self._process(request)
            self._note(fault, request, answer.job or job)
            if fault.kind == "hang":
                self._stopped.wait(fault.seconds)
                return answer
            return LOST if fault.kind == "answer-lost" else _status(500)
        self._note(fault, request, job)
        if fault.kind == "http":
            return _status(fault.status or 500, fault.retry_after)
        if fault.kind == "pending-limit":
            limit = self._instance.limits.pending_jobs_of(self._instance.plan)
            return error_answer(errors.pending_jobs_error(limit or 3))
        if fault.kind == "hang":
            self._stopped.wait(fault.seconds)
            return _status(504)
        if fault.kind == "restart":
            self.restart(fault.seconds or 0.0)
        return LOST

    def _note(
        self, fault: Fault, request: Request, job: str | None, session: str | None = None
    ) -> None:
        where = " ".join(filter(None, (request.endpoint, session or job)))
        self._injected.append(FaultRecord(self._instance.now(), fault.label, where, job))


def _status(status: int, retry_after: int | None = None) -> Answer:
    code, message = MESSAGES[status]
    answer = error_answer(ApiError(status, code, message))
    if retry_after is not None:
        answer.headers["Retry-After"] = str(retry_after)
    return answer


class _Listener(ThreadingHTTPServer):
    """A listening socket with a thread for each connection."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, port: int, handle: Callable[[str, str, str, bytes], Answer]) -> None:
        self.handle_request_of = handle
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._closing = False
        super().__init__((HOST, port), _Handler)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(POLL_SECONDS,), name="rehearsal-http", daemon=True
        )
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none."""

    def close(self) -> None:
        """Stop listening and break all connections."""
        self.shutdown()
        self.server_close()
        with self._guard:
            connections = list(self._connections)
        for connection in connections:
            _break(connection)


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may be gone already
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Reads requests off a connection and writes answers."""

    protocol_version = "HTTP/1.1"
    server_version = "rehearsal"
    # Without these, Nagle's algorithm and delayed acknowledgements cost 40 ms a request.
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: _Listener

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        authorization = self.headers.get("Authorization", "")
        answer = self.server.handle_request_of(self.command, self.path, authorization, body)
        if answer.status == 0:
            self.close_connection = True
            _break(self.connection)
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are in the records."""
