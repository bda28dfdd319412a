"""From a name to a device: accounts, instances, backends, and what may be wrong with them."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from qailab.backends.ibm.devices import Device, Mode
from qailab.backends.ibm.faults import (
    Fault,
    chain_of,
    classify,
    known_tokens,
    without_tokens,
)
from qailab.backends.ibm.patience import Patience
from qailab.backends.ibm.samplers import Kind
from qailab.backends.ibm.service import ServiceDevice, backend_names, open_service
from qailab.backends.ibm.transport import within
from qailab.backends.ibm.waits import IBMWaits
from qailab.errors import BackendBuildError, BackendError, InputError, TransientBackendError

Result = TypeVar("Result")

_SET_UP = (
    "set QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE in the environment of that machine, or save an "
    "account there once: QiskitRuntimeService.save_account (qiskit_ibm_runtime); "
    "python -m qailab.doctor --ibm checks it"
)
_NETWORK = {"ConnectionError", "Timeout", "ProxyError", "DeadlinePassed"}
_CONNECT_PATIENCE_SECONDS = 30.0
_TIME = re.compile(r"(?:(\d+)d)?\s*(?:(\d+)h)?\s*(?:(\d+)m)?\s*(?:(\d+)s)?")
_UNITS = (86_400, 3_600, 60, 1)


def seconds_of(max_time: object) -> int:
    """A session's longest life in seconds, from a number of them or words like ``"2h 30m"``.

    Raises:
        InputError: if it is neither.
    """
    wrong = (
        "max_time must be a positive number of seconds, or days, hours, minutes and seconds in "
        f"this order, such as '1h', '25m' or '2h 30m 40s'; got {max_time!r}"
    )
    seconds = 0
    if isinstance(max_time, int) and not isinstance(max_time, bool):
        seconds = max_time
    elif isinstance(max_time, str):
        found = _TIME.fullmatch(max_time.strip())
        if found is not None:
            seconds = sum(
                int(n or 0) * unit for n, unit in zip(found.groups(), _UNITS, strict=True)
            )
    if seconds <= 0:
        raise InputError(wrong)
    return seconds


class Account:
    """A way to IBM's service, with the credentials of this machine.

    Args:
        account: the name of a saved account.
        instance: the instance, by name or CRN.
        channel: the client's channel.
        waits: how long to wait for what.

    Raises:
        BackendBuildError: if there is no account, or it is refused.
        TransientBackendError: if IBM cannot be reached.
    """

    def __init__(
        self, account: str | None, instance: str | None, channel: str | None, waits: IBMWaits
    ) -> None:
        self._waits = waits

        def connect() -> Any:
            return open_service(account, instance, channel, waits.request_seconds)

        self._connect = connect
        self.service = self._patiently(connect, "connecting to IBM Quantum")

    def device(
        self, name: str | None, qubits: int, sampler: Kind, options: Mapping[str, Any]
    ) -> Device:
        """The backend of a name, or the least busy one with so many qubits.

        Raises:
            BackendBuildError: if there is none; the message lists those there are.
            TransientBackendError: if IBM cannot be reached.
        """
        what = f"looking for backend {name!r}" if name else "looking for the least busy backend"

        def look() -> Any:
            if name is not None:
                backend = self.service.backend(name)
            else:
                backend = self.service.least_busy(min_num_qubits=qubits)
            _ = backend.target  # fetched when it is first asked for: here, where faults are borne
            return backend

        backend = self._patiently(look, what, missing=lambda: self._no_backend(name, qubits, what))
        seconds = self._waits.request_seconds
        return ServiceDevice(self.service, backend, sampler, options, seconds)

    def check_session(self, session_id: str, mode: Mode, backend: str) -> None:
        """Raise an error if a session is not this backend's.

        Raises:
            BackendBuildError: if so, or if there is none of that id.
        """
        from qiskit_ibm_runtime import Batch, Session

        kind = Batch if mode == "batch" else Session
        what = f"looking for session {session_id}"
        session = self._patiently(lambda: kind.from_id(session_id, self.service), what)
        if session.backend() != backend:
            raise BackendBuildError(
                f"session_id {session_id} is a session of backend {session.backend()}, not of "
                f"{backend}; give the id of one of {backend}, or none to open one"
            )

    def _no_backend(self, name: str | None, qubits: int, what: str) -> BackendError:
        """An error that lists the backends; a transient one if the client has overlooked some."""
        there = self._patiently(lambda: backend_names(self.service), "listing the backends")
        if name in there or name is None:

            def seen() -> list[str]:
                return [str(backend.name) for backend in self.service.backends()]

            if name in there or sorted(self._patiently(seen, what)) != there:
                self.service = self._patiently(self._connect, "connecting to IBM Quantum")
                return TransientBackendError(f"{what}: a request failed")
        listed = ", ".join(there) or "none"
        if name is None:
            return BackendBuildError(
                f"no backend of this account and instance is in operation and has {qubits} "
                f"qubits; there are: {listed}"
            )
        return BackendBuildError(
            f"this account and instance have no backend {name!r}; there are: {listed}"
        )

    def _patiently(
        self,
        call: Callable[[], Result],
        what: str,
        missing: Callable[[], BackendError] | None = None,
    ) -> Result:
        seconds = min(_CONNECT_PATIENCE_SECONDS, self._waits.patience_seconds)
        waits = IBMWaits(request_seconds=self._waits.request_seconds, patience_seconds=seconds)
        patience = Patience(waits, None, what)
        while True:
            try:
                return within(2 * waits.request_seconds, call, what=what)
            except Exception as error:
                kinds = {kind.__name__ for one in chain_of(error) for kind in type(one).__mro__}
                if missing is not None and "QiskitBackendNotFoundError" in kinds:
                    fault = classify(error)
                    if fault.status in (None, 404):
                        problem_there = missing()
                        if not isinstance(problem_there, TransientBackendError):
                            raise problem_there from error
                        lost = Fault("lost", str(problem_there))
                        patience.bear(lost, error)
                        continue
                problem = _account_problem(error, kinds)
                if problem is not None:
                    raise BackendBuildError(problem) from error
                try:
                    patience.bear(_reachable(error, kinds), error)
                except TransientBackendError:
                    raise
                except BackendError as refused:
                    raise BackendBuildError(str(refused)) from error


def _reachable(error: Exception, kinds: set[str]) -> Fault:
    """What an error means; the client's own words blame the token for the network."""
    fault = classify(error)
    passes = "InvalidAccountError" in kinds and fault.kind != "refused"
    if not (_NETWORK & kinds or passes):
        return fault
    cause = without_tokens(" ".join(str(chain_of(error)[-1]).split()))
    return replace(fault, kind="lost", text=f"IBM Quantum cannot be reached: {cause}")


def _account_problem(error: Exception, kinds: set[str]) -> str | None:
    """What is wrong with the account, in words; None if it is something else."""
    here = f"on {socket.gethostname()}"
    fault = classify(error)
    if "AccountNotFoundError" in kinds or (not known_tokens() and "InvalidAccountError" in kinds):
        return f"there is no IBM Quantum account {here} ({fault.text}); {_SET_UP}"
    if _NETWORK & kinds or (fault.status is not None and fault.kind != "refused"):
        return None
    statuses = [getattr(one, "status_code", None) for one in chain_of(error)]
    refused = {401, 403} & set(statuses) or ("ApiException" in kinds and 400 in statuses)
    if refused or "IBMNotAuthorizedError" in kinds:
        return (
            f"IBM refuses the API key {here} ({fault.text}); make another one at "
            "quantum.cloud.ibm.com, and set or save that"
        )
    if "InvalidAccountError" in kinds or "AccountsError" in kinds:
        return f"the IBM Quantum account {here} cannot be used ({fault.text}); {_SET_UP}"
    return None
