"""What is live of an `IBMBackend`: its account, device, sessions, journal and jobs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from qiskit.providers import BackendV2

from qailab.backends.base import Usage
from qailab.backends.budget import Budget, Ledger
from qailab.backends.ibm.connecting import Account
from qailab.backends.ibm.devices import Device, Mode
from qailab.backends.ibm.jobs import JobRunner
from qailab.backends.ibm.local import LocalDevice
from qailab.backends.ibm.programs import Program, compile_program
from qailab.backends.ibm.samplers import Kind, installed_kind
from qailab.backends.ibm.sending import Sender
from qailab.backends.ibm.service import ServiceSessions
from qailab.backends.ibm.sessions import Sessions
from qailab.backends.ibm.spending import Spending
from qailab.backends.ibm.transport import within
from qailab.backends.ibm.waiting import Waiter
from qailab.backends.ibm.waits import IBMWaits
from qailab.backends.limits import IBMLimits
from qailab.backends.shared_log import LocalLog, SharedLog
from qailab.errors import BackendError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.journal import Journal, this_owner
from qailab.journal.sessions import log_name

_KEPT_PROGRAMS = 64
_CLOSE_SECONDS = 15.0


@dataclass(frozen=True)
class Recipe:
    """What an `IBMBackend` was made with, checked; see there."""

    name: str | BackendV2 | None
    mode: Mode
    session_id: str | None
    max_seconds: int
    account: str | None
    instance: str | None
    channel: str | None
    options: Mapping[str, Any]
    optimization_level: int
    seed_transpiler: int
    poll_seconds: float
    timeout: float
    limits: IBMLimits
    waits: IBMWaits
    sampler: Kind | None


@dataclass(frozen=True)
class Sharing:
    """How the processes that have one recipe agree on things.

    Args:
        group: their name.
        log_of: a log that all of them see, by its name.
    """

    group: str
    log_of: Callable[[str], SharedLog]


class Live:
    """A backend that is open. Threads may share it.

    Args:
        recipe: what it was made with.
        journal: the journal's file; None to remember in memory.
        budget: what may be spent.
        sharing: the other processes that have the recipe; None if there are none.

    Raises:
        BackendBuildError: if there is no account, it is refused, or has no such backend.
        TransientBackendError: if IBM cannot be reached.
        JournalError: if the journal cannot be used here.
    """

    def __init__(
        self,
        recipe: Recipe,
        journal: str | None,
        budget: Budget | None,
        sharing: Sharing | None,
    ) -> None:
        self._recipe = recipe
        self._sharing = sharing
        self._sampler = recipe.sampler or installed_kind()
        self._lock = threading.Lock()
        self._programs: dict[str, Program] = {}
        self._sessions: Sessions | None = None
        self._made: tuple[Device, JobRunner] | None = None
        self._journal = Journal(journal)
        self._spending = Spending(
            None if budget is None else Ledger(budget, self._budget_log(budget)),
            recipe.options.get("max_execution_time"),
        )
        self._account: Account | None = None
        if isinstance(recipe.name, BackendV2):
            self._make(LocalDevice(recipe.name, self._sampler, recipe.options))
            return
        self._account = Account(recipe.account, recipe.instance, recipe.channel, recipe.waits)
        if recipe.name is not None:
            self._make(self._account.device(recipe.name, 0, self._sampler, recipe.options))

    @property
    def usage(self) -> Usage:
        """What this process has used."""
        return self._spending.usage

    def prepare(self, circuit: CanonicalCircuit) -> tuple[Device, JobRunner, Program]:
        """The device, who runs jobs there, and the circuit as it runs it; compiled once.

        Raises:
            BackendError: if the device cannot run the circuit.
        """
        with self._lock:
            if self._made is None:  # the least busy one that is large enough
                assert self._account is not None
                qubits = circuit.circuit.num_qubits
                recipe = self._recipe
                self._make(self._account.device(None, qubits, self._sampler, recipe.options))
            assert self._made is not None
            device, runner = self._made
            program = self._programs.pop(circuit.key, None)
            if program is None:
                check_width(circuit, device)
                program = self._compiled(circuit, device)
            self._programs[circuit.key] = program  # the last used goes last
            if len(self._programs) > _KEPT_PROGRAMS:
                del self._programs[next(iter(self._programs))]
            return device, runner, program

    def close(self) -> None:
        """Close the session, if it is ours, and the journal. Safe to call twice."""
        if self._sessions is not None:
            with suppress(Exception):  # it ends by itself at its max_time
                within(_CLOSE_SECONDS, self._sessions.close, what="closing the session")
        self._journal.close()

    def _compiled(self, circuit: CanonicalCircuit, device: Device) -> Program:
        return compile_program(
            circuit,
            device.target,
            optimization_level=self._recipe.optimization_level,
            seed=self._recipe.seed_transpiler,
        )

    def _make(self, device: Device) -> None:
        recipe, waits, owner = self._recipe, self._recipe.waits, this_owner()
        opener: ServiceSessions | None = None
        if self._account is not None and recipe.mode != "job":
            if recipe.session_id is not None:
                self._account.check_session(recipe.session_id, recipe.mode, device.name)
            opener = ServiceSessions(
                self._account.service, device.target, recipe.max_seconds, waits.request_seconds
            )
            self._sessions = Sessions(
                recipe.mode, opener, self._session_log(device.name), recipe.session_id
            )
        sender = Sender(
            device,
            self._sessions,
            opener,
            waits,
            poll_seconds=recipe.poll_seconds,
            timeout=recipe.timeout,
        )
        waiter = Waiter(
            device,
            sender,
            self._journal,
            self._spending,
            waits,
            owner=owner,
            poll_seconds=recipe.poll_seconds,
            timeout=recipe.timeout,
        )
        runner = JobRunner(
            device.name,
            sender,
            waiter,
            self._journal,
            self._spending,
            waits,
            recipe.limits.pending_jobs,
            owner,
        )
        self._made = device, runner

    def _session_log(self, device: str) -> SharedLog:
        """What happened to the sessions of one device, for all who share them."""
        recipe = self._recipe
        what = (device, recipe.mode, recipe.max_seconds, recipe.session_id, recipe.account)
        told = hashlib.sha256(repr((*what, recipe.instance)).encode()).hexdigest()[:12]
        name = log_name(device, told)
        if self._journal.path is not None:
            return self._journal.log(name)
        if self._sharing is not None:
            return self._sharing.log_of(f"{self._sharing.group}/{name}")
        return LocalLog()

    def _budget_log(self, budget: Budget) -> SharedLog:
        """What was spent of a budget; of the journal's, if there is one, in all its life."""
        if self._journal.path is not None:
            return self._journal.log("budget")
        if self._sharing is not None:
            return self._sharing.log_of(f"budget/{budget.id}")
        return budget.local_log


def check_width(circuit: CanonicalCircuit, device: Device) -> None:
    """Raise an error if a circuit has more qubits than a device.

    Raises:
        BackendError: with both numbers.
    """
    has, needs = device.target.num_qubits, circuit.circuit.num_qubits
    if needs > has:
        raise BackendError(
            f"the circuit has {needs} qubits, and {device.name} has {has}; use a larger device, or "
            "fewer qubits"
        )
