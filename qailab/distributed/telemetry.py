"""Telemetry of a pool: one listener beside its scheduler, for stats, trace, metrics and progress.

It is told what happens; nothing that is scheduled depends on it. Stats and the trace are kept here.
Metrics go to Ray's Prometheus endpoint, about once a second: Ray's agent on the node of this
process exports each as ``ray_<name>``, a counter with ``_total`` behind it, every ten seconds.
Progress is a bar in a terminal or notebook, else nothing; in a Ray worker the driver draws it, with
``ray.experimental.tqdm_ray``. The trace is in Chrome's format: open it in https://ui.perfetto.dev
or chrome://tracing.

References:
    Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypedDict

from qailab.distributed.actors import Actor, Chunk
from qailab.distributed.transport import Reply

logger = logging.getLogger("qailab.distributed")

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
        self._totals: defaultdict[str, Any]  # of the pool, by the names of `PoolStats`
        self._totals = defaultdict(int)
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


class Metric(NamedTuple):
    """A metric: its kind for Prometheus, one line for people, its labels."""

    kind: str
    description: str
    labels: tuple[str, ...] = ("pool", "backend")


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "qailab_rows": Metric("counter", "Rows that were answered."),
        "qailab_chunks": Metric("counter", "Chunks of rows that were answered."),
        "qailab_retries": Metric(
            "counter", "Chunks that were sent again, by reason.", ("pool", "backend", "reason")
        ),
        "qailab_actors_replaced": Metric("counter", "Actors that were replaced."),
        "qailab_jobs": Metric("counter", "Jobs that ran on devices."),
        "qailab_qpu_seconds": Metric("counter", "Seconds of QPU time that was used."),
        "qailab_chunk_seconds": Metric(
            "histogram", "Seconds that a chunk took; a sample where there are many."
        ),
        "qailab_queue_rows": Metric("gauge", "Rows that wait to be sent.", ("pool",)),
        "qailab_chunks_in_flight": Metric("gauge", "Chunks that actors have.", ("pool",)),
        "qailab_actors_ready": Metric("gauge", "Actors that are ready.", ("pool",)),
        "qailab_actors": Metric("gauge", "Actors of the pool, ready or not.", ("pool",)),
    }
)
"""All metrics by Ray's name for them."""
GAUGES = [name for name, metric in METRICS.items() if metric.kind == "gauge"]

CHUNK_SECONDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0),
)
"""Upper ends of the histogram's buckets: from a simulator's small chunk to a device's queue."""
SAMPLE = 200
"""Durations that one flush observes of a backend. Ray's agent replays every observation in Python,
at about 12 microseconds: all of 10,000 chunks a second would take an eighth of a core."""


class PoolMetrics:
    """What one pool does, for dashboards. All calls are made in one thread.

    Nothing here can fail an evaluation: what Ray does not take is lost, with one message at debug
    level. Any number of pools may report: Ray keeps one metric for each name in a process.

    Args:
        pool: the pool's name, the label of all that it reports.
    """

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)  # by name and labels
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._recorders: dict[str, Callable[[float, dict[str, str]], None]] = {}
        self._complained = False

    def add(self, name: str, *labels: str, value: float = 1) -> None:
        """Add to a counter; ``labels`` are the kind of backend and, for retries, a reason."""
        self._sums[name, *labels] += value

    def observe(self, backend: str, seconds: float) -> None:
        """Take note of how long a chunk took."""
        if len(self._seconds[backend]) < SAMPLE:
            self._seconds[backend].append(seconds)

    def flush(self, gauges: Sequence[float]) -> None:
        """Hand what was gathered to Ray, if this process is connected to one.

        Ray forgets a gauge twenty seconds after it was last set, so an idle pool flushes as well.

        Args:
            gauges: how things stand, in the order of `GAUGES`.
        """
        import ray

        if not ray.is_initialized():
            return
        sums, self._sums = self._sums, defaultdict(float)
        seconds, self._seconds = self._seconds, defaultdict(list)
        for (name, *labels), total in sums.items():
            self._record(name, labels, (total,))
        for backend, durations in seconds.items():
            self._record("qailab_chunk_seconds", (backend,), durations)
        for name, value in zip(GAUGES, gauges, strict=True):
            self._record(name, (), (value,))

    def _record(self, name: str, labels: Sequence[str], values: Sequence[float]) -> None:
        kind, _, names = METRICS[name]
        try:
            tags = dict(zip(names, (self._pool, *labels), strict=True))
            if name not in self._recorders:
                self._recorders[name] = _recorder(name)
            for value in values:
                # A counter takes no zero, and would never recover from a NaN.
                if math.isfinite(value) and (value > 0 or kind != "counter"):
                    self._recorders[name](float(value), tags)
        except Exception:
            if not self._complained:
                self._complained = True
                logger.debug("Ray does not take the metrics of %s", self._pool, exc_info=True)


def _recorder(name: str) -> Callable[[float, dict[str, str]], None]:
    """Make what takes a metric's values; only when there is one, for Ray is connected then."""
    from ray.util.metrics import Counter, Gauge, Histogram

    kind, description, labels = METRICS[name]
    record: Any
    if kind == "histogram":
        record = Histogram(name, description, list(CHUNK_SECONDS), labels).observe
    elif kind == "gauge":
        record = Gauge(name, description, labels).set
    else:
        record = Counter(name, description, labels).inc
    return record  # type: ignore[no-any-return]


SHOW_AFTER_SECONDS = 2.0
"""Shorter evaluations need no bar."""


class Progress:
    """One bar for all that a pool is evaluating: rows done, rows/s, time left, and a note."""

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted
        self._open: dict[int, tuple[float, int]] = {}  # when evaluations began, rows they have left
        self._total = self._done = 0  # rows, since there last was nothing to do
        self._bar: Any = None

    def began(self, evaluation: int, rows: int, now: float) -> None:
        self._open[evaluation] = now, rows
        self._total += rows

    def answered(self, evaluation: int, rows: int) -> None:
        began, left = self._open[evaluation]
        self._open[evaluation] = began, left - rows
        self._done += rows

    def ended(self, evaluation: int) -> None:
        self._done += self._open.pop(evaluation)[1]  # nobody waits for those that are left

    def show(self, note: str, now: float) -> None:
        """Draw, if there is something to see."""
        if not self._open:
            self.close()
        elif self._wanted and now - min(began for began, _ in self._open.values()) >= (
            SHOW_AFTER_SECONDS
        ):
            try:
                self._draw(note)
            except Exception:  # a terminal that was closed, say: watching must not cost rows
                logger.debug("progress cannot be shown", exc_info=True)
                self._wanted = False

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
        self._bar, self._total, self._done = None, 0, 0

    def _draw(self, note: str) -> None:
        if self._bar is None:
            self._bar = _new_bar(self._done)
        if self._bar is None:  # nobody is looking
            self._wanted = False
            return
        self._bar.total = self._total
        if hasattr(self._bar, "set_postfix_str"):
            self._bar.set_postfix_str(note, refresh=False)
        else:  # Ray's bar has a description only
            self._bar.set_description(f"qailab, {note}")
        self._bar.update(self._done - self._bar.n)


def _new_bar(done: int) -> Any:
    """Make a bar where somebody can see it, else None; what is ``done`` says nothing of speed."""
    import ray

    if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        from ray.experimental import tqdm_ray

        return tqdm_ray.tqdm(desc="qailab", total=0, unit="rows")
    if not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        return None
    from tqdm.auto import tqdm

    return tqdm(desc="qailab", initial=done, unit=" rows", unit_scale=True, leave=False)
