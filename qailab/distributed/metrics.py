"""A pool's figures at Ray's Prometheus endpoint.

Ray's agent on the node of this process exports each metric as ``ray_<name>``, a counter with
``_total`` behind it, every ten seconds. A pool counts in plain dictionaries, and hands the sums
over about once a second.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

logger = logging.getLogger("qailab.distributed")


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
