"""Deadlines for IBM's client, and an end to its retries.

The client waits for an answer for ever, and sends a job again by itself when the server answers
500, although that job may have been accepted (https://github.com/Qiskit/qiskit-ibm-runtime/issues/1114).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")

CONNECT_SECONDS = 10.0


class DeadlinePassed(Exception):
    """A call has not come back in time; it may still do so."""


def within(seconds: float, call: Callable[[], Result], *, what: str) -> Result:
    """``call()``, unless it takes too long; it is then left behind in its thread.

    Args:
        seconds: how long it may take.
        call: what to do.
        what: what that is, in words.

    Raises:
        DeadlinePassed: if it takes longer.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=f"qailab-ibm: {what}", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise DeadlinePassed(f"no answer within {seconds:g} s: {what}")
    return results[0]


def bound_requests(service: Any, seconds: float) -> None:
    """Have every request of a service end in time, and be sent once.

    Args:
        service: a ``QiskitRuntimeService``.
        seconds: how long a server may be silent.
    """
    from requests.adapters import HTTPAdapter

    class BoundAdapter(HTTPAdapter):
        """An adapter that neither waits for ever nor sends anything twice."""

        def send(self, request: Any, *places: Any, **options: Any) -> Any:
            options["timeout"] = (CONNECT_SECONDS, seconds)
            return super().send(request, *places, **options)

    for session in _sessions(service):
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
