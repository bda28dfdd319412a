import json
import re
import time

import pytest

from qailab.journal import Cause, Journal, State, __main__
from qailab.journal.report import read_report
from tests.support.journal import finish, reserve, submit, work


def note_session(journal, session="s-1", *, backend="ibm_fez", settings="a", **more):
    """Note what `qailab.backends.ibm.sessions` does of a session."""
    name = f"session/{backend}/{settings}"
    version, content = journal.get(name)
    value = json.loads(content or b'{"mode": null, "opening": null, "sessions": []}')
    known = {"session": session, "mode": "batch", "state": "open", "given": False}
    known |= {"created": 1.7e9, "updated": 1.7e9, **more}
    value["sessions"] = [one for one in value["sessions"] if one["session"] != session] + [known]
    assert journal.put(name, version, json.dumps(value).encode())


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "jobs.db"
    with Journal(path) as journal:
        journal.register("c1", 6, 50)
        note_session(journal)
        (forward,) = reserve(journal, work(0, 4, purpose="forward"))
        finish(journal, forward, job_id="d1", usage_seconds=2.0)
        first, second = reserve(journal, work(0, 10), most_rows=5, backend="ibm_torino")
        submit(journal, first, "d2", backend="ibm_torino")
        reason = "error\n1517: \x1b[31m" + "too long " * 20
        journal.ended(first.id, State.FAILED, Cause.DEVICE, reason, 0.5)
        journal.ended(second.id, State.WITHDRAWN, Cause.UNSENT, "not at the server")
        (third,) = reserve(journal, work(0, 6, step=1))
        submit(journal, third, "d3", session="s-9")
        yield path


def run(capsys, *arguments):
    code = __main__.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


def test_the_table_while_a_training_uses_the_file(path, capsys):
    code, out = run(capsys, path)
    assert code == 0
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1.7e9))
    lines = [" ".join(line.split()) for line in out.splitlines() if line]
    assert lines[0] == "time step pass rows shots backend mode/session job id state QPU s reason"
    cells = [line.split(" ", 2)[2] for line in lines[2:6]]
    assert cells[0] == "0 forward 0-3 100 ibm_fez batch s-1 d1 done 2.00"
    assert cells[1].startswith("0 backward 0-4 100 ibm_torino job d2 failed 0.50 error 1517: ")
    assert cells[1].endswith("...")
    assert "\x1b" not in out
    assert cells[2] == "0 backward 5-9 100 ibm_torino job - withdrawn 0.00 not at the server"
    assert cells[3] == "1 backward 0-5 100 ibm_fez session s-9 d3 submitted -"
    assert lines[6] == "step jobs rows executions QPU s cost ($)"
    assert lines[8] == "0 2 9 900 2.50 4.00"
    assert lines[9] == "1 1 6 600 0.00 0.00"
    assert (
        "3 jobs were sent: 15 rows, 1,500 executions, 2.50 QPU seconds, 4.00 $ (1.6 $ a second); "
        "1 done, 1 failed, 1 submitted, 1 withdrawn\n"
        "QPU seconds of 1 jobs are not known yet\n"
        f"1 session is open: batch s-1 on ibm_fez since {since} (unless max_time has passed)\n"
    ) in out


def test_less_of_it(path, capsys):
    _, out = run(capsys, path, "--steps")
    assert "ibm_torino" not in out
    assert "4.00 $ (1.6 $ a second)" in out


def test_what_was_rehearsed_costs_nothing(path, capsys):
    with Journal(path) as journal:
        (entry,) = reserve(journal, work(6, 9, step=1))
        finish(journal, entry, job_id="rehearsal-1", usage_seconds=100.0)
    report = read_report(path)
    assert [job["rehearsed"] for job in report.jobs] == [False] * 4 + [True]
    assert (report.totals["qpu_seconds"], report.totals["cost"]) == (102.5, 4.0)
    _, out = run(capsys, path)
    assert "4.00 $ (1.6 $ a second), 1 jobs rehearsed: nothing was paid for them; " in out


def test_json_is_for_programs(path, capsys):
    before = path.read_bytes()
    report = json.loads(run(capsys, path, "--json")[1])
    assert [job["job_id"] for job in report["jobs"]] == ["d1", "d2", None, "d3"]
    first = {"step": 0, "pass": "forward", "start": 0, "stop": 4, "shots": 100, "mode": "batch",
             "backend": "ibm_fez", "session": "s-1", "rehearsed": False, "state": "done",
             "qpu_seconds": 2.0, "circuit": "c1", "seed": 7}  # fmt: skip
    assert report["jobs"][0] | first == report["jobs"][0]
    sums = {"jobs": 1, "rows": 6, "executions": 600, "usage_unknown": 1, "cost": 0.0}
    assert report["steps"][1] | sums == report["steps"][1]
    sums = {"jobs": 3, "rows": 15, "executions": 1500, "qpu_seconds": 2.5, "cost": 4.0,
            "states": {"done": 1, "failed": 1, "submitted": 1, "withdrawn": 1}}  # fmt: skip
    assert report["totals"] | sums == report["totals"]
    for record in (report, report["jobs"][0], report["totals"], report["sessions"][0]):
        assert all(f'"{key}"' in __main__.__doc__ for key in record)
    assert json.loads(run(capsys, path, "--json", "--steps")[1])["jobs"] == []
    assert path.read_bytes() == before


def test_a_session_is_open_until_it_is_closed_by_whoever_opened_it(path, capsys):
    with Journal(path) as journal:
        assert journal.put("budget", 0, b"no JSON")
        note_session(journal, state="closed", updated=1.7e9 + 5)
        note_session(journal, "s-2", created=1.7e9 + 7, mode=None)
        note_session(journal, "s-3", created=1.7e9 + 3, mode="session", backend="ibm_torino")
        note_session(journal, "s-4", created=1.7e9 + 9, settings="given s-4", given=True)
        # Closed for one, it is for all.
        note_session(journal, settings="given s-1", given=True, created=1.7e9)
    report = read_report(path)
    told = [(one["session"], one["state"], one["given"]) for one in report.sessions]
    assert told == [
        ("s-1", "closed", False), ("s-3", "open", False), ("s-2", "open", False),
        ("s-4", "open", True),
    ]  # fmt: skip
    _, out = run(capsys, path)
    assert "\n2 sessions are open: session s-3 on ibm_torino since" in out
    assert ", session s-2 on ibm_fez since" in out


def test_an_entry_is_given_up(path, capsys):
    code, out = run(capsys, path, "--give-up", "4")
    assert (code, "entry 4 (step 1, backward, rows 0 .. 5, failed)" in out) == (0, True)
    with Journal(path) as journal:
        assert reserve(journal, work(0, 6, step=1))[0].attempt == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none/none.db"], "(?i)no such file"),
        (["jobs.db", "--give-up", "9"], "there is no entry 9"),
        (["jobs.db", "--give-up", "1"], "nothing to give up"),
    ],
)
def test_what_cannot_be_listed(path, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        __main__.main(arguments)
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert [item.name for item in tmp_path.iterdir()] == ["jobs.db"]  # nothing is made
