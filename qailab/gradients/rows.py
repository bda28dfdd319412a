"""Rows: which angles of the canonical circuit an evaluation runs, by number; and batches of them.

A row is one set of angles: a point (a sample's angles, shifted perhaps) in one of the bases that
observables are measured in, which sets the last angles; where probabilities are asked for, there
is one basis, without angles. Rows are numbered sample by sample; for shifted rows the order is

    row = ((sample * len(columns) + column) * num_terms + term) * num_bases + basis

Rows travel as their recipe (base angles and row numbers), never as an ``(N, A)`` table, and any
stretch of them can be cut out without changing their numbers.

A batch is rows with what is wanted of them. Its answers are, in row order,

* the outputs, if it has no cotangents (forward): probabilities of the K outcomes, shape
  ``(num_rows, K)``, or the row's share of the values of O observables, shape ``(num_rows, O)``,
  with their shot variances after them, ``(num_rows, 2 * O)``, where those are wanted;
* ``sum_k cotangents[sample, k] * output_k`` and the shot variance of that sum, shape
  ``(num_rows, 2)``, if it has (backward): two floats for a row, however many outputs there are;
* the derivative of that sum with respect to one angle, and zero, for `SlopeRows`;
* what was measured, for `JoinedRows`: both passes' answers can be made of it afterwards.

The shares of the bases of a point are summed (`Rows.over_bases`); their shots are independent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qailab.gradients.noise import NoiseStream
from qailab.gradients.shift_rule import TWO_TERM_RULE, ShiftRule

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Rows(ABC):
    """The rows numbered ``start .. stop - 1`` of a pass.

    Args:
        base: angles of each sample these rows touch, in radians, shape ``(S, ...)``.
        first_sample: the number of the sample that ``base[0]`` belongs to.
        start: the number of the first row.
        stop: one past the number of the last row; -1 means all rows of all samples in ``base``,
            whatever ``start``.
        bases: the angles of each basis, which come after those of a point, in radians, shape
            ``(G, ...)``; None if there are no bases.
    """

    base: FloatArray
    first_sample: int = 0
    start: int = 0
    stop: int = -1
    bases: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.stop < 0:
            first, last = self.first_sample, self.first_sample + len(self.base)
            object.__setattr__(self, "start", first * self.rows_per_sample)
            object.__setattr__(self, "stop", last * self.rows_per_sample)

    @classmethod
    def numbered(cls, first_sample: int, base: FloatArray, **more: Any) -> Self:
        """All rows of some samples, the first of which has this number.

        Args:
            first_sample: the number of the first sample.
            base: angles of each sample.
            **more: what else these rows are made of.
        """
        return cls(base=base, first_sample=first_sample, **more)

    def of_whole_samples(self) -> Self:
        """All rows of the samples in ``base``."""
        first, last = self.first_sample, self.first_sample + len(self.base)
        return replace(self, start=first * self.rows_per_sample, stop=last * self.rows_per_sample)

    @property
    @abstractmethod
    def points_per_sample(self) -> int:
        """How many points belong to one sample."""

    @property
    @abstractmethod
    def points_together(self) -> int:
        """How many consecutive points must run together on one backend."""

    @abstractmethod
    def points(self) -> FloatArray:
        """The angles of rows that have no bases, in radians, shape ``(num_rows, A)``."""

    @abstractmethod
    def name_of_point(self, point: int) -> str:
        """Where a point comes from, in words."""

    @property
    def num_bases(self) -> int:
        """How many rows a point has, G."""
        return 1 if self.bases is None else len(self.bases)

    @property
    def rows_per_sample(self) -> int:
        """How many consecutive rows belong to one sample."""
        return self.points_per_sample * self.num_bases

    @property
    def group(self) -> int:
        """How many consecutive rows must run together on one backend."""
        return self.points_together * self.num_bases

    def in_basis(self, basis: int) -> Self:
        """The points of these rows, which are all bases of some points, in one of the bases.

        They are numbered as points, and have the basis's angles among their own.
        """
        if self.bases is None:
            return self
        setting = self.bases[basis]
        setting = np.broadcast_to(setting, (*self.base.shape[:-1], len(setting)))
        return replace(
            self,
            base=np.concatenate([self.base, setting], axis=-1),
            start=self.start // self.num_bases,
            stop=self.stop // self.num_bases,
            bases=None,
        )

    def angles(self) -> FloatArray:
        """The angles of these rows in radians, shape ``(num_rows, A)``."""
        if self.bases is None:
            return self.points()
        each = [self.in_basis(basis).points() for basis in range(self.num_bases)]
        return np.stack(each, axis=1).reshape(self.num_rows, each[0].shape[1])

    def over_bases(self, answers: FloatArray) -> FloatArray:
        """Sum the answers of these rows ``(num_rows, width)`` over the bases of each point."""
        each = answers.reshape(len(answers) // self.num_bases, self.num_bases, answers.shape[1])
        return answers if self.num_bases == 1 else each.sum(axis=1)

    def name_of(self, row: int) -> str:
        """A row in words, for messages: its number and where it comes from."""
        point, basis = divmod(row, self.num_bases)
        within = f", basis {basis}" if self.num_bases > 1 else ""
        return f"row {row} ({self.name_of_point(point)}{within})"

    @property
    def num_rows(self) -> int:
        """How many rows these are."""
        return self.stop - self.start

    def samples(self) -> IntArray:
        """Index into ``base`` of each row, shape ``(num_rows,)``."""
        rows = np.arange(self.start, self.stop, dtype=np.int64)
        return rows // self.rows_per_sample - self.first_sample

    def same_as(self, other: Rows) -> bool:
        """Whether these are rows of the same angles with the same numbers."""
        return type(self) is type(other) and all(
            np.array_equal(getattr(self, each.name), getattr(other, each.name))
            for each in fields(self)
        )

    def part(self, start: int, stop: int) -> Self:
        """The rows numbered ``start .. stop - 1``, with only the base angles they need."""
        touched = self.touched(start, stop)
        return replace(
            self,
            base=self.base[touched],
            first_sample=self.first_sample + touched.start,
            start=start,
            stop=stop,
        )

    def touched(self, start: int, stop: int) -> slice:
        """The samples (as a slice of ``base``) that the rows ``start .. stop - 1`` belong to."""
        low = start // self.rows_per_sample - self.first_sample
        high = -(-stop // self.rows_per_sample) - self.first_sample
        return slice(low, high)


@dataclass(frozen=True, kw_only=True)
class PointRows(Rows):
    """Explicit angles: ``base`` has shape ``(S, R, A)``, one entry for each of R rows a sample.

    Args:
        pairs: whether the rows are pairs whose difference is taken (SPSA), to be kept together.
    """

    pairs: bool = False

    @property
    def points_per_sample(self) -> int:
        return int(self.base.shape[1])

    @property
    def points_together(self) -> int:
        return 2 if self.pairs else 1

    def points(self) -> FloatArray:
        offset = self.first_sample * self.points_per_sample
        samples, per_sample, angles = self.base.shape
        table = self.base.reshape(samples * per_sample, angles)
        return table[self.start - offset : self.stop - offset]

    def name_of_point(self, point: int) -> str:
        return f"sample {point // self.points_per_sample}"


@dataclass(frozen=True, kw_only=True)
class ShiftedRows(Rows):
    """Shift-rule rows: ``base`` has shape ``(S, A)``; each row shifts one angle of one sample.

    Args:
        columns: the angles that are differentiated, shape ``(C,)``, ascending.
        rule: the shift rule of these angles.
    """

    columns: IntArray
    rule: ShiftRule = TWO_TERM_RULE

    @property
    def points_per_sample(self) -> int:
        return len(self.columns) * self.rule.num_terms

    @property
    def points_together(self) -> int:
        return self.rule.num_terms

    def terms(self) -> tuple[IntArray, IntArray]:
        """The angle that each row shifts and the term of the rule, each ``(num_rows,)``."""
        within = np.arange(self.start, self.stop, dtype=np.int64) % self.points_per_sample
        return self.columns[within // self.rule.num_terms], within % self.rule.num_terms

    def name_of_point(self, point: int) -> str:
        sample, within = divmod(point, self.points_per_sample)
        column, term = divmod(within, self.rule.num_terms)
        shift = f"{self.rule.shifts[term]:+.4g}"
        return f"sample {sample}, angle {self.columns[column]} shifted by {shift}"

    def points(self) -> FloatArray:
        shifted, term = self.terms()
        angles = self.base[self.samples()]
        angles[np.arange(self.num_rows), shifted] += np.asarray(self.rule.shifts)[term]
        return angles


@dataclass(frozen=True, kw_only=True)
class SlopeRows(Rows):
    """Derivatives, a row for each sample and angle: ``base`` has shape ``(S, A)``.

    The points of a sample are ``sample * len(columns) + column``. They stay together: a backend
    that answers them has all slopes of a sample from one sweep through the circuit.

    Args:
        columns: the angles that are differentiated, shape ``(C,)``, ascending.
    """

    columns: IntArray

    @property
    def points_per_sample(self) -> int:
        return len(self.columns)

    @property
    def points_together(self) -> int:
        return max(1, len(self.columns))

    def name_of_point(self, point: int) -> str:
        sample, column = divmod(point, self.points_per_sample)
        return f"sample {sample}, slope of angle {self.columns[column]}"

    def points(self) -> FloatArray:
        return self.base[self.samples()]


@dataclass(frozen=True, kw_only=True)
class JoinedRows(Rows):
    """The rows of a forward pass and of its backward pass, sample by sample, as one evaluation.

    Each keeps the number and the noise that it has in its own pass. Those of a sample stay
    together.

    Args:
        forward: the rows of the forward pass; ``base`` and the rest are its, too.
        backward: the rows of the backward pass, of the same samples.
    """

    forward: Rows
    backward: Rows

    @classmethod
    def of(cls, forward: Rows, backward: Rows) -> JoinedRows:
        """Join all rows of some samples."""
        return cls.numbered(
            forward.first_sample,
            forward.base,
            bases=forward.bases,
            forward=forward,
            backward=backward,
        )

    @property
    def points_per_sample(self) -> int:
        return self.forward.points_per_sample + self.backward.points_per_sample

    @property
    def points_together(self) -> int:
        return self.points_per_sample

    def points(self) -> FloatArray:
        both = [self._by_sample(rows.points()) for rows in (self.forward, self.backward)]
        return np.concatenate(both, axis=1).reshape(self.num_rows, -1)

    def split(self, answers: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The answers ``(num_rows, width)`` of the forward pass and of the backward pass."""
        each = self._by_sample(answers)
        first = self.forward.rows_per_sample
        width = answers.shape[1]
        return each[:, :first].reshape(-1, width), each[:, first:].reshape(-1, width)

    def join(self, forward: FloatArray, backward: FloatArray) -> FloatArray:
        """What `split` took apart."""
        both = [self._by_sample(forward), self._by_sample(backward)]
        return np.concatenate(both, axis=1).reshape(self.num_rows, forward.shape[1])

    def _by_sample(self, table: FloatArray) -> FloatArray:
        samples = len(self.base)
        return table.reshape(samples, len(table) // samples, table.shape[1])

    def part(self, start: int, stop: int) -> Self:
        whole = [row // self.rows_per_sample for row in (start, stop)]
        forward, backward = (
            rows.part(*(sample * rows.rows_per_sample for sample in whole))
            for rows in (self.forward, self.backward)
        )
        return replace(super().part(start, stop), forward=forward, backward=backward)

    def in_basis(self, basis: int) -> Self:
        forward, backward = self.forward.in_basis(basis), self.backward.in_basis(basis)
        return replace(super().in_basis(basis), forward=forward, backward=backward)

    def name_of_point(self, point: int) -> str:
        sample, within = divmod(point, self.points_per_sample)
        first = self.forward.points_per_sample
        if within < first:
            return self.forward.name_of_point(sample * first + within)
        return self.backward.name_of_point(
            sample * self.backward.points_per_sample + within - first
        )


@dataclass(frozen=True)
class RowBatch:
    """Rows of one canonical circuit, ready to run anywhere.

    Args:
        rows: which angles to run.
        shots: shots for each row, or None for exact probabilities.
        noise: the stream that shot noise is drawn from, by row number.
        cotangents: one row of ``grad_output`` for each sample in ``rows.base``, shape ``(S, K)``
            or ``(S, O)``, or None if the outputs themselves are wanted.
        resent: whether a process that is gone may have begun with them: where running costs,
            its jobs are looked for first.
        evaluation: names the evaluation that the rows are of; the same when they are sent again.
        variances: whether the shot variances of observables' values are wanted without cotangents.
    """

    rows: Rows
    shots: int | None
    noise: NoiseStream
    cotangents: FloatArray | None = None
    resent: bool = False
    evaluation: str = ""
    variances: bool = False

    @property
    def num_rows(self) -> int:
        """How many rows the batch has."""
        return self.rows.num_rows

    def part(self, start: int, stop: int) -> RowBatch:
        """The rows numbered ``start .. stop - 1``, with only the data they need."""
        cotangents = self.cotangents
        if cotangents is not None:
            cotangents = cotangents[self.rows.touched(start, stop)]
        return replace(self, rows=self.rows.part(start, stop), cotangents=cotangents)

    def passes(self) -> tuple[RowBatch, ...]:
        """The batches that joined rows are of, each with its own noise; or this one."""
        rows, noise = self.rows, self.noise
        if not isinstance(rows, JoinedRows):
            return (self,)
        return (
            replace(self, rows=rows.forward, noise=noise.for_purpose("forward")),
            replace(self, rows=rows.backward, noise=noise.for_purpose("backward")),
        )

    def in_basis(self, basis: int, cotangents: FloatArray | None) -> RowBatch:
        """The points of this batch in one basis, whose noise is theirs alone.

        Args:
            basis: the basis.
            cotangents: a number for each outcome in that basis, shape ``(S, K)``, or None.
        """
        noise = self.noise
        if basis:
            noise = NoiseStream.of(f"basis {basis}", noise.seed, noise.step, noise.purpose)
        rows = self.rows.in_basis(basis)
        return replace(self, rows=rows, noise=noise, cotangents=cotangents, variances=False)

    def answer_width(self, num_outputs: int) -> int:
        """How many floats answer one row."""
        return num_outputs * (1 + self.variances) if self.cotangents is None else 2
