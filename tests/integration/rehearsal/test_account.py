"""The account, the devices and the HTTP side of the server."""

import socket
import time

import pytest
import requests

from qailab.rehearsal import Limits

KEY = "apikey rehearsal"


def get(server, path, authorization=KEY):
    headers = {"Authorization": authorization}
    return requests.get(f"{server.url}/experimental{path}", headers=headers, timeout=10)


def raw(server, text):
    """What the server answers to bytes."""
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(text.encode())
        return connection.makefile("rb").read().decode()


def test_the_client_sees_devices_and_plan(rehearse):
    rehearsal = rehearse("manila", "ibm_lagos", plan="open")
    service = rehearsal.service
    assert [backend.name for backend in service.backends()] == ["ibmq_manila", "ibm_lagos"]
    assert service.least_busy(min_num_qubits=6).name == "ibm_lagos"
    backend = rehearsal.backend
    assert backend.num_qubits == backend.target.num_qubits == 5
    assert backend.configuration().n_qubits == 5
    assert backend.properties().backend_name == "ibmq_manila"
    assert backend.status().operational
    assert backend.status().pending_jobs == 0
    (instance,) = service.instances()
    assert (instance["plan"], instance["pricing_type"]) == ("open", "free")
    assert service.usage()["usage_remaining_seconds"] == 600
    assert rehearsal.server.report().price_per_second == 0


def test_unknown_devices(rehearse):
    from qiskit.providers.exceptions import QiskitBackendNotFoundError

    rehearsal = rehearse()
    with pytest.raises(QiskitBackendNotFoundError):
        rehearsal.service.backend("ibm_lagos")
    found = get(rehearsal.server, "/backends/ibm_lagos/status")
    assert found.status_code == 404
    assert found.json()["errors"][0]["code"] == 1007


def test_a_wrong_api_key(start_server, monkeypatch):
    from qiskit_ibm_runtime import QiskitRuntimeService
    from qiskit_ibm_runtime.accounts.exceptions import InvalidAccountError

    server = start_server()
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": "wrong"}
    found = requests.post(f"{server.url}/identity/token", data=form, timeout=10)
    assert (found.status_code, found.json()["errorCode"]) == (400, "BXNIM0415E")
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "wrong")
    with pytest.raises(InvalidAccountError, match="valid API token"):
        QiskitRuntimeService()


def test_access_tokens_are_checked_and_expire(start_server):
    server = start_server(limits=Limits(token_seconds=1.5))
    assert get(server, "/backends", "Bearer made.up.token").status_code == 401
    assert get(server, "/backends", "").json()["errors"][0]["code"] == 1201
    form = {"apikey": "rehearsal"}
    token = requests.post(f"{server.url}/identity/token", data=form, timeout=10).json()
    bearer = f"Bearer {token['access_token']}"
    assert get(server, "/backends", bearer).status_code == 200
    time.sleep(1.6)
    assert get(server, "/backends", bearer).status_code == 401


MALFORMED = (
    ("POST", "/jobs", b"{"),
    ("POST", "/jobs", b"[]"),
    ("POST", "/jobs", b'{"backend": []}'),
    ("POST", "/jobs", b'{"backend": "ibmq_manila", "program_id": "other"}'),
    ("POST", "/jobs", b'{"backend": "ibmq_manila", "program_id": "executor", "params": {}}'),
    ("PUT", "/jobs/ID/tags", b'{"tags": 3}'),
    ("POST", "/sessions", b'{"backend": "ibmq_manila", "max_ttl": "1h"}'),
    ("POST", "/sessions", b'{"backend": "ibmq_manila", "max_ttl": 1000000}'),
    ("GET", "/jobs?limit=many", b""),
    ("GET", "/jobs?created_after=yesterday", b""),
)


def test_malformed_requests_are_400(rehearse):
    rehearsal = rehearse()
    job = rehearsal.run().job_id()
    for method, path, body in MALFORMED:
        url = f"{rehearsal.server.url}/experimental{path.replace('ID', job)}"
        headers = {"Authorization": KEY}
        found = requests.request(method, url, data=body, headers=headers, timeout=10)
        assert found.status_code == 400, (path, body, found.text)
        assert found.json()["errors"][0]["message"]
    assert (len(rehearsal.server.jobs), rehearsal.server.sessions) == (1, [])


def test_bodies_are_looked_at_last_and_are_limited(start_server, monkeypatch):
    monkeypatch.setattr("qailab.rehearsal.listener.READ_SECONDS", 0.2)
    monkeypatch.setattr("qailab.rehearsal.listener.MAX_BODY", 1000)
    server = start_server()
    with pytest.raises(ConnectionRefusedError):  # it listens on loopback only
        socket.create_connection(("127.0.0.2", int(server.url.rsplit(":", 1)[1])), timeout=5)
    post = "POST /experimental/jobs HTTP/1.1\r\nHost: here\r\n"
    access = f"Authorization: {KEY}\r\n"
    assert " 413 " in raw(server, f"{post}{access}Content-Length: 1001\r\n\r\n")
    assert " 400 " in raw(server, f"{post}{access}Content-Length: -1\r\n\r\n")
    assert " 400 " in raw(server, f"{post}{access}Transfer-Encoding: chunked\r\n\r\n")
    assert " 408 " in raw(server, f"{post}{access}Content-Length: 10\r\n\r\nshort")
    assert " 401 " in raw(server, f"{post}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}")
    assert get(server, "/nothing").status_code == 404
    # A refused body is not taken for the next request of its connection.
    with requests.Session() as session:
        url = f"{server.url}/experimental/jobs"
        assert session.post(url, data=b"GET / HTTP/1.1\r\n\r\n", timeout=10).status_code == 401
        headers = {"Authorization": KEY}
        assert session.get(url, headers=headers, timeout=10).json()["jobs"] == []
    assert server.jobs == []
