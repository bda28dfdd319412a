"""Several processes, one file: each row is sent once, and all of them see every result."""

import collections
import subprocess
import sys

from qailab.journal import Journal
from tests.journal.rows import counts_of

STEPS, ROWS = 15, 60

# Claims the same rows as the others, sends what is its own to a "server" (a file that each job is
# one line of), and waits for the others' results.
TRAINING = """
import sys, time
import numpy as np
from qailab.journal import Journal, this_owner
from tests.journal.rows import claim, counts_of, work
path, server, most_rows, steps, rows = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
me, log = this_owner(), Journal(path).log("budget")
with Journal(path) as journal, open(server, "a") as jobs:
    for step in range(steps):
        entries = claim(journal, work(0, rows, step=step), most_rows=most_rows, group=2, owner=me)
        table = np.zeros((rows, 4), np.uint32)
        for entry in entries:
            if entry.owner == me and entry.state == "intended":
                jobs.write(f"{entry.tag} {step} {entry.start} {entry.stop}\\n")
                jobs.flush()
                journal.submitted(entry.id, job_id=entry.tag, backend="b", session=None)
                journal.done(entry.id, counts_of(entry), 1.0)
                known = log.read(0)
                while not log.append(len(known), str(entry.id).encode()):
                    known = log.read(0)
        for entry in entries:
            while journal.entry(entry.id).state != "done":
                time.sleep(0.002)
            table[entry.start : entry.stop] = journal.counts(entry.id)
        assert (table == counts_of(work(0, rows, step=step))).all()
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
        numbers = [int(entry) for entry in journal.log("budget").read(0)]
        assert sorted(numbers) == list(range(1, len(tags) + 1))
        assert (journal.counts(1) == counts_of(journal.entry(1))).all()
