"""A pool's figures at Ray's Prometheus endpoint.

Ray's agent on the node of this process exports each metric as ``ray_<name>``, a counter with
``_total`` behind it, every ten seconds. A pool counts in plain dictionaries, and hands the sums
over about once a second.
"""

from __future__ import annotations

import logging
import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

logger = logging.getLogger("qailab.distributed")


class Metric(NamedTuple):
    """A metric: its kind for Prometheus, one line for people, its labels, the pool's first."""

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
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)  # by name and labels
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._random = random.Random(pool).random  # the user's seeds are not ours to advance
        self._recorders: dict[str, Callable[[float, dict[str, str]], None]] = {}
        self._complained = False

    def add(self, name: str, *labels: str, value: float = 1) -> None:
        """Add to a counter.

        Args:
            name: one of `METRICS`.
            labels: values of its labels, but the pool's: the kind of backend, say
                ``"AerBackend"``, and a reason of one word; each makes a series.
            value: how much.
        """
        self._sums[name, *labels] += value

    def answered(self, backend: str, rows: int, seconds: float, chunks: int = 1) -> None:
        """Count a chunk that came back, or several that travelled as one, after some seconds."""
        sums, durations = self._sums, self._seconds[backend]
        sums["qailab_rows", backend] += rows
        sums["qailab_chunks", backend] += chunks
        if len(durations) < SAMPLE:
            durations.append(seconds)
            return
        # A reservoir: each of the n chunks since the last flush is kept with probability SAMPLE/n.
        place = int(self._random() * sums["qailab_chunks", backend])
        if place < SAMPLE:
            durations[place] = seconds

    def flush(
        self, waiting_rows: int, chunks_in_flight: int, actors_ready: int, actors: int
    ) -> None:
        """Hand what was gathered to Ray, and how things stand, if this process is connected to one.

        Ray forgets a gauge twenty seconds after it was last set, so an idle pool flushes as well.
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
        gauges = [name for name, metric in METRICS.items() if metric.kind == "gauge"]
        depth = (waiting_rows, chunks_in_flight, actors_ready, actors)
        for name, value in zip(gauges, depth, strict=True):
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
    """Make what takes a metric's values; when there is one, for Ray is connected then."""
    from ray.util.metrics import Counter, Gauge, Histogram

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
