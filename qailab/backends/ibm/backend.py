"""IBM Quantum devices behind the same seam as simulators."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import threading
import uuid
import warnings
import weakref
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from qiskit.providers import BackendV2

from qailab.arguments import check_choice, checked_integer
from qailab.backends.answers import (
    NOTHING_USED,
    Evaluation,
    Probabilities,
    Usage,
    contract_measured,
)
from qailab.backends.base import ActorResources, Backend, BackendTraits
from qailab.backends.budget import Budget
from qailab.backends.ibm.connection import Connection, IBMConfig
from qailab.backends.ibm.devices import Mode
from qailab.backends.ibm.jobs import Task
from qailab.backends.ibm.limits import IBMLimits, IBMTimeouts, check_positive
from qailab.backends.ibm.programs import Measured, check_fits
from qailab.backends.sampling import (
    bits_as_floats,
    bits_to_counts,
    bytes_of,
    contract_bits,
    from_bits,
)
from qailab.backends.shared import SharedState
from qailab.backends.trex import (
    CALIBRATION_ROWS,
    ReadoutMitigation,
    TwirledReadout,
    check_mitigated,
)
from qailab.errors import BackendError, InputError, InputTypeError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.observables import Bits
from qailab.gradients.rows import FloatArray, JoinedRows, RowBatch
from qailab.journal import DIGEST_BYTES, Journal, Work

_TWIRLS = 32  # of a row: of a readout whose errors differ by 6 %, 1 % is left, with any sign
_TABLE_BYTES = 512 << 20  # counts and frequencies of the rows that are run at once
_DAY = 86_400.0
_CLOSE_SECONDS = 30.0
_TIME = re.compile(r"(?:(\d+)d)?\s*(?:(\d+)h)?\s*(?:(\d+)m)?\s*(?:(\d+)s)?")
_UNITS = (86_400, 3_600, 60, 1)


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
        readout_mitigation: ``"trex"`` for the Sampler's twirled readout (32 times a row, unless
            ``options`` say otherwise), whose bias 16 calibration rows in each job take out of
            observables' values and gradients.
        optimization_level: of Qiskit's transpiler, 0 to 3.
        seed_transpiler: its seed: all processes lay a circuit out alike.
        budget: what may be spent, together with all who are given the same.
        journal: a file that records every job and result, so that whoever starts again takes up
            jobs that run and results that are there. Processes may share it.
        poll_interval: seconds between two looks at a job, after some quick first ones.
        timeout: seconds a job may take, its time in the queue included.
        limits: what a job may be.
        timeouts: how long to wait for what else, and how often to retry.
        waits: the old name of ``timeouts``.

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
        readout_mitigation: ReadoutMitigation | None = None,
        optimization_level: Literal[0, 1, 2, 3] = 1,
        seed_transpiler: int = 0,
        budget: Budget | None = None,
        journal: str | os.PathLike[str] | None = None,
        poll_interval: float = 2.0,
        timeout: float = _DAY,
        limits: IBMLimits | None = None,
        timeouts: IBMTimeouts | None = None,
        waits: IBMTimeouts | None = None,
    ) -> None:
        if waits is not None:
            warnings.warn("waits= is timeouts= now", DeprecationWarning, stacklevel=2)
            timeouts = waits
        check_choice("mode", mode, get_args(Mode))
        checked_integer("optimization_level", optimization_level, least=0, most=3)
        if mode == "job" and session_id is not None:
            raise InputError("mode 'job' has no session; leave session_id out, or use 'session'")
        for what, value in (("session_id", session_id), ("account", account),
                            ("instance", instance), ("channel", channel)):  # fmt: skip
            if value is not None and (not isinstance(value, str) or not value):
                raise InputTypeError(f"{what} must be text, or None; got {value!r}")
        if readout_mitigation is not None:
            check_choice("readout_mitigation", readout_mitigation, get_args(ReadoutMitigation))
            options = _twirled(options or {})
        self.name = _checked_name(name)
        self.mode: Mode = mode
        self.budget = None if budget is None else _checked(Budget, "budget", budget)
        self.journal = None if journal is None else os.path.abspath(os.fspath(journal))
        self.config = IBMConfig(
            name=self.name,
            mode=mode,
            session_id=session_id,
            max_seconds=seconds_of(max_time),
            account=account,
            instance=instance,
            channel=channel,
            options=dict(options or {}),
            readout_mitigation=readout_mitigation,
            optimization_level=optimization_level,
            seed_transpiler=checked_integer("seed_transpiler", seed_transpiler, least=0),
            budget=self.budget,
            journal=self.journal,
            poll_seconds=check_positive("poll_interval", poll_interval),
            timeout=check_positive("timeout", timeout),
            limits=_checked(IBMLimits, "limits", IBMLimits() if limits is None else limits),
            timeouts=_checked(
                IBMTimeouts, "timeouts", IBMTimeouts() if timeouts is None else timeouts
            ),
        )
        if options:  # only then, as IBM's client takes seconds to import
            _check_options(options)
        more = 0 if readout_mitigation is None else CALIBRATION_ROWS
        if isinstance(self.name, BackendV2):  # rows cost nothing, and cores are what counts
            self.traits = BackendTraits(
                idempotent=True, call_overhead_seconds=0.05, calibration_rows=more
            )
        else:
            self.traits = BackendTraits(
                calibration_rows=more,
                detect_hangs=False,
                max_concurrency=8,
                call_overhead_seconds=2.0,
                packs_jobs=True,
                queue_name=self.name,
                resources=ActorResources(num_cpus=0, custom={"qpu_session": 1}),
                close_seconds=_CLOSE_SECONDS,
            )

    def max_rows_per_call(self, circuit: CanonicalCircuit, shots: int | None) -> int:
        if self.config.readout_mitigation is not None:
            check_mitigated(circuit, shots)
        if shots is None:
            raise BackendError(
                f"shots=None asks for exact probabilities, which hardware does not have; {self!r} "
                "needs a positive number of shots"
            )
        if isinstance(self.name, BackendV2):  # a device is asked only where the rows run
            limit = getattr(self.name, "max_shots", None)
            check_fits(circuit, shots, str(self.name.name), self.name.num_qubits, limit)
        if circuit.observables is None:
            return max(2, _TABLE_BYTES // (16 * circuit.num_outcomes))
        # The bits of each shot, as they come and as the record gives them back.
        return max(2, _TABLE_BYTES // (5 * shots * bytes_of(circuit)))

    def validate(self, circuit: CanonicalCircuit, shots: int | None) -> None:
        """Check what can be checked here, and note the circuit in the journal.

        Raises:
            BackendError: if the circuit or the shots do not fit a device that is given itself.
            JournalError: if the journal is another model's, or cannot be used.
        """
        self.max_rows_per_call(circuit, shots)
        if self.journal is not None and os.path.isdir(os.path.dirname(self.journal)):
            checked: set[str] = self.__dict__.setdefault("_live_checked", set())
            key = circuit.run_key
            if key not in checked:  # every forward pass comes here
                with Journal(self.journal) as journal:
                    qubits = circuit.circuit.num_qubits
                    journal.register(key, qubits, circuit.num_angles)
                checked.add(key)

    def share(self, state: SharedState) -> None:
        self._live_state = state

    def open(self) -> None:
        """Connect to the service, with this machine's credentials, and find the backend.

        Raises:
            BackendBuildError: if there is no account, it is refused, or has no such backend.
            TransientBackendError: if IBM cannot be reached.
            JournalError: if the journal cannot be used here.
        """
        if "_live_connection" in self.__dict__:
            return
        state: SharedState | None = self.__dict__.get("_live_state")
        connection = Connection(self.config, state)
        self._live_connection = connection
        if state is None:  # nobody else closes the session, if the program ends without close()
            self._live_end = weakref.finalize(self, connection.close, _CLOSE_SECONDS / 2)

    def close(self) -> None:
        """Close the session that was opened, for all who share it."""
        connection: Connection | None = self.__dict__.pop("_live_connection", None)
        end = self.__dict__.pop("_live_end", None)
        if end is not None:
            end.detach()
        if connection is not None:
            connection.close(_CLOSE_SECONDS / 2)  # the rest is for the last request

    def probabilities(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Probabilities:
        if batch.num_rows == 0:
            return Probabilities(np.empty((0, circuit.num_outcomes)))
        counts, usage = self._measured(circuit, batch, batch.rows.angles(), stop)
        return Probabilities(_frequencies(counts), usage=usage)

    def expectations(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        observables = circuit.observables
        assert observables is not None
        if batch.num_rows == 0:
            return Evaluation(np.empty((0, batch.answer_width(circuit.num_outputs))), NOTHING_USED)
        angles, more = batch.rows.angles(), self.traits.calibration_rows
        if more:  # one more number tells them from the others, in the journal too
            angles = np.pad(angles, ((0, more), (0, 1)))
            angles[-more:, -1] = np.arange(1, more + 1)
        measured, usage = self._measured(circuit, batch, angles, stop)
        bits, calibration = np.split(_as_bits(circuit, measured), [batch.num_rows])
        if more:
            assert batch.shots is not None
            twirls = _twirls(self.config.options["twirling"], batch.shots)
            readout = TwirledReadout.of(observables, calibration, twirls)
            return Evaluation(contract_bits(observables, batch, bits, readout), usage)
        if from_bits(circuit, batch.shots):
            return Evaluation(contract_bits(observables, batch, bits), usage)
        batch = dataclasses.replace(batch, shots=bits.shape[1])  # twirling rounds them up
        # In parts, as their table may be larger than the bits.
        first, group = batch.rows.start, batch.rows.group
        step = max(group, _TABLE_BYTES // (16 * circuit.num_outcomes) // group * group)
        answers = [
            contract_measured(
                circuit,
                batch.part(first + start, min(first + start + step, batch.rows.stop)),
                _frequencies(bits_to_counts(bits[start : start + step], circuit.num_outcomes)),
            )
            for start in range(0, batch.num_rows, step)
        ]
        return Evaluation(np.concatenate(answers), usage)

    def measure(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        """Measure the rows of both passes in the same jobs, if a job has room for a sample's."""
        if isinstance(batch.rows, JoinedRows):
            assert batch.shots is not None
            most = self.config.limits.rows_per_job(batch.shots, circuit.num_angles)
            if batch.rows.group > most:
                return super().measure(circuit, batch, stop)
        measured, usage = self._measured(circuit, batch, batch.rows.angles(), stop)
        if circuit.observables is None:
            return Evaluation(_frequencies(measured), usage)
        bits = _as_bits(circuit, measured)
        if from_bits(circuit, batch.shots):
            return Evaluation(bits_as_floats(bits[:, : batch.shots]), usage)
        return Evaluation(_frequencies(bits_to_counts(bits, circuit.num_outcomes)), usage)

    def _measured(
        self, circuit: CanonicalCircuit, batch: RowBatch, angles: FloatArray, stop: threading.Event
    ) -> tuple[Measured, Usage]:
        """Run the rows, all bases of one in one job if that is short enough; calibration last."""
        self.max_rows_per_call(circuit, batch.shots)
        assert batch.shots is not None
        if "_live_state" not in self.__dict__:  # nobody has looked before
            self.validate(circuit, batch.shots)
        with _OPENING:
            self.open()
            connection: Connection = self._live_connection
        jobs, program = connection.prepare(circuit, batch.shots)
        angles = np.ascontiguousarray(angles)
        group = batch.rows.group
        max_rows = self.config.limits.rows_per_job(batch.shots, len(program.columns), group)
        work, seed = self._work(circuit, batch, angles)
        task = Task(
            program=program,
            work=work,
            angles=angles,
            seed=seed,
            group=group,
            max_rows=max_rows,
            resent=batch.resent,
            stop=stop,
        )
        return jobs.run(task), connection.take_usage()

    def _work(
        self, circuit: CanonicalCircuit, batch: RowBatch, angles: np.ndarray[Any, Any]
    ) -> tuple[Work, int]:
        """What a record knows the rows by, and the seed of row 0 for a simulator.

        With a journal nothing tells evaluations of the same rows and step apart: they have the same
        answers. Without one each is sent anew, so that its name is part of its seed.
        """
        assert batch.shots is not None
        digests = [
            hashlib.blake2b(row.tobytes(), digest_size=DIGEST_BYTES).digest() for row in angles
        ]
        noise = batch.noise
        work = Work(
            circuit=circuit.run_key,
            shots=batch.shots,
            seed=noise.seed,
            step=noise.step,
            purpose=noise.purpose,
            start=batch.rows.start,
            stop=batch.rows.start + len(angles),
            digests=b"".join(digests),
        )
        seed = int(work.key[:8], 16)
        if self.journal is None:
            name = f"{noise.seed}/{batch.evaluation or uuid.uuid4().hex}".encode()
            digest = hashlib.blake2b(name, digest_size=8).digest()
            work = dataclasses.replace(work, seed=int.from_bytes(digest, "big") >> 1)
        return work, seed

    def __repr__(self) -> str:
        if isinstance(self.name, BackendV2):
            return f"IBMBackend({str(self.name.name)!r})"
        shown = [] if self.name is None else [repr(self.name)]
        return f"IBMBackend({', '.join([*shown, f'mode={self.mode!r}'])})"


def _frequencies(counts: Measured) -> FloatArray:
    frequencies: FloatArray = counts / counts.sum(axis=1, keepdims=True, dtype=np.float64)
    return frequencies


def _as_bits(circuit: CanonicalCircuit, measured: Measured) -> Bits:
    bits: Bits = measured.astype(np.uint8, copy=False)
    return bits.reshape(len(measured), -1, bytes_of(circuit))


_OPENING = threading.Lock()  # of whichever backend: the first calls may come from many threads


def seconds_of(max_time: object) -> int:
    """A session's longest life in seconds, from a number of them or words like ``"2h 30m"``.

    Raises:
        InputError: if it is neither.
    """
    seconds = 0
    if isinstance(max_time, int) and not isinstance(max_time, bool):
        seconds = max_time
    elif isinstance(max_time, str) and (found := _TIME.fullmatch(max_time.strip())):
        seconds = sum(int(n or 0) * unit for n, unit in zip(found.groups(), _UNITS, strict=True))
    if seconds <= 0:
        raise InputError(
            "max_time must be a positive number of seconds, or days, hours, minutes and seconds in "
            f"this order, such as '1h', '25m' or '2h 30m 40s'; got {max_time!r}"
        )
    return seconds


def _checked(kind: type[Any], name: str, value: object) -> Any:
    if not isinstance(value, kind):
        raise InputTypeError(f"{name} must be of {kind.__name__}, got {value!r}")
    return value


def _checked_name(name: object) -> str | BackendV2 | None:
    if name is None or (isinstance(name, str) and name):
        return name
    if not isinstance(name, BackendV2):
        raise InputTypeError(
            f"name must be a backend's name, None for the least busy one, a fake backend or an "
            f"AerSimulator; got {name!r}"
        )
    if getattr(name, "service", None) is not None:
        raise InputError(
            f"give the backend's name, {name.name!r}: a live backend holds an account, which must "
            "not travel; the client's own is used where the rows run"
        )
    return name


def _twirled(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the Sampler that twirl the readout, as often as they say."""
    twirling = dict(options.get("twirling", {}))
    if "shots_per_randomization" not in twirling:
        twirling.setdefault("num_randomizations", _TWIRLS)
    return {**options, "twirling": {**twirling, "enable_measure": True}}


def _twirls(options: Mapping[str, Any], shots: int) -> int:
    """How often the flips of a row change."""
    from qiskit_ibm_runtime.executor.calculate_twirling_shots import calculate_twirling_shots

    names = ("num_randomizations", "shots_per_randomization")
    return int(calculate_twirling_shots(shots, *(options.get(name, "auto") for name in names))[0])


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise if the Sampler does not know these options."""
    from qiskit_ibm_runtime.options_models.sampler import SamplerOptions

    try:
        SamplerOptions(**options)
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"options are not valid for IBM's Sampler: {said} (known are those of SamplerOptions: "
            "https://quantum.cloud.ibm.com/docs/api/qiskit-ibm-runtime/options-sampler-options)"
        ) from error
