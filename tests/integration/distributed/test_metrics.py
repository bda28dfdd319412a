"""What Ray's endpoint exports of pools."""

import math
import re
import time
import urllib.request
import uuid

import pytest
import ray

from qailab.distributed.telemetry import CHUNK_SECONDS, METRICS, PoolMetrics
from tests.support.metrics import EXPORTED, SUFFIXES, report_everything, reported

pytestmark = pytest.mark.usefixtures("ray_cluster")
DEADLINE = 120  # Ray exports every ten seconds


def endpoint():
    (node,) = ray.nodes()
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def scraped(pools):
    """Values of all metrics of some pools: {(name, sorted labels): value}; and their types."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(endpoint(), timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:  # the agent is still starting
        return {}, {}
    values, types = {}, {}
    for line in lines:
        if line.startswith("# TYPE "):
            _, _, name, types[name] = line.split()
        elif match := re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            if labels.get("pool") in pools:
                known = EXPORTED.get(match[1], labels)
                kept = tuple(sorted((k, v) for k, v in labels.items() if k in known))
                values[match[1], kept] = float(match[3])
    return values, types


def expected(pool, times):
    """What Ray exports of `report_everything`, so many times called."""
    values = {}
    for name, labels, value in reported(pool):
        kind = METRICS[name].kind
        key = f"ray_{name}{SUFFIXES[kind][0]}", tuple(sorted(labels.items()))
        values[key] = value * (times if kind == "counter" else 1)
    for backend, seconds in [("AerBackend", [0.012, 0.3]), ("OtherBackend", [70.0])]:
        labels = {"pool": pool, "backend": backend}
        key = tuple(sorted(labels.items()))
        values["ray_qailab_chunk_seconds_count", key] = times * len(seconds)
        for bound in (*CHUNK_SECONDS, math.inf):
            le = "+Inf" if bound == math.inf else str(bound)
            key = tuple(sorted({**labels, "le": le}.items()))
            below = sum(value <= bound for value in seconds)
            values["ray_qailab_chunk_seconds_bucket", key] = times * below
    return values


def test_ray_exports_all_metrics_of_several_pools():
    names = [f"qailab-{uuid.uuid4().hex[:12]}" for _ in range(2)]
    # The second pool of this process, and a second handle of the first one.
    pools = [PoolMetrics(names[0]), PoolMetrics(names[1]), PoolMetrics(names[0])]
    for pool in pools:
        report_everything(pool)
    wanted = expected(names[0], 2) | expected(names[1], 1)
    deadline = time.monotonic() + DEADLINE
    while True:
        for pool in pools:
            pool.flush((900, 4, 2, 3))
        values, types = scraped(names)
        sums = [key for key in values if key[0].endswith("_seconds_sum")]  # from bucket midpoints
        found = {key: value for key, value in values.items() if key not in sums}
        if found == wanted or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert found == wanted
    assert len(sums) == 4
    assert {name: {key for key, _ in labels} for name, labels in values} == EXPORTED
    for name, metric in METRICS.items():
        exported = f"ray_{name}" + ("_total" if metric.kind == "counter" else "")
        assert types[exported] == metric.kind
