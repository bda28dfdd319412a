import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest

from qailab.errors import InputError
from qailab.journal import Journal, __main__
from qailab.journal.report import read_report
from qailab.journal.sessions import log_name
from tests.journal.rows import claim, finish, work


def happened(journal, what, session="s-1", *, when=1.7e9, backend="ibm_fez", settings="a", **more):
    """What `qailab.backends.ibm.sessions` notes of a session."""
    log = journal.log(log_name(backend, settings))
    event = {"event": what, "id": session, "time": when, **more}
    assert log.append(len(log.read(0)), json.dumps(event).encode())


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "jobs.db"
    with Journal(path) as journal:
        journal.register("c1", 6, 50)
        happened(journal, "opening", None, owner="me")
        happened(journal, "open", mode="batch")
        (forward,) = claim(journal, work(0, 4, purpose="forward"))
        finish(journal, forward, job_id="d1", usage_seconds=2.0)
        first, second = claim(journal, work(0, 10), most_rows=5, backend="ibm_torino")
        journal.submitted(first.id, job_id="d2", backend="ibm_torino", session=None)
        journal.ended(first.id, "failed", "error\n1517: \x1b[31m" + "too long " * 20, 0.5)
        journal.ended(second.id, "withdrawn", "not at the server")
        (third,) = claim(journal, work(0, 6, step=1))
        journal.submitted(third.id, job_id="d3", backend="ibm_fez", session="s-9")
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
    titles, rule, *rows = out.splitlines()[:6]
    assert {len(row) <= len(rule) for row in rows} == {True}
    assert titles.index("state") == rows[0].index("done")


def test_less_of_it(path, capsys):
    _, out = run(capsys, path, "--steps", "--price-per-second", "2")
    assert "ibm_torino" not in out
    assert "5.00 $ (2 $ a second)" in out
    _, out = run(capsys, path, "--last", "1")
    assert out.startswith("the last 1 of 4 jobs\n")
    assert "d3" in out
    assert "d1" not in out


def test_json_is_for_programs(path, capsys):
    code, out = run(capsys, path, "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["version"], report["path"], report["price_per_second"]) == (1, str(path), 1.6)
    assert [job["job_id"] for job in report["jobs"]] == ["d1", "d2", None, "d3"]
    assert report["jobs"][0] | {"owner": "", "created": 0, "updated": 0} == {
        "id": 1, "step": 0, "pass": "forward", "start": 0, "stop": 4, "shots": 100,
        "backend": "ibm_fez", "mode": "batch", "session": "s-1", "job_id": "d1",
        "tag": work(0, 4, purpose="forward").tag, "attempt": 0, "state": "done",
        "qpu_seconds": 2.0, "reason": "", "circuit": "c1", "seed": 7,
        "owner": "", "created": 0, "updated": 0,
    }  # fmt: skip
    assert report["steps"][1] == {
        "step": 1, "jobs": 1, "rows": 6, "executions": 600, "qpu_seconds": 0.0,
        "usage_unknown": 1, "cost": 0.0,
    }  # fmt: skip
    assert report["totals"] == {
        "jobs": 3, "rows": 15, "executions": 1500, "qpu_seconds": 2.5, "usage_unknown": 1,
        "cost": 4.0, "states": {"done": 1, "failed": 1, "submitted": 1, "withdrawn": 1},
    }  # fmt: skip
    assert report["circuits"] == [{"circuit": "c1", "qubits": 6, "angles": 50, "jobs": 3}]
    assert report["sessions"] == [
        {"session": "s-1", "backend": "ibm_fez", "mode": "batch", "state": "open", "given": False,
         "created": 1.7e9, "updated": 1.7e9}
    ]  # fmt: skip
    documented = __main__.__doc__
    for record in (report, report["jobs"][0], report["totals"], report["sessions"][0]):
        assert all(f'"{key}"' in documented for key in record)
    _, out = run(capsys, path, "--json", "--steps")
    assert json.loads(out)["jobs"] == []
    _, out = run(capsys, path, "--json", "--last", "2")
    assert [job["id"] for job in json.loads(out)["jobs"]] == [3, 4]


def sessions_of(path, *names):
    report = read_report(path, price_per_second=1.0)
    return [tuple(session[name] for name in names) for session in report.sessions]


def test_a_session_is_open_until_it_is_gone(path, capsys):
    with Journal(path) as journal:
        journal.log("budget").append(0, b"no JSON")
        happened(journal, "gone", when=1.7e9 + 5)
        happened(journal, "refused", None, when=1.7e9 + 6, mode="session", text="no plan")
        happened(journal, "open", "s-2", when=1.7e9 + 7)  # of an older qailab: without a mode
        happened(journal, "open", "s-3", when=1.7e9 + 3, mode="session", backend="ibm_torino")
    assert sessions_of(path, "session", "backend", "mode", "state", "created", "updated") == [
        ("s-1", "ibm_fez", "batch", "closed", 1.7e9, 1.7e9 + 5),
        ("s-3", "ibm_torino", "session", "open", 1.7e9 + 3, 1.7e9 + 3),
        ("s-2", "ibm_fez", None, "open", 1.7e9 + 7, 1.7e9 + 7),
    ]
    _, out = run(capsys, path)
    assert "\n2 sessions are open: session s-3 on ibm_torino since" in out
    assert ", session s-2 on ibm_fez since" in out


def test_a_session_that_was_given_is_for_whoever_opened_it_to_close(path, capsys):
    with Journal(path) as journal:
        for session in ("s-1", "s-2"):
            settings = f"given {session}"
            happened(journal, "open", session, settings=settings, given=True, mode="batch")
    assert sessions_of(path, "session", "given") == [("s-1", False), ("s-2", True)]
    assert "\n1 session is open: batch s-1 on" in run(capsys, path)[1]
    with Journal(path) as journal:  # gone for one, it is for all
        happened(journal, "gone", "s-1", settings="given s-1", when=1.7e9 + 5)
    assert sessions_of(path, "state", "updated") == [("closed", 1.7e9 + 5), ("open", 1.7e9)]
    assert "open" not in run(capsys, path, "--steps")[1]


def test_a_file_of_before_with_a_table_of_sessions_that_nothing_filled(path):
    columns = "session TEXT PRIMARY KEY, backend, mode, state, created REAL, updated REAL"
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE sessions ({columns})")
    connection.close()
    with Journal(path) as journal:
        finish(journal, claim(journal, work(step=4))[0], job_id="d4")
    report = read_report(path, price_per_second=1.0)
    assert (report.jobs[-1]["job_id"], report.jobs[-1]["mode"]) == ("d4", "batch")
    assert sessions_of(path, "session") == [("s-1",)]


def test_an_empty_journal(tmp_path, capsys):
    path = tmp_path / "jobs.db"
    Journal(path).close()
    assert run(capsys, path) == (0, f"{path}: no jobs yet\n")
    assert json.loads(run(capsys, path, "--json")[1])["totals"]["jobs"] == 0


def test_nothing_is_made_or_changed(path, tmp_path, capsys):
    before = path.read_bytes()
    run(capsys, path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["jobs.db"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.db"], "no such file"),
        (["none/none.db"], "no such file"),
        (["notes.txt"], "no SQLite database"),
        (["."], "that is a folder"),
        (["jobs.db", "--last", "-1"], "--last: expected at least 0"),
        (["jobs.db", "--price-per-second", "-1"], "price must be finite and at least 0"),
        (["jobs.db", "--price-per-second", "x"], "invalid float"),
        ([], "required: path"),
    ],
)
def test_what_cannot_be_listed(path, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "notes.txt").write_text("my notes\n" * 100)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        __main__.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(item.name for item in tmp_path.iterdir()) == ["jobs.db", "notes.txt"]


def test_prices(path):
    with pytest.raises(InputError, match="got nan"):
        read_report(path, price_per_second=float("nan"))


@pytest.mark.parametrize(("reader", "shown"), [("cat", True), ("true", False)])
def test_as_a_program_in_ascii_and_into_a_pipe_that_nobody_reads(path, reader, shown):
    with Journal(path) as journal:
        (entry,) = claim(journal, work(step=3))
        journal.ended(entry.id, "failed", "日本")
    done = subprocess.run(
        f"{sys.executable} -m qailab.journal {path} | {reader}",
        shell=True, capture_output=True, text=True, timeout=60, check=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stderr == ""
    assert (r"\u65e5\u672c" in done.stdout) is shown
