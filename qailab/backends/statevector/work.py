"""A batch on the statevector kernels, in pieces that leave little beside the answers in memory.

::

    rows --states--> probabilities of some rows --draw, contract--> answers

The probabilities of some rows are a table that fits the cache. Which rows share a table, or a
thread, changes nothing in their answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from qailab.backends.statevector import kernels, sampling
from qailab.backends.statevector.program import StateProgram
from qailab.gradients.rows import FloatArray, IntArray, RowBatch, ShiftedRows, SlopeRows

_TABLE_BYTES = 4 << 20  # of probabilities, for both kernels to find in the cache
_PIECE_FLOATS = 1 << 26  # that gates pass before anybody looks for a stop: some 50 ms

Table = tuple[IntArray, FloatArray]

_NO_KEY = np.zeros(2, dtype=np.uint64)  # where nothing is drawn


class StateWork:
    """The work that a batch is, for some threads.

    The public methods return an iterator for each thread, which does a piece of its share at every
    step.

    Args:
        program: the program of the circuit.
        batch: the batch.
        threads: how many threads share the work.
    """

    def __init__(self, program: StateProgram, batch: RowBatch, threads: int) -> None:
        self._program = program
        self._batch = batch
        self._rows = batch.rows
        self._threads = threads
        self._shots = batch.shots or 0
        self._binomials = sampling.by_binomials(self._shots, program.num_outcomes)
        self._key = batch.noise.key() if batch.shots else _NO_KEY
        self._base = _floats(batch.rows.base)
        none = np.empty((0, program.num_outcomes))
        self._cotangents = none if batch.cotangents is None else _floats(batch.cotangents)
        self._lines = max(1, _TABLE_BYTES // (8 * program.num_outcomes))

    def fill(self, out: FloatArray) -> list[Iterator[None]]:
        """Put the exact probabilities of all rows into ``out``, shape ``(num_rows, K)``."""

        def work(start: int, stop: int) -> Iterator[None]:
            for numbers, table in self._tables(start, stop):
                out[numbers - self._rows.start] = table
                yield

        return [work(*share) for share in self._shares()]

    def draw(self, exact: FloatArray, out: FloatArray) -> list[Iterator[None]]:
        """Draw shots from exact probabilities into ``out``, both ``(num_rows, K)``."""

        def work(start: int, stop: int) -> Iterator[None]:
            space = sampling.draw_space(self._program.num_outcomes)
            for first, last in _cut(start, stop, self._lines):
                own = slice(first - self._rows.start, last - self._rows.start)
                numbers = np.arange(first, last)
                sampling.draw_frequencies(
                    exact[own], numbers, self._shots, self._binomials, self._key, space, out[own]
                )
                yield

        return [work(*share) for share in self._shares()]

    def contract(self, out: FloatArray) -> list[Iterator[None]]:
        """Put values and variances of all rows into ``out``, shape ``(num_rows, 2)``."""
        numbering = (self._rows.rows_per_sample, self._rows.first_sample, self._rows.start)

        def work(start: int, stop: int) -> Iterator[None]:
            space = sampling.draw_space(self._program.num_outcomes)
            drawn = np.empty(self._program.num_outcomes)
            for numbers, table in self._tables(start, stop):
                sampling.contract_rows(
                    table, numbers, self._shots, self._binomials, self._key, self._cotangents,
                    numbering, space, drawn, out,
                )  # fmt: skip
                yield

        return [work(*share) for share in self._shares()]

    def differentiate(
        self, out: FloatArray, bases: int = 1, turns: int = 0
    ) -> list[Iterator[None]]:
        """Put the slopes of all points into ``out``, shape ``(points, 2)``, with variances of 0.

        Angles and cotangents of the batch are those of each sample in each of so many bases, in
        which the last ``turns`` angles differ.
        """
        rows, program = self._rows, self._program
        assert isinstance(rows, SlopeRows)
        wanted, columns = self._places(rows.columns), len(rows.columns)
        operation, last = program.column_operations, len(program.operations)
        turned = program.slot_columns >= self._base.shape[1] - turns
        stages = (bases, operation[turned].min(initial=last) if turns else last,
                  operation[wanted[program.slot_columns] >= 0].min(initial=last))  # fmt: skip
        operations = max(1, len(program.operations))
        samples = max(1, _PIECE_FLOATS // (program.state_floats * operations * bases))

        def work(start: int, stop: int) -> Iterator[None]:
            machine = self._machine(states=5)
            for first, last in _cut(start, stop, samples):
                own = slice(first * bases, last * bases)
                found = out[first * columns : last * columns]
                kernels.adjoint_slopes(
                    machine, self._base[own], self._cotangents[own], wanted, stages, found
                )
                yield

        samples_of_rows = len(self._base) // bases if columns else 0
        return [work(*share) for share in _shared(0, samples_of_rows, 1, self._threads)]

    def _shares(self) -> list[tuple[int, int]]:
        return _shared(self._rows.start, self._rows.stop, self._rows.group, self._threads)

    def _tables(self, start: int, stop: int) -> Iterator[Table]:
        """Numbers and probabilities of the rows ``start .. stop - 1``, some at a time.

        What is yielded is overwritten afterwards.
        """
        if isinstance(self._rows, ShiftedRows):
            return self._shifted_tables(self._rows, start, stop)
        return self._point_tables(start, stop)

    def _point_tables(self, start: int, stop: int) -> Iterator[Table]:
        program, machine = self._program, self._machine()
        angles = _floats(self._rows.angles())
        operations = max(1, len(program.operations))
        most = max(1, min(self._lines, _PIECE_FLOATS // (program.state_floats * operations)))
        table = np.empty((min(most, stop - start), program.num_outcomes))
        for first, last in _cut(start, stop, most):
            found = table[: last - first]
            own = angles[first - self._rows.start : last - self._rows.start]
            kernels.point_probabilities(machine, own, found)
            yield np.arange(first, last), found

    def _shifted_tables(self, rows: ShiftedRows, start: int, stop: int) -> Iterator[Table]:
        program, machine, per_sample = self._program, self._machine(), rows.rows_per_sample
        half = np.asarray(rows.rule.shifts) / 2.0
        shifts = np.stack([np.cos(half), np.sin(half)])
        wanted, cursor = self._places(rows.columns), np.array([-1, 0])
        offset = rows.first_sample * per_sample
        row_of_slot = rows.rule.num_terms * np.diff(program.slot_starts)
        operations = max(1, len(program.operations))
        slots_of_piece = max(1, _PIECE_FLOATS // (program.state_floats * operations))
        most = min(self._lines, slots_of_piece * rows.rule.num_terms)
        most = max(most, int(row_of_slot.max()))
        lines = min(most, stop - start)
        table, numbers = np.empty((lines, program.num_outcomes)), np.empty(lines, dtype=np.int64)
        first, last = (start - offset) // per_sample, -(-(stop - offset) // per_sample)
        for samples in _cut(first, last, max(1, most // per_sample)):
            for slots in _bunches(row_of_slot, most):
                found = kernels.shifted_probabilities(
                    machine, self._base, shifts, wanted, samples, (start - offset, stop - offset),
                    slots, cursor, numbers, table,
                )  # fmt: skip
                yield numbers[:found] + offset, table[:found]

    def _places(self, columns: IntArray) -> IntArray:
        """The place of each angle among these columns, -1 if it has none, shape ``(A,)``."""
        places = np.full(self._base.shape[-1], -1, dtype=np.int64)
        places[columns] = np.arange(len(columns))
        return places

    def _machine(self, states: int = 3) -> tuple[Any, ...]:
        """What the kernels run on: the program, and room for the states of a thread."""
        program = self._program
        room = 2 * len(program.slot_operations) + kernels.SUMS + program.scratch
        space = np.empty(states * program.state_floats + room)
        return program.arrays, program.num_amplitudes, program.state_floats, space


def _floats(values: FloatArray) -> FloatArray:
    """As the kernels take them; they may be read-only."""
    return np.require(values, np.dtype(np.float64), ["C", "A"])


def _cut(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """Stretches of at most so many, in order."""
    for first in range(start, stop, most):
        yield first, min(first + most, stop)


def _shared(start: int, stop: int, group: int, threads: int) -> list[tuple[int, int]]:
    """A stretch for each thread, of whole groups; the last may be cut off."""
    groups = -(-(stop - start) // group)
    each = max(1, -(-groups // threads)) * group
    return list(_cut(start, stop, each)) or [(start, start)]


def _bunches(rows: IntArray, most: int) -> Iterator[tuple[int, int]]:
    """Slots that together have at most so many rows, in order."""
    first, together = 0, 0
    for slot, count in enumerate(rows.tolist()):
        if together + count > most:
            yield first, slot
            first, together = slot, 0
        together += count
    yield first, len(rows)
