"""Batches and answers as bytes: as few as their content needs, and countable.

Base angles, bases, cotangents and row numbers go out; two floats a row come back (or K or O, in a
forward pass). Rows are expanded where they run.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from qailab.errors import QailabError
from qailab.gradients.noise import NoiseStream
from qailab.gradients.rows import (
    FloatArray,
    JoinedRows,
    PointRows,
    RowBatch,
    Rows,
    ShiftedRows,
    SlopeRows,
)
from qailab.gradients.shift_rule import TWO_TERM_RULE, ShiftRule

_SMALL = 1 << 16  # counts below it take two bytes


def encode_batch(batch: RowBatch) -> bytes:
    """Write a batch as bytes."""
    rows, noise = batch.rows, batch.noise
    return pickle.dumps(
        (
            _encode_kind(rows),
            None if rows.bases is None else (rows.bases.shape, rows.bases.tobytes()),
            rows.base.shape,
            rows.base.tobytes(),
            (rows.first_sample, rows.start, rows.stop),
            _encode_cotangents(batch.cotangents),
            batch.shots,
            (noise.seed, noise.step, noise.purpose),
            (batch.resent, batch.evaluation, batch.variances),
        ),
        protocol=5,
    )


def decode_batch(message: bytes) -> RowBatch:
    """Read the batch that `encode_batch` wrote."""
    kind, bases, shape, base, place, cotangents, shots, noise, which = pickle.loads(message)
    first_sample, start, stop = place
    where: dict[str, Any] = {
        "base": np.frombuffer(base).reshape(shape),
        "first_sample": first_sample,
        "start": start,
        "stop": stop,
        "bases": None if bases is None else np.frombuffer(bases[1]).reshape(bases[0]),
    }
    return RowBatch(
        _decode_kind(kind, where),
        shots,
        NoiseStream(*noise),
        _decode_cotangents(cotangents, shape[0]),
        *which,
    )


def encode_answers(answers: FloatArray, shots: int | None = None) -> bytes:
    """Write answers as bytes: a quarter of them where they are counts of so many shots."""
    if shots is not None and shots < _SMALL and answers.size % 2 == 0:
        with np.errstate(invalid="ignore", over="ignore"):  # bits, say, that are no numbers
            counts = np.rint(answers * shots).astype(np.uint16)
        if np.array_equal(counts / shots, answers) and not np.signbit(answers).any():  # bits: -0.0
            return counts.tobytes() + shots.to_bytes(2, "little")
    return np.ascontiguousarray(answers, dtype=np.float64).tobytes()


def decode_answers(message: bytes, num_rows: int) -> FloatArray:
    """Return the answers, shape ``(num_rows, ...)``; read-only perhaps."""
    if len(message) % 4:  # an even number of counts, and the shots
        counts = np.frombuffer(message, np.uint16)
        frequencies: FloatArray = counts[:-1].reshape(num_rows, -1) / float(counts[-1])
        return frequencies
    return np.frombuffer(message).reshape(num_rows, -1)


def _encode_cotangents(cotangents: FloatArray | None) -> tuple[str, bytes] | None:
    """Use single precision where that loses nothing, as for a float32 model: half the bytes."""
    if cotangents is None:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        single = cotangents.astype(np.float32)
    kept = single if np.array_equal(single, cotangents, equal_nan=True) else cotangents
    return kept.dtype.char, kept.tobytes()


def _decode_cotangents(encoded: tuple[str, bytes] | None, samples: int) -> FloatArray | None:
    if encoded is None:
        return None
    dtype, content = encoded
    return np.frombuffer(content, dtype).reshape(samples, -1).astype(np.float64)


def _encode_kind(rows: Rows) -> tuple[Any, ...]:
    if isinstance(rows, PointRows):
        return (rows.pairs,)
    if isinstance(rows, JoinedRows):
        backward = rows.backward
        base = backward.base.shape, backward.base.tobytes()
        return (None, _encode_kind(rows.forward), _encode_kind(backward), *base)
    if isinstance(rows, SlopeRows):
        return (rows.columns.astype(np.int32).tobytes(),)
    if isinstance(rows, ShiftedRows):
        rule = None if rows.rule == TWO_TERM_RULE else rows.rule
        own = None if rule is None else (rule.coefficients, rule.shifts, rule.frequencies)
        return (rows.columns.astype(np.int32).tobytes(), own)
    raise QailabError(f"rows of type {type(rows).__name__} have no form on the wire")


def _decode_kind(kind: tuple[Any, ...], where: dict[str, Any]) -> Rows:
    first, *others = kind
    if first is None:  # of whole samples
        forward, backward, shape, base = others
        of = {**where, "start": 0, "stop": -1}
        first_pass = _decode_kind(forward, of)
        second_pass = _decode_kind(backward, {**of, "base": np.frombuffer(base).reshape(shape)})
        return JoinedRows.of(first_pass.of_whole_samples(), second_pass.of_whole_samples())
    if isinstance(first, bool):
        return PointRows(pairs=first, **where)
    columns = np.frombuffer(first, dtype=np.int32).astype(np.int64)
    if not others:
        return SlopeRows(columns=columns, **where)
    rule = TWO_TERM_RULE if others[0] is None else ShiftRule(*others[0])
    return ShiftedRows(columns=columns, rule=rule, **where)
