"""Files that are no journal, or cease to be one: an error that says so, and nothing is changed."""

import sqlite3

import pytest

from qailab.errors import InputTypeError, JournalError
from qailab.journal import Journal, State, database
from qailab.journal.report import read_report
from tests.support.journal import counts_of, finish, reserve, submit, work


def other_program(path, *, application_id=0, version=0):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE albums (title)")
    connection.execute(f"PRAGMA application_id = {application_id}")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.commit()
    connection.close()


def older(path):
    other_program(path, application_id=database.APPLICATION_ID, version=1)


def newer(path):
    other_program(path, application_id=database.APPLICATION_ID, version=database.VERSION + 1)


def text(path):
    path.write_text("these are my notes\n" * 1000)


def empty(path):
    path.touch()  # a journal has its tables from the first moment: this one was cut off


def truncated(path):
    with Journal(path) as journal:
        finish(journal, reserve(journal, work())[0])
    path.write_bytes(path.read_bytes()[:5000])


def train(path):
    with Journal(path) as journal:
        reserve(journal, work())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text, "no SQLite database and was left as it is"),
        (other_program, "another program's SQLite database .*albums"),
        (empty, "the file is empty: put a copy of it back, or remove it"),
        (newer, "is of version 4, and this qailab uses version 3; finish its jobs with"),
        (older, "is of version 1, and this qailab uses version 3; finish its jobs with"),
        (truncated, "damaged|malformed"),
    ],
)
@pytest.mark.parametrize("use", [train, read_report])
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
        (tmp_path / "none" / "jobs.db", "(?i)no such file.*give a path in a folder that is there"),
        (tmp_path / "notes" / "jobs.db", "(?i)not a directory"),
        ("/dev/null", "the file is empty"),
        (tmp_path / ("x" * 300), "(?i)name too long"),
    ):
        with pytest.raises(JournalError, match=message):
            Journal(path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(JournalError, match=r"(?i)no such file"):
        Journal(tmp_path / "link")
    for path in (3, b"jobs.db", "a\0b", ["jobs.db"]):
        with pytest.raises(InputTypeError, match="path must be text or a path"):
            Journal(path)


def test_a_write_ahead_log_is_undone(tmp_path):
    path = tmp_path / "jobs.db"
    Journal(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    with Journal(path) as journal:
        reserve(journal, work())
        assert not (tmp_path / "jobs.db-wal").exists()


def test_two_processes_make_the_same_file(tmp_path, monkeypatch):
    path, made = tmp_path / "jobs.db", database.tempfile.mkstemp

    def somebody_is_quicker(**options):
        monkeypatch.undo()
        with Journal(path) as other:
            reserve(other, work())
        return made(**options)

    monkeypatch.setattr(database.tempfile, "mkstemp", somebody_is_quicker)
    with Journal(path) as journal:
        assert journal.entry(1).state is State.PENDING
    assert [item.name for item in tmp_path.iterdir()] == ["jobs.db"]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(database.os, "link", refused)
    with Journal(tmp_path / "jobs.db") as journal:
        reserve(journal, work())
    assert [item.name for item in tmp_path.iterdir()] == ["jobs.db"]


def test_a_file_that_cannot_be_written_is_known_before_a_job_is_sent(tmp_path, monkeypatch):
    path = tmp_path / "jobs.db"
    Journal(path).close()
    connect = database.sqlite3.connect  # as with chmod, which does not hold for root
    monkeypatch.setattr(
        database.sqlite3, "connect", lambda address, **o: connect(address[:-2] + "ro", **o)
    )
    with pytest.raises(JournalError, match="check the permissions of the file and its folder"):
        reserve(Journal(path), work())


def test_every_transaction_is_synced_and_readers_change_nothing(tmp_path):
    path = tmp_path / "jobs.db"
    with Journal(path) as journal:
        connection = journal._database._connection
        assert connection.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    reader = database.Database(path, read_only=True)
    with pytest.raises(JournalError, match="readonly"), reader.writing():
        reader.execute("DELETE FROM entries")
    reader.close()


def test_a_file_that_others_hold_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    path = tmp_path / "jobs.db"
    with Journal(path) as journal:
        (entry,) = reserve(journal, work())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        for use in (
            lambda: reserve(journal, work()),
            lambda: journal.entry(entry.id),
            lambda: Journal(path),
        ):
            with pytest.raises(JournalError, match=r"has held it for 0\.05 s.*fuser"):
                use()
        other.execute("COMMIT")
        other.execute("BEGIN")  # a reader holds up the end of a write
        other.execute("SELECT * FROM entries").fetchone()
        with pytest.raises(JournalError, match="has held it"):
            reserve(journal, work(step=1))
        other.close()
        assert journal.entry(entry.id) == entry
        (new,) = reserve(journal, work(step=1))
        assert new.id == entry.id + 1


def test_a_full_disk_changes_nothing(tmp_path):
    with Journal(tmp_path / "jobs.db") as journal:
        (entry,) = reserve(journal, work(0, 2000))
        submit(journal, entry)
        connection = journal._database._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(JournalError, match=r"full.*make room on the disk"):
            journal.done(entry.id, counts_of(entry))
        assert journal.entry(entry.id).state is State.SUBMITTED
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
            reserve(journal, work())
