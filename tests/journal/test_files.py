"""Files that are no journal, or cease to be one: an error that says so, and nothing is changed."""

import os
import sqlite3
import subprocess
import sys
from contextlib import nullcontext

import pytest

from qailab.errors import InputTypeError, JournalError
from qailab.journal import Journal, database, location
from qailab.journal.report import read_report
from tests.journal.rows import claim, counts_of, finish, work


def other_program(path, *, application_id=0, version=0):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE albums (title)")
    connection.execute(f"PRAGMA application_id = {application_id}")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.commit()
    connection.close()


def newer(path):
    other_program(path, application_id=database.APPLICATION_ID, version=database.VERSION + 1)


def text(path):
    path.write_text("these are my notes\n" * 1000)


def truncated(path):
    with Journal(path) as journal:
        finish(journal, claim(journal, work())[0])
    path.write_bytes(path.read_bytes()[:5000])


def train(path):
    with Journal(path) as journal:
        claim(journal, work())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text, "no SQLite database and was left as it is"),
        (other_program, "another program's SQLite database .*albums"),
        (newer, "is of version 2, and this qailab reads version 1"),
        (truncated, "damaged|malformed"),
    ],
)
@pytest.mark.parametrize("use", [train, lambda path: read_report(path, price_per_second=1.0)])
def test_files_that_are_no_journal_are_left_as_they_are(tmp_path, make, message, use):
    path = tmp_path / "jobs.db"
    make(path)
    before = path.read_bytes()
    with pytest.raises(JournalError, match=message):
        use(path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["jobs.db"]


def test_paths_where_no_journal_can_be(tmp_path):
    (tmp_path / "notes").write_text("")
    for path, message in (
        (tmp_path, "that is a folder"),
        ("", "that is a folder"),
        (tmp_path / "none" / "jobs.db", "there is no folder .*none; make it"),
        (tmp_path / "notes" / "jobs.db", "there is no folder"),
        ("/dev/null", "no regular file"),
        (tmp_path / ("x" * 300), "(?i)name too long"),
    ):
        with pytest.raises(JournalError, match=message):
            Journal(path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(JournalError, match="permissions of the file and its folder"):
        Journal(tmp_path / "link")
    for path in (3, b"jobs.db", "a\0b", ["jobs.db"]):
        with pytest.raises(InputTypeError, match="path must be text or a path"):
            Journal(path)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
def test_a_place_that_cannot_be_written():
    with pytest.raises(JournalError, match=r"cannot be made there .*can be written"):
        Journal("/proc/jobs.db")


@pytest.mark.parametrize(
    ("denied", "right", "message"),
    [
        ("jobs.db", os.W_OK, r"cannot be written.*chmod u\+rw"),
        ("jobs.db", os.R_OK, r"cannot be read.*chmod u\+rw"),
        ("", os.W_OK, r"its folder cannot be written.*chmod u\+w"),
    ],
)
def test_permissions(tmp_path, monkeypatch, denied, right, message):
    path = tmp_path / "jobs.db"
    Journal(path).close()
    forbidden = str(tmp_path / denied).rstrip("/")
    monkeypatch.setattr(
        location.os, "access", lambda name, wanted: (str(name), wanted) != (forbidden, right)
    )
    with pytest.raises(JournalError, match=message):
        Journal(path)


def test_an_empty_file_becomes_a_journal(tmp_path):
    path = tmp_path / "jobs.db"
    path.touch()  # a process was killed just then
    assert read_report(path, price_per_second=1.0).jobs == []
    assert path.read_bytes() == b""
    with Journal(path) as journal:
        assert claim(journal, work())


def test_a_write_ahead_log_is_undone(tmp_path):
    path = tmp_path / "jobs.db"
    Journal(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    with Journal(path) as journal:
        claim(journal, work())
        assert not (tmp_path / "jobs.db-wal").exists()


def test_two_processes_make_the_same_file(tmp_path, monkeypatch):
    path, looked = tmp_path / "jobs.db", database.Database._check_kind

    def somebody_is_faster(self, connection):
        kind = looked(self, connection)
        monkeypatch.undo()
        with Journal(path) as other:
            claim(other, work())
        return kind

    Journal(path).close()
    path.write_bytes(b"")
    monkeypatch.setattr(database.Database, "_check_kind", somebody_is_faster)
    monkeypatch.setattr(database.Database, "_transaction", lambda self, *_: nullcontext())
    with Journal(path) as journal:
        assert journal.entry(1).state == "intended"


def test_every_transaction_is_synced_and_readers_change_nothing(tmp_path):
    path = tmp_path / "jobs.db"
    with Journal(path) as journal, journal._database.reading() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    reader = database.Database(path, read_only=True)
    with pytest.raises(JournalError, match="readonly"), reader.writing() as connection:
        connection.execute("DELETE FROM entries")
    reader.close()


def test_a_file_that_others_hold_too_long(tmp_path):
    path = tmp_path / "jobs.db"
    with Journal(path, busy_seconds=0.05) as journal:
        (entry,) = claim(journal, work())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        for use in (
            lambda: claim(journal, work()),
            lambda: journal.entry(entry.id),
            lambda: Journal(path, busy_seconds=0.05),
        ):
            with pytest.raises(JournalError, match=r"has held it for 0\.05 s.*fuser"):
                use()
        other.execute("COMMIT")
        other.execute("BEGIN")  # a reader holds up the end of a write
        other.execute("SELECT * FROM entries").fetchone()
        with pytest.raises(JournalError, match="has held it"):
            claim(journal, work(step=1))
        other.close()
        assert journal.entry(entry.id) == entry
        (new,) = claim(journal, work(step=1))
        assert new.id == entry.id + 1


def test_a_full_disk_changes_nothing(tmp_path):
    with Journal(tmp_path / "jobs.db") as journal:
        (entry,) = claim(journal, work(0, 2000))
        journal.submitted(entry.id, job_id="d1", backend="ibm_fez", session=None)
        connection = journal._database._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(JournalError, match=r"full.*make room on the disk"):
            journal.done(entry.id, counts_of(entry))
        assert journal.entry(entry.id).state == "submitted"
        connection.execute("PRAGMA max_page_count = 1000000")
        journal.done(entry.id, counts_of(entry))


@pytest.mark.parametrize("put", [None, b"", "another"])
def test_a_file_that_is_removed_or_replaced_in_use(tmp_path, put):
    path = tmp_path / "jobs.db"
    with Journal(path) as journal:
        path.rename(tmp_path / "moved.db")
        if put == "another":
            Journal(path).close()
        elif put is not None:
            path.write_bytes(put)
        with pytest.raises(JournalError, match="removed or replaced while it was in use"):
            claim(journal, work())


def test_a_forked_child_opens_the_file_for_itself(tmp_path):
    program = f"""
import os, threading
from qailab.errors import JournalError
from qailab.journal import Journal
from tests.journal.rows import claim, work
journal, memory = Journal({str(tmp_path / "jobs.db")!r}), Journal(None)
thread = threading.Thread(target=journal._database._lock.acquire)
thread.start()
thread.join()  # it holds the lock, as one that is in the middle of something would
child = os.fork()
if not child:
    (entry,) = claim(journal, work())
    try:
        memory.totals()
    except JournalError as error:
        assert "for the process that made it" in str(error)
        os._exit(entry.id)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 1, status
with Journal(journal.path) as journal:
    print(claim(journal, work())[0].id)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("1", "")
