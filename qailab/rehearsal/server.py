"""The rehearsal server: an IBM Quantum instance on loopback."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from qailab.errors import InputError
from qailab.rehearsal.api import Api
from qailab.rehearsal.devices import Device, load_device
from qailab.rehearsal.endpoints import BASE
from qailab.rehearsal.faults import FaultPlan
from qailab.rehearsal.gateway import HOST, Gateway
from qailab.rehearsal.instance import Instance
from qailab.rehearsal.limits import PLANS, PRICE_PER_SECOND, Limits
from qailab.rehearsal.programs import ProgramRunner
from qailab.rehearsal.records import (
    CANCELLED,
    FAILED,
    RAN_TOO_LONG,
    FaultRecord,
    JobRecord,
    RequestRecord,
    SessionRecord,
)
from qailab.rehearsal.tokens import TokenIssuer
from qailab.rehearsal.workers import DeviceWorker

if TYPE_CHECKING:
    from qailab.rehearsal.report import Report

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/rehearsal:rehearsal::"
"""Name of the instance, in the form of IBM Cloud."""


class RehearsalServer:
    """Speaks IBM Quantum's REST API on 127.0.0.1 and runs submitted jobs on Aer.

    The unmodified client (qiskit-ibm-runtime) is redirected to it by environment variables alone;
    set them before a process creates its ``QiskitRuntimeService``::

        with RehearsalServer(["manila", "lagos"], plan="premium", seed=1) as server:
            os.environ |= server.environment
            backend = QiskitRuntimeService().backend("ibmq_manila")
            ...
            print(server.report().table())

    What is like IBM's: endpoints, payloads, errors, limits, states of jobs and sessions, a queue
    for each device (first in, first out, one job at a time), refusal of circuits that a device
    cannot run. What is not: devices are as noisy as their calibration was when it was saved (with
    ``noise``), or not at all; error mitigation of the older sampler is ignored, that on the
    client's side works; nobody else is in the queue, and an active session does not shut out jobs
    from outside it; results are not compressed.

    Args:
        backends: devices to offer, by short name (``"manila"``) or the API's.
        plan: ``"open"`` (no sessions, three pending jobs), ``"premium"``, ``"flex"`` or
            ``"pay-as-you-go"``.
        queue_seconds: time a job waits in the queue. In a session or batch only the first one
            waits, and the first after the session was inactive.
        noise: run with the noise of the device instead of ideally.
        seed: of the shots; a job's depend on it and on the job's circuits, values and number of
            shots, not on the order in which jobs arrive. ``None`` for other shots each time.
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
        devices = _devices(backends)
        limits = Limits() if limits is None else limits
        self._token = token
        self._instance = Instance(devices, plan=plan, limits=limits, queue_seconds=queue_seconds)
        tokens = TokenIssuer(token, limits.token_seconds)
        api = Api(self._instance, tokens, CRN)
        self._gateway = Gateway(api, self._instance, faults or FaultPlan(), port)
        self._workers = [
            DeviceWorker(
                self._instance,
                device,
                ProgramRunner(device, noise=noise, seed=seed),
                realtime=realtime,
            )
            for device in devices
        ]
        self._started = False

    def start(self) -> Self:
        """Listen and run jobs. Loads the simulator first, a few seconds in a new process.

        Raises:
            InputError: if it was started before.
            OSError: if the port is taken.
        """
        if self._started:
            raise InputError("a rehearsal server starts once; make a new one")
        for module in ("qiskit_aer", "qiskit_ibm_runtime", "qiskit.qpy"):
            importlib.import_module(module)
        self._gateway.up()
        self._started = True
        for worker in self._workers:
            worker.start()
        return self

    def stop(self) -> None:
        """Stop listening, and running jobs after those that run now; records stay."""
        self._gateway.stop()
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            if worker.is_alive():
                worker.join(timeout=60)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        names = [device.short_name for device in self._instance.devices.values()]
        return f"RehearsalServer({names!r}, plan={self._instance.plan!r}, url={self.url!r})"

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://{HOST}:{self._gateway.port}"

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
        return self._instance.job_records()

    @property
    def sessions(self) -> list[SessionRecord]:
        """Sessions and batches, oldest first."""
        return self._instance.session_records()

    @property
    def requests(self) -> list[RequestRecord]:
        """Requests, in the order they were answered."""
        return self._gateway.requests

    @property
    def faults_injected(self) -> list[FaultRecord]:
        """Faults that were injected."""
        return self._gateway.injected

    def duplicates(self) -> list[tuple[JobRecord, JobRecord]]:
        """Pairs of jobs with the same content of which neither failed nor was cancelled.

        Somebody would pay for both.
        """
        return find_duplicates(self.jobs)

    def restart(self, seconds: float) -> None:
        """The API is gone for a while, connections with it; jobs survive and go on.

        Args:
            seconds: for how long. The call returns when it is gone, not when it is back.
        """
        self._gateway.restart(seconds)

    def report(self, *, price_per_second: float = PRICE_PER_SECOND) -> Report:
        """What happened so far.

        Args:
            price_per_second: of a QPU, US dollars.
        """
        from qailab.rehearsal.report import Report

        return Report(
            backends=self.backends,
            jobs=tuple(self.jobs),
            sessions=tuple(self.sessions),
            requests=tuple(self.requests),
            faults=tuple(self.faults_injected),
            seconds=self._instance.now(),
            price_per_second=price_per_second,
        )


def find_duplicates(jobs: Iterable[JobRecord]) -> list[tuple[JobRecord, JobRecord]]:
    """Pairs of jobs with the same content of which neither failed nor was cancelled."""
    by_content: dict[str, list[JobRecord]] = {}
    for job in jobs:
        if job.state not in (FAILED, CANCELLED, RAN_TOO_LONG):
            by_content.setdefault(job.content, []).append(job)
    return [pair for same in by_content.values() for pair in itertools.combinations(same, 2)]


def _devices(names: Iterable[str]) -> list[Device]:
    if isinstance(names, str):
        raise InputError(f"backends must be several names, got the string {names!r}")
    devices = [load_device(name) for name in names]
    if not devices:
        raise InputError("a rehearsal needs at least one device")
    if len({device.name for device in devices}) < len(devices):
        raise InputError(f"a device is named twice: {[device.name for device in devices]}")
    return devices
