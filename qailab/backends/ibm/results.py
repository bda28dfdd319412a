"""From a job's result to counts of outcomes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qailab.errors import EvaluationError


def counts_of_job(job: Any, num_bits: int, num_rows: int, shots: int) -> NDArray[np.uint32]:
    """The counts of a job that is done; see `counts_of`.

    Args:
        job: a job of IBM's client.
        num_bits: measured bits of each shot.
        num_rows: how many rows were asked for.
        shots: how many shots of each were.
    """
    items = _plain_items(job)
    if items is None:
        return counts_of(job.result(), num_bits, num_rows, shots)
    tables = [_outcomes_of_bits(item) for item in items]
    return _counted(_joined(tables), num_bits, num_rows, shots)


def counts_of(result: Any, num_bits: int, num_rows: int, shots: int) -> NDArray[np.uint32]:
    """How often each outcome came, shape ``(num_rows, 2**num_bits)``.

    Args:
        result: a sampler's result, one PUB of ``num_rows`` rows or that many PUBs of one.
        num_bits: measured bits of each shot.
        num_rows: how many rows were asked for.
        shots: how many shots of each were.

    Raises:
        EvaluationError: if it is not the result that was asked for.
    """
    tables = [_outcomes_of_bytes(_bits(pub)) for pub in result]
    return _counted(_joined(tables), num_bits, num_rows, shots)


def _counted(
    measured: NDArray[np.unsignedinteger[Any]], num_bits: int, num_rows: int, shots: int
) -> NDArray[np.uint32]:
    """Counts from the outcome of each shot, shape ``(rows, shots)``."""
    outcomes = 1 << num_bits
    # Twirling rounds shots up to whole randomizations.
    if len(measured) != num_rows or measured.shape[1] < shots or measured.max() >= outcomes:
        raise EvaluationError(
            f"the job answered outcomes of shape {measured.shape} (rows, shots) up to "
            f"{measured.max(initial=0)}, not {(num_rows, shots)} of {num_bits} bits"
        )
    # One count for all rows: each has its own stretch of numbers.
    index = measured.astype(np.int64)
    index += (np.arange(num_rows, dtype=np.int64) * outcomes)[:, None]
    counted = np.bincount(index.ravel(), minlength=num_rows * outcomes)
    return counted.astype(np.uint32).reshape(num_rows, outcomes)


def _outcomes_of_bytes(packed: NDArray[np.uint8]) -> NDArray[np.unsignedinteger[Any]]:
    """Outcomes from their bytes, the most significant first, along the last axis."""
    width = packed.shape[-1]
    index = packed[..., 0].astype(np.min_scalar_type((1 << (8 * width)) - 1))
    for place in range(1, width):
        index <<= 8
        index |= packed[..., place]
    return index


def _outcomes_of_bits(bits: NDArray[np.bool_]) -> NDArray[np.unsignedinteger[Any]]:
    """Outcomes from their bits, the least significant first, along the last axis."""
    width = bits.shape[-1]
    kind = np.min_scalar_type((1 << width) - 1)
    single = bits.view(np.uint8)
    index = single[..., 0].astype(kind)
    for place in range(1, width):  # four times as fast as np.packbits along so short an axis
        index |= single[..., place].astype(kind) << kind.type(place)
    return index


def _plain_items(job: Any) -> list[NDArray[np.bool_]] | None:
    """The measured bits of the client-side Sampler's job, ``(rows, shots, bits)`` for each PUB.

    Its own way to a `BitArray` takes longer than everything else on this side. None where there is
    more to do (twirling, several registers), or for another program's job.
    """
    if getattr(job, "primitive_id", None) != "executor":
        return None
    try:
        from qiskit_ibm_runtime.decoders.executor.decoder import ExecutorResultDecoder
    except ImportError:  # a later client, say
        return None
    result = job.result(decoder=ExecutorResultDecoder)
    if (result.passthrough_data or {}).get("post_processor", {}).get("twirling", True):
        return None
    items = []
    for item in result:
        if len(item) != 1:
            return None
        bits = np.asarray(next(iter(item.values())))
        if bits.ndim < 2 or bits.dtype != np.bool_:
            return None
        items.append(bits.reshape(-1, *bits.shape[-2:]))
    return items


def _joined(
    tables: list[NDArray[np.unsignedinteger[Any]]],
) -> NDArray[np.unsignedinteger[Any]]:
    return tables[0] if len(tables) == 1 else np.concatenate(tables)


def _bits(pub: Any) -> NDArray[np.uint8]:
    """A PUB's measured bits, shape ``(rows, shots, bytes)``, whatever its registers are called."""
    registers = list(pub.data.values())
    measured = registers[0] if len(registers) == 1 else pub.join_data()
    bits: NDArray[np.uint8] = measured.array
    return bits.reshape(-1, *bits.shape[-2:])
