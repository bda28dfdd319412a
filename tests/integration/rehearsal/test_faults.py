"""Every kind of fault, as the real client meets it."""

import time

import pytest

from qailab.rehearsal.faults import JOB_KINDS
from tests.support.processes import wait_until
from tests.support.servers import on


def submit_error(rehearsal, **options):
    """The error of a submission, and the HTTP status behind it."""
    from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError, IBMRuntimeError

    with pytest.raises((IBMRuntimeError, IBMNotAuthorizedError)) as caught:
        rehearsal.run(**options)
    behind = caught.value.__context__
    return caught.value, getattr(behind, "status_code", None)


def kinds(rehearsal):
    return [fault.kind for fault in rehearsal.server.faults_injected]


@pytest.mark.parametrize("status", [400, 401, 429])
def test_statuses_the_client_does_not_retry(rehearse, status):
    from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError

    rehearsal = rehearse(faults=[on("http", status=status, after=1)])
    rehearsal.result(rehearsal.run())
    error, behind = submit_error(rehearsal)
    assert isinstance(error, IBMNotAuthorizedError) if status == 401 else behind == status
    rehearsal.result(rehearsal.run([[1, 1]]))
    assert len(rehearsal.server.jobs) == 2
    assert kinds(rehearsal) == [f"http {status}"]
    (hit,) = [request for request in rehearsal.server.requests if request.fault]
    assert (hit.method, hit.path, hit.status) == ("POST", "/jobs", status)


def test_processed_then_500_makes_the_client_submit_twice(rehearse):
    rehearsal = rehearse(faults=[on("processed-then-500")])
    rehearsal.result(rehearsal.run())
    assert len(rehearsal.server.jobs) == 2
    assert len(rehearsal.server.duplicates()) == 1
    rehearsal.result(rehearsal.run())  # equal, but not sent again
    assert len(rehearsal.server.duplicates()) == 3
    first, second, _ = rehearsal.server.jobs
    assert (first.answered, second.answered) == (False, True)
    assert rehearsal.server.report().as_dict()["duplicates"] == [[first.id, second.id]]


def test_answer_lost_and_drop(rehearse):
    rehearsal = rehearse(faults=[on("answer-lost"), on("drop", after=1)])
    error, _ = submit_error(rehearsal, tags=["lost"])
    assert "Connection aborted" in str(error)
    (job,) = rehearsal.service.jobs(job_tags=["lost"], limit=None)
    rehearsal.result(job)
    submit_error(rehearsal, tags=["dropped"])
    assert rehearsal.service.jobs(job_tags=["dropped"], limit=None) == []
    lost, dropped = rehearsal.server.faults_injected
    assert (lost.job, dropped.job) == (job.job_id(), None)
    assert [request.status for request in rehearsal.server.requests if request.fault] == [0, 0]
    assert rehearsal.server.report().survived(lost)
    assert not rehearsal.server.report().survived(dropped)


def test_hangs(rehearse):
    faults = [
        on("hang", seconds=0.4, processed=True),
        on("hang", seconds=0.4, processed=False, after=1),
    ]
    rehearsal = rehearse(faults=faults)
    for number in range(2):
        began = time.monotonic()
        rehearsal.result(rehearsal.run([[0, number]]))
        assert time.monotonic() - began >= 0.4
    assert len(rehearsal.server.jobs) == 2
    assert [r.status for r in rehearsal.server.requests if r.fault] == [200, 504]


def test_jobs_that_end_badly(rehearse):
    from qiskit_ibm_runtime.exceptions import (
        RuntimeInvalidStateError,
        RuntimeJobFailureError,
        RuntimeJobMaxTimeoutError,
    )

    rehearsal = rehearse(faults=[on(kind) for kind in JOB_KINDS[:3]])
    expected = [RuntimeJobFailureError, RuntimeInvalidStateError, RuntimeJobMaxTimeoutError]
    for kind in expected:
        with pytest.raises(kind):
            rehearsal.result(rehearsal.run())
    rehearsal.result(rehearsal.run())
    jobs = rehearsal.server.jobs
    assert [job.state for job in jobs] == [
        "Failed",
        "Cancelled",
        "Cancelled - Ran too long",
        "Completed",
    ]
    assert rehearsal.server.duplicates() == []
    faults = rehearsal.server.faults_injected
    assert [fault.job for fault in faults] == [job.id for job in jobs[:3]]
    assert all(rehearsal.server.report().survived(fault) for fault in faults)


def test_a_stuck_job_runs_until_it_is_cancelled(rehearse):
    from qiskit_ibm_runtime.exceptions import RuntimeJobTimeoutError

    rehearsal = rehearse(faults=[on("job-stuck")])
    stuck = rehearsal.run()
    with pytest.raises(RuntimeJobTimeoutError):
        stuck.result(timeout=0.3)
    rehearsal.result(rehearsal.run([[1, 1]]))  # the device goes on
    assert stuck.status() == "RUNNING"
    stuck.cancel()
    assert rehearsal.server.jobs[0].state == "Cancelled"


def test_sessions_that_end(rehearse):
    from qiskit_ibm_runtime import Session

    rehearsal = rehearse(faults=[on("session-expired", after=1), on("session-closed", after=2)])
    for _ in range(2):
        session = Session(rehearsal.backend, max_time=600)
        if len(rehearsal.server.sessions) == 1:
            rehearsal.result(rehearsal.run(mode=session))
        error, status = submit_error(rehearsal, mode=session)
        assert status == 400
        assert "closed" in str(error)
        assert session.status() == "Closed"
    assert [record.reason for record in rehearsal.server.sessions] == [
        "max_time reached",
        "closed by the service",
    ]


def test_restart(rehearse):
    rehearsal = rehearse(faults=[on("restart", "GET /jobs/ID", seconds=0.3)], queue_seconds=0.2)
    job = rehearsal.run()
    rehearsal.result(job)  # the client reconnects
    assert kinds(rehearsal) == ["restart"]
    url = rehearsal.server.url
    rehearsal.server.restart(0.2)
    assert rehearsal.server.url == url

    def is_back():
        try:
            return rehearsal.service.job(job.job_id()).status() == "DONE"
        except Exception:
            return False

    wait_until(is_back)
    rehearsal.server.restart(60)  # and stopping meanwhile does not wait
