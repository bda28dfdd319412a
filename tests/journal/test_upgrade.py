"""A journal of the qailab before, as that one wrote it (``version1.sql``), is read and goes on."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from qailab.backends.budget import Budget, BudgetGuard, Cost
from qailab.errors import JournalError
from qailab.journal import Journal, State, Totals, this_owner
from qailab.journal.report import read_report
from tests.support.journal import counts_of, reserve, submit, work

DUMP = (Path(__file__).parent / "version1.sql").read_text()


@pytest.fixture
def path(tmp_path):
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.executescript(DUMP)
    connection.close()
    return tmp_path / "jobs.db"


def test_its_jobs_and_results_are_there_and_its_tags_stay(path):
    with Journal(path) as journal:
        entries = reserve(journal, work(0, 16), most_rows=4)
        done, submitted, new, unconfirmed = entries
        assert (done.state, submitted.state, submitted.job_id) == ("done", "submitted", "d2")
        np.testing.assert_array_equal(journal.counts(done.id), counts_of(done))
        # Its sender died, perhaps after it was sent: it is looked for by its tag first.
        assert (unconfirmed.state, unconfirmed.tag) == (State.UNCONFIRMED, work(12, 16).tag())
        assert (new.state, new.tag) == (State.PENDING, work(8, 12).tag(attempt=1))
        submit(journal, unconfirmed, "d4")
        assert journal.totals() == Totals(jobs=4, rows=16, executions=1600, qpu_seconds=2.5)
    with Journal(path) as journal:  # of this version by now
        assert journal.entry(unconfirmed.id).job_id == "d4"
        journal.register("c1", 6, 50)


def test_its_sessions_are_known(path):
    before = path.read_bytes()
    report = read_report(path, price_per_second=1.0)
    assert path.read_bytes() == before
    assert [(one["session"], one["state"], one["mode"]) for one in report.sessions] == [
        ("s-1", "closed", "session"), ("s-2", "open", "session")]  # fmt: skip
    assert [job["state"] for job in report.jobs] == ["done", "submitted", "failed", "unconfirmed"]
    Journal(path).close()
    assert read_report(path, price_per_second=1.0) == report


def test_what_its_jobs_used_counts_for_a_budget(path):
    with Journal(path) as journal:

        def spent_beside(in_flight):
            totals = journal.totals(ended_beside=in_flight)
            return Cost(totals.jobs, totals.rows, totals.executions, totals.qpu_seconds)

        guard = BudgetGuard(Budget(qpu_seconds=9), journal, spent_beside=spent_beside)
        assert guard.spent == Cost(jobs=2, rows=8, shots=800, qpu_seconds=2.5)


def test_it_is_left_alone_while_a_process_of_then_uses_it(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE entries SET owner = ? WHERE id = 4", (this_owner(),))
    connection.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="in use by an earlier qailab"):
        Journal(path)
    assert path.read_bytes() == before
