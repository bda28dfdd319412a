"""From a name to a device: the account, its instance and backends, and what may be wrong there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from qailab.backends.ibm.devices import Mode
from qailab.backends.ibm.faults import Fault, FaultKind, RequestError, known_tokens
from qailab.backends.ibm.limits import Backoff, IBMTimeouts
from qailab.backends.ibm.service import session_kind
from qailab.backends.ibm.transport import bind_requests, call_within
from qailab.errors import BackendBuildError, EvaluationError

Result = TypeVar("Result")

_SET_UP = (
    "set QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE in the environment of that machine, or save an "
    "account there once: QiskitRuntimeService.save_account (qiskit_ibm_runtime); "
    "python -m qailab.doctor --ibm checks it"
)
_NETWORK = {"ConnectionError", "Timeout", "ProxyError", "DeadlinePassed"}
_CONNECT_SECONDS = 30.0


class Account:
    """A way to IBM's service, with the credentials of this machine.

    Args:
        timeouts: how long to wait for what.
        given: what the client is told: ``name`` of a saved account, ``instance``, ``channel``.

    Raises:
        BackendBuildError: if there is no account, or it is refused.
        TransientBackendError: if IBM cannot be reached.
    """

    def __init__(self, timeouts: IBMTimeouts, **given: str | None) -> None:
        self._given = {name: value for name, value in given.items() if value is not None}
        self._timeouts = timeouts
        # Read at import. Without it the client inspects the whole call stack for every request.
        os.environ.setdefault("USAGE_DATA_OPT_OUT", "True")
        # It warns of what is meant: an account from the environment.
        logging.getLogger("qiskit_ibm_runtime").setLevel(logging.ERROR)
        self.service = self._connected()

    @property
    def host(self) -> str:
        """Where the service is: IBM's host, or that of a rehearsal."""
        url = str(self.service.active_account()["url"])
        return urlsplit(url).hostname or url

    def _connected(self) -> Any:
        def connect() -> Any:
            from qiskit_ibm_runtime import QiskitRuntimeService

            service = QiskitRuntimeService(**self._given)
            bind_requests(service, self._timeouts.request_seconds)
            return service

        return self._retried("connecting to IBM Quantum", connect)

    def backend(self, name: str | None, qubits: int) -> Any:
        """The backend of a name, or the least busy one with so many qubits.

        Raises:
            BackendBuildError: if there is none; the message lists those there are.
            TransientBackendError: if IBM cannot be reached.
        """

        def look() -> Any:
            if name is not None:
                backend = self.service.backend(name)
            else:
                backend = self.service.least_busy(min_num_qubits=qubits)
            _ = backend.target  # fetched when it is first asked for: here, where it is retried
            return backend

        what = f"looking for backend {name!r}" if name else "looking for the least busy backend"
        for _ in range(2):
            try:
                return self._retried(what, look)
            except _NotFound:  # the client lists backends when it connects, and keeps what it got
                self.service = self._connected()
        names = self._retried(
            "listing the backends", lambda: {str(one.name) for one in self.service.backends()}
        )
        missing = f"backend {name!r}" if name else f"backend of {qubits} qubits in operation"
        listed = ", ".join(sorted(names)) or "none"
        raise BackendBuildError(f"this account and instance have no {missing}; there are: {listed}")

    def check_session(self, session_id: str, mode: Mode, backend: str) -> None:
        """Raise if a session is not this backend's.

        Raises:
            BackendBuildError: if so, or if there is none of that id.
        """
        session = self._retried(
            f"looking for session {session_id}",
            lambda: session_kind(mode).from_id(session_id, self.service),
        )
        if session.backend() != backend:
            raise BackendBuildError(
                f"session_id {session_id} is a session of backend {session.backend()}, not of "
                f"{backend}; give the id of one of {backend}, or none to open one"
            )

    def _retried(self, what: str, call: Callable[[], Result]) -> Result:
        backoff = Backoff(min(_CONNECT_SECONDS, self._timeouts.retry_seconds), None, what)
        while True:
            try:
                return call_within(2 * self._timeouts.request_seconds, what, call)
            except RequestError as error:
                fault = error.fault
            if "QiskitBackendNotFoundError" in fault.names and fault.kind is FaultKind.REFUSED:
                raise _NotFound
            problem = _account_problem(fault)
            if problem is not None:
                raise BackendBuildError(problem)
            try:
                backoff.pause(_reachable(fault))
            except EvaluationError as refused:  # no rows are to blame
                raise BackendBuildError(str(refused)) from None


class _NotFound(Exception):
    """There is no such backend, as far as the client knows."""


def _reachable(fault: Fault) -> Fault:
    """Say what a fault is; the client's own words blame the token for the network."""
    passes = "InvalidAccountError" in fault.names and fault.kind is not FaultKind.REFUSED
    if not (_NETWORK & fault.names or passes):
        return fault
    text = f"IBM Quantum cannot be reached: {fault.cause}"
    return replace(fault, kind=FaultKind.LOST, text=text)


def _account_problem(fault: Fault) -> str | None:
    """What is wrong with the account, in words; None if it is something else."""
    here, names = f"on {socket.gethostname()}", fault.names
    invalid = "InvalidAccountError" in names
    if "AccountNotFoundError" in names or (invalid and not any(known_tokens())):
        return f"there is no IBM Quantum account {here} ({fault.text}); {_SET_UP}"
    refused = fault.kind is FaultKind.REFUSED
    if _NETWORK & names or (fault.status is not None and not refused):
        return None
    # IBM's identity service answers 400 to a key that it does not know.
    if fault.status in (401, 403) or ("ApiException" in names and fault.status == 400):
        return (
            f"IBM refuses the API key {here} ({fault.text}); make another one at "
            "quantum.cloud.ibm.com, and set or save that"
        )
    if invalid or "AccountsError" in names:
        return f"the IBM Quantum account {here} cannot be used ({fault.text}); {_SET_UP}"
    return None
