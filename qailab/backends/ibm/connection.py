"""What is live of an `IBMBackend`: its account, device, sessions, record and jobs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qiskit.providers import BackendV2

from qailab.backends.answers import Usage
from qailab.backends.budget import Budget, BudgetGuard, Cost, UsageMeter
from qailab.backends.ibm.account import Account
from qailab.backends.ibm.devices import Device, Mode
from qailab.backends.ibm.jobs import Jobs
from qailab.backends.ibm.limits import IBMLimits, IBMTimeouts
from qailab.backends.ibm.local import LocalDevice
from qailab.backends.ibm.programs import Program, check_fits, compile_program
from qailab.backends.ibm.service import ServiceDevice, ServiceSessions
from qailab.backends.ibm.sessions import Sessions
from qailab.backends.shared import LocalState, SharedState
from qailab.backends.trex import ReadoutMitigation
from qailab.gradients.canonical import CanonicalCircuit
from qailab.journal import Journal, MemoryRecord, Record

_KEPT_PROGRAMS = 64


@dataclass(frozen=True)
class IBMConfig:
    """What an `IBMBackend` was made with, checked; see there."""

    name: str | BackendV2 | None
    mode: Mode
    session_id: str | None
    max_seconds: int
    account: str | None
    instance: str | None
    channel: str | None
    options: Mapping[str, Any]
    readout_mitigation: ReadoutMitigation | None
    optimization_level: int
    seed_transpiler: int
    budget: Budget | None
    journal: str | None
    poll_seconds: float
    timeout: float
    limits: IBMLimits
    timeouts: IBMTimeouts


class Connection:
    """A backend that is open. Threads may share it; ``state`` is what processes agree on.

    Raises:
        BackendBuildError: if there is no account, it is refused, or has no such backend.
        TransientBackendError: if IBM cannot be reached.
        JournalError: if the journal cannot be used here.
    """

    def __init__(self, config: IBMConfig, state: SharedState | None) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._programs: dict[str, Program] = {}
        self._sessions: Sessions | None = None
        self._jobs: tuple[Device, Jobs] | None = None
        self._account: Account | None = None
        journal = None if config.journal is None else Journal(config.journal)
        self._record: Record = MemoryRecord() if journal is None else journal
        self._state = journal or state
        self._meter = UsageMeter(
            _guard(config.budget, journal, state), config.options.get("max_execution_time")
        )
        if not isinstance(config.name, BackendV2):
            given = {"instance": config.instance, "channel": config.channel}
            self._account = Account(config.timeouts, name=config.account, **given)
        if journal is not None:
            journal.bind("simulators" if self._account is None else self._account.host)
        if isinstance(config.name, BackendV2):
            self._use(LocalDevice(config.name, config.options))
        elif config.name is not None:
            assert self._account is not None
            self._use(self._service_device(self._account, 0))

    def take_usage(self) -> Usage:
        """What this process has used since the last call."""
        return self._meter.take()

    def prepare(self, circuit: CanonicalCircuit, shots: int) -> tuple[Jobs, Program]:
        """Who runs jobs on the device, and the circuit as it runs it; compiled once.

        Raises:
            BackendError: if the device cannot run the circuit with so many shots.
        """
        with self._lock:
            if self._jobs is None:  # the least busy one that is large enough
                assert self._account is not None
                self._use(self._service_device(self._account, circuit.circuit.num_qubits))
            assert self._jobs is not None
            device, jobs = self._jobs
            check_fits(circuit, shots, device.name, device.target.num_qubits, device.max_shots)
            program = self._programs.pop(circuit.run_key, None) or compile_program(
                circuit,
                device.target,
                optimization_level=self._config.optimization_level,
                seed=self._config.seed_transpiler,
                calibrated=self._config.readout_mitigation is not None,
            )
            self._programs[circuit.run_key] = program  # the last used goes last
            if len(self._programs) > _KEPT_PROGRAMS:
                del self._programs[next(iter(self._programs))]
            return jobs, program

    def close(self, seconds: float) -> None:
        """Close the session, if it is ours (trying for so long at most), and the journal."""
        if self._sessions is not None:
            self._sessions.close(seconds)
            self._sessions = None
        self._record.close()

    def _service_device(self, account: Account, qubits: int) -> Device:
        config = self._config
        assert not isinstance(config.name, BackendV2)
        backend = account.backend(config.name, qubits)
        device = ServiceDevice(account.service, backend, config.options, config.timeouts)
        if config.mode != "job":
            if config.session_id is not None:
                account.check_session(config.session_id, config.mode, device.name)
            seconds = config.timeouts.request_seconds
            opener = ServiceSessions(account.service, backend, config.max_seconds, seconds)
            state = self._state or LocalState()
            name = self._session_name(device.name)
            name = f"{state.group}/{name}" if state.group else name
            self._sessions = Sessions(config.mode, opener, state, name, config.session_id)
        return device

    def _use(self, device: Device) -> None:
        config = self._config
        jobs = Jobs(
            device,
            self._record,
            self._sessions,
            self._meter,
            config.timeouts,
            poll_seconds=config.poll_seconds,
            timeout=config.timeout,
            pending_jobs=config.limits.pending_jobs,
        )
        self._jobs = device, jobs

    def _session_name(self, device: str) -> str:
        """What the sessions of a device are called; who asks for others has others."""
        config = self._config
        asked = (device, config.mode, config.max_seconds, config.session_id, config.account)
        digest = hashlib.sha256(repr((*asked, config.instance)).encode()).hexdigest()[:12]
        return f"session/{device}/{digest}"


def _guard(
    budget: Budget | None, journal: Journal | None, state: SharedState | None
) -> BudgetGuard | None:
    if budget is None:
        return None
    if journal is None:
        return BudgetGuard(budget, state or budget.local_state, f"budget/{budget.id}")

    def spent_beside(in_flight: Collection[str]) -> Cost:
        return Cost(*journal.totals(ended_beside=in_flight))

    return BudgetGuard(budget, journal, spent_beside=spent_beside)
