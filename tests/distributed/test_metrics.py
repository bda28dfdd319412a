"""A pool's metrics: what Ray is handed, what its endpoint exports, what the dashboard shows."""

import itertools
import json
import logging
import math
import random
import re
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import pytest
import ray

from qailab.backends import RehearsalBackend
from qailab.distributed import LauncherPool, metrics
from qailab.distributed.metrics import CHUNK_SECONDS, METRICS, SAMPLE, PoolMetrics
from tests.support.contracts import backward_batch, model

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "qailab.json"
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
EXPORTED = {
    f"ray_{name}{suffix}": {*metric.labels, *(["le"] if suffix == "_bucket" else [])}
    for name, metric in METRICS.items()
    for suffix in SUFFIXES[metric.kind]
}
"""Labels by exported name; that Ray does export these is shown at its endpoint below."""
DEADLINE = 120  # Ray exports every ten seconds


def report_everything(pool):
    """One call at least for every metric."""
    pool.answered("AerBackend", 64, 0.012)
    pool.answered("AerBackend", 36, 0.3)
    pool.answered("OtherBackend", 5, 70.0)
    pool.used("OtherBackend", 2, 1.25)
    pool.retried("AerBackend", 3, "lost")
    pool.retried("AerBackend", 1, "transient")
    pool.replaced("AerBackend")
    pool.depth(waiting_rows=900, chunks_in_flight=4, actors_ready=2, actors=3)


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


class FakeRay:
    """Ray's metrics, as far as they are used; remembers what it is given."""

    def __init__(self):
        self.connected = True
        self.broken = set()
        self.made = {}
        self.records = []

    def is_initialized(self):
        return self.connected

    def make(self, kind, name, description, *rest):
        if name in self.broken:
            raise RuntimeError("no such thing")
        *boundaries, labels = rest
        self.made[name] = (kind, description, labels, *boundaries)

        def record(value, tags):
            assert set(tags) == set(labels)
            assert value > 0 or kind != "counter"  # as Ray does
            self.records.append((name, tags, value))

        return record

    def of(self, name):
        return [(tags, value) for known, tags, value in self.records if known == name]


@pytest.fixture
def fake(monkeypatch):
    fake = FakeRay()

    def stands_for(kind, method):
        def build(name, *rest):
            return type(kind, (), {method: staticmethod(fake.make(kind, name, *rest))})()

        return build

    monkeypatch.setattr(metrics, "ray", fake)
    monkeypatch.setattr(metrics, "Counter", stands_for("counter", "inc"))
    monkeypatch.setattr(metrics, "Gauge", stands_for("gauge", "set"))
    monkeypatch.setattr(metrics, "Histogram", stands_for("histogram", "observe"))
    return fake


def in_order(records):
    return sorted(records, key=repr)


def test_sums_reach_ray_with_their_labels(fake):
    pool = PoolMetrics("p")
    report_everything(pool)
    assert not fake.records  # before the flush, nothing is
    pool.flush()
    observed = fake.of("qailab_chunk_seconds")
    others = [record for record in fake.records if record[0] != "qailab_chunk_seconds"]
    assert in_order(others) == in_order((n, t, float(v)) for n, t, v in reported("p"))
    assert observed == [
        ({"pool": "p", "backend": "AerBackend"}, 0.012),
        ({"pool": "p", "backend": "AerBackend"}, 0.3),
        ({"pool": "p", "backend": "OtherBackend"}, 70.0),
    ]
    assert {(name, *made[:3]) for name, made in fake.made.items()} == {
        (name, *metric) for name, metric in METRICS.items()
    }
    assert fake.made["qailab_chunk_seconds"][3] == list(CHUNK_SECONDS)


def test_a_flush_hands_over_what_is_new_and_how_things_stand(fake):
    pool = PoolMetrics("p")
    report_everything(pool)
    pool.flush()
    fake.records.clear()
    pool.answered("AerBackend", 7, 0.5)
    pool.flush()
    assert [value for _, value in fake.of("qailab_rows")] == [7]
    assert [value for _, value in fake.of("qailab_chunk_seconds")] == [0.5]
    assert not fake.of("qailab_retries")
    assert [value for _, value in fake.of("qailab_queue_rows")] == [900]  # or Ray forgets it


@pytest.mark.parametrize("seconds", [0.0, math.nan, math.inf, -1.0])
def test_what_a_counter_cannot_take_is_left_out(fake, seconds, caplog):
    caplog.set_level(logging.DEBUG, "qailab.distributed")
    pool = PoolMetrics("p")
    pool.used("AerBackend", 0, seconds)
    pool.flush()
    pool.used("AerBackend", 0, 2.0)
    pool.flush()
    assert fake.records == [("qailab_qpu_seconds", {"pool": "p", "backend": "AerBackend"}, 2.0)]
    assert not caplog.records


def test_many_chunks_are_sampled_evenly_and_counted_exactly(fake):
    pool = PoolMetrics("p")
    state = random.getstate()
    for chunk in range(50 * SAMPLE):
        pool.answered("AerBackend", 2, float(chunk))
    pool.answered("OtherBackend", 1, 1.0)
    pool.flush()
    assert random.getstate() == state  # the user's seeds
    assert [value for _, value in fake.of("qailab_chunks")] == [50 * SAMPLE, 1]
    assert [value for _, value in fake.of("qailab_rows")] == [100 * SAMPLE, 1]
    sample = [v for tags, v in fake.of("qailab_chunk_seconds") if tags["backend"] == "AerBackend"]
    assert len(sample) == SAMPLE
    mean, error = 25 * SAMPLE, 50 * SAMPLE / math.sqrt(12 * SAMPLE)
    assert abs(sum(sample) / SAMPLE - mean) < 4 * error


def test_without_ray_nothing_happens(fake):
    fake.connected = False
    pool = PoolMetrics("p")
    report_everything(pool)
    pool.flush()
    assert not fake.made
    assert not fake.records


def test_a_flush_does_not_start_ray():
    program = (
        "import ray\n"
        "from qailab.distributed.metrics import PoolMetrics\n"
        "pool = PoolMetrics('p')\n"
        "pool.answered('AerBackend', 1, 0.1)\n"
        "pool.flush()\n"
        "assert not ray.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=DEADLINE, check=True)


def test_failures_of_ray_are_told_once_and_cost_only_their_metric(fake, caplog):
    caplog.set_level(logging.DEBUG, "qailab.distributed")
    fake.broken = {"qailab_rows", "qailab_chunk_seconds"}
    pool = PoolMetrics("p")
    for _ in range(2):
        report_everything(pool)
        pool.flush()
    assert {name for name, _, _ in fake.records} == set(METRICS) - fake.broken
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "of p" in record.getMessage()


def test_buckets_range_from_a_millisecond_to_ten_minutes():
    assert CHUNK_SECONDS[0] == 0.001
    assert CHUNK_SECONDS[-1] == 600
    assert list(CHUNK_SECONDS) == sorted(set(CHUNK_SECONDS))


# At the endpoint of a real Ray.


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


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
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
            pool.flush()
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


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_what_a_pool_does_is_exported():
    _, canonical, angle_map, values = model()
    batch = backward_batch(canonical, angle_map, values, shots=50)
    device = RehearsalBackend(latency=0.002, failure_rate=0.2, seed=1)
    with LauncherPool([device] * 2, chunk_rows=2, actor_options={"num_cpus": 0}) as pool:
        pool.run(canonical, batch)
        labels = ("backend", "RehearsalBackend"), ("pool", pool._name)
        deadline = time.monotonic() + DEADLINE
        while True:
            stats = pool.stats()  # anew: the loser of a race answers, and is paid, after the end
            wanted = {
                ("ray_qailab_rows_total", labels): stats["rows"],
                ("ray_qailab_chunks_total", labels): stats["chunks"],
                ("ray_qailab_jobs_total", labels): stats["jobs"],
                ("ray_qailab_qpu_seconds_total", labels): pytest.approx(stats["qpu_seconds"]),
                ("ray_qailab_chunk_seconds_count", labels): stats["chunks"],
                ("ray_qailab_retries_total", (*labels, ("reason", "transient"))): stats["retries"],
                ("ray_qailab_queue_rows", (("pool", pool._name),)): 0,
            }
            values, _ = scraped([pool._name])
            found = {key: values.get(key) for key in wanted}
            if found == wanted or time.monotonic() > deadline:
                break
            time.sleep(1)
        assert found == wanted
        assert stats["retries"]


# The dashboard.


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(DASHBOARD.read_text())


def queries(dashboard):
    """Title of the panel, target."""
    return [
        (panel["title"], target) for panel in dashboard["panels"] for target in panel["targets"]
    ]


def names_in(expression):
    """Metrics of a PromQL expression: words that are no functions, labels, texts or durations."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without)\s*\([^)]*\)", " ", expression)
    return set(re.findall(r"\b[A-Za-z_:][\w:]*\b(?!\s*\()", bare))


def groups_in(expression):
    return {
        label
        for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", expression)
        for label in re.split(r"\s*,\s*", group.strip())
    }


def test_the_dashboard_asks_only_for_what_is_exported(dashboard):
    for title, target in queries(dashboard):
        expression = target["expr"]
        (name,) = names_in(expression)
        assert name in EXPORTED, title
        (matchers,) = re.findall(r"\{([^}]*)\}", expression)
        assert re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', matchers) == ["pool"], title
        assert groups_in(expression) <= EXPORTED[name], title
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= groups_in(expression)
        counted = METRICS[re.sub("^ray_|(_total|_bucket)$", "", name)].kind != "gauge"
        assert counted or "rate(" not in expression, title


def test_the_dashboard_shows_every_metric(dashboard):
    shown = {name for _, target in queries(dashboard) for name in names_in(target["expr"])}
    assert {re.sub("^ray_|(_total|_bucket)$", "", name) for name in shown} == set(METRICS)


def test_the_dashboard_has_its_variables(dashboard):
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "pool"]
    name, label = re.fullmatch(
        r"label_values\((\w+), (\w+)\)", variables["pool"]["query"]["query"]
    ).groups()
    assert label in EXPORTED[name]
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text()))
    assert {name for name in used if not name.startswith("__")} == set(variables)
    sources = [variables["pool"], *dashboard["panels"], *(t for _, t in queries(dashboard))]
    for asked in sources:
        assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_are_told_apart_and_do_not_overlap(dashboard):
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(
        panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        for panel in panels
    )
    for panel in panels:
        places = [target["refId"] for target in panel["targets"]]
        assert len(set(places)) == len(places)
    areas = [panel["gridPos"] for panel in panels]
    assert all(area["x"] >= 0 and area["x"] + area["w"] <= 24 for area in areas)
    for one, other in itertools.combinations(areas, 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
