"""The books of a pool: everything that happens is noted here once, for stats, trace and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypedDict

from qailab.distributed.slots import Chunk, Parcel, Slot
from qailab.distributed.trace import Trace
from qailab.distributed.workers import Reply


class Metrics(Protocol):
    """Where counts go that are watched from outside; see `metrics.PoolMetrics`."""

    def answered(self, backend: str, rows: int, seconds: float) -> None:
        """A chunk came back."""

    def used(self, backend: str, jobs: int, qpu_seconds: float) -> None:
        """A device was used."""

    def retried(self, backend: str, chunks: int, reason: str) -> None:
        """Chunks run again."""

    def replaced(self, backend: str) -> None:
        """An actor was replaced."""


class ActorStats(TypedDict):
    """One actor: its backend, state, and what it answered in how many seconds of work.

    ``pid`` and ``node`` say where its process is (0 and empty while there is none);
    ``ready_seconds`` how long there has been one that could work.
    """

    backend: str
    state: str
    pid: int
    node: str
    rows: int
    chunks: int
    seconds: float
    ready_seconds: float
    replaced: int


class PoolStats(TypedDict):
    """A pool: totals, and each actor's part.

    ``rows`` and ``chunks`` were answered, each counted once; ``retries`` are chunks that had to run
    again, ``races`` those that a second actor was given as well, and ``rows_again`` the rows of
    both. ``bytes_sent`` and ``bytes_received`` count messages without Ray's own framing; circuits,
    which go out once, are not in them. ``jobs`` and ``qpu_seconds`` are of devices.
    """

    rows: int
    chunks: int
    retries: int
    races: int
    rows_again: int
    bytes_sent: int
    bytes_received: int
    seconds: float
    jobs: int
    qpu_seconds: float
    actors: list[ActorStats]


class Books:
    """Counts and events of a pool.

    Args:
        clock: the time in seconds.
        metrics: where to report counts to, or None.
    """

    def __init__(self, clock: Callable[[], float], metrics: Metrics | None = None) -> None:
        self.trace = Trace(clock())
        self._clock = clock
        self._metrics = metrics
        self._retries = self._races = self._rows_again = 0
        self._bytes_sent = self._bytes_received = 0
        self._losses = 0
        self._jobs = 0
        self._qpu_seconds = 0.0

    def sent(self, slot: Slot, chunks: Sequence[Chunk], size: int) -> None:
        """Chunks go to a slot; called before they are counted as sent."""
        self._bytes_sent += size
        for chunk in chunks:
            if chunk.sent:
                self._rows_again += chunk.num_rows
            if chunk.copies:
                self._races += 1
                self._note_retry(slot, 1, "raced")
                self.trace.instant(slot.index, "race", self._clock(), _rows(chunk))

    def back(self, slot: Slot, parcel: Parcel, replies: Sequence[Reply]) -> None:
        """A slot has answered; its chunks ran one after the other until now."""
        backend = _kind(slot)
        end = self._clock()
        for chunk, reply in zip(reversed(parcel.chunks), reversed(replies), strict=True):
            if reply.answer is not None:
                self._bytes_received += len(reply.answer)
            usage = reply.usage
            if usage.jobs or usage.qpu_seconds:
                self._jobs += usage.jobs
                self._qpu_seconds += usage.qpu_seconds
                if self._metrics is not None:
                    self._metrics.used(backend, usage.jobs, usage.qpu_seconds)
            details = _rows(chunk)
            if reply.error is not None:
                details["error"] = f"{type(reply.error).__name__}: {reply.error}"
            self.trace.chunk(slot.index, end - reply.seconds, reply.seconds, details)
            end -= reply.seconds

    def accepted(self, slot: Slot, chunk: Chunk, seconds: float) -> None:
        """A chunk's answers were the first to come, and are kept."""
        slot.rows += chunk.num_rows
        slot.chunks += 1
        slot.seconds += seconds
        if self._metrics is not None:
            self._metrics.answered(_kind(slot), chunk.num_rows, seconds)

    def retried(self, slot: Slot, reason: str) -> None:
        """A chunk of a slot must run again."""
        self._retries += 1
        self._note_retry(slot, 1, reason)

    def lost(self, slot: Slot, reason: str) -> None:
        """A slot's process is given up."""
        self._losses += 1
        self.trace.instant(slot.index, "lost", self._clock(), {"reason": reason})
        if self._metrics is not None:
            self._metrics.replaced(_kind(slot))

    @property
    def retries(self) -> int:
        """Chunks that had to run again."""
        return self._retries

    @property
    def losses(self) -> int:
        """Processes that were given up."""
        return self._losses

    def stats(self, slots: Sequence[Slot]) -> PoolStats:
        """A snapshot."""
        now = self._clock()
        actors: list[ActorStats] = [
            {
                "backend": repr(slot.backend),
                "state": slot.state,
                "pid": slot.pid,
                "node": slot.node,
                "rows": slot.rows,
                "chunks": slot.chunks,
                "seconds": slot.seconds,
                "ready_seconds": slot.ready_seconds
                + (now - slot.ready_since if slot.state == "ready" else 0.0),
                "replaced": slot.replaced,
            }
            for slot in slots
        ]
        return {
            "rows": sum(actor["rows"] for actor in actors),
            "chunks": sum(actor["chunks"] for actor in actors),
            "retries": self._retries,
            "races": self._races,
            "rows_again": self._rows_again,
            "bytes_sent": self._bytes_sent,
            "bytes_received": self._bytes_received,
            "seconds": sum(actor["seconds"] for actor in actors),
            "jobs": self._jobs,
            "qpu_seconds": self._qpu_seconds,
            "actors": actors,
        }

    def _note_retry(self, slot: Slot, chunks: int, reason: str) -> None:
        if self._metrics is not None:
            self._metrics.retried(_kind(slot), chunks, reason)


def _kind(slot: Slot) -> str:
    return type(slot.backend).__name__


def _rows(chunk: Chunk) -> dict[str, object]:
    return {"job": chunk.job, "first_row": chunk.start, "last_row": chunk.stop - 1}
