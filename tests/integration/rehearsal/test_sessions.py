import time

import pytest
import requests

from qailab.rehearsal import Limits
from tests.support.processes import wait_until
from tests.support.servers import connect, on


@pytest.fixture
def runtime():
    import qiskit_ibm_runtime

    return qiskit_ibm_runtime


def test_expiry_counts_from_the_first_job(rehearse, runtime):
    from qiskit_ibm_runtime.exceptions import IBMRuntimeError

    rehearsal = rehearse()
    session = runtime.Session(rehearsal.backend, max_time=1)
    assert session.status() == "Pending"
    time.sleep(1.1)
    rehearsal.result(rehearsal.run(mode=session))
    assert session.status() == "In progress, accepting new jobs"
    wait_until(lambda: session.status() == "Closed")
    with pytest.raises(IBMRuntimeError, match=r"400 .*closed \(max_time reached\)"):
        rehearsal.run(mode=session)
    (record,) = rehearsal.server.sessions
    assert (record.state, record.reason, record.max_time) == ("closed", "max_time reached", 1)
    assert record.closed > record.opened + 2
    assert 0.9 < session.usage() < record.closed - record.opened - 1


def test_queued_jobs_fail_when_a_session_expires(rehearse, runtime):
    from qiskit_ibm_runtime.exceptions import RuntimeJobFailureError

    rehearsal = rehearse(faults=[on("session-expired", "GET /jobs/ID")], queue_seconds=60)
    session = runtime.Session(rehearsal.backend, max_time=60)
    job = rehearsal.run(mode=session)
    with pytest.raises(RuntimeJobFailureError, match=r"has ended: max_time"):
        rehearsal.result(job)
    assert session.status() == "Closed"


def test_idle_sessions(rehearse, runtime):
    limits = Limits(interactive_seconds=0.2, batch_interactive_seconds=0.1, idle_seconds=0.8)
    rehearsal = rehearse(limits=limits, queue_seconds=0.3)
    session = runtime.Session(rehearsal.backend, max_time=60)
    rehearsal.result(rehearsal.run(mode=session))
    wait_until(lambda: session.details()["state"] == "inactive")
    used = session.usage()
    rehearsal.result(rehearsal.run([[1, 1]], mode=session))
    again = rehearsal.server.jobs[-1]
    assert again.started - again.created >= 0.29  # inactive: it waits in the queue again
    wait_until(lambda: session.details()["state"] == "closed")
    assert rehearsal.server.sessions[0].reason == "not used for too long"
    record = rehearsal.server.sessions[0]
    assert used < session.usage() < record.closed - record.opened - 0.6
    batch = runtime.Batch(rehearsal.backend)
    assert batch.details()["interactive_timeout"] == 0


def test_close_lets_jobs_finish_and_cancel_drops_them(rehearse, runtime):
    from qiskit_ibm_runtime.exceptions import IBMRuntimeError

    rehearsal = rehearse(queue_seconds=0.3)
    session = runtime.Session(rehearsal.backend, max_time=60)
    job = rehearsal.run(mode=session)
    same = runtime.Session.from_id(session.session_id, connect(rehearsal.server))
    session.close()
    assert same.details()["accepting_jobs"] is False
    with pytest.raises(IBMRuntimeError, match=r"Failed to run program: .*400"):
        rehearsal.run(mode=same)
    rehearsal.result(job)
    assert session.status() == "Closed"

    batch = runtime.Batch(rehearsal.backend, max_time=60)
    job = rehearsal.run([[1, 1]], mode=batch)
    batch.cancel()
    assert job.status() == "CANCELLED"
    assert batch.status() == "Closed"
    assert [record.mode for record in rehearsal.server.sessions] == ["session", "batch"]


def test_session_of_another_backend_and_unknown_ones(rehearse, runtime):
    from qiskit_ibm_runtime.exceptions import IBMInputValueError

    rehearsal = rehearse("manila", "lagos")
    url, headers = (
        f"{rehearsal.server.url}/experimental/jobs",
        {"Authorization": "apikey rehearsal"},
    )
    other = runtime.Session(rehearsal.service.backend("ibm_lagos"), max_time=60)
    job = requests.get(f"{url}/{rehearsal.run().job_id()}", headers=headers, timeout=10).json()
    sent = {"backend": "ibmq_manila", "program_id": "executor", "params": job["params"]}
    for session_id, status, text in (
        (other.session_id, 400, "is for backend ibm_lagos, not ibmq_manila"),
        ("unknown", 404, "not found"),
    ):
        body = {**sent, "session_id": session_id}
        found = requests.post(url, json=body, headers=headers, timeout=10)
        assert (found.status_code, text in found.text) == (status, True)
    assert requests.post(url, json=sent, headers=headers, timeout=10).status_code == 200
    with pytest.raises(IBMInputValueError):
        runtime.Session.from_id("unknown", rehearsal.service)
    assert len(rehearsal.server.jobs) == 2
