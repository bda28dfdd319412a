"""Batches and answers as bytes: as few as their content needs, and countable.

Base angles, the samples' vectors and row numbers go out; two floats a row come back (or K, in
a forward pass). Rows themselves are expanded where they run.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from qailab.errors import QailabError
from qailab.gradients.batch import RowBatch
from qailab.gradients.noise import NoiseStream
from qailab.gradients.rows import FloatArray, PointRows, Rows, ShiftedRows
from qailab.gradients.shift_rule import TWO_TERM_RULE, ShiftRule


def encode_batch(batch: RowBatch) -> bytes:
    """A batch as bytes."""
    rows, noise = batch.rows, batch.noise
    return pickle.dumps(
        (
            _encode_kind(rows),
            rows.base.shape,
            rows.base.tobytes(),
            (rows.first_sample, rows.start, rows.stop),
            None if batch.vectors is None else batch.vectors.tobytes(),
            batch.shots,
            (noise.seed, noise.step, noise.purpose),
        ),
        protocol=5,
    )


def decode_batch(message: bytes) -> RowBatch:
    """The batch that `encode_batch` wrote."""
    kind, shape, base, (first_sample, start, stop), vectors, shots, noise = pickle.loads(message)
    where: dict[str, Any] = {
        "base": np.frombuffer(base).reshape(shape),
        "first_sample": first_sample,
        "start": start,
        "stop": stop,
    }
    return RowBatch(
        _decode_kind(kind, where),
        shots,
        NoiseStream(*noise),
        None if vectors is None else np.frombuffer(vectors).reshape(shape[0], -1),
    )


def encode_answers(answers: FloatArray) -> bytes:
    """Answers as bytes."""
    return np.ascontiguousarray(answers, dtype=np.float64).tobytes()


def decode_answers(message: bytes, num_rows: int) -> FloatArray:
    """The answers that `encode_answers` wrote, shape ``(num_rows, ...)``; read-only."""
    return np.frombuffer(message).reshape(num_rows, -1)


def _encode_kind(rows: Rows) -> tuple[Any, ...]:
    if isinstance(rows, PointRows):
        return (rows.pairs,)
    if isinstance(rows, ShiftedRows):
        rule = None if rows.rule == TWO_TERM_RULE else rows.rule
        own = None if rule is None else (rule.coefficients, rule.shifts, rule.frequencies)
        return (rows.columns.astype(np.int32).tobytes(), own)
    raise QailabError(f"rows of type {type(rows).__name__} have no form on the wire")


def _decode_kind(kind: tuple[Any, ...], where: dict[str, Any]) -> Rows:
    if len(kind) == 1:
        return PointRows(pairs=kind[0], **where)
    columns, rule = kind
    return ShiftedRows(
        columns=np.frombuffer(columns, dtype=np.int32).astype(np.int64),
        rule=TWO_TERM_RULE if rule is None else ShiftRule(*rule),
        **where,
    )
