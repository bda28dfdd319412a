"""Runs circuits on Aer and draws shots.

Without noise, one run of Aer gives the exact probabilities of all rows, and numpy draws the shots:
several times faster than Aer's own sampling. With noise, and where a circuit measures and goes on,
Aer draws the shots.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qailab.rehearsal.circuits import NATIVE, Prepared, circuit_text, prepare
from qailab.rehearsal.errors import INTERNAL, JobError
from qailab.rehearsal.samples import BitSamples, BoolArray, OutcomeSamples, Samples, bits_of

if TYPE_CHECKING:
    from qailab.rehearsal.devices import Device

MAX_EXACT_BITS = 16
"""Most measured bits whose probabilities are saved; beyond, Aer's sampling is faster."""

MAX_SAVED = 1 << 22
"""Most probabilities saved in one run of Aer, 32 MB."""

MAX_DENSITY_BITS = 9
"""Most measured bits for which noise is simulated exactly, by a density matrix."""

PREPARED_KEPT = 32
"""Circuits that stay prepared."""


class Simulator:
    """A device as a simulator.

    Args:
        device: whose noise it has.
        noise: whether to have it.
    """

    def __init__(self, device: Device, *, noise: bool) -> None:
        self._device = device
        self._noise = noise
        self._prepared: OrderedDict[str, tuple[Prepared, bool]] = OrderedDict()
        self._aer: dict[bool, Any] = {}
        self._lock = threading.Lock()

    def sample(
        self, circuit: Any, values: NDArray[np.float64], shots: int, seed: np.random.SeedSequence
    ) -> Samples:
        """Draw shots of all rows.

        Args:
            circuit: in the gates and on the qubits of the device.
            values: of its parameters, shape ``(n, P)``.
            shots: of each row.
            seed: of the noise.

        Raises:
            JobError: if Aer cannot run it.
        """
        prepared, exact = self._prepare(circuit)
        rng = np.random.default_rng(seed)
        if exact:
            return OutcomeSamples(self._outcomes(prepared, values, shots, rng), prepared.clbits)
        return BitSamples(self._counted(prepared, circuit.num_clbits, values, shots, rng))

    def probabilities(self, circuit: Any, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Exact probabilities of a circuit that measures at its end, without noise.

        Args:
            circuit: the circuit; all its classical bits must be measured.
            values: of its parameters, shape ``(n, P)``.

        Returns:
            Shape ``(n, K)``.
        """
        prepared = prepare(circuit, compact=True)
        return self._probabilities(_saving(prepared), values)

    def _prepare(self, circuit: Any) -> tuple[Prepared, bool]:
        key = hashlib.sha256(circuit_text(circuit).encode()).hexdigest()
        with self._lock:
            if key in self._prepared:
                self._prepared.move_to_end(key)
                return self._prepared[key]
        prepared = prepare(circuit, compact=not self._noise)
        exact = not self._noise and not prepared.dynamic
        exact = exact and len(prepared.clbits) <= MAX_EXACT_BITS
        ready = _saving(prepared) if exact else prepared
        with self._lock:
            self._prepared[key] = (ready, exact)
            if len(self._prepared) > PREPARED_KEPT:
                self._prepared.popitem(last=False)
        return ready, exact

    def _simulator(self, noise: bool) -> Any:
        from qiskit_aer import AerSimulator

        if noise not in self._aer:
            options = {"max_parallel_threads": 1}  # more of them fight over the cores
            if noise:
                backend = self._device.fake_backend()
                self._aer[noise] = AerSimulator.from_backend(backend, **options)
            else:
                self._aer[noise] = AerSimulator(**options)
        return self._aer[noise]

    def _run(self, simulator: Any, circuits: list[Any], rows: int, **options: Any) -> list[Any]:
        result = simulator.run(circuits, **options).result()
        if not result.success or len(result.results) != rows:
            statuses = {str(experiment.status) for experiment in result.results}
            raise JobError(f"Internal error: {result.status} {' '.join(statuses)}"[:500], INTERNAL)
        return list(result.results)

    def _probabilities(
        self, prepared: Prepared, values: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        outcomes, rows = 1 << len(prepared.clbits), len(values)
        if not prepared.clbits:
            return np.ones((rows, 1))
        if not prepared.angles:
            exact = self._saved(prepared, values[:1])
            return np.broadcast_to(exact, (rows, outcomes))
        step = max(1, MAX_SAVED // outcomes)
        parts = [self._saved(prepared, values[at : at + step]) for at in range(0, rows, step)]
        return np.concatenate(parts) if parts else np.zeros((0, outcomes))

    def _saved(self, prepared: Prepared, values: NDArray[np.float64]) -> NDArray[np.float64]:
        binds = [prepared.bindings(values)] if prepared.angles else None
        found = self._run(
            self._simulator(noise=False),
            [prepared.circuit],
            len(values),
            parameter_binds=binds,
            shots=1,
            runtime_parameter_bind_enable=True,
            fusion_enable=False,  # fusing gates anew for each row costs more than it saves
        )
        return np.array([experiment.data.probabilities for experiment in found])

    def _outcomes(
        self,
        prepared: Prepared,
        values: NDArray[np.float64],
        shots: int,
        rng: np.random.Generator,
    ) -> NDArray[Any]:
        exact = np.clip(self._probabilities(prepared, values), 0.0, None)
        counts = rng.multinomial(shots, exact / exact.sum(axis=1, keepdims=True))
        rows, kinds = counts.shape
        numbers = np.arange(kinds, dtype=np.min_scalar_type(kinds - 1))
        sorted_shots = np.repeat(np.tile(numbers, rows), counts.ravel()).reshape(rows, shots)
        return rng.permuted(sorted_shots, axis=1)  # a device's shots come in no order

    def _counted(
        self,
        prepared: Prepared,
        num_clbits: int,
        values: NDArray[np.float64],
        shots: int,
        rng: np.random.Generator,
    ) -> BoolArray:
        """Shots that Aer drew, shape ``(n, shots, num_clbits)``."""
        runnable = prepared.circuit.copy()
        for qubit, clbit in zip(prepared.qubits, prepared.clbits, strict=False):
            runnable.measure(qubit, clbit)
        seeds = [int(seed) for seed in rng.integers(2**31, size=len(values))]
        if self._noise and not prepared.dynamic and len(prepared.qubits) <= MAX_DENSITY_BITS:
            options = {"method": "density_matrix", "seed_simulator": seeds[0] if seeds else 0}
            found = self._bound_run(runnable, prepared, values, shots, options)
        else:
            # One by one, each with a seed of its own: Aer seeds row i of a run with seed + 2113 i
            # and, where it simulates shot by shot, each shot with one more: rows shared noise.
            found = [
                self._bound_run(runnable, prepared, row[None], shots, {"seed_simulator": seed})[0]
                for row, seed in zip(values, seeds, strict=True)
            ]
        bits = np.zeros((len(values), shots, num_clbits), dtype=np.bool_)
        for row, experiment in enumerate(found):
            counts = getattr(experiment.data, "counts", {})
            if counts:
                bits[row] = rng.permutation(bits_of(counts, num_clbits), axis=0)
        return bits

    def _bound_run(
        self,
        runnable: Any,
        prepared: Prepared,
        values: NDArray[np.float64],
        shots: int,
        options: dict[str, Any],
    ) -> list[Any]:
        """One run of circuits whose parameters are bound here: Aer cannot in control flow."""
        columns = prepared.bindings(values)
        circuits = [
            runnable.assign_parameters({name: column[row] for name, column in columns.items()})
            for row in range(len(values))
        ]
        if not circuits:
            return []
        simulator = self._simulator(self._noise)
        return self._run(simulator, circuits, len(circuits), shots=shots, **options)


def _saving(prepared: Prepared) -> Prepared:
    from qiskit import transpile

    circuit = prepared.circuit
    if any(instruction.operation.name not in NATIVE for instruction in circuit.data):
        circuit = transpile(
            circuit, basis_gates=["rz", "sx", "x", "cx"], optimization_level=0, seed_transpiler=0
        )
        circuit.global_phase = 0
    circuit = circuit.copy()
    if prepared.qubits:
        circuit.save_probabilities(list(prepared.qubits))
    return Prepared(
        circuit, prepared.angles, prepared.parameters, prepared.qubits, prepared.clbits, False
    )
