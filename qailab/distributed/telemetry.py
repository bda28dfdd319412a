"""Telemetry of a pool: one listener beside its scheduler, for stats, trace, metrics and progress.

It is told what happens; nothing that is scheduled depends on it. The trace is in Chrome's format:
open it in https://ui.perfetto.dev or chrome://tracing.

References:
    Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import os
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from qailab.distributed.actors import Actor, Chunk
from qailab.distributed.metrics import PoolMetrics
from qailab.distributed.progress import Progress
from qailab.distributed.transport import Reply

MAX_EVENTS = 200_000
"""The newest events of the trace are kept: about 100 MB of memory, and as much of a file."""
_REPORT_SECONDS = 0.2  # how often progress is drawn: enough to watch, too seldom to cost
_FLUSH_SECONDS = 1.0  # how often metrics go to Ray


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

    ``rows`` and ``chunks`` were answered, each counted once (a chunk of a fixed size for each call
    to the backend); ``retries`` are chunks that had to run again, ``races`` those that an idle
    actor was sent as well, and ``rows_again`` the rows of both. ``bytes_sent`` and
    ``bytes_received`` count messages without Ray's own framing and without circuits, which are sent
    once. ``jobs`` and ``qpu_seconds`` are of devices.
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


class Depth(NamedTuple):
    """How things stand: rows that no actor has, chunks that actors have, actors that work, all."""

    waiting_rows: int
    chunks_in_flight: int
    actors_ready: int
    actors: int


class Telemetry:
    """Counts what happens in a pool, and shows it; ``began`` is where the trace begins."""

    def __init__(
        self, actors: Sequence[Actor], began: float, metrics: PoolMetrics, progress: Progress
    ) -> None:
        self._actors = tuple(actors)
        self._began = self._reported = self._flushed = began
        self._metrics = metrics
        self._progress = progress
        self._totals: defaultdict[str, Any] = defaultdict(
            int
        )  # of the pool, by the names of `PoolStats`
        self._of: list[defaultdict[str, Any]]  # each actor's, by the names of `ActorStats`
        self._of = [defaultdict(int) for _ in actors]
        self._ready_since: dict[int, float] = {}
        # Actor, name, start, duration (None for an instant), details.
        self._events: deque[tuple[int, str, float, float | None, dict[str, Any]]]
        self._events = deque(maxlen=MAX_EVENTS)

    # What the scheduler tells.

    def began(self, evaluation: int, rows: int, now: float) -> None:
        self._progress.began(evaluation, rows, now)

    def ended(self, evaluation: int) -> None:
        self._progress.ended(evaluation)

    def opened(self, actor: Actor, now: float) -> None:
        self._ready_since[actor.index] = now

    def retired(self, actor: Actor, now: float) -> None:
        """An actor's process is gone."""
        since = self._ready_since.pop(actor.index, now)
        self._of[actor.index]["ready_seconds"] += now - since

    def lost(self, actor: Actor, reason: str, now: float) -> None:
        """An actor's process is given up, and replaced."""
        self._of[actor.index]["replaced"] += 1
        self._events.append((actor.index, "lost", now, None, {"reason": reason}))
        self._metrics.add("qailab_actors_replaced", _kind(actor))

    def sent(self, actor: Actor, chunk: Chunk, size: int, now: float) -> None:
        """A chunk of so many bytes goes to an actor; called before it is counted as sent."""
        self._totals["bytes_sent"] += size
        if chunk.sent:
            self._totals["rows_again"] += chunk.num_rows
        if chunk.copies:
            self._totals["races"] += 1
            self._metrics.add("qailab_retries", _kind(actor), "raced")
            self._events.append((actor.index, "race", now, None, _rows(chunk)))

    def replied(self, actor: Actor, chunk: Chunk, reply: Reply, now: float) -> None:
        """An actor is done with a chunk."""
        self._totals["bytes_received"] += len(reply.answer or b"")
        for name in ("jobs", "qpu_seconds"):
            self._totals[name] += getattr(reply.usage, name)
            self._metrics.add(f"qailab_{name}", _kind(actor), value=getattr(reply.usage, name))
        details = _rows(chunk)
        if reply.error is not None:
            details["error"] = f"{type(reply.error).__name__}: {reply.error}"
        name = f"rows {chunk.start}-{chunk.stop - 1}"
        self._events.append((actor.index, name, now - reply.seconds, reply.seconds, details))

    def accepted(self, actor: Actor, chunk: Chunk, calls: int, seconds: float) -> None:
        """A chunk's answers were the first to come, and are kept."""
        of = self._of[actor.index]
        of["rows"] += chunk.num_rows
        of["chunks"] += calls
        of["seconds"] += seconds
        self._metrics.add("qailab_rows", _kind(actor), value=chunk.num_rows)
        self._metrics.add("qailab_chunks", _kind(actor), value=calls)
        self._metrics.observe(_kind(actor), seconds)
        self._progress.answered(chunk.evaluation, chunk.num_rows)

    def retried(self, actor: Actor, reason: str) -> None:
        """A chunk of an actor must run again."""
        self._totals["retries"] += 1
        self._metrics.add("qailab_retries", _kind(actor), reason)

    # What others ask.

    def is_due(self, now: float) -> bool:
        """Return whether it is time for a `report`."""
        return now - self._reported >= _REPORT_SECONDS

    def report(self, depth: Depth, now: float) -> None:
        """Show progress, and export metrics."""
        self._reported = now
        retries = self._totals["retries"]
        note = f"actors {depth.actors_ready}/{depth.actors}"
        self._progress.show(note + (f", retries {retries}" if retries else ""), now)
        if now - self._flushed >= _FLUSH_SECONDS:
            self._flushed = now
            self._metrics.flush(depth)

    def end(self, depth: Depth) -> None:
        """Export what is left, and take the bar away."""
        self._metrics.flush(depth)
        self._progress.close()

    def stats(self, now: float) -> PoolStats:
        """Return a snapshot."""
        actors: list[ActorStats] = [
            {
                "backend": repr(actor.backend),
                "state": actor.health.state,
                "pid": actor.health.pid,
                "node": actor.health.node,
                "rows": of["rows"],
                "chunks": of["chunks"],
                "seconds": float(of["seconds"]),
                "ready_seconds": of["ready_seconds"] + now - self._ready_since.get(index, now),
                "replaced": of["replaced"],
            }
            for index, (actor, of) in enumerate(zip(self._actors, self._of, strict=True))
        ]
        totals = self._totals
        return {
            "rows": sum(actor["rows"] for actor in actors),
            "chunks": sum(actor["chunks"] for actor in actors),
            "retries": totals["retries"],
            "races": totals["races"],
            "rows_again": totals["rows_again"],
            "bytes_sent": totals["bytes_sent"],
            "bytes_received": totals["bytes_received"],
            "seconds": sum(actor["seconds"] for actor in actors),
            "jobs": totals["jobs"],
            "qpu_seconds": float(totals["qpu_seconds"]),
            "actors": actors,
        }

    def write_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the trace; a file that is there is replaced."""
        entries: list[dict[str, Any]] = [
            {"name": "process_name", "ph": "M", "pid": 0, "args": {"name": "qailab pool"}}
        ]
        for actor in self._actors:
            about = {"ph": "M", "pid": 0, "tid": actor.index}
            name, order = {"name": str(actor)}, {"sort_index": actor.index}
            entries.append(about | {"name": "thread_name", "args": name})
            entries.append(about | {"name": "thread_sort_index", "args": order})
        for index, event, start, seconds, details in list(self._events):
            lasts = {"ph": "i", "s": "t"} if seconds is None else {"ph": "X", "dur": seconds * 1e6}
            when = {"pid": 0, "tid": index, "ts": (start - self._began) * 1e6}
            entries.append({"name": event, "args": details} | when | lasts)
        content = json.dumps({"traceEvents": entries, "displayTimeUnit": "ms"})
        Path(path).write_text(content, encoding="utf-8")


def _kind(actor: Actor) -> str:
    return type(actor.backend).__name__


def _rows(chunk: Chunk) -> dict[str, Any]:
    rows = {"first_row": chunk.start, "last_row": chunk.stop - 1}
    return {"evaluation": chunk.evaluation} | rows
