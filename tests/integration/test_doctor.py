"""``python -m qailab.doctor``, as a user starts it."""

import os
import subprocess
import sys

import pytest

from qailab import doctor
from qailab.rehearsal import RehearsalServer

CLOSED = "127.0.0.1:9"  # nothing listens on the discard port
TOKEN = "planted-Zq7xW2vK9mPf4RtY8bNc3Lh6Jd1Gs5Ae0Uo"


PROXIES = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), f"http://{CLOSED}")


def checked(said):
    assert not any(TOKEN[at : at + 8] in said for at in range(len(TOKEN) - 7))
    assert "Traceback" not in said
    return " ".join(said.split())


def test_an_account_that_works_and_no_ray(tmp_path):
    """Without settings of Ray or IBM, and without a way to a network."""
    other = ("RAY_", "QISKIT_", "IAM_", "GLOBAL_", "http", "HTTP", "no_proxy")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(other)}
    with RehearsalServer(["manila", "lagos"], token=TOKEN) as server:
        environment = kept | PROXIES | server.environment
        done = subprocess.run(
            [sys.executable, "-m", "qailab.doctor", "--ibm", "--address", CLOSED],
            capture_output=True, text=True, timeout=170,
            env={**environment, "NO_PROXY": "127.0.0.1", "HOME": str(tmp_path)},
        )  # fmt: skip
    said = checked(done.stdout + done.stderr)
    assert (done.returncode, "ray start --head" in said) == (1, True)
    assert "OK IBM account from QISKIT_IBM_TOKEN" in said
    assert "OK ibm_lagos 7 qubits, 0 jobs waiting" in said
    assert "1 wrong" in said


def test_accounts_that_do_not_work(start_server, monkeypatch, tmp_path, capsys):
    """In this process: a key that is refused, no account, and no way to IBM."""
    for check in ("_versions", "_aer"):
        monkeypatch.setattr(doctor, check, list)
    monkeypatch.setattr(doctor, "_ray", lambda _: [])

    def look(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert doctor.main(["--ibm"]) == 1
        return checked(capsys.readouterr().out)

    server = start_server(token="another")
    said = look(QISKIT_IBM_TOKEN=f"{TOKEN}\n")
    assert "IBM refuses the API key on" in said
    for name in server.environment:
        monkeypatch.delenv(name)
    assert "neither QISKIT_IBM_TOKEN nor" in look(NO_PROXY="127.0.0.1", **PROXIES)
    assert not list(tmp_path.iterdir())  # looking makes no file
    assert "IBM Quantum cannot be reached" in look(QISKIT_IBM_TOKEN=TOKEN)


@pytest.mark.usefixtures("ray_cluster")
def test_a_ray_that_works(capsys):
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert "OK       node " in said
    assert "OK       gradient            by an actor" in said
