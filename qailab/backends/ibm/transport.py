"""Requests of IBM's client: a deadline for each, sent once, with an access token that is good.

The client waits for an answer for ever, and sends a job again by itself when the server answers
500, although that job may have been accepted (https://github.com/Qiskit/qiskit-ibm-runtime/issues/1114).
Where no access token is to be had for a moment, it holds up all calls for a minute, and sends the
API key itself instead; one that the server refuses is used until it expires.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from qailab.backends.ibm.faults import FaultKind, RequestError, classify
from qailab.errors import QailabError

Result = TypeVar("Result")

CONNECT_SECONDS = 10.0


class DeadlinePassed(Exception):
    """A call has not come back in time; it may still do so."""


class _Call(threading.local):
    """What the thread of a call knows of it."""

    left: threading.Event | None = None  # set when nobody waits for it any more
    failed_requests = 0


_CALL = _Call()


def call_within(seconds: float, what: str, call: Callable[[], Result]) -> Result:
    """Call the client, for so many seconds at most; it is then left behind in its thread.

    What it has sent by then may still arrive, but it sends nothing more: a job that is sent after
    nobody waits for it would be one too many.

    Raises:
        RequestError: if it fails, or takes longer.
        QailabError: those of this package pass unchanged.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    left = threading.Event()

    def run() -> None:
        _CALL.left, _CALL.failed_requests = left, 0
        try:
            results.append(call())
        except QailabError as error:
            errors.append(error)
        except BaseException as error:
            fault = classify(error)
            # The client takes a listing that failed for an empty one.
            if "QiskitBackendNotFoundError" in fault.names and not _CALL.failed_requests:
                fault = replace(fault, kind=FaultKind.REFUSED, status=404)
            errors.append(RequestError(fault))

    thread = threading.Thread(target=run, name=f"qailab-ibm: {what}", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is ending, and starts no more threads
        run()
    else:
        thread.join(seconds)
    if errors:
        raise errors[0].with_traceback(None)
    if not results:
        left.set()
        late = DeadlinePassed(f"no answer within {seconds:g} s: {what}")
        raise RequestError(classify(late))
    return results[0]


def bind_requests(service: Any, seconds: float) -> None:
    """Have every request of a service end in time, and be sent once. Safe to call twice."""
    from requests.adapters import HTTPAdapter

    class BoundAdapter(HTTPAdapter):
        """An adapter that neither waits for ever nor sends anything twice."""

        def send(self, request: Any, *places: Any, **options: Any) -> Any:
            if _CALL.left is not None and _CALL.left.is_set():
                raise DeadlinePassed("nobody waits for this call any more")
            options["timeout"] = (CONNECT_SECONDS, seconds)
            _CALL.failed_requests += 1
            response = super().send(request, *places, **options)
            if response.status_code < 400:
                _CALL.failed_requests -= 1
            return response

    # There is no public way to the client's HTTP sessions, which it makes without a timeout, and
    # with five retries.
    for session in {client._session for client in service._api_clients.values()}:
        if isinstance(session.auth, _TokenAuth):
            continue
        session.auth = _TokenAuth(session.auth, seconds)
        adapter = BoundAdapter(max_retries=0, pool_maxsize=32)
        for prefix in list(session.adapters):
            session.mount(prefix, adapter)


class _TokenAuth:
    """The client's authentication; without a token a request fails, and the next tries again.

    A request that is answered with 401 or 403 is sent again with a new token, once.
    """

    def __init__(self, auth: Any, seconds: float) -> None:
        self._auth = auth
        self._tokens = auth.tm
        self._tokens.http_config = {"timeout": (CONNECT_SECONDS, seconds)}
        self._tokens.request_time = 0  # a fault while it connected

    def __call__(self, request: Any) -> Any:
        self._sign(request)
        request.register_hook("response", self._renew)
        return request

    def _sign(self, request: Any) -> None:
        tokens = self._tokens
        try:
            token = tokens.get_token()
        except Exception:
            # Or all calls wait for the one that has just failed, for up to a minute.
            tokens.request_time = 0
            if tokens.access_token is None or tokens.expire_time < time.time():
                raise
            token = tokens.access_token  # refreshed early: this one is good for a while
        request.headers["Service-CRN"] = self._auth.crn
        request.headers["Authorization"] = f"Bearer {token}"

    def _renew(self, response: Any, **options: Any) -> Any:
        if response.status_code not in (401, 403):
            return response
        request = response.request.copy()
        if request.headers.get("Authorization") == f"Bearer {self._tokens.access_token}":
            self._tokens.expire_time = 0
        response.content  # noqa: B018 (read, so that the connection can be used again)
        response.close()
        self._sign(request)
        again = response.connection.send(request, **options)
        again.history.append(response)
        again.request = request
        return again
