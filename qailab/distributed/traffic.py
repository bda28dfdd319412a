"""What a pool has done so far, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from qailab.distributed.slots import Slot


@dataclass
class Traffic:
    """Counters of a dispatcher.

    Args:
        bytes_sent: bytes of encoded batches sent to actors.
        bytes_received: bytes of encoded answers received.
        retries: chunks that were run again because their actor was lost.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    retries: int = 0


class ActorStats(TypedDict):
    """One actor slot: its backend, state, and what it answered in how many seconds of work."""

    backend: str
    state: str
    rows: int
    chunks: int
    seconds: float
    replaced: int


class PoolStats(TypedDict):
    """A pool: totals, and each actor's part.

    ``bytes_sent`` and ``bytes_received`` count messages without Ray's own framing; circuits, which
    go out once, are not in them.
    """

    rows: int
    chunks: int
    retries: int
    bytes_sent: int
    bytes_received: int
    seconds: float
    actors: list[ActorStats]


def pool_stats(slots: Sequence[Slot], traffic: Traffic) -> PoolStats:
    """A snapshot."""
    actors: list[ActorStats] = [
        {
            "backend": repr(slot.backend),
            "state": slot.state,
            "rows": slot.rows,
            "chunks": slot.chunks,
            "seconds": slot.seconds,
            "replaced": slot.replaced,
        }
        for slot in slots
    ]
    return {
        "rows": sum(actor["rows"] for actor in actors),
        "chunks": sum(actor["chunks"] for actor in actors),
        "retries": traffic.retries,
        "bytes_sent": traffic.bytes_sent,
        "bytes_received": traffic.bytes_received,
        "seconds": sum(actor["seconds"] for actor in actors),
        "actors": actors,
    }
