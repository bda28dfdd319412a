"""Circuits on Qiskit Aer simulators: the fastest correct way for each circuit."""

from __future__ import annotations

import copy
import os
from typing import Any, Literal, get_args

from qailab.backends.aer_programs import (
    AmplitudeProgram,
    CountsProgram,
    ProbabilityProgram,
    Program,
    for_device,
    in_gates_of,
)
from qailab.backends.base import ActorResources, Backend, Outcomes
from qailab.backends.readout import ReadoutErrors
from qailab.circuit.block import check_choice
from qailab.errors import BackendBuildError, InputError, MemoryLimitError
from qailab.gradients.batch import RowBatch
from qailab.gradients.canonical import CanonicalCircuit

Method = Literal["automatic", "statevector", "density_matrix", "matrix_product_state"]
Device = Literal["CPU", "GPU"]

MAX_EXACT_OUTCOMES = 1 << 13
"""Up to here exact probabilities and numpy's multinomial beat Aer's own sampling (measured: 7 to
10 times at 10 bits, level at about 14); beyond, copying 2**m probabilities costs more."""

MAX_DENSITY_QUBITS = 10
"""Up to here a density matrix beats 1024 noisy trajectories, and fits 16 MiB."""

_SLICE_BYTES = 96 << 20  # what one Aer call and the arrays made of it may take
_MAX_ROWS_AT_ONCE = 4096  # Aer keeps a few kilobytes of Python objects for each result
_CACHED_PROGRAMS = 64


class AerBackend(Backend):
    """Runs circuits on a Qiskit Aer simulator.

    Without noise, exact probabilities come from the statevector and shots are drawn by numpy;
    with noise, from the density matrix; where those do not fit (many outcomes, many noisy
    qubits) Aer draws the shots itself. Every way is deterministic in (seed, step, row number).

    The object is a recipe: it pickles small, and the simulator is built where it runs.

    Args:
        method: Aer's simulation method; ``"automatic"`` picks one by the rules above.
        device: ``"CPU"``, or ``"GPU"`` if the installed Aer has it.
        noise_model: an Aer ``NoiseModel`` to simulate under.
        from_backend: a device, real or fake, whose noise, gates and couplings to simulate.
        threads: threads of the simulator. Parallelism is over circuits, so one is best.
        max_memory_mb: memory one circuit may take, in MiB; half of the machine's by default.

    Raises:
        InputError: if an option is not valid.

    >>> AerBackend(method="statevector")
    AerBackend(method='statevector')
    """

    supports_exact = True

    def __init__(
        self,
        *,
        method: Method = "automatic",
        device: Device = "CPU",
        noise_model: Any = None,
        from_backend: Any = None,
        threads: int = 1,
        max_memory_mb: int | None = None,
    ) -> None:
        check_choice("method", method, get_args(Method))
        check_choice("device", device, get_args(Device))
        if noise_model is not None and from_backend is not None:
            raise InputError("give either noise_model or from_backend, not both")
        for name, value in (("threads", threads), ("max_memory_mb", max_memory_mb)):
            positive = isinstance(value, int) and not isinstance(value, bool) and value > 0
            if not positive and not (value is None and name == "max_memory_mb"):
                raise InputError(f"{name} must be a positive integer, got {value!r}")
        noisy = noise_model is not None or from_backend is not None
        if noisy and method in ("statevector", "matrix_product_state"):
            raise InputError(
                f"method {method!r} has no exact noisy probabilities; use 'automatic' or "
                "'density_matrix' with a noise model"
            )
        self.method: Method = method
        self.device: Device = device
        self.noise_model = noise_model
        self.from_backend = _without_service(from_backend)
        self.threads = threads
        self.max_memory_mb = max_memory_mb

    @property
    def resources(self) -> ActorResources:
        """One core for each thread, and a GPU if the device is one."""
        return ActorResources(num_cpus=self.threads, num_gpus=float(self.device == "GPU"))

    @property
    def noisy(self) -> bool:
        """Whether gates or measurements have errors."""
        return self.noise_model is not None or self.from_backend is not None

    def validate(self, circuit: CanonicalCircuit, shots: int | None, num_rows: int = 1) -> None:
        """Check that the circuit fits the memory.

        Raises:
            MemoryLimitError: if it does not; the message says how much it needs.
        """
        qubits, outcomes = circuit.circuit.num_qubits, circuit.num_outcomes
        limit = self._memory_limit()
        table = 8 * outcomes * num_rows
        if table > limit:
            raise MemoryLimitError(
                f"{len(circuit.measured_qubits)} measured qubits have {outcomes} outcomes: their "
                f"probabilities for {num_rows} row(s) need {_mib(table)}, more than the limit of "
                f"{_mib(limit)}; measure fewer qubits, or raise max_memory_mb"
            )
        if self._uses_density_matrix(qubits, shots):
            state, what = 16 << 2 * qubits, "density matrix"
            hint = "use shots instead of shots=None, or " if shots is None else ""
        elif self.method == "matrix_product_state":
            return
        else:
            state, what, hint = 16 << qubits, "statevector", ""
        if state > limit:
            raise MemoryLimitError(
                f"the {what} of {qubits} qubits needs {_mib(state)}, more than the limit of "
                f"{_mib(limit)}; {hint}use fewer qubits, another method, or raise max_memory_mb"
            )

    def open(self) -> None:
        """Build the simulator.

        Raises:
            BackendBuildError: if Aer has no such device, or cannot build the simulator.
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

    def rows_at_once(self, circuit: CanonicalCircuit) -> int:
        qubits = circuit.circuit.num_qubits
        # Aer's state, our copy and their sum, and six tables over the outcomes.
        state = 0 if self.noisy or self.method == "matrix_product_state" else 48 << min(qubits, 40)
        per_row = state + 8 * 6 * circuit.num_outcomes
        return max(1, min(_MAX_ROWS_AT_ONCE, _SLICE_BYTES // per_row))

    def outcomes(self, circuit: CanonicalCircuit, batch: RowBatch) -> Outcomes:
        return self._program(circuit, batch.shots).outcomes(batch)

    def _program(self, circuit: CanonicalCircuit, shots: int | None) -> Program:
        if "_live_programs" not in self.__dict__:
            self.open()
        key = (circuit.key, shots is None)
        program = self._live_programs.pop(key, None) or self._build(circuit, exact=shots is None)
        self._live_programs[key] = program  # the last used goes last, the first is forgotten first
        if len(self._live_programs) > _CACHED_PROGRAMS:
            self._live_programs.pop(next(iter(self._live_programs)))
        return program

    def _build(self, circuit: CanonicalCircuit, *, exact: bool) -> Program:
        """Pick the fastest correct way, and prepare it."""
        many = circuit.num_outcomes > MAX_EXACT_OUTCOMES and not exact
        if not self.noisy:
            method = "statevector" if self.method == "automatic" else self.method
            simulator = self._simulator(method)
            native = in_gates_of(circuit, simulator)
            if many:
                return CountsProgram(simulator, native, None)
            kind = AmplitudeProgram if method == "statevector" else ProbabilityProgram
            return kind(simulator, native, None)
        simulator = self._simulator("density_matrix")
        readout = ReadoutErrors.of(simulator.options.noise_model)
        device, angle_map = for_device(circuit, simulator)
        active = device.num_active_qubits
        fits = 16 << 2 * active <= self._memory_limit()
        if exact and not (fits and readout):
            raise MemoryLimitError(
                f"exact noisy probabilities of {active} qubits need a density matrix of "
                f"{_mib(16 << 2 * active)}, more than the limit of {_mib(self._memory_limit())}; "
                "use shots instead of shots=None"
                if not fits
                else "exact noisy probabilities need measurement errors that are single-qubit "
                "readout errors; use shots instead of shots=None"
            )
        small = active <= MAX_DENSITY_QUBITS or self.method == "density_matrix"
        if readout and fits and not many and (exact or small):
            return ProbabilityProgram(simulator, device, angle_map, readout)
        method = "density_matrix" if self.method == "density_matrix" else "statevector"
        return CountsProgram(self._simulator(method), device, angle_map)

    def _simulator(self, method: str) -> Any:
        from qiskit_aer import AerSimulator

        if self.from_backend is None:
            simulator = AerSimulator(noise_model=self.noise_model)
        elif isinstance(self.from_backend, AerSimulator):
            simulator = copy.copy(self.from_backend)
        else:
            simulator = AerSimulator.from_backend(self.from_backend)
        simulator.set_options(
            method=method,
            device=self.device,
            max_parallel_threads=self.threads,
            max_parallel_experiments=1,
            runtime_parameter_bind_enable=True,
        )
        return simulator

    def _uses_density_matrix(self, qubits: int, shots: int | None) -> bool:
        if self.method == "density_matrix":
            return True
        return self.noisy and (shots is None or qubits <= MAX_DENSITY_QUBITS)

    def _memory_limit(self) -> int:
        if self.max_memory_mb is not None:
            return self.max_memory_mb << 20
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2

    def __repr__(self) -> str:
        defaults = {"method": "automatic", "device": "CPU", "threads": 1}
        shown = {
            name: getattr(self, name)
            for name in ("method", "device", "threads", "max_memory_mb")
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
