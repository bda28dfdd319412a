"""Gate programs: a canonical circuit as the flat arrays that the statevector kernels run.

Positions of qubits are chosen so that no kernel needs a table of outcomes: outcome bit ``k`` is at
position ``k``, unmeasured qubits are above, idle ones are gone. Global phases are dropped, so that
``p`` is ``rz``. What is known before the angles are is done once, here:

* neighbouring rotations of one kind on the same qubits become one operation: they add their angles;
* fixed gates on one qubit are multiplied;
* permutations and diagonals (``cx``, ``ccx``, ``swap``, ``cz``, ...), alone or as products, become
  one table for each stretch of the circuit in which nothing stands between them;
* a circuit all of whose gates are real (``ry``, ``cx``, ``h``, ...) is run in real numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Barrier, Delay, Measure
from qiskit.circuit.library import C3XGate, C4XGate, DiagonalGate, MCPhaseGate, MCXGate

from qailab.errors import BackendError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.instructions import free_parameters, kind_of, matrix_of
from qailab.gradients.rows import FloatArray, IntArray

ComplexArray = NDArray[np.complex128]

WORDS = 8
"""Integers of an operation: its kind, what it acts on, and last its slot (-1 if it is fixed)."""

_MAX_TABLE_QUBITS = 14  # a table of 2**14 entries stays in the cache beside the state
_EXACT = 1e-15  # matrix elements below are rounding errors of whoever computed the matrix
_SYMMETRIC = ("rxx", "ryy", "rzz")
_CONTROLLED_X = (MCXGate, C3XGate, C4XGate)


class Kind(IntEnum):
    """What an operation does, and its integers; strides are ``2**position``.

    ``s`` is a stride, ``lo < hi`` are two of them, ``n`` and ``i`` places in the tables of numbers
    and of indices, ``k`` how many qubits, ``mask`` which.
    """

    RY = 0  # s
    RX = 1  # s
    RZ = 2  # s
    RZZ = 3  # lo, hi
    PAIRS = 4  # lo, hi, flipped bits, first of the second pair, sign of each pair
    REAL = 5  # s, n: a real matrix of one qubit
    COMPLEX = 6  # s, n
    CX = 7  # lo, hi, control (0 if it is open), target
    PERMUTATION = 8  # k, mask, i of offsets, i of destinations
    REAL_DIAGONAL = 9  # k, mask, i of offsets, n
    COMPLEX_DIAGONAL = 10  # k, mask, i of offsets, n of real parts (imaginary parts follow)
    REAL_MATRIX = 11  # k, mask, i of offsets, n
    COMPLEX_MATRIX = 12  # k, mask, i of offsets, n


@dataclass(frozen=True, eq=False)
class StateProgram:
    """A circuit, ready for the kernels.

    A slot is a rotation, whose angle is the sum of the angles of its columns.

    Args:
        num_qubits: qubits of the state.
        num_outcomes: K; the outcome of an amplitude is its index modulo K.
        is_real: whether all amplitudes are real.
        operations: shape ``(M, WORDS)``; see `Kind`.
        numbers: tables that operations refer to.
        indices: tables that operations refer to.
        slot_operations: the operation of each slot, ascending, shape ``(slots,)``.
        slot_starts: where the columns of each slot begin in ``slot_columns``, ``(slots + 1,)``.
        slot_columns: the columns of all slots, shape ``(A,)``.
        scratch: floats that operations need beside the state.
    """

    num_qubits: int
    num_outcomes: int
    is_real: bool
    operations: IntArray
    numbers: FloatArray
    indices: NDArray[np.uint32]
    slot_operations: IntArray
    slot_starts: IntArray
    slot_columns: IntArray
    scratch: int

    @property
    def num_amplitudes(self) -> int:
        """Amplitudes of a state."""
        return 1 << self.num_qubits

    @property
    def state_floats(self) -> int:
        """Floats of a state."""
        return (1 if self.is_real else 2) << self.num_qubits

    @cached_property
    def column_operations(self) -> IntArray:
        """The operation of each of ``slot_columns``."""
        return np.repeat(self.slot_operations, np.diff(self.slot_starts))

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What kernels know of it."""
        return (
            self.operations, self.numbers, self.indices, self.slot_operations, self.slot_starts,
            self.slot_columns,
        )  # fmt: skip


def compile_program(circuit: CanonicalCircuit) -> StateProgram:
    """Compile a canonical circuit.

    Raises:
        BackendError: if a gate's matrix is unknown; the message names it.
    """
    position = positions_of(circuit)
    column_of = {angle: column for column, angle in enumerate(circuit.angles)}
    fuser = _Fuser(len(position))
    for instruction in circuit.circuit.data:
        gate = instruction.operation
        if kind_of(gate) in (Barrier, Delay, Measure):
            continue
        qubits = [position[circuit.circuit.find_bit(q).index] for q in instruction.qubits]
        if free_parameters(gate):
            name = "rz" if gate.name == "p" else gate.name
            fuser.rotate(name, qubits, column_of[gate.params[0]])
        else:
            fuser.apply(_fixed(gate, qubits))
    return _Emitter(len(position), circuit.num_outcomes).program(fuser.finish())


def positions_of(circuit: CanonicalCircuit) -> dict[int, int]:
    """The position of each active qubit: measured ones by their outcome bit, others above."""
    measured = circuit.measured_qubits
    unmeasured = [qubit for qubit in circuit.active_qubits if qubit not in measured]
    return {qubit: place for place, qubit in enumerate([*measured, *unmeasured])}


def check_gates(circuit: CanonicalCircuit) -> None:
    """Raise a clear error if a fixed gate has no matrix.

    Raises:
        BackendError: naming it.
    """
    for instruction in circuit.circuit.data:
        gate = instruction.operation
        if kind_of(gate) not in (Barrier, Delay, Measure) and not free_parameters(gate):
            _fixed(gate, list(range(gate.num_qubits)))


# What operations are before they are numbers; qubits are positions, least significant first.


@dataclass
class _Rotation:
    name: str
    qubits: list[int]
    columns: list[int]


@dataclass
class _Table:
    """``|i> -> phases[i] |destinations[i]>`` for the basis states of some qubits."""

    qubits: list[int]
    destinations: IntArray
    phases: ComplexArray
    gates: int = 1

    def on(self, qubits: list[int]) -> _Table:
        """The same on more qubits."""
        index = np.arange(1 << len(qubits))
        local = _gathered(index, [qubits.index(qubit) for qubit in self.qubits])
        cleared = index & ~sum(1 << qubits.index(qubit) for qubit in self.qubits)
        moved = _scattered(self.destinations, [qubits.index(qubit) for qubit in self.qubits])
        return _Table(qubits, cleared | moved[local], self.phases[local], self.gates)

    def then(self, later: _Table) -> _Table:
        """This one and then another."""
        qubits = sorted({*self.qubits, *later.qubits})
        first, second = self.on(qubits), later.on(qubits)
        phases = first.phases * second.phases[first.destinations]
        destinations = second.destinations[first.destinations]
        return _Table(qubits, destinations, phases, self.gates + later.gates)

    def matrix(self) -> ComplexArray:
        matrix = np.zeros((len(self.phases),) * 2, dtype=np.complex128)
        matrix[self.destinations, np.arange(len(self.phases))] = self.phases
        return matrix


@dataclass
class _Dense:
    qubits: list[int]
    matrix: ComplexArray

    def then(self, later: _Dense | _Table) -> _Dense:
        """This one and then another, on some of its qubits."""
        size = 1 << len(self.qubits)
        where = [self.qubits.index(qubit) for qubit in later.qubits]
        index = np.arange(size)
        local = _gathered(index, where)
        rest = index & ~sum(1 << place for place in where)
        moved = _scattered(np.arange(1 << len(where)), where)
        product = np.zeros_like(self.matrix)
        matrix = later.matrix() if isinstance(later, _Table) else later.matrix
        for column, target in enumerate(moved):
            product += matrix[local, column][:, None] * self.matrix[rest | target]
        return _Dense(self.qubits, product)


_Fixed = _Table | _Dense
_Item = _Rotation | _Table | _Dense


def _gathered(index: IntArray, places: Sequence[int]) -> IntArray:
    """The bits of ``index`` at these places, as a number."""
    bits = [((index >> place) & 1) << k for k, place in enumerate(places)]
    total: IntArray = np.sum(bits, axis=0, dtype=np.int64)
    return total


def _scattered(index: IntArray, places: Sequence[int]) -> IntArray:
    """The bits of ``index`` put to these places."""
    bits = [((index >> k) & 1) << place for k, place in enumerate(places)]
    total: IntArray = np.sum(bits, axis=0, dtype=np.int64)
    return total


def _fixed(gate: Any, qubits: list[int]) -> _Fixed:
    """A gate without parameters as what it is."""
    kind, size = kind_of(gate), 1 << len(qubits)
    index = np.arange(size, dtype=np.int64)
    ones = np.ones(size, dtype=np.complex128)
    if kind is DiagonalGate:
        return _Table(qubits, index, np.asarray(gate.params, dtype=np.complex128))
    if kind is MCPhaseGate or kind in _CONTROLLED_X:  # their matrices need not fit the memory
        controls, target = size // 2 - 1, size // 2
        active = (index & controls) == gate.ctrl_state
        if kind is MCPhaseGate:
            ones[active & (index >= target)] = np.exp(1j * float(gate.params[0]))
            return _Table(qubits, index, ones)
        return _Table(qubits, np.where(active, index ^ target, index), ones)
    matrix = matrix_of(gate)
    if matrix is None:
        raise BackendError(
            f"gate {gate.name!r} has no matrix, so StatevectorBackend cannot run it; write it in "
            "gates that have, or use AerBackend"
        )
    return _simplest(qubits, np.array(matrix, dtype=np.complex128))


def _simplest(qubits: list[int], matrix: ComplexArray) -> _Fixed:
    """A table if a matrix has one element in each column, else the matrix."""
    there = np.abs(matrix) > _EXACT
    if (there.sum(axis=0) != 1).any():
        return _Dense(qubits, matrix)
    destinations = there.argmax(axis=0)
    return _Table(qubits, destinations, matrix[destinations, np.arange(len(matrix))])


class _Fuser:
    """Collects operations, each as early as it may go, and fuses what can be fused."""

    def __init__(self, num_qubits: int) -> None:
        self._items: list[_Item] = []
        self._last = [-1] * num_qubits  # the last item on each qubit
        self._pending: dict[int, _Dense] = {}  # the product of fixed gates of one qubit

    def rotate(self, name: str, qubits: list[int], column: int) -> None:
        """Add a rotation by an angle of its own."""
        self._flush(qubits)
        if name in _SYMMETRIC:
            qubits = sorted(qubits)
        before = self._items_on(qubits)
        if len(before) == 1:
            last = self._items[before.pop()] if before != {-1} else None
            if isinstance(last, _Rotation) and (last.name, last.qubits) == (name, qubits):
                last.columns.append(column)
                return
        self._append(_Rotation(name, qubits, [column]))

    def apply(self, gate: _Fixed) -> None:
        """Add a fixed gate."""
        if len(gate.qubits) > 1:
            self._flush(gate.qubits)
            self._add(gate)
            return
        matrix = gate.matrix() if isinstance(gate, _Table) else gate.matrix
        before = self._pending.get(gate.qubits[0])
        product = matrix if before is None else matrix @ before.matrix
        self._pending[gate.qubits[0]] = _Dense(gate.qubits, product)

    def finish(self) -> list[_Item]:
        """All operations, in order."""
        self._flush(list(self._pending))
        return self._items

    def _flush(self, qubits: Iterable[int]) -> None:
        for qubit in qubits:
            pending = self._pending.pop(qubit, None)
            if pending is not None:
                self._add(_simplest([qubit], pending.matrix))

    def _add(self, gate: _Fixed) -> None:
        earliest = max(self._last[qubit] for qubit in gate.qubits)
        last = self._items[earliest] if earliest >= 0 else None
        if isinstance(last, _Dense) and set(gate.qubits) <= set(last.qubits):
            self._items[earliest] = last.then(gate)
            return
        if isinstance(gate, _Table):
            for place in range(len(self._items) - 1, max(earliest, 0) - 1, -1):
                table = self._items[place]
                if not isinstance(table, _Table):
                    continue
                width = len({*table.qubits, *gate.qubits})
                if width <= max(_MAX_TABLE_QUBITS, len(table.qubits)):
                    self._items[place] = table.then(gate)
                    for qubit in gate.qubits:
                        self._last[qubit] = place
                    return
        self._append(gate)

    def _append(self, item: _Item) -> None:
        for qubit in item.qubits:
            self._last[qubit] = len(self._items)
        self._items.append(item)

    def _items_on(self, qubits: Iterable[int]) -> set[int]:
        return {self._last[qubit] for qubit in qubits}


@dataclass
class _Emitter:
    """Writes items as numbers."""

    num_qubits: int
    num_outcomes: int
    operations: list[list[int]] = field(default_factory=list)
    numbers: list[FloatArray] = field(default_factory=list)
    indices: list[IntArray] = field(default_factory=list)
    places: dict[tuple[str, bytes], int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: {"numbers": 0, "indices": 0})
    scratch: int = 1

    def program(self, items: Sequence[_Item]) -> StateProgram:
        """The program of these items."""
        slots: list[list[int]] = []
        slot_operations = []
        for item in items:
            if isinstance(item, _Rotation):
                slot_operations.append(len(self.operations))
                self._emit(*_rotation_words(item), slot=len(slots))
                slots.append(item.columns)
            elif isinstance(item, _Table):
                self._table(item)
            else:
                self._dense(item)
        complex_kinds = {
            Kind.RX, Kind.RZ, Kind.RZZ, Kind.PAIRS, Kind.COMPLEX, Kind.COMPLEX_DIAGONAL,
            Kind.COMPLEX_MATRIX,
        }  # fmt: skip
        return StateProgram(
            num_qubits=self.num_qubits,
            num_outcomes=self.num_outcomes,
            is_real=not any(words[0] in complex_kinds for words in self.operations),
            operations=np.array(self.operations, dtype=np.int64).reshape(-1, WORDS),
            numbers=np.concatenate([*self.numbers, np.zeros(1)]),
            indices=np.concatenate([*self.indices, [0]]).astype(np.uint32),
            slot_operations=np.array(slot_operations, dtype=np.int64),
            slot_starts=np.cumsum([0, *map(len, slots)], dtype=np.int64),
            slot_columns=np.array([*chain(*slots)], dtype=np.int64),
            scratch=self.scratch,
        )

    def _emit(self, kind: Kind, *words: int, slot: int = -1) -> None:
        self.operations.append([kind, *words, *[0] * (WORDS - 2 - len(words)), slot])

    def _table(self, table: _Table) -> None:
        phases = _without_phase(table.phases)
        if (np.abs(phases - 1.0) > _EXACT).any():
            self._diagonal(table.qubits, phases)
        if (table.destinations == np.arange(len(phases))).all():
            return
        controlled = _controlled_x(table)
        if controlled is not None:
            self._emit(Kind.CX, *controlled)
            return
        self.scratch = max(self.scratch, 1 << self.num_qubits)
        offsets, mask = self._offsets(table.qubits)
        destinations = self._place("indices", table.destinations)
        self._emit(Kind.PERMUTATION, len(table.qubits), mask, offsets, destinations)

    def _diagonal(self, qubits: list[int], phases: ComplexArray) -> None:
        if len(qubits) == 1:
            self._dense(_Dense(qubits, np.diag(phases)))
            return
        offsets, mask = self._offsets(qubits)
        real = _is_real(phases)
        values = phases.real if real else np.concatenate([phases.real, phases.imag])
        kind = Kind.REAL_DIAGONAL if real else Kind.COMPLEX_DIAGONAL
        self._emit(kind, len(qubits), mask, offsets, self._place("numbers", values))

    def _dense(self, dense: _Dense) -> None:
        matrix = _without_phase(dense.matrix)
        if np.abs(matrix - np.eye(len(matrix))).max() <= _EXACT:
            return
        real = _is_real(matrix)
        values = matrix.real if real else np.stack([matrix.real, matrix.imag])
        place = self._place("numbers", values.ravel())
        if len(dense.qubits) == 1:
            kind = Kind.REAL if real else Kind.COMPLEX
            self._emit(kind, 1 << dense.qubits[0], place)
            return
        self.scratch = max(self.scratch, 2 * len(matrix))
        offsets, mask = self._offsets(dense.qubits)
        kind = Kind.REAL_MATRIX if real else Kind.COMPLEX_MATRIX
        self._emit(kind, len(dense.qubits), mask, offsets, place)

    def _offsets(self, qubits: list[int]) -> tuple[int, int]:
        """Where the index of each basis state of these qubits is kept, and their mask."""
        offsets = _scattered(np.arange(1 << len(qubits)), qubits)
        return self._place("indices", offsets), sum(1 << qubit for qubit in qubits)

    def _place(self, table: str, values: Any) -> int:
        """Where values are kept; the same values only once (layers repeat)."""
        key = (table, np.asarray(values).tobytes())
        if key not in self.places:
            self.places[key] = self.sizes[table]
            self.sizes[table] += len(values)
            (self.numbers if table == "numbers" else self.indices).append(values)
        return self.places[key]


def _rotation_words(rotation: _Rotation) -> tuple[Kind, *tuple[int, ...]]:
    strides = [1 << qubit for qubit in rotation.qubits]
    single = {"ry": Kind.RY, "rx": Kind.RX, "rz": Kind.RZ}
    if rotation.name in single:
        return single[rotation.name], strides[0]
    lo, hi = sorted(strides)
    if rotation.name == "rzz":
        return Kind.RZZ, lo, hi
    if rotation.name == "rzx":  # Z on the first qubit decides the sign, X flips the second
        return Kind.PAIRS, lo, hi, strides[1], strides[0], 1, -1
    return Kind.PAIRS, lo, hi, lo + hi, lo, -1 if rotation.name == "ryy" else 1, 1


def _controlled_x(table: _Table) -> tuple[int, int, int, int] | None:
    """The integers of `Kind.CX` if a table is one."""
    if len(table.qubits) != 2:
        return None
    strides = [1 << qubit for qubit in table.qubits]
    for target in (0, 1):
        for state in (0, 1):
            index = np.arange(4)
            active = (index >> (1 - target)) & 1 == state
            if (np.where(active, index ^ (1 << target), index) == table.destinations).all():
                return (*sorted(strides), state * strides[1 - target], strides[target])  # type: ignore[return-value]
    return None


def _without_phase(values: ComplexArray) -> ComplexArray:
    """The same up to a phase that makes the first of the largest elements positive."""
    flat = values.ravel()
    largest = flat[np.abs(flat).argmax() if values.ndim == 2 else 0]
    turned: ComplexArray = values * (np.abs(largest) / largest)
    return turned


def _is_real(values: ComplexArray) -> bool:
    return bool(np.abs(values.imag).max() <= _EXACT)
