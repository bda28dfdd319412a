"""The SQLite file of a journal: opening it, transactions, and errors that say what to do.

What is recorded survives ``kill -9`` and a power cut: each transaction is synced before it counts.
A rollback journal is used, not a write-ahead log, which needs memory shared by all its processes
and so does not work across hosts. Processes on several hosts may use one journal as far as their
shared file system locks files (NFSv4 and Lustre with ``flock`` do); where it does not, give each
host a journal of its own.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote

from qailab.errors import JournalError
from qailab.journal.location import checked_path

BUSY_SECONDS = 60.0
"""How long to wait for other processes; a transaction takes milliseconds, a sync on a busy shared
file system seconds."""

APPLICATION_ID = 0x71614A31  # "qaJ1" in the file's header, so that nobody's database is touched
VERSION = 1

_SLICE = 0.5  # seconds that SQLite waits by itself, deaf to Ctrl-C
_PAUSE = 0.002  # seconds, about a transaction
# An older qailab also made a table `sessions`, which nothing filled: files may have it.
_SCHEMA = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, circuit TEXT NOT NULL,
    shots INTEGER NOT NULL, seed INTEGER NOT NULL, step INTEGER NOT NULL, purpose TEXT NOT NULL,
    start INTEGER NOT NULL, stop INTEGER NOT NULL, tag TEXT NOT NULL, attempt INTEGER NOT NULL,
    state TEXT NOT NULL, job_id TEXT, backend TEXT NOT NULL, session TEXT, owner TEXT NOT NULL,
    usage_seconds REAL, reason TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    digests BLOB NOT NULL);
CREATE INDEX entries_by_rows ON entries (key, start);
CREATE INDEX entries_by_circuit ON entries (circuit);
CREATE TABLE results (
    entry INTEGER PRIMARY KEY, num_rows INTEGER NOT NULL, outcomes INTEGER NOT NULL,
    width INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE circuits (
    circuit TEXT PRIMARY KEY, qubits INTEGER NOT NULL, angles INTEGER NOT NULL);
CREATE TABLE logs (
    name TEXT NOT NULL, number INTEGER NOT NULL, entry BLOB NOT NULL,
    PRIMARY KEY (name, number)) WITHOUT ROWID;
CREATE TABLE forgotten (
    jobs INTEGER NOT NULL, num_rows INTEGER NOT NULL, executions INTEGER NOT NULL,
    qpu_seconds REAL NOT NULL);
"""


class Database:
    """One connection, which the threads of a process take in turn.

    One for all threads, not one for each: SQLite lets only one write anyway, an in-memory database
    has only one, and threads that come and go leave none behind.

    Args:
        path: the file; made if there is none, unless reading only. None for memory.
        busy_seconds: how long to wait for other processes.
        read_only: whether to refuse to change anything, or to make a file.

    Attributes:
        empty: whether the file was made, but nothing was ever recorded (when reading only).

    Raises:
        JournalError: if the file cannot be used, or is not a journal.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        busy_seconds: float = BUSY_SECONDS,
        read_only: bool = False,
    ) -> None:
        self.path = None if path is None else checked_path(path, create=not read_only)
        self.busy_seconds = busy_seconds
        self.empty = True
        self._read_only = read_only
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._of_parent: sqlite3.Connection | None = None
        with self._explained():
            self._open()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that changes something: all of it on return, nothing on an error."""
        with self._turn() as connection:
            self._check_still_there()
            with self._transaction(connection, "BEGIN IMMEDIATE"):
                yield connection

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the file."""
        with self._turn() as connection, self._transaction(connection, "BEGIN"):
            # The lock is taken by what reads first.
            self._patiently(connection, "SELECT 1 FROM sqlite_master LIMIT 1")
            yield connection

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            if self._connection is not None:
                if self._process == os.getpid():
                    self._connection.close()
                self._connection = None

    @contextmanager
    def _turn(self) -> Iterator[sqlite3.Connection]:
        if self._process != os.getpid():
            self._reopen_in_child()
        with self._lock, self._explained():
            if self._connection is None:
                raise JournalError(f"{self} was closed; make another Journal to go on")
            yield self._connection

    def _open(self) -> None:
        if self.path is None:
            connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        else:
            # Never created by SQLite, which would make it readable for everybody.
            address = f"file:{quote(os.fsencode(self.path))}?mode=rw"
            wait = min(_SLICE, self.busy_seconds)
            connection = sqlite3.connect(
                address, uri=True, timeout=wait, check_same_thread=False, isolation_level=None
            )
            with suppress(OSError):  # whoever writes first hears of it
                self._inode = os.stat(self.path).st_ino
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self._read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            # EXTRA: FULL, and the folder synced after the rollback journal is unlinked, or a power
            # cut could bring it back and with it the time before the last transaction.
            self._patiently(connection, "PRAGMA synchronous = EXTRA")
        with self._transaction(connection, "BEGIN"):
            self._patiently(connection, "SELECT 1 FROM sqlite_master LIMIT 1")
            known = self._check_kind(connection)
        self.empty = not known
        if self._read_only:
            return
        self._patiently(connection, "PRAGMA journal_mode = DELETE")
        if known:
            return
        with self._transaction(connection, "BEGIN IMMEDIATE"):
            if not self._check_kind(connection):  # nobody was faster
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
        self.empty = False

    def _check_kind(self, connection: sqlite3.Connection) -> bool:
        """Whether it is a journal (True) or empty (False)."""
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master LIMIT 5")]
        if application == APPLICATION_ID and version == VERSION:
            return True
        if application == APPLICATION_ID:
            raise JournalError(
                f"{self} is of version {version}, and this qailab reads version {VERSION}; "
                "use the qailab that wrote it, or another path"
            )
        if tables or application or version:
            raise JournalError(
                f"expected a journal of qailab, but {self} is another program's SQLite database "
                f"(tables {', '.join(tables) or 'none'}); it was left as it is; give another path"
            )
        return False

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection, begin: str) -> Iterator[None]:
        self._patiently(connection, begin)
        try:
            yield
            self._patiently(connection, "COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _patiently(self, connection: sqlite3.Connection, statement: str) -> None:
        end = time.monotonic() + self.busy_seconds
        while True:
            try:
                connection.execute(statement).fetchall()
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() >= end:
                    raise
                # SQLite waits by itself, except where two might wait for each other (as when one
                # finds the rollback journal of the other).
                time.sleep(_PAUSE)
            else:
                return

    def _check_still_there(self) -> None:
        """What is written to a file that was removed is lost without any error of SQLite's."""
        if self.path is None:
            return
        with suppress(OSError):
            if os.stat(self.path).st_ino == self._inode:
                return
        raise JournalError(
            f"{self} was removed or replaced while it was in use, so nothing more can be recorded; "
            "put the file back and start again"
        )

    def _reopen_in_child(self) -> None:
        """After a fork: SQLite's connections must not be used, nor closed, by a child."""
        if self.path is None:
            raise JournalError(_ALONE)
        self._lock = threading.RLock()  # a thread of the parent may hold the other one for ever
        self._process = os.getpid()
        if self._connection is not None:
            self._of_parent, self._connection = self._connection, None
            with self._explained():
                self._open()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"{self}: {error}. {self._advice(error)}") from error

    def _advice(self, error: sqlite3.Error) -> str:
        name = getattr(error, "sqlite_errorname", "")
        if _is_busy(error):
            return (
                f"Another process has held it for {self.busy_seconds:g} s: see which (`fuser -v "
                f"{self.path}`) and end it if it hangs. On a shared file system without locks, "
                "give each host a journal of its own"
            )
        for part, advice in _ADVICE.items():
            if part in name:
                return advice
        return "Nothing was changed; give another path if it happens again"

    def __reduce__(self) -> tuple[object, ...]:
        """Another process opens the file again."""
        if self.path is None:
            raise JournalError(_ALONE)
        return _opened, (self.path, self.busy_seconds, self._read_only)

    def __str__(self) -> str:
        return "the journal in memory" if self.path is None else f"the journal {self.path}"


_ALONE = "a journal in memory is for the process that made it; give it a path to share it"
_ADVICE = {
    "NOTADB": "Expected a journal of qailab; the file is no SQLite database and was left as it "
    "is: give another path",
    "CORRUPT": "The file is damaged: keep it, put a copy of it back, or give another path (jobs "
    "and their results are still at IBM, by their tags)",
    "READONLY": "It cannot be written: check the permissions of the file and its folder",
    "CANTOPEN": "Check the permissions of the file and its folder",
    "FULL": "Nothing was changed; make room on the disk and start again",
    "IOERR_LOCK": "Its file system cannot lock files: put the journal on a local disk",
    "PROTOCOL": "Its file system cannot lock files: put the journal on a local disk",
    "IOERR": "Check the disk (and the file system's mount) and start again",
}


def _is_busy(error: sqlite3.Error) -> bool:
    name = getattr(error, "sqlite_errorname", "")
    return bool(name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")))


def _opened(path: str, busy_seconds: float, read_only: bool) -> Database:
    return Database(path, busy_seconds=busy_seconds, read_only=read_only)
