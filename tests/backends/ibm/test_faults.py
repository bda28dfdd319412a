"""What the client's errors mean, in whatever words they come."""

import pytest

from qailab.backends.ibm.faults import classify
from qailab.backends.ibm.service import _state_of


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
    [(400, "refused"), (401, "refused"), (404, "refused"), (409, "refused"), (429, "busy"),
     (408, "busy"), (500, "lost"), (502, "lost"), (503, "lost"), (520, "lost")],
)  # fmt: skip
def test_the_status_decides(status, kind):
    fault = wrapped("something", status)
    assert (fault.kind, fault.status) == (kind, status)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("state"), "lost"),  # an answer that is cut off
        (TypeError("'NoneType' object is not subscriptable"), "lost"),
        (TimeoutError("read timed out"), "lost"),
        (RuntimeError("('Connection aborted.', RemoteDisconnected())"), "lost"),
        (RuntimeError("too many 500 error responses"), "lost"),
        (ValueError("The number of values is wrong"), "refused"),
    ],
)
def test_errors_without_a_status(error, kind):
    assert classify(error).kind == kind


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
    ("status", "state"),
    [("DONE", "done"), ("COMPLETED", "done"), ("CANCELLED - RAN TOO LONG", "cancelled"),
     ("FAILED", "failed"), ("ERROR", "failed"), ("QUEUED", "waiting"), ("SOMETHING", "running")],
)  # fmt: skip
def test_states_that_the_client_passes_on(status, state):
    assert _state_of(status) == state
