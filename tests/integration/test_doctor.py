"""``python -m qailab.doctor``, as a user starts it."""

import os
import subprocess
import sys

import pytest

from qailab import doctor
from qailab.rehearsal import RehearsalServer

CLOSED = "127.0.0.1:9"  # nothing listens on the discard port
TOKEN = "planted-Zq7xW2vK9mPf4RtY8bNc3Lh6Jd1Gs5Ae0Uo"


def run_doctor(home, **environment):
    """Run it without settings of Ray or IBM, and without a way to a network."""
    other = ("RAY_", "QISKIT_", "IAM_", "GLOBAL_", "http", "HTTP", "no_proxy")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(other)}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), f"http://{CLOSED}")
    done = subprocess.run(
        [sys.executable, "-m", "qailab.doctor", "--ibm", "--address", CLOSED],
        capture_output=True, text=True, timeout=170,
        env={**kept, **proxies, "NO_PROXY": "127.0.0.1", "HOME": str(home), **environment},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert not any(TOKEN[at : at + 8] in said for at in range(len(TOKEN) - 7))
    assert done.returncode == 1  # there is no Ray
    assert "ray start --head" in done.stdout
    assert "Traceback" not in said
    return " ".join(done.stdout.split())


def test_an_account_that_works(tmp_path):
    with RehearsalServer(["manila", "lagos"], token=TOKEN) as server:
        said = run_doctor(tmp_path, **server.environment)
    assert "OK IBM account from QISKIT_IBM_TOKEN" in said
    assert "OK ibm_lagos 7 qubits, 0 jobs waiting" in said
    assert "1 wrong" in said


def test_a_key_that_is_refused(tmp_path):
    with RehearsalServer(["manila"], token="another") as server:
        said = run_doctor(tmp_path, **server.environment | {"QISKIT_IBM_TOKEN": f"{TOKEN}\n"})
    assert "WRONG IBM account the account cannot be used" in said


def test_no_account_and_no_way_to_ibm(tmp_path):
    assert "neither QISKIT_IBM_TOKEN nor" in run_doctor(tmp_path)
    assert not list(tmp_path.iterdir())  # looking makes no file
    assert "IBM cannot be reached" in run_doctor(tmp_path, QISKIT_IBM_TOKEN=TOKEN)


@pytest.mark.usefixtures("ray_cluster")
def test_a_ray_that_works(capsys):
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert "OK       node " in said
    assert "OK       gradient            by an actor" in said
