"""One session for all who share a log, whoever opens it, and whatever becomes of it."""

import json
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qailab.backends.ibm import sessions as module
from qailab.backends.ibm.sessions import Sessions
from qailab.backends.shared_log import LocalLog
from qailab.journal.report import read_report, tables
from tests.backends.ibm.conftest import device, gradient_rows

REFUSED = "You are not authorized to run a session when using the open plan."


class Service:
    """Counts what is opened and closed."""

    def __init__(self, plan=("session", "batch"), seconds=0.0):
        self.plan = plan
        self.seconds = seconds
        self.opened, self.closed = [], []

    def open(self, mode):
        time.sleep(self.seconds)
        if mode not in self.plan:
            error = RuntimeError(REFUSED)
            error.status_code = 400
            raise error
        self.opened.append(f"{mode}-{len(self.opened)}")
        return self.attach(self.opened[-1], mode)

    def attach(self, session_id, mode):
        return SimpleNamespace(session_id=session_id, close=lambda: self.closed.append(session_id))


def test_processes_that_ask_at_once_get_one_session():
    service, log = Service(seconds=0.1), LocalLog()
    found = []

    def ask():
        found.append(Sessions("session", service, log).current()[0])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == ["session-0"] * 8
    assert service.opened == ["session-0"]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["use", "gone", "close"])), max_size=12)
)
def test_there_is_never_more_than_one_open(course):
    service, log = Service(), LocalLog()
    processes = [Sessions("session", service, log) for _ in range(3)]
    gone = set()
    for who, what in course:
        if what == "close":
            processes[who].close()
        else:
            session_id, _ = processes[who].current()
            assert session_id not in gone
            if what == "gone":
                processes[who].replace(session_id, "it expired")
                gone.add(session_id)
        assert len(set(service.opened) - set(service.closed) - gone) <= 1
    processes[0].close()
    assert set(service.opened) == set(service.closed) | gone


def test_who_dies_while_opening_holds_nobody_up(monkeypatch):
    log = LocalLog()
    assert log.append(0, json.dumps({"event": "opening", "time": time.time() - 200}).encode())
    assert Sessions("session", Service(), log).current()[0] == "session-0"
    stop = threading.Event()
    stop.set()
    assert log.append(3, json.dumps({"event": "opening", "time": time.time()}).encode())
    with pytest.raises(module.CancelledError):
        Sessions("session", Service(), log).current(stop)


@pytest.mark.parametrize(("plan", "mode"), [(("batch",), "batch"), ((), "job")])
def test_a_plan_without_sessions_falls_back_and_says_so(plan, mode, caplog):
    service, log = Service(plan), LocalLog()
    for _ in range(2):  # the second process hears of it from the log
        sessions = Sessions("session", service, log)
        session_id, _ = sessions.current()
        assert sessions.mode == mode
        assert (session_id is None) == (mode == "job")
    assert "this plan has no mode 'session'" in caplog.text
    assert REFUSED in caplog.text
    modes = [event["mode"] for event in map(json.loads, log.read(0)) if event["event"] == "open"]
    assert modes == [mode] * (mode != "job")


def test_a_given_session_is_used_and_not_closed():
    service, log = Service(), LocalLog()
    sessions = Sessions("session", service, log, "theirs")
    assert sessions.current()[0] == "theirs"
    sessions.close()
    assert service.opened == service.closed == []
    sessions.replace("theirs", "it expired")
    assert sessions.current()[0] == "session-0"
    sessions.close()
    assert service.closed == ["session-0"]


def test_the_journal_tells_of_sessions_and_names_those_left_open(rehearse, tmp_path):
    server = rehearse()
    path = tmp_path / "journal.sqlite"
    canonical, rows = gradient_rows(samples=1)
    backend = device(mode="batch", journal=path)
    backend.evaluate(canonical, rows)
    left = read_report(path, price_per_second=1.0)  # as if it were killed now
    session = server.sessions[0].id
    assert [(job["mode"], job["session"]) for job in left.jobs] == [("batch", session)]
    told = {"session": session, "backend": server.jobs[0].backend, "mode": "batch"}
    assert [left.sessions[0] | told | {"state": "open", "given": False}] == left.sessions
    assert f"1 session is open: batch {session} on" in tables(left, last=None, jobs=True)

    theirs = device(mode="batch", journal=path, session_id=session)
    theirs.evaluate(canonical, gradient_rows(samples=1, seed=2)[1])
    theirs.close()
    assert read_report(path, price_per_second=1.0).sessions[0]["state"] == "open"
    backend.close()
    report = read_report(path, price_per_second=1.0)
    assert [job["mode"] for job in report.jobs] == ["batch", "batch"]
    assert [session["state"] for session in report.sessions] == ["closed"]
    assert report.sessions[0]["updated"] > report.sessions[0]["created"]
    assert "open" not in tables(report, last=None, jobs=True)
