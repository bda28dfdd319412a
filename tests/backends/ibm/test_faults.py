"""What the client's errors mean, in whatever words they come."""

from types import SimpleNamespace

import pytest

from qailab.backends import IBMTimeouts
from qailab.backends.ibm.devices import JobStatus
from qailab.backends.ibm.faults import FaultKind, RequestError, classify
from qailab.backends.ibm.service import ServiceDevice, meaning_of
from qailab.backends.ibm.transport import call_within


class ApiError(Exception):
    """As IBM's client raises them: the status is on the error it came from."""

    def __init__(self, text, status):
        super().__init__(text)
        self.status_code = status


def wrapped(text, status):
    try:
        try:
            raise ApiError(text, status)
        except ApiError:
            raise RuntimeError(f"Failed to run program: {text}") from None
    except RuntimeError as error:
        return classify(error)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "REFUSED"), (401, "REFUSED"), (404, "REFUSED"), (409, "REFUSED"), (429, "BUSY"),
     (408, "BUSY"), (500, "LOST"), (502, "LOST"), (503, "LOST"), (520, "LOST")],
)  # fmt: skip
def test_the_status_decides(status, kind):
    fault = wrapped("something", status)
    assert (fault.kind, fault.status) == (FaultKind[kind], status)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("state"), "LOST"),  # an answer that is cut off
        (TypeError("'NoneType' object is not subscriptable"), "LOST"),
        (TimeoutError("read timed out"), "LOST"),
        (RuntimeError("('Connection aborted.', RemoteDisconnected())"), "LOST"),
        (RuntimeError("too many 500 error responses"), "LOST"),
        (ValueError("The number of values is wrong"), "REFUSED"),
    ],
)
def test_errors_without_a_status(error, kind):
    assert classify(error).kind is FaultKind[kind]


def test_an_answer_that_cannot_be_read_is_named():
    assert "cannot be read (KeyError: 'state')" in classify(KeyError("state")).text


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Session has expired", 400),
        ("Workload abc is no longer accepting submissions.", 400),
        ("Invalid workload", 404),
        ("gone", 410),
        ("ended", 422),
    ],
)
def test_a_refusal_in_any_words_is_a_reason_to_look_at_the_session(text, status):
    assert wrapped(text, status).is_session_gone
    assert not wrapped(text, 401).is_session_gone
    assert not wrapped(text, 500).is_session_gone


@pytest.mark.parametrize(
    ("text", "status", "means"),
    [
        ("You are not authorized to run a session when using the open plan.", 400, True),
        ("Your instance does not support sessions: not supported", 400, True),
        ("Batch mode is not available", 403, True),
        ("Session is closed", 400, False),
        ("You are not authorized", 403, False),
    ],
)
def test_a_plan_without_sessions(text, status, means):
    assert wrapped(text, status).is_session_refused is means


@pytest.mark.parametrize(
    ("text", "status", "means"),
    [
        ('{"code":3458,"message":"x"}', 400, True),
        ("You have reached the limit of 3 pending jobs", 400, True),
        ("Job limit reached for your plan. Wait for queued jobs to finish.", 400, True),
        ("The job is too large", 400, False),
        ("pending jobs", 500, False),
    ],
)
def test_the_limit_of_pending_jobs(text, status, means):
    assert wrapped(text, status).is_pending_limit is means


@pytest.mark.parametrize(
    ("status", "means"),
    [("DONE", "DONE"), ("COMPLETED", "DONE"), ("CANCELLED - RAN TOO LONG", "TOO_LONG"),
     ("CANCELLED", "CANCELLED"), ("FAILED", "FAILED"), ("ERROR", "FAILED"), ("QUEUED", "WAITING"),
     ("SOMETHING", "RUNNING")],
)  # fmt: skip
def test_states_that_the_client_passes_on(status, means):
    assert meaning_of(status) is JobStatus[means]


def test_nothing_of_a_clients_error_is_left_that_could_have_the_key(monkeypatch):
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "s3cret")

    def call():
        try:
            raise ApiError("no s3cret here", 503)
        except ApiError as error:
            raise RuntimeError("s3cret is not valid") from error

    with pytest.raises(RequestError) as caught:
        call_within(10, "asking", call)
    assert str(caught.value) == "*** is not valid (HTTP 503)"
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "s3cret" not in repr(caught.value.fault)


def test_a_listing_that_failed_is_no_proof_that_there_is_no_backend():
    class QiskitBackendNotFoundError(Exception):
        pass

    def call():
        raise QiskitBackendNotFoundError("No backend matches")

    assert classify(QiskitBackendNotFoundError()).kind is FaultKind.LOST
    with pytest.raises(RequestError) as caught:
        call_within(10, "asking", call)  # no request failed: there is none
    assert caught.value.fault.kind is FaultKind.REFUSED


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), "soon"])
def test_usage_that_is_no_time_is_unknown_and_loses_no_result(seconds, caplog):
    job = SimpleNamespace(metrics=lambda: {"usage": {"quantum_seconds": seconds}})
    service = SimpleNamespace(_api_clients={}, job=lambda _: job)
    backend = SimpleNamespace(name="ibm_fez", configuration=SimpleNamespace)
    assert ServiceDevice(service, backend, {}, IBMTimeouts()).usage("job-1") is None
    assert "job-1" in caplog.text
