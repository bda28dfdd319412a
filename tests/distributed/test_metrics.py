"""A pool's metrics: what Ray is handed, and what the dashboard asks for."""

import json
import logging
import math
import re
from pathlib import Path

import numpy as np
import pytest

from qailab.circuit import RotationalEncoder, build_circuit
from qailab.distributed.telemetry import CHUNK_SECONDS, METRICS, SAMPLE, PoolMetrics
from qailab.gradients import NoiseStream, RowBatch, ShiftedRows, canonicalize
from tests.support.metrics import EXPORTED, report_everything, reported
from tests.support.simulated_time import FastBackend, Fault, SimulatedPool, SimulatedTransport

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "qailab.json"
DEPTH = (900, 4, 2, 3)


class FakeRay:
    """Ray's metrics, as far as they are used; remembers what it is given."""

    def __init__(self):
        self.connected = True
        self.broken = set()
        self.made = {}
        self.records = []

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

    import ray.util.metrics

    monkeypatch.setattr(ray, "is_initialized", lambda: fake.connected)
    monkeypatch.setattr(ray.util.metrics, "Counter", stands_for("counter", "inc"))
    monkeypatch.setattr(ray.util.metrics, "Gauge", stands_for("gauge", "set"))
    monkeypatch.setattr(ray.util.metrics, "Histogram", stands_for("histogram", "observe"))
    return fake


def in_order(records):
    return sorted(records, key=repr)


def test_sums_reach_ray_with_their_labels(fake):
    pool = PoolMetrics("p")
    report_everything(pool)
    assert not fake.records  # before the flush, nothing is
    pool.flush(DEPTH)
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
    pool.flush(DEPTH)
    fake.records.clear()
    pool.add("qailab_rows", "AerBackend", value=7)
    pool.observe("AerBackend", 0.5)
    pool.flush(DEPTH)
    assert [value for _, value in fake.of("qailab_rows")] == [7]
    assert [value for _, value in fake.of("qailab_chunk_seconds")] == [0.5]
    assert not fake.of("qailab_retries")
    assert [value for _, value in fake.of("qailab_queue_rows")] == [900]  # or Ray forgets it


@pytest.mark.parametrize("seconds", [0.0, math.nan, math.inf, -1.0])
def test_what_a_counter_cannot_take_is_left_out(fake, seconds, caplog):
    caplog.set_level(logging.DEBUG, "qailab.distributed")
    pool = PoolMetrics("p")
    pool.add("qailab_qpu_seconds", "AerBackend", value=seconds)
    pool.flush(DEPTH)
    pool.add("qailab_qpu_seconds", "AerBackend", value=2.0)
    pool.flush(DEPTH)
    assert fake.of("qailab_qpu_seconds") == [({"pool": "p", "backend": "AerBackend"}, 2.0)]
    assert not caplog.records


def test_many_chunks_are_sampled_and_counted_exactly(fake):
    pool = PoolMetrics("p")
    for _ in range(3 * SAMPLE):
        pool.add("qailab_chunks", "AerBackend")
        pool.observe("AerBackend", 0.1)
    pool.flush(DEPTH)
    assert [value for _, value in fake.of("qailab_chunks")] == [3 * SAMPLE]
    assert len(fake.of("qailab_chunk_seconds")) == SAMPLE


def test_without_ray_nothing_happens(fake):
    fake.connected = False
    pool = PoolMetrics("p")
    report_everything(pool)
    pool.flush(DEPTH)
    assert not fake.made
    assert not fake.records


def test_failures_of_ray_are_told_once_and_cost_only_their_metric(fake, caplog):
    caplog.set_level(logging.DEBUG, "qailab.distributed")
    fake.broken = {"qailab_rows", "qailab_chunk_seconds"}
    pool = PoolMetrics("p")
    for _ in range(2):
        report_everything(pool)
        pool.flush(DEPTH)
    assert {name for name, _, _ in fake.records} == set(METRICS) - fake.broken
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "of p" in record.getMessage()


def test_what_a_pool_does_is_reported(fake):
    faults = [Fault(2.0, 0, "kill"), Fault(3.0, 1, "fail")]
    pool = SimulatedPool([FastBackend()] * 2, SimulatedTransport([500.0] * 2, faults))
    circuit = build_circuit(2, [RotationalEncoder("y", "input")])
    canonical, _ = canonicalize(circuit, circuit.parameters)
    rows = ShiftedRows(base=np.zeros((900, 2)), columns=np.arange(2))
    pool.submit(canonical, RowBatch(rows, None, NoiseStream(0), np.ones((900, 4)))).result(0)
    pool.telemetry.end(pool.scheduler.depth())
    stats = pool.stats()
    found = {name: value for name, tags, value in fake.records if "reason" not in tags}
    retries = {tags["reason"]: value for tags, value in fake.of("qailab_retries")}
    assert found["qailab_rows"] == stats["rows"] == rows.num_rows
    assert found["qailab_chunks"] == stats["chunks"]
    assert found["qailab_jobs"] == stats["jobs"]
    assert found["qailab_qpu_seconds"] == pytest.approx(stats["qpu_seconds"])
    assert found["qailab_actors_replaced"] == 1
    assert (found["qailab_queue_rows"], found["qailab_actors"]) == (0, 2)
    assert retries.pop("raced", 0) == stats["races"]
    assert sum(retries.values()) == stats["retries"]
    assert retries["transient"] == 1


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
