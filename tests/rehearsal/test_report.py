"""The report in numbers, and what makes a job one that was sent again."""

import dataclasses
import sys

import pytest

from qailab.errors import InputError
from qailab.rehearsal import (
    FaultRecord,
    JobRecord,
    Limits,
    RehearsalServer,
    RequestRecord,
    device_names,
)
from qailab.rehearsal.records import find_resent
from qailab.rehearsal.report import Report


def job(number, backend, content="c", **changes):
    record = JobRecord(f"job{number}", backend, "executor", "job", None, (), 3, 10, content)
    times = {"created": 0.0, "started": 1.0, "ended": 2.0, "qpu_seconds": 1.5}
    return dataclasses.replace(record, **{"state": "Completed", **times, **changes})


def test_report_in_numbers(tmp_path, monkeypatch):
    jobs = (
        job(1, "one", state="Failed"),
        job(2, "one", ended=3.0),
        job(3, "one", content="d", created=0.5, answered=False),
        job(4, "two", state="Queued", started=None, ended=None, content="e"),
        job(5, "two", content="d"),
        job(6, "two", content="c"),
    )
    faults = (
        FaultRecord(0.5, "job-failed", "POST /jobs job1", "job1"),
        FaultRecord(0.5, "job-stuck", "POST /jobs job4", "job4"),
        FaultRecord(9.0, "drop", "POST /jobs"),
    )
    requests = tuple(
        RequestRecord(0.0, "GET", "/jobs", status, "", 0.0) for status in (200, 0, 429, 404, 500)
    )
    report = Report(("one", "two"), jobs, (), requests, faults, 10.0, 2.0)
    assert [report.survived(fault) for fault in faults] == [True, False, False]
    total = report.sums()
    assert (total["jobs"], total["failed"], total["unfinished"]) == (6, 1, 1)
    assert (total["rows"], total["executions"]) == (18, 180)
    assert (total["queue_seconds"], total["cost_usd"]) == (4.5, 18.0)
    facts = report.as_dict()
    assert facts["requests"]["sent_again"] == 3
    assert facts["duplicates"] == [["job3", "job5"]]
    table = report.table().splitlines()
    assert len({len(line) for line in table[:12]}) == 1
    assert "rehearsed: nothing was paid; a device takes about 18.00 USD" in report.table()
    assert [path.name for path in report.write(tmp_path / "new")] == ["report.json", "jobs.png"]
    assert (tmp_path / "new" / "jobs.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert [path.name for path in report.write(tmp_path / "plain")] == ["report.json"]


def test_jobs_that_were_sent_again():
    mine, other = ("qailab", "qailab-abc"), ("qailab", "qailab-def")
    assert find_resent([job(1, "one", tags=mine), job(2, "one", tags=other)]) == []
    assert find_resent([job(1, "one"), job(2, "one", tags=("x",))]) == []
    assert len(find_resent([job(1, "one", tags=mine), job(2, "two", tags=mine)])) == 1
    assert len(find_resent([job(1, "one", answered=False), job(2, "one")])) == 1
    lost = job(1, "one", answered=False, state="Cancelled")
    assert find_resent([lost, job(2, "one")]) == []


@pytest.mark.parametrize(
    "options",
    [
        {"plan": "free"},
        {"queue_seconds": -1},
        {"backends": []},
        {"backends": "manila"},
        {"backends": ["manila", "ibmq_manila"]},
    ],
)
def test_bad_options(options):
    with pytest.raises(InputError):
        RehearsalServer(**options)


def test_names_of_devices_and_limits():
    with pytest.raises(InputError, match=r"no device 'nowhere'; there are: .*manila"):
        RehearsalServer(["nowhere"])
    assert len(device_names()) > 50
    with pytest.raises(InputError, match="executions"):
        Limits(executions=0)


def test_mistakes_of_the_program(tmp_path, capsys):
    from qailab.rehearsal.__main__ import main

    assert main(["--backends", "nowhere"]) == 2
    assert "there are: " in capsys.readouterr().err
    assert main(["--faults", str(tmp_path / "none.toml")]) == 2
    with pytest.raises(SystemExit):
        main(["--plan", "free"])
