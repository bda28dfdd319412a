"""One session for all who share a state, whoever opens it, and whatever becomes of it."""

import json
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qailab.backends.ibm.faults import Fault, FaultKind, RequestError
from qailab.backends.ibm.sessions import Sessions
from qailab.backends.shared import LocalState
from qailab.journal import this_owner

REFUSED = "You are not authorized to run a session when using the open plan."


def refusal(text, status, kind=FaultKind.REFUSED):
    return RequestError(Fault(kind, text, status))


class Service:
    """Counts what is opened and closed."""

    def __init__(self, plan=("session", "batch"), seconds=0.0, failing_closes=0):
        self.plan, self.seconds = plan, seconds
        self.failing_closes = failing_closes
        self.opened, self.closed, self.ended = [], [], set()

    def open(self, mode):
        time.sleep(self.seconds)
        if mode not in self.plan:
            raise refusal(REFUSED, 400)
        self.opened.append(f"{mode}-{len(self.opened)}")
        return self.attach(self.opened[-1], mode)

    def attach(self, session_id, mode):
        return SimpleNamespace(session_id=session_id)

    def takes_jobs(self, session_id, mode):
        return session_id not in self.ended | set(self.closed)

    def close(self, session):
        if self.failing_closes:
            self.failing_closes -= 1
            raise refusal("maintenance", 503, FaultKind.LOST)
        self.closed.append(session.session_id)


def sessions_of(service, state, mode="session", given=None):
    return Sessions(mode, service, state, "session/ibm_fez/x", given)


def value_of(state):
    return json.loads(state.get("session/ibm_fez/x")[1])


def test_processes_that_ask_at_once_get_one_session():
    service, state = Service(seconds=0.05), LocalState()
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(sessions_of(service, state).current) for _ in range(8)]
    assert [future.result()[0] for future in asked] == ["session-0"] * 8
    assert service.opened == ["session-0"]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["use", "end", "close"])), max_size=12)
)
def test_there_is_never_more_than_one_open(course):
    service, state = Service(), LocalState()
    processes = [sessions_of(service, state) for _ in range(3)]
    for who, what in course:
        if what == "close":
            processes[who].close(1)
        else:
            session_id, _ = processes[who].current()
            assert session_id not in service.ended
            if what == "end":
                service.ended.add(session_id)
                assert processes[who].has_ended(session_id)
        assert len(set(service.opened) - set(service.closed) - service.ended) <= 1
    processes[0].close(1)
    assert set(service.opened) == set(service.closed) | service.ended


def opening(owner, since):
    value = {"mode": None, "opening": {"owner": owner, "time": since}, "sessions": []}
    state = LocalState()
    assert state.put("session/ibm_fez/x", 0, json.dumps(value).encode())
    return state


def test_who_dies_while_opening_holds_nobody_up():
    for state in (opening("somebody", time.time() - 200), opening(this_owner()[:-1], time.time())):
        assert sessions_of(Service(), state).current()[0] == "session-0"
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        sessions_of(Service(), opening(this_owner(), time.time())).current(stop)


def test_who_was_given_up_while_opening_closes_what_it_opened():
    state, service = LocalState(), Service()
    late = sessions_of(service, state)
    opened = service.open

    def slowly(mode):
        service.open = opened
        value = value_of(state) | {"opening": None}  # nobody waits for it any more
        assert state.put("session/ibm_fez/x", 1, json.dumps(value).encode())
        assert sessions_of(service, state).current()[0] == "session-0"
        return opened(mode)

    service.open = slowly
    assert late.current()[0] == "session-0"
    assert service.closed == ["session-1"]


@pytest.mark.parametrize(("plan", "mode"), [(("batch",), "batch"), ((), "job")])
def test_a_plan_without_sessions_falls_back_and_says_so(plan, mode, caplog):
    service, state = Service(plan), LocalState()
    for _ in range(2):  # the second process hears of it from the first
        caplog.clear()
        sessions = sessions_of(service, state)
        session_id, _ = sessions.current()
        assert sessions.mode == mode
        assert (session_id is None) == (mode == "job")
        assert "this plan has no mode 'session'" in caplog.text
        assert REFUSED in caplog.text
    modes = [session["mode"] for session in value_of(state)["sessions"]]
    assert modes == [mode] * (mode != "job")


def test_an_opening_that_fails_is_left_to_the_next():
    service, state = Service(), LocalState()
    opened, service.open = service.open, lambda mode: (_ for _ in ()).throw(refusal("no", 503))
    with pytest.raises(RequestError):
        sessions_of(service, state).current()
    service.open = opened
    assert sessions_of(service, state).current()[0] == "session-0"


def test_a_given_session_is_used_and_not_closed():
    service, state = Service(), LocalState()
    sessions = sessions_of(service, state, given="theirs")
    assert sessions.current()[0] == "theirs"
    sessions.close(1)
    assert service.opened == service.closed == []
    service.ended.add("theirs")
    assert sessions.has_ended("theirs")
    assert sessions.current()[0] == "session-0"
    sessions.close(1)
    assert service.closed == ["session-0"]


def test_a_session_is_noted_as_closed_once_it_is():
    service, state = Service(failing_closes=2), LocalState()
    sessions = sessions_of(service, state)
    sessions.current()
    assert [one["state"] for one in value_of(state)["sessions"]] == ["open"]
    sessions.close(5)
    assert service.closed == ["session-0"]
    assert [one["state"] for one in value_of(state)["sessions"]] == ["closed"]


def test_a_session_that_cannot_be_closed_is_named_and_stays_open(caplog):
    service, state = Service(failing_closes=99), LocalState()
    sessions = sessions_of(service, state)
    sessions.current()
    sessions.close(0.3)
    assert "session-0 could not be closed, and may cost until its max_time" in caplog.text
    assert "maintenance" in caplog.text
    assert [one["state"] for one in value_of(state)["sessions"]] == ["open"]


def test_a_session_that_is_over_already_needs_no_closing(caplog):
    service, state = Service(failing_closes=99), LocalState()
    sessions = sessions_of(service, state)
    service.ended.add(sessions.current()[0])
    sessions.close(30)
    assert caplog.text == ""
    assert [one["state"] for one in value_of(state)["sessions"]] == ["closed"]
