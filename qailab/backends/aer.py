"""Circuits on Qiskit Aer simulators: the fastest correct way for each circuit."""

from __future__ import annotations

import copy
import os
import sys
import threading
from typing import Any, Literal, get_args

from qiskit.providers import BackendV2

from qailab.arguments import check_choice, checked_integer
from qailab.backends.aer_programs import (
    AmplitudeProgram,
    CountsProgram,
    ProbabilityProgram,
    Program,
    for_device,
    for_ideal,
    for_noise,
    native_gates,
)
from qailab.backends.answers import NOTHING_USED, Evaluation, Probabilities
from qailab.backends.base import ActorResources, Backend, BackendTraits
from qailab.backends.readout import ReadoutErrors
from qailab.backends.sampling import bits_as_floats, contract_bits, from_bits, is_wide
from qailab.backends.trex import (
    CALIBRATION_ROWS,
    ReadoutMitigation,
    TwirledReadout,
    check_mitigated,
)
from qailab.errors import (
    BackendBuildError,
    BackendError,
    InputError,
    InputTypeError,
    MemoryLimitError,
)
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.noise import NoiseStream
from qailab.gradients.rows import JoinedRows, RowBatch

Method = Literal["automatic", "statevector", "density_matrix", "matrix_product_state"]
Device = Literal["CPU", "GPU"]

MAX_EXPECTATION_BITS = 16
"""Exact values of observables are made of 2**m probabilities, 512 KiB for each row at 16 bits."""

MAX_DENSITY_QUBITS = 10
"""Up to here a density matrix beats 1024 noisy trajectories, and fits 16 MiB."""

_SLICE_BYTES = 32 << 20  # what one Aer call and the arrays made of it may take; more is no faster
_MAX_ROWS_PER_CALL = 4096  # Aer keeps a few kilobytes of Python objects for each result
_CACHED_PROGRAMS = 64
_BYTES_PER_SHOT = 256  # a count in a dictionary of Python's, and its bits


class AerBackend(Backend):
    """Runs circuits on a Qiskit Aer simulator.

    Without noise, exact probabilities come from the statevector and shots are drawn by numpy;
    with noise, from the density matrix; where those do not fit (many outcomes, many noisy
    qubits) Aer draws the shots itself. Observables beyond 13 measured qubits are evaluated from the
    bits of those shots, of any width. Every way is deterministic in (seed, step, row number).

    A noise model acts on the circuit's own qubits and gates as it does where the circuit is
    transpiled for ``AerSimulator(noise_model=...)`` with ``optimization_level=0`` and run there. A
    device is simulated as it would run the circuit: laid out, routed and compiled with level 1.

    The object is a recipe: it pickles small, and the simulator is built where it runs.

    Args:
        method: Aer's simulation method; ``"automatic"`` picks one by the rules above.
            ``"matrix_product_state"`` is for shots: exact probabilities are of statevectors.
        device: ``"CPU"``, or ``"GPU"`` if the installed Aer has it.
        noise_model: an Aer ``NoiseModel`` to simulate under.
        from_backend: a device, real or fake, whose noise, gates and couplings to simulate.
        threads: threads of the simulator. Parallelism is over circuits, so one is best.
        max_memory_mb: memory one circuit may take, in MiB; half of the machine's by default.
        readout_mitigation: ``"trex"`` for twirled readout, whose bias calibration rows take out of
            observables' values and gradients: for noise that fits a density matrix, with shots.

    Raises:
        InputError: if an option is not valid.

    >>> AerBackend(method="statevector")
    AerBackend(method='statevector')
    """

    def __init__(
        self,
        *,
        method: Method = "automatic",
        device: Device = "CPU",
        noise_model: Any = None,
        from_backend: Any = None,
        threads: int = 1,
        max_memory_mb: int | None = None,
        readout_mitigation: ReadoutMitigation | None = None,
    ) -> None:
        check_choice("method", method, get_args(Method))
        check_choice("device", device, get_args(Device))
        if noise_model is not None and from_backend is not None:
            raise InputError("give either noise_model or from_backend, not both")
        if noise_model is not None and not hasattr(noise_model, "noise_instructions"):
            raise InputTypeError(f"noise_model must be an Aer NoiseModel, got {noise_model!r}")
        if from_backend is not None and not isinstance(from_backend, BackendV2):
            raise InputTypeError(f"from_backend must be a Qiskit BackendV2, got {from_backend!r}")
        checked_integer("threads", threads)
        if max_memory_mb is not None:
            checked_integer("max_memory_mb", max_memory_mb, hint=", or None")
        noisy = noise_model is not None or from_backend is not None
        if noisy and method == "matrix_product_state":
            raise InputError(
                "method 'matrix_product_state' does not simulate noise here; use 'automatic', "
                "'density_matrix' or 'statevector'"
            )
        if readout_mitigation is not None:
            check_choice("readout_mitigation", readout_mitigation, get_args(ReadoutMitigation))
            if not noisy:
                raise InputError(
                    "readout_mitigation is for a readout with errors; give noise_model or "
                    "from_backend"
                )
        self.method: Method = method
        self.device: Device = device
        self.noise_model = noise_model
        self.from_backend = _without_service(from_backend)
        self.threads = threads
        self.max_memory_mb = max_memory_mb
        self.readout_mitigation = readout_mitigation
        self.traits = BackendTraits(
            supports_exact=True,
            noiseless=not noisy,
            idempotent=True,
            calibration_rows=0 if readout_mitigation is None else CALIBRATION_ROWS,
            resources=ActorResources(num_cpus=threads, num_gpus=float(device == "GPU")),
        )

    @property
    def noisy(self) -> bool:
        """Whether gates or measurements have errors."""
        return self.noise_model is not None or self.from_backend is not None

    def open(self) -> None:
        """Check the device. Simulators are built with the circuits they run.

        Raises:
            BackendBuildError: if this machine's Aer has no such device.
        """
        from qiskit_aer import AerSimulator

        available = AerSimulator().available_devices()
        if self.device not in available:
            raise BackendBuildError(
                f"Aer reports the devices {', '.join(available)} on this machine, not "
                f"{self.device}; install a GPU build of qiskit-aer, or use device='CPU'"
            )
        self._live_programs: dict[tuple[str, bool], Program] = {}

    def close(self) -> None:
        """Drop compiled circuits."""
        self.__dict__.pop("_live_programs", None)

    def max_rows_per_call(self, circuit: CanonicalCircuit, shots: int | None) -> int:
        """Rows that fit what is fastest, about 32 MiB.

        Raises:
            MemoryLimitError: if not even one fits the memory; the message says how much it needs.
            BackendError: if the circuit has too many qubits, or exact probabilities cannot be had.
        """
        self._check_fits(circuit, shots)
        qubits = len(circuit.active_qubits)
        # Aer's state, our copy and their sum, and six tables over the outcomes.
        amplitudes = self._ideal_method(shots) != "matrix_product_state"
        state = 48 << min(qubits, 40) if amplitudes and not self.noisy else 0
        per_row = state + 8 * 6 * circuit.num_outcomes
        if from_bits(circuit, shots) or self.readout_mitigation is not None:
            per_row = _BYTES_PER_SHOT * (shots or 1)
        return max(1, min(_MAX_ROWS_PER_CALL, _SLICE_BYTES // per_row))

    def probabilities(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Probabilities:
        return self._program(circuit, batch.shots).probabilities(batch)

    def expectations(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        program, observables = self._program(circuit, batch.shots), circuit.observables
        assert observables is not None
        readout = None
        if self.readout_mitigation is not None:
            assert isinstance(program, ProbabilityProgram)
            assert batch.shots is not None
            noise = batch.noise  # one calibration for all rows of a pass, however they are cut
            noise = NoiseStream.of("readout", noise.seed, noise.step, noise.purpose)
            bits = program.calibration(CALIBRATION_ROWS, batch.shots, noise)
            readout = TwirledReadout.of(observables, bits)
        elif not isinstance(program, CountsProgram):
            return super().expectations(circuit, batch, stop)
        answers = contract_bits(observables, batch, program.bits(batch), readout)
        return Evaluation(answers, NOTHING_USED)

    def measure(
        self, circuit: CanonicalCircuit, batch: RowBatch, stop: threading.Event
    ) -> Evaluation:
        if isinstance(batch.rows, JoinedRows) or not from_bits(circuit, batch.shots):
            return super().measure(circuit, batch, stop)
        program = self._program(circuit, batch.shots)
        assert isinstance(program, CountsProgram)
        return Evaluation(bits_as_floats(program.bits(batch)), NOTHING_USED)

    def _check_fits(self, circuit: CanonicalCircuit, shots: int | None) -> None:
        qubits, outcomes = len(circuit.active_qubits), circuit.num_outcomes
        if self.readout_mitigation is not None:
            check_mitigated(circuit, shots)
            if not self._uses_density_matrix(qubits, shots) or is_wide(circuit):
                raise self._cannot_mitigate(circuit)
        limit, bits = self._memory_limit(), len(circuit.measured_qubits)
        if circuit.observables is not None and shots is None and bits > MAX_EXPECTATION_BITS:
            raise BackendError(
                f"the observables act on {bits} qubits: their exact values would be made of "
                f"{_mib(8 * outcomes)} of probabilities for each row, and are for at most "
                f"{MAX_EXPECTATION_BITS} qubits; use shots instead of shots=None"
            )
        if 8 * outcomes > limit and not from_bits(circuit, shots):
            raise MemoryLimitError(
                f"{bits} measured qubits have {outcomes} outcomes: their "
                f"probabilities need {_mib(8 * outcomes)}, more than the limit of {_mib(limit)}; "
                "measure fewer qubits, or raise max_memory_mb"
            )
        widest = sys.maxsize if self.from_backend is None else int(self.from_backend.num_qubits)
        if circuit.circuit.num_qubits > widest:
            raise BackendError(
                f"the circuit has {circuit.circuit.num_qubits} qubits, and {self!r} has {widest}"
            )
        if self.noise_model is not None and shots is None:
            self._check_readout(ReadoutErrors.of(self.noise_model))
        if self.method == "matrix_product_state" and shots is not None:
            return
        density = self._uses_density_matrix(qubits, shots)
        state = 16 << (2 * qubits if density else qubits)
        if state > limit:
            needs_less = density or self.method == "matrix_product_state"
            raise MemoryLimitError(
                f"the {'density matrix' if density else 'statevector'} of {qubits} qubits needs "
                f"{_mib(state)}, more than the limit of {_mib(limit)}; "
                f"{'use shots instead of shots=None, or ' if needs_less and shots is None else ''}"
                "use fewer qubits, another method, or raise max_memory_mb"
            )

    def _program(self, circuit: CanonicalCircuit, shots: int | None) -> Program:
        if "_live_programs" not in self.__dict__:
            self.open()
        key = (circuit.run_key, shots is None)
        program = self._live_programs.pop(key, None) or self._build(circuit, exact=shots is None)
        self._live_programs[key] = program  # the last used goes last, the first is forgotten first
        if len(self._live_programs) > _CACHED_PROGRAMS:
            self._live_programs.pop(next(iter(self._live_programs)))
        return program

    def _build(self, circuit: CanonicalCircuit, *, exact: bool) -> Program:
        """Pick the fastest correct way, and prepare it."""
        many = is_wide(circuit) and not exact
        if not self.noisy:
            method = self._ideal_method(None if exact else 1)
            simulator = self._simulator(method)
            ideal = for_ideal(circuit, simulator)
            if many:
                return CountsProgram(simulator, ideal, None)
            kind = AmplitudeProgram if method == "statevector" else ProbabilityProgram
            return kind(simulator, ideal, None)
        compile_ = for_noise if self.from_backend is None else for_device
        compiler = self._simulator("automatic")
        runnable, angle_map = compile_(circuit, compiler)
        noise_model = compiler.options.noise_model
        readout = ReadoutErrors({}) if noise_model is None else ReadoutErrors.of(noise_model)
        if exact:  # the device's layout may have taken more qubits than the circuit has
            self._check_readout(readout)
            self._check_fits(runnable, None)
        shots = None if exact else 1
        if exact or (
            readout is not None
            and not many
            and self._uses_density_matrix(len(runnable.active_qubits), shots)
        ):
            simulator = self._simulator("density_matrix")
            if readout is not None and self.readout_mitigation is not None:
                readout = readout.twirled()
            return ProbabilityProgram(simulator, runnable, angle_map, readout)
        if self.readout_mitigation is not None:
            raise self._cannot_mitigate(runnable)
        method = "density_matrix" if self.method == "density_matrix" else "statevector"
        return CountsProgram(self._simulator(method), runnable, angle_map)

    def _ideal_method(self, shots: int | None) -> Method:
        """The method without noise.

        Aer's MPS drops Schmidt coefficients below 1e-8, whatever its options say, which shows in
        exact probabilities.
        """
        inexact = self.method == "matrix_product_state" and shots is None
        return "statevector" if self.method == "automatic" or inexact else self.method

    def _simulator(self, method: str) -> Any:
        from qiskit_aer import AerSimulator

        if self.from_backend is None:
            simulator = AerSimulator(noise_model=self.noise_model)
        elif isinstance(self.from_backend, AerSimulator):
            simulator = copy.deepcopy(self.from_backend)  # its options are the user's
        else:
            simulator = AerSimulator.from_backend(self.from_backend)
        simulator.set_options(
            method=method,
            device=self.device,
            max_parallel_threads=self.threads,
            max_parallel_experiments=1,
            runtime_parameter_bind_enable=True,
        )
        if self.from_backend is not None and method != "automatic":
            simulator.set_options(basis_gates=sorted(native_gates()))  # beyond the device's own
        return simulator

    def _uses_density_matrix(self, qubits: int, shots: int | None) -> bool:
        if self.method == "density_matrix":
            return True
        if not self.noisy:
            return False
        return shots is None or (self.method == "automatic" and qubits <= MAX_DENSITY_QUBITS)

    def _check_readout(self, readout: ReadoutErrors | None) -> None:
        if readout is None:
            raise BackendError(
                "exact noisy probabilities need measurement errors that are single-qubit readout "
                "errors, and this noise model has others; use shots instead of shots=None"
            )

    def _cannot_mitigate(self, circuit: CanonicalCircuit) -> BackendError:
        return BackendError(
            f"readout_mitigation here is for density matrices (of at most {MAX_DENSITY_QUBITS} "
            "qubits, or method='density_matrix') with single-qubit readout errors; this circuit "
            f"has {len(circuit.active_qubits)} qubits, and {self!r} runs it otherwise"
        )

    def _memory_limit(self) -> int:
        if self.max_memory_mb is not None:
            return self.max_memory_mb << 20
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2

    def __repr__(self) -> str:
        defaults = {"method": "automatic", "device": "CPU", "threads": 1}
        shown = {
            name: getattr(self, name)
            for name in ("method", "device", "threads", "max_memory_mb", "readout_mitigation")
            if getattr(self, name) != defaults.get(name)
        }
        text = [f"{name}={value!r}" for name, value in shown.items()]
        if self.noise_model is not None:
            text.append("noise_model=...")
        if self.from_backend is not None:
            text.append(f"from_backend={getattr(self.from_backend, 'name', '...')!r}")
        return f"AerBackend({', '.join(text)})"


def _without_service(backend: Any) -> Any:
    """A device that is safe to pickle: a live one, which holds a session and a token, is copied."""
    if getattr(backend, "service", None) is None:
        return backend
    from qiskit_aer import AerSimulator

    return AerSimulator.from_backend(backend)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size < 1 << 50 else f"{size / 2**20:.1e} MiB"
