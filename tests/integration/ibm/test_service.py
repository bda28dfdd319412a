"""Jobs, sessions, journal and budget, on a rehearsal server."""

import multiprocessing
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from qiskit_aer import AerSimulator

from qailab.backends import AerBackend, Budget, IBMLimits, Usage
from qailab.backends.base import evaluate
from qailab.errors import (
    BackendBuildError,
    BackendError,
    BudgetExceededError,
    EvaluationError,
    JournalError,
    TransientBackendError,
)
from qailab.journal import Journal
from qailab.journal.report import read_report, tables
from qailab.rehearsal import Limits
from tests.support import oracles
from tests.support.contracts import answers, forward_batch, model
from tests.support.ibm import (
    QUICK,
    device,
    gradient_rows,
    live_jobs,
    patient_device,
    standard_errors,
)
from tests.support.processes import DEADLINE, wait_until
from tests.support.servers import on


@pytest.mark.parametrize("mode", ["session", "batch", "job"])
def test_one_job_for_all_rows(rehearse, mode):
    server = rehearse()
    circuit, canonical, angle_map, values = model(qubits=3, measure_qubits=[2, 0])
    backend = device(mode=mode)
    found = answers(backend, canonical, forward_batch(angle_map, values, 4000))
    exact = [oracles.probabilities(circuit, circuit.parameters, v) for v in values]
    marginal = np.array(exact).reshape(len(exact), -1)
    assert np.abs(found - marginal).max() < 5 * 0.5 / np.sqrt(4000)
    canonical, rows = gradient_rows()
    second = evaluate(backend, canonical, rows, threading.Event())
    assert second.answers.shape == (rows.num_rows, 2)
    assert second.usage == Usage(jobs=1, qpu_seconds=server.jobs[1].qpu_seconds)
    assert [job.rows for job in server.jobs] == [3, rows.num_rows]
    assert {job.mode for job in server.jobs} == {mode}
    backend.close()
    assert [session.state for session in server.sessions] == ["closed"] * (mode != "job")


def test_rows_beyond_a_limit_become_several_jobs_side_by_side(rehearse):
    server = rehearse(queue_seconds=0.2)
    canonical, rows = gradient_rows(shots=50)
    whole = answers(device(), canonical, rows)
    limits = IBMLimits(executions_per_job=50 * 9, pending_jobs=3)  # 9 rows, so 8: pairs stay whole
    before = len(server.jobs)
    parts = answers(device(limits=limits), canonical, rows)
    jobs = server.jobs[before:]
    assert [job.rows for job in jobs] == [8] * 4 + [4] or sum(job.rows for job in jobs) == 36
    assert all(job.rows % 2 == 0 and job.rows <= 8 for job in jobs)
    at_once = max(sum(one.created <= at.created < (one.ended or 0) for one in jobs) for at in jobs)
    assert at_once == 3
    assert standard_errors(parts, whole).max() < 6


def test_a_session_that_ends_isreplace(rehearse):
    server = rehearse(faults=[on("session-closed", after=1), on("session-expired", after=3)])
    canonical, rows = gradient_rows()
    backend = device()
    for _ in range(4):
        answers(backend, canonical, rows)
    assert len(server.sessions) == 3
    assert len(live_jobs(server)) == 4
    backend.close()
    assert {session.state for session in server.sessions} == {"closed"}


def test_the_open_plan_gets_batches(rehearse, caplog):
    server = rehearse(plan="open", limits=Limits(jobs_a_minute=100))
    canonical, rows = gradient_rows(shots=50)
    backend = device(limits=IBMLimits(executions_per_job=50 * 4, pending_jobs=5))
    answers(backend, canonical, rows)
    assert {job.mode for job in server.jobs} == {"batch"}
    assert "this plan has no mode 'session'" in caplog.text
    assert len(live_jobs(server)) == 9  # though only three may be pending
    backend.close()


def test_jobs_are_paced_where_a_minute_has_few(rehearse, monkeypatch):
    monkeypatch.setattr("qailab.rehearsal.instance._MINUTE", 1.0)
    server = rehearse(plan="open", limits=Limits(jobs_a_minute=2, pending_jobs=100))
    canonical, rows = gradient_rows(shots=50)
    timeouts = replace(QUICK, retry_seconds=3.0)  # seven jobs beyond the first two: more than that
    limits = IBMLimits(executions_per_job=50 * 4, pending_jobs=9)
    backend = device(limits=limits, timeouts=timeouts, mode="job")
    answers(backend, canonical, rows)
    created = sorted(job.created for job in server.jobs)
    assert len(created) == 9
    assert server.duplicates() == []
    assert all(third - first >= 1.0 for first, third in zip(created, created[2:], strict=False))
    assert 429 in {request.status for request in server.requests}
    backend.close()


def test_the_least_busy_device_that_is_large_enough(rehearse):
    server = rehearse("manila", "lagos")
    _, canonical, angle_map, values = model(qubits=6)
    backend = device(None)
    answers(backend, canonical, forward_batch(angle_map, values, 10))
    assert [job.backend for job in server.jobs] == ["ibm_lagos"]
    backend.close()


# The journal.


def _run_and_die(path, environment, rows_seen):
    import os

    os.environ.update(environment)
    canonical, rows = gradient_rows()
    backend = patient_device(journal=path)  # the client takes seconds to import
    backend.submit(canonical, rows)
    rows_seen.wait(DEADLINE)
    os.kill(os.getpid(), 9)


def test_who_starts_again_takes_up_jobs_that_run_and_results_that_are_there(rehearse, tmp_path):
    server = rehearse(queue_seconds=1.5)
    path = tmp_path / "journal.sqlite"
    context = multiprocessing.get_context("spawn")
    die = context.Event()
    process = context.Process(target=_run_and_die, args=(path, server.environment, die))
    process.start()
    wait_until(lambda: server.jobs)
    die.set()
    process.join(DEADLINE)
    assert process.exitcode == -9
    canonical, rows = gradient_rows()
    backend = patient_device(journal=path)
    first = answers(backend, canonical, rows)
    again = answers(backend, canonical, rows)
    np.testing.assert_array_equal(first, again)
    # Cut in another way, as with other devices, they are the same rows.
    half = rows.num_rows // 2
    parts = [rows.part(0, half), rows.part(half, rows.num_rows)]
    pieces = [answers(backend, canonical, part) for part in parts]
    np.testing.assert_array_equal(np.concatenate(pieces), first)
    assert len(server.jobs) == len(server.sessions) == 1  # the session was taken up as well
    backend.close()
    with Journal(path) as journal:
        totals = journal.totals()
    assert (totals.jobs, totals.rows) == (1, rows.num_rows)


def test_a_journal_of_another_model_is_refused(rehearse, tmp_path):
    server = rehearse()
    path = tmp_path / "journal.sqlite"
    canonical, rows = gradient_rows()
    backend = device(journal=path)
    backend.validate(canonical, 200)
    answers(backend, canonical, rows)
    _, other, _, _ = model(qubits=3)
    with pytest.raises(JournalError, match="another path"):
        device(journal=path).validate(other, 200)
    device(journal=path).validate(canonical, 200)
    backend.close()
    assert len(server.jobs) == 1


def test_what_was_rehearsed_does_not_answer_for_another_service(rehearse, tmp_path, monkeypatch):
    server = rehearse()
    canonical, rows = gradient_rows()
    backend = device(journal=tmp_path / "journal.sqlite", budget=Budget(jobs=1))
    found = answers(backend, canonical, rows)
    backend.close()
    elsewhere = server.environment["QISKIT_IBM_URL"].replace("127.0.0.1", "localhost")
    with monkeypatch.context() as patch:
        patch.setenv("QISKIT_IBM_URL", elsewhere)
        with pytest.raises(JournalError, match=r"127\.0\.0\.1, .* at localhost.*another path"):
            answers(backend, canonical, rows)
    simulator = device(AerSimulator(), journal=tmp_path / "journal.sqlite")
    with pytest.raises(JournalError, match=r"127\.0\.0\.1, .* at simulators"):
        answers(simulator, canonical, rows)
    np.testing.assert_array_equal(answers(backend, canonical, rows), found)
    backend.close()
    assert len(server.jobs) == 1


# The budget.


def test_a_budget_of_seconds_lasts_as_long_as_the_journal(rehearse, tmp_path):
    server = rehearse()
    canonical, rows = gradient_rows()
    each = 2 + 36 * 200 * 350e-6
    path = tmp_path / "journal.sqlite"
    sent = 0
    for run in range(3):  # each time a new process could be
        backend = device(journal=path, budget=Budget(qpu_seconds=3.5 * each), mode="job")
        try:
            for step in range(2):
                noise = type(rows.noise)(run, step, "backward")
                answers(backend, canonical, replace(rows, noise=noise))
                sent += 1
        except BudgetExceededError:
            break
        finally:
            backend.close()
    spent = sum(job.qpu_seconds for job in server.jobs)
    assert len(server.jobs) == sent
    assert spent <= 3.5 * each + max(job.qpu_seconds for job in server.jobs)
    assert sent >= 3


def _spend(path, environment, seed):
    """A program of its own: the first rows are everybody's, the others its own."""
    import os

    os.environ.update(environment)
    canonical, rows = gradient_rows()
    backend = patient_device(journal=path, budget=Budget(jobs=4), mode="job")
    try:
        answers(backend, canonical, rows)
        for step in range(4):
            answers(backend, canonical, gradient_rows(seed=seed + step)[1])
    except BudgetExceededError:
        raise SystemExit(3) from None
    finally:
        backend.close()


def test_two_programs_with_one_journal_and_one_budget(rehearse, tmp_path):
    server = rehearse(queue_seconds=0.2)
    path = tmp_path / "journal.sqlite"
    context = multiprocessing.get_context("spawn")
    both = [
        context.Process(target=_spend, args=(path, server.environment, seed)) for seed in (10, 20)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(DEADLINE)
    assert [process.exitcode for process in both] == [3, 3]
    assert len(server.jobs) == 4  # one for the rows of both, three others
    assert server.report().as_dict()["duplicates"] == []
    with Journal(path) as journal:
        assert journal.totals().jobs == 4


# Bad input.


def test_wrong_accounts_and_names(rehearse, monkeypatch):
    server = rehearse("manila", "lagos")
    with pytest.raises(BackendBuildError, match=r"no backend 'ibm_nowhere'; there are: ibm.*lagos"):
        device("ibm_nowhere").open()
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "not-the-right-one")
    with pytest.raises(BackendBuildError, match="refuses the API key") as caught:
        device().open()
    assert "not-the-right-one" not in str(caught.value)
    monkeypatch.delenv("QISKIT_IBM_TOKEN")
    with pytest.raises(BackendBuildError, match="no IBM Quantum account"):
        device().open()
    assert server.jobs == []


def test_a_session_of_another_device(rehearse):
    server = rehearse("manila", "lagos")
    canonical, rows = gradient_rows()
    lagos = device("ibm_lagos")
    answers(lagos, canonical, rows)
    with pytest.raises(BackendBuildError, match="of backend ibm_lagos, not of"):
        device(session_id=server.sessions[0].id).open()
    with pytest.raises(BackendBuildError, match="nothing-like-it"):
        device(session_id="nothing-like-it").open()
    lagos.close()
    assert len(server.jobs) == 1


def test_too_many_shots_and_qubits(rehearse):
    server = rehearse()
    canonical, rows = gradient_rows(shots=10_000_000)
    with pytest.raises(BackendError, match=r"shots are more than .*manila takes"):
        answers(device(), canonical, rows)
    _, wide, angle_map, values = model(qubits=6)
    with pytest.raises(BackendError, match=r"6 qubits, and .*manila has 5"):
        answers(device(), wide, forward_batch(angle_map, values, 10))
    assert server.jobs == []


def test_a_server_that_is_not_there(rehearse):
    server = rehearse()
    server.stop()
    began = time.monotonic()
    with pytest.raises((TransientBackendError, BackendBuildError)) as caught:
        device().open()
    assert time.monotonic() - began < DEADLINE
    assert "API token" not in str(caught.value)


# Faults.


SURVIVABLE = [
    on("http", status=429),
    on("http", status=429, retry_after=1),
    on("http", status=500, times=2),
    on("http", status=401),  # the token is renewed, once
    on("http", "GET /jobs/ID", status=401),
    on("http", status=502),
    on("http", status=503),
    on("http", "GET /jobs/ID", status=500),
    on("http", "GET /jobs/ID", status=429),
    on("http", "GET /jobs/ID/results", status=503),
    on("http", "GET /jobs/ID/metrics", status=500),
    on("http", "POST /sessions", status=503),
    on("drop"),
    on("drop", "GET /jobs/ID/results"),
    on("processed-then-500"),
    on("answer-lost"),
    on("answer-lost", "POST /sessions"),
    on("hang", seconds=1.5, processed=True),
    on("hang", seconds=1.5, processed=False),
    on("hang", "GET /jobs/ID", seconds=1.5, processed=False),
    on("pending-limit"),
    on("restart", "GET /jobs/ID", seconds=0.7),
    on("job-failed", times=2),
    on("job-cancelled"),
    on("job-too-long"),
    on("session-expired"),
    on("session-closed"),
]


@pytest.mark.parametrize("fault", SURVIVABLE, ids=lambda f: f"{f.label} {f.where}")
def test_what_a_gradient_survives(rehearse, fault):
    server = rehearse(faults=[fault])
    canonical, rows = gradient_rows()
    backend = device()
    found = answers(backend, canonical, rows)
    assert len(server.faults_injected) >= 1
    assert server.duplicates() == []
    assert sum(job.rows for job in live_jobs(server)) == rows.num_rows
    backend.close()
    exact = _exact_values(canonical, rows)
    assert (np.abs(found[:, 0] - exact) / np.sqrt(found[:, 1] + 1e-6)).max() < 6


UNSURVIVABLE = [
    (on("http", status=400), EvaluationError),
    (on("http", status=401, times=0), BackendBuildError),
    (on("http", "GET /jobs/ID", status=401, times=0), BackendBuildError),
    (on("http", status=503, times=0), TransientBackendError),
    (on("pending-limit", times=0), TransientBackendError),
    (on("drop", times=0), TransientBackendError),
    (on("job-failed", times=0), EvaluationError),
    (on("job-cancelled", times=0), EvaluationError),
    (on("job-too-long", times=0), EvaluationError),
    (on("job-stuck", times=0), TransientBackendError),
    (on("hang", "GET /jobs/ID", seconds=300.0, processed=False, times=0), TransientBackendError),
]


@pytest.mark.parametrize(("fault", "error"), UNSURVIVABLE, ids=lambda f: getattr(f, "label", ""))
def test_what_it_does_not_survive_is_an_error_in_time(rehearse, fault, error):
    server = rehearse(faults=[fault])
    canonical, rows = gradient_rows(samples=1)
    backend = device(timeout=2.0, timeouts=replace(QUICK, retry_seconds=1.5))
    began = time.monotonic()
    with pytest.raises(error) as caught:
        answers(backend, canonical, rows)
    assert time.monotonic() - began < 200
    if server.jobs:
        assert any(job.id in str(caught.value) for job in server.jobs)
    assert server.duplicates() == []
    backend.close()


def _exact_values(canonical, rows):
    return answers(AerBackend(), canonical, replace(rows, shots=None))[:, 0]


# Sessions that cannot be closed, and the journal


def test_the_journal_tells_of_sessions_and_names_those_left_open(rehearse, tmp_path):
    server = rehearse()
    path = tmp_path / "journal.sqlite"
    canonical, rows = gradient_rows(samples=1)
    backend = device(mode="batch", journal=path)
    answers(backend, canonical, rows)
    left = read_report(path)  # as if it were killed now
    session = server.sessions[0].id
    assert [(job["mode"], job["session"]) for job in left.jobs] == [("batch", session)]
    told = {"session": session, "backend": server.jobs[0].backend, "mode": "batch"}
    assert [left.sessions[0] | told | {"state": "open", "given": False}] == left.sessions
    assert f"1 session is open: batch {session} on" in tables(left, jobs=True)

    theirs = device(mode="batch", journal=path, session_id=session)
    answers(theirs, canonical, gradient_rows(samples=1, seed=2)[1])
    theirs.close()
    assert read_report(path).sessions[0]["state"] == "open"
    backend.close()
    report = read_report(path)
    assert [job["mode"] for job in report.jobs] == ["batch", "batch"]
    assert [session["state"] for session in report.sessions] == ["closed"]
    assert "open" not in tables(report, jobs=True)


def test_a_new_journal_takes_nothing_of_an_earlier_run(rehearse, tmp_path):
    """Though a lost answer has it look for the job, and the rows are the same."""
    server = rehearse(faults=[on("answer-lost", after=1)])
    canonical, rows = gradient_rows(samples=1)
    for name in ("one", "two"):
        backend = device(mode="job", journal=tmp_path / f"{name}.db")
        answers(backend, canonical, rows)
        backend.close()
    assert [job.state for job in server.jobs] == ["Completed"] * 2
