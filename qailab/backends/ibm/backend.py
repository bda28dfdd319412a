"""IBM Quantum devices behind the same seam as simulators."""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
from qiskit.providers import BackendV2

from qailab.arguments import check_choice, checked_integer
from qailab.backends.base import (
    NOTHING_USED,
    ActorResources,
    Backend,
    BackendTraits,
    Probabilities,
    Usage,
)
from qailab.backends.budget import Budget
from qailab.backends.ibm.arguments import checked_instance, checked_name, checked_seconds
from qailab.backends.ibm.connecting import seconds_of
from qailab.backends.ibm.devices import Device, Mode
from qailab.backends.ibm.live import Live, Recipe, Sharing, check_width
from qailab.backends.ibm.local import LocalDevice
from qailab.backends.ibm.samplers import Kind, check_options, installed_kind
from qailab.backends.ibm.tasks import Task
from qailab.backends.ibm.waits import IBMWaits
from qailab.backends.limits import IBMLimits
from qailab.backends.shared_log import SharedLog
from qailab.errors import BackendError, InputError, InputTypeError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray, RowBatch
from qailab.journal import DIGEST_BYTES, Journal, Work

_TABLE_BYTES = 512 << 20  # counts and frequencies of the rows that are run at once
_DAY = 86_400.0


class IBMBackend(Backend):
    """Runs circuits on an IBM Quantum device, through the real client, in few large jobs.

    All rows of a call are one PUB of one job, or of as few as the limits allow. Credentials come
    from where IBM's client finds them on the machine that runs the rows (environment, or a saved
    account); they are no part of this object, which is a recipe, and safe to pickle and print.

    Hardware has noise of its own: seeds mean nothing there. Rows keep their order, and errors of
    gradients are estimated from the shots, as everywhere. With a journal, the same rows of the same
    step are answered from it, and so come out the same again.

    Args:
        name: the backend's name, None for the least busy one; or a fake backend or an
            ``AerSimulator``, for IBM's local testing mode without network or account.
        mode: ``"session"`` (exclusive access for a time), ``"batch"`` or ``"job"``. Where the plan
            has no sessions, batches or single jobs are used, and a warning says so.
        session_id: a session or batch that is open already. It is used, not closed.
        max_time: how long a session may live: seconds, or ``"2h 30m"``. A killed driver cannot
            close its session, which costs until then.
        account: the name of a saved account.
        instance: the instance, by name or CRN; give it, or the client searches all of them.
        channel: the client's channel.
        options: options of IBM's Sampler, as nested mappings: ``twirling``,
            ``dynamical_decoupling``, ``max_execution_time``, ...
        optimization_level: of Qiskit's transpiler, 0 to 3.
        seed_transpiler: its seed: all processes lay a circuit out alike.
        budget: what may be spent, together with all who are given the same.
        journal: a file that records every job and result, so that whoever starts again takes up
            jobs that run and results that are there. Processes may share it.
        poll_interval: seconds between two looks at a job, after some quick first ones.
        timeout: seconds a job may take, its time in the queue included.
        limits: what a job may be.
        waits: how long to wait for what else, and how often to try.
        sampler: which of IBM's Samplers: ``"client"`` (the current one), ``"server"`` (SamplerV2),
            or None for the current one where the installed client has it.

    Raises:
        InputError: if an option is not valid.

    References:
        IBM Quantum documentation, Execution modes,
        https://quantum.cloud.ibm.com/docs/guides/execution-modes.

    >>> IBMBackend("ibm_fez", mode="batch")
    IBMBackend('ibm_fez', mode='batch')
    """

    def __init__(
        self,
        name: str | BackendV2 | None = None,
        *,
        mode: Mode = "session",
        session_id: str | None = None,
        max_time: str | int = "1h",
        account: str | None = None,
        instance: str | None = None,
        channel: str | None = None,
        options: Mapping[str, Any] | None = None,
        optimization_level: Literal[0, 1, 2, 3] = 1,
        seed_transpiler: int = 0,
        budget: Budget | None = None,
        journal: str | os.PathLike[str] | None = None,
        poll_interval: float = 2.0,
        timeout: float = _DAY,
        limits: IBMLimits | None = None,
        waits: IBMWaits | None = None,
        sampler: Kind | None = None,
    ) -> None:
        check_choice("mode", mode, get_args(Mode))
        checked_integer("optimization_level", optimization_level, least=0, most=3)
        if sampler is not None:
            check_choice("sampler", sampler, get_args(Kind))
        if mode == "job" and session_id is not None:
            raise InputError("mode 'job' has no session; leave session_id out, or use 'session'")
        for what, value in (("session_id", session_id), ("account", account),
                            ("instance", instance), ("channel", channel)):  # fmt: skip
            if value is not None and (not isinstance(value, str) or not value):
                raise InputTypeError(f"{what} must be text, or None; got {value!r}")
        if budget is not None and not isinstance(budget, Budget):
            raise InputTypeError(f"budget must be a Budget, got {budget!r}")
        self.name = checked_name(name)
        self.mode: Mode = mode
        self.journal = None if journal is None else os.path.abspath(os.fspath(journal))
        self.budget = budget
        self.recipe = Recipe(
            name=self.name,
            mode=mode,
            session_id=session_id,
            max_seconds=seconds_of(max_time),
            account=account,
            instance=instance,
            channel=channel,
            options=dict(options or {}),
            optimization_level=optimization_level,
            seed_transpiler=checked_integer("seed_transpiler", seed_transpiler, least=0),
            poll_seconds=checked_seconds("poll_interval", poll_interval),
            timeout=checked_seconds("timeout", timeout),
            limits=checked_instance(IBMLimits, "limits", limits),
            waits=checked_instance(IBMWaits, "waits", waits),
            sampler=sampler,
        )
        if options:  # only then, as IBM's client takes seconds to import
            check_options(sampler or installed_kind(), options)
        if self.is_local:  # a simulator: rows cost nothing, and cores are what counts
            self.traits = BackendTraits(idempotent=True, call_overhead_seconds=0.05)
        else:
            self.traits = BackendTraits(
                detect_hangs=False,
                max_concurrency=8,
                call_overhead_seconds=2.0,
                packs_jobs=True,
                queue_name=name if isinstance(name, str) else None,
                resources=ActorResources(num_cpus=0, custom={"qpu_session": 1}),
                close_seconds=30.0,
            )

    @property
    def is_local(self) -> bool:
        """Whether it is IBM's local testing mode."""
        return isinstance(self.name, BackendV2)

    def validate(self, circuit: CanonicalCircuit, shots: int | None) -> None:
        """Check what can be checked here: a device is asked only where the rows run.

        Raises:
            BackendError: if the circuit or the shots do not fit a device that is given itself.
            JournalError: if the journal is another model's, or cannot be used.
        """
        self._check_shots(shots)
        if isinstance(self.name, BackendV2):
            device = LocalDevice(self.name, "client", {})
            check_width(circuit, device)
            _check_most_shots(shots or 1, device)
        if self.journal is not None and os.path.isdir(os.path.dirname(self.journal)):
            checked: set[str] = self.__dict__.setdefault("_live_checked", set())
            if circuit.key not in checked:  # every forward pass comes here
                facts = (circuit.key, circuit.circuit.num_qubits, circuit.num_angles)
                with Journal(self.journal) as journal:
                    journal.check_model(*facts)
                    journal.register(*facts)
                checked.add(circuit.key)

    def share_logs(self, group: str, log_of: Callable[[str], SharedLog]) -> None:
        self._live_sharing = Sharing(group, log_of)

    def open(self) -> None:
        """Connect to the service, with this machine's credentials, and find the backend.

        Raises:
            BackendBuildError: if there is no account, it is refused, or has no such backend.
            TransientBackendError: if IBM cannot be reached.
            JournalError: if the journal cannot be used here.
        """
        if "_live_device" in self.__dict__:
            return
        sharing: Sharing | None = self.__dict__.get("_live_sharing")
        live = Live(self.recipe, self.journal, self.budget, sharing)
        self._live_device = live
        if sharing is None:  # nobody else closes the session, if the program ends without close()
            self._live_end = weakref.finalize(self, live.close)

    def close(self) -> None:
        """Close the session that was opened, for all who share it."""
        live: Live | None = self.__dict__.pop("_live_device", None)
        end = self.__dict__.pop("_live_end", None)
        if end is not None:
            end.detach()
        if live is not None:
            live.close()

    def max_rows_per_call(self, circuit: CanonicalCircuit, shots: int | None) -> int:
        return max(2, _TABLE_BYTES // (16 * circuit.num_outcomes))

    def probabilities(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Probabilities:
        if batch.num_rows == 0:
            return Probabilities(np.empty((0, circuit.num_outcomes)))
        self._check_shots(batch.shots)
        assert batch.shots is not None
        if "_live_sharing" not in self.__dict__:  # nobody has looked before
            self.validate(circuit, batch.shots)
        live = self._opened()
        device, runner, program = live.prepare(circuit)
        _check_most_shots(batch.shots, device)
        angles = np.ascontiguousarray(batch.rows.angles())
        group, limits = batch.rows.group, self.recipe.limits
        task = Task(
            program=program,
            work=_work(circuit, batch, angles, self._seed(batch)),
            angles=angles,
            group=group,
            most_rows=limits.rows_per_job(batch.shots, len(program.columns), group),
            resent=batch.resent and not self.is_local,
            stop=stop,
        )
        counts = runner.run(task)
        sampled = counts / counts.sum(axis=1, keepdims=True, dtype=np.float64)
        return Probabilities(sampled, usage=self._unreported(live))

    def _unreported(self, live: Live) -> Usage:
        with _OPENING:
            now, before = live.usage, self.__dict__.get("_live_reported", NOTHING_USED)
            self._live_reported = now
        return Usage(now.jobs - before.jobs, now.qpu_seconds - before.qpu_seconds)

    def _seed(self, batch: RowBatch) -> int:
        """What tells an evaluation from others of the same rows and step.

        With a journal nothing does: they have the same answers. Without one, each is sent anew.
        """
        if self.journal is not None or self.is_local:
            return batch.noise.seed
        name = batch.evaluation or uuid.uuid4().hex
        content = f"{batch.noise.seed}/{name}".encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1

    def _opened(self) -> Live:
        with _OPENING:
            self.open()
            live: Live = self._live_device
        return live

    def _check_shots(self, shots: int | None) -> None:
        if shots is None:
            raise BackendError(
                f"shots=None asks for exact probabilities, which hardware does not have; {self!r} "
                "needs a positive number of shots"
            )

    def __repr__(self) -> str:
        name = str(self.name.name) if isinstance(self.name, BackendV2) else self.name
        shown = [] if name is None else [repr(name)]
        shown += [] if self.is_local else [f"mode={self.mode!r}"]
        return f"IBMBackend({', '.join(shown)})"


_OPENING = threading.Lock()  # of whichever backend: the first calls may come from many threads


def _check_most_shots(shots: int, device: Device) -> None:
    if device.max_shots is not None and shots > device.max_shots:
        raise BackendError(
            f"{shots:,} shots are more than {device.name} takes for a circuit "
            f"({device.max_shots:,}); take at most that"
        )


def _work(circuit: CanonicalCircuit, batch: RowBatch, angles: FloatArray, seed: int) -> Work:
    """What the journal knows these rows by."""
    assert batch.shots is not None
    digests = [hashlib.blake2b(row.tobytes(), digest_size=DIGEST_BYTES).digest() for row in angles]
    noise = batch.noise
    return Work(
        circuit=circuit.key,
        shots=batch.shots,
        seed=seed,
        step=noise.step,
        purpose=noise.purpose,
        start=batch.rows.start,
        stop=batch.rows.stop,
        digests=b"".join(digests),
    )
