import pytest

from qailab.errors import InputError
from qailab.rehearsal import Fault, FaultPlan
from qailab.rehearsal.faults import JOB_KINDS, REQUEST_KINDS
from tests.support.servers import on


def test_windows_and_probabilities():
    plan = FaultPlan([on("drop", after=2, times=2), on("drop", "*", probability=0.3, times=0)])
    hits = [plan.draw("POST /jobs", REQUEST_KINDS) for _ in range(200)]
    assert [bool(hit) and hit.times for hit in hits[2:4]] == [2, 2]
    some = sum(hit is not None for hit in hits[4:])
    assert 35 < some < 85
    same = FaultPlan(plan.faults)
    assert hits == [same.draw("POST /jobs", REQUEST_KINDS) for _ in range(200)]
    other = FaultPlan(plan.faults, seed=1)
    assert hits != [other.draw("POST /jobs", REQUEST_KINDS) for _ in range(200)]
    assert plan.draw("POST /jobs", JOB_KINDS) is None


def test_random_plans():
    assert FaultPlan.random(5).faults == FaultPlan.random(5).faults
    assert FaultPlan.random(5).faults != FaultPlan.random(6).faults
    assert FaultPlan.random(5, 0).faults == ()
    many = [fault for seed in range(300) for fault in FaultPlan.random(seed).faults]
    assert len({fault.kind for fault in many}) > 10
    assert 3 < len(many) / 300 < 5
    assert not [fault for fault in many if fault.status in (400, 401)]
    with pytest.raises(InputError):
        FaultPlan.random(1, -1)


def test_from_toml(tmp_path):
    path = tmp_path / "faults.toml"
    path.write_text(
        'seed = 7\n[[fault]]\nkind = "http"\nstatus = 503\nwhere = "GET /jobs/ID"\nafter = 2\n'
        '[[fault]]\nkind = "hang"\nseconds = 2\nprocessed = true\nprobability = 0.5\ntimes = 0\n'
    )
    plan = FaultPlan.from_toml(path)
    assert plan.seed == 7
    assert plan.faults == (
        Fault("http", "GET /jobs/ID", after=2, status=503),
        Fault("hang", seconds=2, processed=True, probability=0.5, times=0),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[fault]]\nwhere = '*'", "without kind"),
        ("[[fault]]\nkind = 'rain'", "unknown fault 'rain'; known: http"),
        ("[[fault]]\nkind = 'drop'\nwhen = 2", r"unknown \['when'\]; known: kind"),
        ("[[faults]]\nkind = 'drop'", "unknown 'faults'"),
        ("[[fault]]\nkind = 'drop'\nwhere = 'GET /job'", "unknown request 'GET /job'"),
        ("[[fault]]\nkind = 'drop'\nstatus = 500", "has no status"),
        ("[[fault]]\nkind = 'http'", "needs status"),
        ("[[fault]]\nkind = 'hang'\nseconds = -1\nprocessed = true", "0 or more"),
        ("[[fault]]\nkind = 'http'\nstatus = 429\nretry_after = 0.5", "retry_after must"),
        ("[[fault]]\nkind = 'drop'\nprobability = 0", "probability"),
        ("[[fault]]\nkind = 'job-stuck'\nwhere = 'GET /jobs'", "is one of 'POST /jobs'"),
        ("seed = ", "cannot be read"),
    ],
)
def test_bad_toml(tmp_path, text, message):
    path = tmp_path / "faults.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        FaultPlan.from_toml(path)
    with pytest.raises(InputError, match="cannot be read"):
        FaultPlan.from_toml(tmp_path / "none.toml")
