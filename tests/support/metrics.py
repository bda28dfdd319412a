"""Everything that a pool can report, and under which names and labels Ray exports it."""

from qailab.distributed.telemetry import METRICS

SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
EXPORTED = {
    f"ray_{name}{suffix}": {*metric.labels, *(["le"] if suffix == "_bucket" else [])}
    for name, metric in METRICS.items()
    for suffix in SUFFIXES[metric.kind]
}
"""Labels by exported name; an integration test shows that Ray exports these."""


def report_everything(pool):
    """One call at least for every metric but the gauges."""
    for backend, rows, seconds in (
        ("AerBackend", 64, 0.012),
        ("AerBackend", 36, 0.3),
        ("OtherBackend", 5, 70.0),
    ):
        pool.add("qailab_rows", backend, value=rows)
        pool.add("qailab_chunks", backend)
        pool.observe(backend, seconds)
    pool.add("qailab_jobs", "OtherBackend", value=2)
    pool.add("qailab_qpu_seconds", "OtherBackend", value=1.25)
    pool.add("qailab_retries", "AerBackend", "lost", value=3)
    pool.add("qailab_retries", "AerBackend", "transient")
    pool.add("qailab_actors_replaced", "AerBackend")


def reported(pool):
    """What `report_everything` makes of all metrics but the histogram."""
    aer, other = {"pool": pool, "backend": "AerBackend"}, {"pool": pool, "backend": "OtherBackend"}
    mine = {"pool": pool}
    return [
        ("qailab_rows", aer, 100),
        ("qailab_rows", other, 5),
        ("qailab_chunks", aer, 2),
        ("qailab_chunks", other, 1),
        ("qailab_jobs", other, 2),
        ("qailab_qpu_seconds", other, 1.25),
        ("qailab_retries", {**aer, "reason": "lost"}, 3),
        ("qailab_retries", {**aer, "reason": "transient"}, 1),
        ("qailab_actors_replaced", aer, 1),
        ("qailab_queue_rows", mine, 900),
        ("qailab_chunks_in_flight", mine, 4),
        ("qailab_actors_ready", mine, 2),
        ("qailab_actors", mine, 3),
    ]
