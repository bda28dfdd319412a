"""``kill -9`` at any moment: what was recorded is there; transactions are whole or not there."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from qailab.journal import Journal, State, owner_alive, this_owner
from qailab.journal.report import read_report
from tests.support.journal import counts_of, reserve, work

# Says what it has recorded as soon as a method returns, and goes on until it is killed.
TRAINING = """
import sys
from qailab.journal import Journal, this_owner
from tests.support.journal import counts_of, reserve, work
journal = Journal(sys.argv[1])
for step in range(10**6):
    for entry in reserve(journal, work(0, 300, step=step), most_rows=100, owner=this_owner()):
        print("pending", entry.id, flush=True)
        journal.submitted(entry.id, job_id=f"job-{entry.id}", backend="ibm_fez", session="s")
        print("submitted", entry.id, flush=True)
        journal.done(entry.id, counts_of(entry), 1.0)
        print("done", entry.id, flush=True)
"""

# Dies at the given COMMIT: before it, with half of the pages in the file already, or after it.
TRANSACTION = """
import os, signal, sys
from qailab.journal import Journal
from qailab.journal.database import Database
from tests.support.journal import counts_of, reserve, work
journal = Journal(sys.argv[1])
(entry,) = reserve(journal, work(0, 3000))
journal.submitted(entry.id, job_id="d1", backend="ibm_fez", session="s")
journal._database._connection.execute("PRAGMA cache_size = 1")  # pages leave memory at once
patiently = Database._patiently
def dying(self, connection, statement):
    if statement == "COMMIT" and sys.argv[2] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    patiently(self, connection, statement)
    if statement == "COMMIT":
        os.kill(os.getpid(), signal.SIGKILL)
Database._patiently = dying
journal.done(entry.id, counts_of(entry, outcomes=512), 1.0)
"""


@pytest.mark.parametrize("lines", [0, 1, 2, 5, 31])
def test_killed_anywhere_nothing_that_was_recorded_is_lost(tmp_path, lines):
    path = tmp_path / "jobs.db"
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(path)], stdout=subprocess.PIPE, text=True
    )
    seen = [process.stdout.readline() for _ in range(lines)]
    while not lines and not path.exists():
        pass
    process.send_signal(signal.SIGKILL)
    seen += process.communicate()[0].splitlines()
    with Journal(path) as journal:
        states = {}
        for line in seen:
            if len(parts := line.split()) == 2:  # the last one may be cut off
                states[int(parts[1])] = parts[0]
        order = ["pending", "submitted", "done"]
        for number, state in states.items():
            entry = journal.entry(number)
            assert order.index(entry.state) >= order.index(state)
            assert owner_alive(entry.owner) is False
            if entry.state == "done":
                np.testing.assert_array_equal(journal.counts(number), counts_of(entry))
        assert len(states) >= lines // 3

        # Started again, the same rows are the same entries, and what is not sent changes hands.
        again = reserve(journal, work(0, 300), most_rows=70, owner=this_owner())
        if states:
            spans = [(entry.work.start, entry.work.stop) for entry in again]
            assert spans == [(0, 100), (100, 200), (200, 300)]
        for entry in again:
            if entry.state == "pending" and entry.owner != this_owner():
                assert journal.unsent(entry, State.UNCONFIRMED, this_owner())


@pytest.mark.parametrize("first", ["journal", "report"])
@pytest.mark.parametrize(("moment", "state"), [("before", "submitted"), ("after", "done")])
def test_a_transaction_is_whole_or_not_at_all(tmp_path, moment, state, first):
    path = tmp_path / "jobs.db"
    done = subprocess.run(
        [sys.executable, "-c", TRANSACTION, str(path), moment], timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    left = os.path.exists(f"{path}-journal")
    assert left == (moment == "before")  # half of it is in the file, and has to be undone
    if first == "report":
        report = read_report(path)
        assert [job["state"] for job in report.jobs] == [state]
    with Journal(path) as journal:
        entry = journal.entry(1)
        assert (entry.state, entry.job_id) == (state, "d1")
        if state == "submitted":  # the result is fetched again by the job's id
            journal.done(1, counts_of(entry, outcomes=512), 1.0)
        np.testing.assert_array_equal(journal.counts(1), counts_of(entry, outcomes=512))
        check = journal._database._connection.execute("PRAGMA integrity_check").fetchone()
    assert check == ("ok",)
