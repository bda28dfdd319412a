"""Deadlines for IBM's client, and an end to its retries.

The client waits for an answer for ever, and sends a job again by itself when the server answers
500, although that job may have been accepted (https://github.com/Qiskit/qiskit-ibm-runtime/issues/1114).
Where no access token is to be had for a moment, it holds up all calls for a minute, and sends the
API key itself instead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")

CONNECT_SECONDS = 10.0


class DeadlinePassed(Exception):
    """A call has not come back in time; it may still do so."""


class _Call(threading.local):
    """What this thread's call is told, if it is one of `within`."""

    left_behind: threading.Event | None = None


_CALL = _Call()


def within(seconds: float, call: Callable[[], Result], *, what: str) -> Result:
    """``call()``, unless it takes too long; it is then left behind in its thread.

    What it has sent by then may still arrive, but it sends nothing more: a job that is sent after
    nobody waits for it would be one too many.

    Args:
        seconds: how long it may take.
        call: what to do.
        what: what that is, in words.

    Raises:
        DeadlinePassed: if it takes longer.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    left_behind = threading.Event()

    def run() -> None:
        _CALL.left_behind = left_behind
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=f"qailab-ibm: {what}", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is ending, and starts no more threads
        return call()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        left_behind.set()
        raise DeadlinePassed(f"no answer within {seconds:g} s: {what}")
    return results[0]


def bound_requests(service: Any, seconds: float) -> None:
    """Have every request of a service end in time, and be sent once. Safe to call twice.

    Args:
        service: a ``QiskitRuntimeService``.
        seconds: how long a server may be silent.
    """
    from requests.adapters import HTTPAdapter
    from requests.auth import AuthBase

    class BoundAdapter(HTTPAdapter):
        """An adapter that neither waits for ever nor sends anything twice."""

        def send(self, request: Any, *places: Any, **options: Any) -> Any:
            if _CALL.left_behind is not None and _CALL.left_behind.is_set():
                raise DeadlinePassed("nobody waits for this call any more")
            options["timeout"] = (CONNECT_SECONDS, seconds)
            return super().send(request, *places, **options)

    class TokenAuth(AuthBase):
        """The client's authentication; without a token it fails, and the next call tries again."""

        def __init__(self, auth: Any) -> None:
            self.auth = auth
            self.auth.tm.http_config = {"timeout": (CONNECT_SECONDS, seconds)}

        def __call__(self, request: Any) -> Any:
            manager = self.auth.tm
            try:
                token = manager.get_token()
            except Exception:
                # Or all calls wait for the one that has just failed, for up to a minute.
                manager.request_time = 0
                if manager.access_token is None or manager.expire_time < time.time():
                    raise
                token = manager.access_token  # refreshed early: this one is good for a while
            request.headers.update({"Service-CRN": self.auth.crn})
            request.headers.update({"Authorization": f"Bearer {token}"})
            return request

    for session in _sessions(service):
        auth: Any = getattr(session, "auth", None)
        if hasattr(auth, "tm") and hasattr(auth, "crn"):
            session.auth = TokenAuth(auth)
            auth.tm.request_time = 0  # a fault while it connected
        adapter = BoundAdapter(max_retries=0, pool_maxsize=32)
        for prefix in list(session.adapters):
            session.mount(prefix, adapter)


def _sessions(service: Any) -> Iterator[Any]:
    """The HTTP sessions of a service's API clients; they have no public name."""
    for value in vars(service).values():
        for client in value.values() if isinstance(value, dict) else (value,):
            session = getattr(client, "_session", None)
            if hasattr(session, "mount"):
                yield session
