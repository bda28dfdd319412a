"""``python -m qailab.rehearsal``, started as a user does."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from qailab.backends.budget import EXECUTION_SECONDS, JOB_SECONDS
from tests.support.processes import DEADLINE

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
    assert report["total"]["cost_usd"] == pytest.approx(2 * (JOB_SECONDS + 100 * EXECUTION_SECONDS))
    assert report["requests"]["by_status"]["503"] == report["requests"]["sent_again"] == 1
    assert report["duplicates"] == []
    assert (tmp_path / "report" / "jobs.png").read_bytes().startswith(b"\x89PNG")


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
