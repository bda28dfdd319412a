import socket
import subprocess
import sys

import pytest
import requests

from qailab.errors import InputError
from qailab.rehearsal import Limits, RehearsalServer, device_names
from tests.rehearsal.conftest import connect


def get(server, path, authorization="apikey rehearsal"):
    headers = {"Authorization": authorization}
    return requests.get(f"{server.url}/experimental{path}", headers=headers, timeout=10)


def test_it_listens_on_loopback_only(rehearse):
    server = rehearse(cls=lambda server: server)
    port = int(server.url.rsplit(":", 1)[1])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_the_client_sees_devices_and_plan(rehearse):
    rehearsal = rehearse(["manila", "ibm_lagos"], plan="open")
    service = rehearsal.service
    assert [backend.name for backend in service.backends()] == ["ibmq_manila", "ibm_lagos"]
    assert service.least_busy(min_num_qubits=6).name == "ibm_lagos"
    backend = rehearsal.backend
    assert backend.num_qubits == backend.target.num_qubits == 5
    assert backend.properties().backend_name == "ibmq_manila"
    assert backend.status().operational
    assert backend.status().pending_jobs == 0
    (instance,) = service.instances()
    assert (instance["plan"], instance["pricing_type"]) == ("open", "free")
    assert service.usage()["usage_remaining_seconds"] == 600


def test_unknown_devices(rehearse):
    from qiskit.providers.exceptions import QiskitBackendNotFoundError

    rehearsal = rehearse()
    with pytest.raises(QiskitBackendNotFoundError):
        rehearsal.service.backend("ibm_lagos")
    found = get(rehearsal.server, "/backends/ibm_lagos/status")
    assert found.status_code == 404
    assert found.json()["errors"][0]["code"] == 1007
    with pytest.raises(InputError, match=r"no device 'nowhere'; there are: .*manila"):
        RehearsalServer(["nowhere"])


def test_wrong_api_key(rehearse):
    from qiskit_ibm_runtime.accounts.exceptions import InvalidAccountError

    server = rehearse(cls=lambda server: server)
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": "wrong"}
    found = requests.post(f"{server.url}/identity/token", data=form, timeout=10)
    assert (found.status_code, found.json()["errorCode"]) == (400, "BXNIM0415E")
    server._token = "wrong"
    with pytest.raises(InvalidAccountError, match="valid API token"):
        connect(server)


def test_access_tokens_are_checked_and_expire(rehearse):
    rehearsal = rehearse(limits=Limits(token_seconds=1.5))
    assert get(rehearsal.server, "/backends", "Bearer made.up.token").status_code == 401
    assert get(rehearsal.server, "/backends", "").json()["errors"][0]["code"] == 1201
    issued = len([r for r in rehearsal.server.requests if r.path == "/identity/token"])
    token = rehearsal.server._gateway._api._tokens
    assert all(token.is_valid(header) for header in token._valid)
    for header in token._valid:
        token._valid[header] = 0.0  # as if their time was over
    assert rehearsal.service._active_api_client._session.auth.tm.expire_time
    rehearsal.service._active_api_client._session.auth.tm.expire_time = 0
    rehearsal.service.usage()
    assert len([r for r in rehearsal.server.requests if r.path == "/identity/token"]) > issued


def test_environment_variables_alone_redirect_a_program(rehearse, tmp_path):
    server = rehearse(cls=lambda server: server)  # sets the variables, which the child inherits
    program = (
        "from qiskit_ibm_runtime import QiskitRuntimeService\n"
        "print([backend.name for backend in QiskitRuntimeService().backends()])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "['ibmq_manila']", done.stderr
    assert server.requests


def test_unknown_endpoints_and_bodies(rehearse):
    server = rehearse(cls=lambda server: server)
    assert get(server, "/nothing").status_code == 404
    headers = {"Authorization": "apikey rehearsal"}
    url = f"{server.url}/experimental/jobs"
    assert requests.post(url, data=b"{", headers=headers, timeout=10).status_code == 400
    assert requests.post(url, data=b"[]", headers=headers, timeout=10).status_code == 400
    body = {"backend": "ibmq_manila", "program_id": "executor", "params": {}}
    found = requests.post(url, json=body, headers=headers, timeout=10)
    assert found.status_code == 400
    assert "cannot be read" in found.json()["errors"][0]["message"]
    body["program_id"] = "other"
    found = requests.post(url, json=body, headers=headers, timeout=10)
    assert "known: executor" in found.json()["errors"][0]["message"]
    assert server.jobs == []


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


def test_a_server_starts_once_and_stops_twice():
    with RehearsalServer() as server:
        assert "manila" in repr(server)
        with pytest.raises(InputError, match="once"):
            server.start()
    server.stop()
    assert len(device_names()) > 50
    with pytest.raises(InputError, match="executions"):
        Limits(executions=0)


def test_importing_it_is_cheap():
    program = (
        "import sys, qailab.rehearsal as r; r.device_names();"
        "print([n for n in ('qiskit', 'qiskit_aer', 'qiskit_ibm_runtime', 'matplotlib')"
        " if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr
