"""Several processes, one file: each row is sent once, and all of them see every result."""

import collections
import os
import subprocess
import sys

import pytest

from qailab.journal import Cause, Journal, State
from tests.support.journal import counts_of, reserve, work

STEPS, ROWS = 15, 60

# Claims the same rows as the others, sends what is its own to a "server" (a file that each job is
# one line of), and waits for the others' results.
TRAINING = """
import sys, time
import numpy as np
from qailab.journal import Journal, this_owner
from tests.support.journal import counts_of, reserve, work
path, server, most_rows, steps, rows = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
me = this_owner()
with Journal(path) as journal, open(server, "a") as jobs:
    for step in range(steps):
        entries = reserve(journal, work(0, rows, step=step), most_rows=most_rows, group=2, owner=me)
        table = np.zeros((rows, 4), np.uint32)
        for entry in entries:
            if entry.owner == me and entry.state == "pending":
                jobs.write(f"{entry.tag} {step} {entry.work.start} {entry.work.stop}\\n")
                jobs.flush()
                journal.submitted(entry.id, job_id=entry.tag, backend="b", session=None)
                journal.done(entry.id, counts_of(entry), 1.0)
                version, numbers = journal.get("numbers")
                while not journal.put("numbers", version, (numbers or b"") + b" %d" % entry.id):
                    version, numbers = journal.get("numbers")
        for entry in entries:
            while journal.entry(entry.id).state != "done":
                time.sleep(0.002)
            table[entry.work.start : entry.work.stop] = journal.counts(entry.id)
        every = np.arange(rows)[:, None] * 7 + np.arange(4) + step
        assert (table == every).all()
print("ok")
"""


def test_processes_hammering_one_file_send_each_row_once(tmp_path):
    path, server = tmp_path / "jobs.db", tmp_path / "server"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINING, *map(str, (path, server, most_rows, STEPS, ROWS))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for most_rows in (7, 10, 4)
    ]
    for process in processes:
        assert process.communicate(timeout=60) == ("ok\n", "")
    sent = collections.Counter()
    tags = []
    for line in server.read_text().splitlines():
        tag, step, start, stop = line.split()
        tags.append(tag)
        sent.update((int(step), row) for row in range(int(start), int(stop)))
    assert len(tags) == len(set(tags))
    assert sent == {(step, row): 1 for step in range(STEPS) for row in range(ROWS)}
    with Journal(path) as journal:
        assert journal.totals().jobs == len(tags)
        numbers = [int(entry) for entry in journal.get("numbers")[1].split()]
        assert sorted(numbers) == list(range(1, len(tags) + 1))
        assert (journal.counts(1) == counts_of(journal.entry(1))).all()


def test_a_forked_child_opens_the_file_for_itself(tmp_path):
    program = f"""
import os, threading
from qailab.journal import Journal
from tests.support.journal import reserve, work
journal = Journal({str(tmp_path / "jobs.db")!r})
thread = threading.Thread(target=journal._database._lock.acquire)
thread.start()
thread.join()  # it holds the lock, as one that is in the middle of something would
child = os.fork()
if not child:
    (entry,) = reserve(journal, work())
    os._exit(entry.id)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 1, status
with Journal(journal.path) as journal:
    print(reserve(journal, work())[0].id)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("1", "")


@pytest.mark.parametrize(("reader", "shown"), [("cat", True), ("true", False)])
def test_as_a_program_in_ascii_and_into_a_pipe_that_nobody_reads(tmp_path, reader, shown):
    path = tmp_path / "jobs.db"
    with Journal(path) as journal:
        (entry,) = reserve(journal, work(step=3))
        journal.ended(entry.id, State.FAILED, Cause.DEVICE, "日本")
    done = subprocess.run(
        f"{sys.executable} -m qailab.journal {path} | {reader}",
        shell=True, capture_output=True, text=True, timeout=60, check=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stderr == ""
    assert (r"\u65e5\u672c" in done.stdout) is shown
