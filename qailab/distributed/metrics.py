"""A pool's figures at Ray's Prometheus endpoint.

Ray's agent on the node of this process exports each metric as ``ray_<name>``, a counter with
``_total`` behind it, every ten seconds. The dispatcher counts in plain dictionaries, and hands the
sums over about once a second::

    dispatcher --- answered, used, ... --> sums --- flush --> ray.util.metrics --> agent
"""

from __future__ import annotations

import logging
import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import ray
from ray.util.metrics import Counter, Gauge, Histogram

logger = logging.getLogger("qailab.distributed")


class Metric(NamedTuple):
    """What a metric is.

    Args:
        kind: what Prometheus holds it for.
        description: one line for people.
        labels: names of its labels, the pool's first.
    """

    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...]


_BACKEND = ("pool", "backend")
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "qailab_rows": Metric("counter", "Rows that were answered.", _BACKEND),
        "qailab_chunks": Metric("counter", "Chunks of rows that were answered.", _BACKEND),
        "qailab_retries": Metric(
            "counter", "Chunks that were sent again, by reason.", (*_BACKEND, "reason")
        ),
        "qailab_actors_replaced": Metric("counter", "Actors that were replaced.", _BACKEND),
        "qailab_jobs": Metric("counter", "Jobs that ran on devices.", _BACKEND),
        "qailab_qpu_seconds": Metric("counter", "Seconds of QPU time that was used.", _BACKEND),
        "qailab_chunk_seconds": Metric(
            "histogram", "Seconds that a chunk took; a sample where there are many.", _BACKEND
        ),
        "qailab_queue_rows": Metric("gauge", "Rows that wait to be sent.", ("pool",)),
        "qailab_chunks_in_flight": Metric("gauge", "Chunks that actors have.", ("pool",)),
        "qailab_actors_ready": Metric("gauge", "Actors that are ready.", ("pool",)),
        "qailab_actors": Metric("gauge", "Actors of the pool, ready or not.", ("pool",)),
    }
)
"""All metrics by Ray's name for them."""

CHUNK_SECONDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0),
)
"""Upper ends of the histogram's buckets: from a simulator's small chunk to a device's queue."""

SAMPLE = 200
"""Durations that one flush observes of a backend. Ray's agent replays every observation in Python,
at about 12 microseconds: all of 10,000 chunks a second would take an eighth of a core."""

_GAUGES = (
    "qailab_queue_rows",
    "qailab_chunks_in_flight",
    "qailab_actors_ready",
    "qailab_actors",
)  # in the order of `PoolMetrics.depth`


class PoolMetrics:
    """What one pool does, for dashboards. All calls are made in one thread.

    All but `flush` only add to what is gathered, and nothing here can fail an evaluation: what Ray
    does not take is lost, with one message at debug level. Any number of pools may report: Ray
    keeps one metric for each name in a process, however many objects stand for it.

    Args:
        pool: the pool's name, the label of all that it reports.
    """

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._depth: tuple[int, int, int, int] | None = None
        self._random = random.Random(pool).random  # the user's seeds are not ours to advance
        self._recorders: dict[str, Callable[[float, dict[str, str]], None]] = {}
        self._complained = False

    def answered(self, backend: str, rows: int, seconds: float) -> None:
        """Count a chunk that came back.

        Args:
            backend: the kind of backend, say ``"AerBackend"``.
            rows: rows in the chunk.
            seconds: how long it took.
        """
        sums, durations = self._sums, self._seconds[backend]
        sums["qailab_rows", backend] += rows
        sums["qailab_chunks", backend] += 1
        if len(durations) < SAMPLE:
            durations.append(seconds)
            return
        # A reservoir: each of the n chunks since the last flush is kept with probability SAMPLE/n.
        place = int(self._random() * sums["qailab_chunks", backend])
        if place < SAMPLE:
            durations[place] = seconds

    def used(self, backend: str, jobs: int, qpu_seconds: float) -> None:
        """Count what a chunk used of a device.

        Args:
            backend: the kind of backend.
            jobs: jobs that ran.
            qpu_seconds: seconds of QPU time.
        """
        self._sums["qailab_jobs", backend] += jobs
        self._sums["qailab_qpu_seconds", backend] += qpu_seconds

    def retried(self, backend: str, chunks: int, reason: str) -> None:
        """Count chunks that are sent again.

        Args:
            backend: the kind of backend that did not answer.
            chunks: how many.
            reason: one of a few words, say ``"lost"``; each makes a series.
        """
        self._sums["qailab_retries", backend, reason] += chunks

    def replaced(self, backend: str) -> None:
        """Count an actor that was replaced.

        Args:
            backend: the kind of backend it had.
        """
        self._sums["qailab_actors_replaced", backend] += 1

    def depth(
        self, *, waiting_rows: int, chunks_in_flight: int, actors_ready: int, actors: int
    ) -> None:
        """Note how things stand.

        Args:
            waiting_rows: rows that no actor has yet.
            chunks_in_flight: chunks that actors have.
            actors_ready: actors that take rows.
            actors: all actors.
        """
        self._depth = (waiting_rows, chunks_in_flight, actors_ready, actors)

    def flush(self) -> None:
        """Hand what was gathered to Ray, if this process is connected to one.

        Ray forgets a gauge twenty seconds after it was last set, so an idle pool flushes as well.
        """
        if not ray.is_initialized():
            return
        sums, self._sums = self._sums, defaultdict(float)
        seconds, self._seconds = self._seconds, defaultdict(list)
        for (name, *labels), total in sums.items():
            self._record(name, labels, (total,))
        for backend, durations in seconds.items():
            self._record("qailab_chunk_seconds", (backend,), durations)
        for name, value in zip(_GAUGES, self._depth or (), strict=False):
            self._record(name, (), (value,))

    def _record(self, name: str, labels: Sequence[str], values: Sequence[float]) -> None:
        kind, _, names = METRICS[name]
        try:
            tags = dict(zip(names, (self._pool, *labels), strict=True))
            if name not in self._recorders:
                self._recorders[name] = _recorder(name)
            record = self._recorders[name]
            for value in values:
                # A counter takes no zero, and would never recover from a NaN.
                if math.isfinite(value) and (value > 0 or kind != "counter"):
                    record(float(value), tags)
        except Exception:
            if not self._complained:
                self._complained = True
                logger.debug("Ray does not take the metrics of %s", self._pool, exc_info=True)


def _recorder(name: str) -> Callable[[float, dict[str, str]], None]:
    """What takes a metric's values; made when there is one, for Ray is connected then."""
    kind, description, labels = METRICS[name]
    made: Any
    if kind == "histogram":
        made = Histogram(name, description, list(CHUNK_SECONDS), labels)
        record = made.observe
    elif kind == "gauge":
        made = Gauge(name, description, labels)
        record = made.set
    else:
        made = Counter(name, description, labels)
        record = made.inc
    return record  # type: ignore[no-any-return]
