"""Programs: one circuit, prepared to run many rows of angles on an Aer simulator.

Three ways to the outcomes of rows, from which `AerBackend` picks.

* `AmplitudeProgram`: noiseless, from statevectors. Half of the simulations a shift rule seems to
  need: with ``R(t) = exp(-i t P / 2)`` and ``P @ P = 1``, ``R(t + s)`` equals
  ``cos(s/2) R(t) + sin(s/2) R(t + pi)``, so the states of both shifts of an angle are sums of
  the sample's own state and the state with that angle shifted by pi.
* `ProbabilityProgram`: exact probabilities saved by the simulator (density matrix, MPS).
* `CountsProgram`: shots drawn by the simulator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit import transpile
from qiskit.circuit import Gate, Parameter, QuantumCircuit, QuantumRegister
from qiskit.circuit.library import UnitaryGate

from qailab.backends.answers import Probabilities
from qailab.backends.readout import ReadoutErrors
from qailab.backends.sampling import (
    counts_to_bits,
    counts_to_frequencies,
    frequencies_to_bits,
    measured_marginal,
    sample_frequencies,
)
from qailab.errors import BackendError, EvaluationError
from qailab.gradients.angles import AngleMap
from qailab.gradients.canonical import CanonicalCircuit, canonicalize
from qailab.gradients.instructions import free_parameters, is_canonical, opened
from qailab.gradients.noise import NoiseStream
from qailab.gradients.observables import Bits
from qailab.gradients.rows import FloatArray, RowBatch, ShiftedRows

_TRANSPILER_SEED = 0  # a layout must be the same in every actor
_NOISELESS = "noiseless"  # a label that no noise model has
_TOLERANCE = 1e-9


class Program(ABC):
    """A circuit that is ready to run rows.

    Args:
        simulator: a configured ``AerSimulator``.
        circuit: the circuit it runs.
        angle_map: from the angles of rows to the angles of that circuit, if they differ.
    """

    def __init__(
        self, simulator: Any, circuit: CanonicalCircuit, angle_map: AffineMap | None
    ) -> None:
        self._simulator = simulator
        self._circuit = circuit
        self._angle_map = angle_map
        self._runnable = self._prepare(circuit)

    @abstractmethod
    def _prepare(self, circuit: CanonicalCircuit) -> QuantumCircuit:
        """The circuit with what the simulator is to save."""

    @abstractmethod
    def probabilities(self, batch: RowBatch) -> Probabilities:
        """Run the rows of a batch."""

    def bits(self, batch: RowBatch) -> Bits:
        """The bits of the shots of a batch's rows, in all of their bases."""
        assert batch.shots is not None
        return frequencies_to_bits(self.probabilities(batch).sampled, batch.shots)

    def _run(self, angles: FloatArray, **options: Any) -> list[Any]:
        """Run rows of angles ``(n, A)``; the saved data of each."""
        if self._angle_map is not None:
            angles = self._angle_map.values(angles)
        binds = None
        if self._circuit.num_angles:
            columns = np.ascontiguousarray(angles.T)
            binds = [dict(zip(self._circuit.angles, columns, strict=True))]
        runs = 1 if binds else len(angles)  # without parameters, one circuit for each row
        job = self._simulator.run([self._runnable] * runs, parameter_binds=binds, **options)
        result = job.result()
        if not result.success or len(result.results) != len(angles):
            raise EvaluationError(
                f"Aer answered {len(result.results)} of {len(angles)} rows: {result.status}"
            )
        return [experiment.data for experiment in result.results]


class AmplitudeProgram(Program):
    """Noiseless outcomes from statevectors."""

    def _prepare(self, circuit: CanonicalCircuit) -> QuantumCircuit:
        self._phases, self._equivalents = _phases_and_equivalents(circuit)
        runnable = circuit.circuit.remove_final_measurements(inplace=False)
        runnable.save_statevector()
        return runnable

    def probabilities(self, batch: RowBatch) -> Probabilities:
        rows = batch.rows
        states = (
            self._shifted(rows) if isinstance(rows, ShiftedRows) else self._states(rows.angles())
        )
        exact = measured_marginal(states.real**2 + states.imag**2, self._circuit.measured_qubits)
        return _with_shots(exact, batch)

    def _states(self, angles: FloatArray) -> NDArray[np.complex128]:
        data = self._run(angles, shots=1)
        return np.array([np.asarray(saved.statevector) for saved in data])

    def _shifted(self, rows: ShiftedRows) -> NDArray[np.complex128]:
        terms = rows.rule.num_terms
        first, last = rows.start // terms, -(-rows.stop // terms)
        pairs = np.arange(first, last)
        owner = pairs // len(rows.columns) - rows.first_sample
        shifted = self._equivalents[rows.columns[pairs % len(rows.columns)]]
        # Each different state is simulated once.
        runs, run_of_pair = np.unique(
            owner * self._circuit.num_angles + shifted, return_inverse=True
        )
        owner_of_run, shifted_of_run = np.divmod(runs, self._circuit.num_angles)
        turned = rows.base[owner_of_run]
        turned[np.arange(len(runs)), shifted_of_run] += np.pi
        states = self._states(np.concatenate([rows.base, turned]))
        states[len(rows.base) :] *= self._phases[shifted_of_run][:, None]

        row = np.arange(rows.start, rows.stop)
        half = np.asarray(rows.rule.shifts)[row % terms] / 2
        pair = row // terms - first
        mixed = states[owner[pair]] * np.cos(half)[:, None]
        mixed += states[len(rows.base) + run_of_pair[pair]] * np.sin(half)[:, None]
        return mixed


class ProbabilityProgram(Program):
    """Exact probabilities, saved by the simulator.

    Args:
        readout: the readout errors to apply, which saved probabilities do not have.
    """

    def __init__(
        self,
        simulator: Any,
        circuit: CanonicalCircuit,
        angle_map: AffineMap | None,
        readout: ReadoutErrors | None = None,
    ) -> None:
        super().__init__(simulator, circuit, angle_map)
        self._readout = readout

    def _prepare(self, circuit: CanonicalCircuit) -> QuantumCircuit:
        runnable = circuit.circuit.remove_final_measurements(inplace=False)
        runnable.save_probabilities(list(circuit.measured_qubits))
        return runnable

    def probabilities(self, batch: RowBatch) -> Probabilities:
        data = self._run(batch.rows.angles(), shots=1)
        exact = np.array([saved.probabilities for saved in data])
        if self._readout is not None:
            exact = self._readout.apply(exact, self._circuit.measured_qubits)
        return _with_shots(exact, batch)

    def calibration(self, rows: int, shots: int, noise: NoiseStream) -> Bits:
        """The bits of qubits to which nothing was done, shape ``(rows, shots, bytes)``."""
        assert self._readout is not None
        exact = np.zeros((rows, self._circuit.num_outcomes))
        exact[:, 0] = 1.0
        exact = self._readout.apply(exact, self._circuit.measured_qubits)
        return frequencies_to_bits(sample_frequencies(exact, shots, noise, 0), shots)


class CountsProgram(Program):
    """Shots drawn by the simulator.

    Rows run one by one, each with a seed of its own: in one run, Aer seeds the ``i``-th row with
    ``seed + 2113 * i`` and, under noise, each shot with one more, so that rows would share noise.
    """

    def _prepare(self, circuit: CanonicalCircuit) -> QuantumCircuit:
        return circuit.circuit

    def probabilities(self, batch: RowBatch) -> Probabilities:
        frequencies = counts_to_frequencies(self._counts(batch), self._circuit.num_outcomes)
        return Probabilities(frequencies)

    def bits(self, batch: RowBatch) -> Bits:
        return counts_to_bits(self._counts(batch), len(self._circuit.measured_qubits))

    def _counts(self, batch: RowBatch) -> list[Any]:
        seeds = batch.noise.integer_seeds(batch.rows.start, batch.num_rows)
        return [
            self._run(row[None], shots=batch.shots, seed_simulator=seed)[0].counts
            for row, seed in zip(batch.rows.angles(), seeds, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class AffineMap:
    """From the angles of rows to the angles of the circuit that runs: ``matrix @ row + offset``.

    Args:
        matrix: shape ``(angles that run, angles of a row)``.
        offset: shape ``(angles that run,)``.
    """

    matrix: FloatArray
    offset: FloatArray

    @classmethod
    def of(cls, angle_map: AngleMap, size: int) -> AffineMap:
        """An angle map of ``size`` parameters that is known to be affine."""
        offset = angle_map.values(np.zeros((1, size)))[0]
        each, everything = np.eye(len(offset)), np.ones(size, dtype=bool)
        points = np.zeros((len(offset), size))
        return cls(angle_map.vjp(points, each, everything, np.arange(len(offset))), offset)

    def values(self, angles: FloatArray) -> FloatArray:
        """Angles of the circuit that runs, for rows of angles ``(n, A)``."""
        values: FloatArray = angles @ self.matrix.T + self.offset
        return values


def for_device(circuit: CanonicalCircuit, simulator: Any) -> tuple[CanonicalCircuit, AffineMap]:
    """The circuit as a device runs it, in its gates and on its qubits, and where its angles are.

    A circuit that is as wide as the device is taken to be laid out already.

    Raises:
        BackendError: if an angle turns more than one of the device's gates.
    """
    wide = circuit.circuit.num_qubits
    isa = transpile(
        circuit.circuit,
        simulator,
        optimization_level=1,
        seed_transpiler=_TRANSPILER_SEED,
        initial_layout=list(range(wide)) if wide == simulator.num_qubits else None,
    )
    runnable, angle_map = canonicalize(_in_shiftable_gates(isa, simulator), circuit.angles)
    affine = AffineMap.of(angle_map, circuit.num_angles)
    turns = np.abs(affine.matrix).sum(axis=0)  # one gate, once; two would be two frequencies
    if turns.size and turns.max() > 1.0 + _TOLERANCE:
        raise _no_shift_rule(f"angle {int(turns.argmax())}", isa.count_ops())
    return runnable, affine


def for_noise(circuit: CanonicalCircuit, simulator: Any) -> tuple[CanonicalCircuit, AffineMap]:
    """The circuit as it was written, in the gates of a noise model, and where its angles are.

    These gates may have other angles than the canonical circuit, whose rows are given. An angle of
    either is an affine function of the parameters of the gates as they were written. Where a row's
    angle and one that runs have the same slopes, a shift of the one is a shift of the other.

    Raises:
        BackendError: if there is no such pairing, so that the gradient would be another circuit's.
    """
    written = circuit.circuit if circuit.written is None else circuit.written
    arguments = list(written.parameters)
    simulator.set_options(n_qubits=max(written.num_qubits, simulator.num_qubits))
    compiled = transpile(written, simulator, optimization_level=0)
    runnable, run_map = canonicalize(_in_shiftable_gates(compiled, simulator), arguments)
    run = AffineMap.of(run_map, len(arguments))
    row = AffineMap.of(canonicalize(written, arguments)[1], len(arguments))
    unpaired: dict[tuple[float, ...], list[tuple[int, float]]] = {}
    for column, slopes in enumerate(row.matrix):
        name, sign = _up_to_sign(slopes)
        unpaired.setdefault(name, []).append((column, sign))
    matrix = np.zeros((len(run.matrix), len(row.matrix)))
    for angle, slopes in enumerate(run.matrix):
        name, sign = _up_to_sign(slopes)
        if not unpaired.get(name):
            turned = {arguments[i] for i in np.flatnonzero(slopes)}
            gates = (gate.operation for gate in written.data)
            split = next(gate.name for gate in gates if free_parameters(gate) & turned)
            raise _no_shift_rule(repr(split), simulator.options.noise_model.basis_gates)
        column, row_sign = unpaired[name].pop(0)
        matrix[angle, column] = sign * row_sign
    if any(unpaired.values()):
        raise _no_shift_rule("one of its gates", simulator.options.noise_model.basis_gates)
    return runnable, AffineMap(matrix, run.offset - matrix @ row.offset)


def _no_shift_rule(what: str, gates: Iterable[str]) -> BackendError:
    return BackendError(
        f"in the gates {', '.join(gates)}, {what} of the circuit becomes other rotations than its "
        "shift rule is of, so its gradient under this noise is unknown; write it in these gates"
    )


def _up_to_sign(slopes: FloatArray) -> tuple[tuple[float, ...], float]:
    rounded = np.round(slopes, 9)
    first = rounded[np.flatnonzero(rounded)[:1]]
    sign = -1.0 if first.size and first[0] < 0 else 1.0
    return tuple((sign * rounded + 0.0).tolist()), sign


def _in_shiftable_gates(circuit: QuantumCircuit, simulator: Any) -> QuantumCircuit:
    """The same circuit under the same noise, in gates that have a shift rule and that Aer runs.

    Aer knows the noise of a gate by its label, or else by its name. A gate that is opened leaves
    its noise behind, on an identity that is labelled with its name; its pieces have none.
    """
    noise_model = simulator.options.noise_model
    noisy = set() if noise_model is None else set(noise_model.noise_instructions)
    same = circuit.copy_empty_like()
    for instruction in circuit.data:
        gate, qubits = instruction.operation, instruction.qubits
        if not isinstance(gate, Gate):
            same.append(gate, qubits, instruction.clbits)
            continue
        if _runs(gate):
            same.append(gate, qubits)
            continue
        name = gate.label or gate.name
        for piece, where, _ in opened(gate, range(gate.num_qubits), [], _runs, name):
            noiseless = piece.to_mutable()
            noiseless.label = _NOISELESS
            same.append(noiseless, [qubits[i] for i in where])
        if name in noisy:
            same.append(UnitaryGate(np.eye(1 << gate.num_qubits), label=name), qubits)
    return same


def _runs(operation: Any) -> bool:
    return is_canonical(operation) and operation.name in native_gates()


@cache
def native_gates() -> frozenset[str]:
    """The gates that Aer's density matrix runs; its statevector runs them and more."""
    from qiskit_aer import AerSimulator

    configuration = AerSimulator(method="density_matrix").configuration()
    return frozenset(configuration.basis_gates) - frozenset(configuration.custom_instructions)


def for_ideal(circuit: CanonicalCircuit, simulator: Any) -> CanonicalCircuit:
    """The same angles, without idle qubits, with fixed gates that the simulator knows."""
    place = {old: new for new, old in enumerate(circuit.active_qubits)}
    compact = QuantumCircuit(QuantumRegister(len(place), "q"), *circuit.circuit.cregs)
    for instruction in circuit.circuit.data:
        if instruction.operation.name != "barrier":
            qubits = [place[circuit.circuit.find_bit(q).index] for q in instruction.qubits]
            compact.append(instruction.operation, qubits, instruction.clbits)
    if compact.num_qubits > simulator.num_qubits:  # MPS says 63, and runs any number
        simulator.set_options(n_qubits=compact.num_qubits)
    # Not in vain: the transpiler loads IBM's client, for one of its plugins, in more than a second.
    if not set(compact.count_ops()).issubset(simulator.operation_names):
        compact = transpile(compact, simulator, optimization_level=0)
    compact.global_phase = 0
    measured = tuple(place[qubit] for qubit in circuit.measured_qubits)
    return CanonicalCircuit(compact, circuit.angles, measured)


def _phases_and_equivalents(
    circuit: CanonicalCircuit,
) -> tuple[NDArray[np.complex128], NDArray[np.int64]]:
    """For each angle: the phase of its state shifted by pi, and the angle that shifts likewise.

    ``p(t)`` is ``rz(t)`` up to a phase that depends on ``t``, which the sum of two states must
    undo. Neighbours of one kind on the same qubits (an encoder's rotation and the first one that
    is trained) add their angles, so a shift of either gives the same state.
    """
    column_of = {angle: column for column, angle in enumerate(circuit.angles)}
    phases = np.ones(circuit.num_angles, dtype=np.complex128)
    equivalents = np.arange(circuit.num_angles)
    previous: dict[Any, tuple[str, list[Any], int | None]] = {}  # by qubit: its last gate
    for instruction in circuit.circuit.data:
        name, qubits = instruction.operation.name, list(instruction.qubits)
        angles = [p for p in instruction.operation.params if isinstance(p, Parameter)]
        column = column_of[angles[0]] if angles else None
        if column is not None:
            phases[column] = -1j if name == "p" else 1.0
            before = [previous.get(qubit) for qubit in qubits]
            if before[0] is not None and all(gate is before[0] for gate in before):
                last_name, last_qubits, last_column = before[0]
                if (last_name, last_qubits) == (name, qubits) and last_column is not None:
                    equivalents[column] = equivalents[last_column]
        gate = (name, qubits, column)
        previous.update(dict.fromkeys(qubits, gate))
    return phases, equivalents


def _with_shots(exact: FloatArray, batch: RowBatch) -> Probabilities:
    if batch.shots is None:
        return Probabilities(exact, exact)
    drawn = sample_frequencies(exact, batch.shots, batch.noise, batch.rows.start)
    return Probabilities(drawn, exact)
