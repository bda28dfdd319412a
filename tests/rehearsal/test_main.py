"""The program, started as a user does, and its report."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from qailab.rehearsal import FaultRecord, JobRecord, RequestRecord
from qailab.rehearsal.report import Report
from tests.rehearsal.conftest import DEADLINE

PROGRAM = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from qiskit import QuantumCircuit
from qiskit_ibm_runtime import QiskitRuntimeService, Session
from qiskit_ibm_runtime.executor_sampler import Sampler
backend = QiskitRuntimeService().backend("ibmq_manila")
circuit = QuantumCircuit(1)
circuit.x(0)
circuit.measure_all()
session = Session(backend, max_time=60)
sampler = Sampler(mode=session)
counts = sampler.run([circuit], shots=100).result(timeout=20)[0].data.meas.get_counts()
print(counts, os.environ["HOME"], flush=True)
sys.exit(3)
"""


def rehearse(tmp_path, *arguments, **options):
    command = [sys.executable, "-m", "qailab.rehearsal", "--report-dir", str(tmp_path / "report")]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": str(tmp_path), "QISKIT_IBM_TOKEN": "a-real-secret"},
        **options,
    )


@pytest.mark.integration
def test_a_command_and_its_report(tmp_path):
    faults = tmp_path / "faults.toml"
    faults.write_text('[[fault]]\nkind = "http"\nstatus = 503\n')
    process = rehearse(
        tmp_path, "--backends", "manila,lagos", "--queue-seconds", "0.3", "--seed", "1",
        "--faults", str(faults), "--price-per-second", "2", "--", sys.executable, "-c", PROGRAM,
    )  # fmt: skip
    out, err = process.communicate(timeout=90)
    assert process.returncode == 3, err
    assert f"{{'1': 100}} {tmp_path}" in out
    assert re.search(r"^ +ibmq_manila +ibm_lagos +total$", out, re.MULTILINE)
    assert re.search(r"^executions +100 +0 +100$", out, re.MULTILINE)
    assert "faults      1 injected, 1 survived (1 http 503)" in out
    assert "a-real-secret" not in out + err
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["total"]["completed"] == report["backends"]["ibmq_manila"]["jobs"] == 1
    assert report["total"]["queue_seconds"] >= 0.29
    assert report["total"]["cost_usd"] == pytest.approx(2 * (2 + 100 * 250e-6))
    assert report["requests"]["by_status"]["503"] == report["requests"]["sent_again"] == 1
    assert report["duplicates"] == []
    assert (tmp_path / "report" / "jobs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.integration
def test_interrupts_go_to_the_command_and_the_report_is_written(tmp_path):
    child = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *a: sys.exit(7))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    process = rehearse(tmp_path, "--", sys.executable, "-c", child, start_new_session=True)
    for line in process.stdout:
        if line.strip() == "ready":
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 7, err
    assert "jobs" in out
    assert (tmp_path / "report" / "report.json").exists()


@pytest.mark.integration
def test_serving_until_interrupted(tmp_path):
    process = rehearse(tmp_path, start_new_session=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("# Ctrl-C"):
            break
    assert any(line.startswith("export QISKIT_IBM_URL=http://127.0.0.1:") for line in lines)
    assert "export QISKIT_IBM_TOKEN=rehearsal\n" in lines
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    assert "written" in out


def test_mistakes(tmp_path, capsys):
    from qailab.rehearsal.__main__ import main

    assert main(["--backends", "nowhere"]) == 2
    assert "there are: " in capsys.readouterr().err
    assert main(["--faults", str(tmp_path / "none.toml")]) == 2
    assert main(["--report-dir", str(tmp_path), "--", str(tmp_path / "nothing")]) == 127
    with pytest.raises(SystemExit):
        main(["--plan", "free"])


def job(number, backend, state="Completed", created=0.0, started=1.0, ended=2.0, content="c"):
    return JobRecord(
        f"job{number}", backend, "executor", "job", None, (), 3, 10, content, state, "",
        created, started, ended, 1.5, 0.1,
    )  # fmt: skip


def test_report_in_numbers(tmp_path, monkeypatch):
    jobs = (
        job(1, "one", state="Failed"),
        job(2, "one", ended=3.0),
        job(3, "one", content="d", created=0.5),
        job(4, "two", state="Queued", started=None, ended=None, content="e"),
        job(5, "two", content="d"),
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
    assert (total["jobs"], total["failed"], total["unfinished"]) == (5, 1, 1)
    assert (total["rows"], total["executions"]) == (15, 150)
    assert total["queue_seconds"] == 3.5
    assert total["cost_usd"] == 15.0
    facts = report.as_dict()
    assert facts["requests"]["sent_again"] == 3
    assert facts["duplicates"] == [["job3", "job5"]]
    table = report.table().splitlines()
    assert len({len(line) for line in table[:12]}) == 1
    assert [path.name for path in report.write(tmp_path / "new")] == ["report.json", "jobs.png"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert [path.name for path in report.write(tmp_path / "plain")] == ["report.json"]


def test_many_jobs_are_plotted_quickly(tmp_path):
    jobs = tuple(
        job(k, "one", created=k / 10, started=k / 10, ended=k / 10 + 1) for k in range(200)
    )
    began = time.monotonic()
    Report(("one",), jobs, (), (), (), 30.0).write(tmp_path)
    assert time.monotonic() - began < DEADLINE
