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
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

from qailab.errors import InputTypeError, JournalError

BUSY_SECONDS = 60.0
"""How long to wait for other processes; a transaction takes milliseconds, a sync on a busy shared
file system seconds."""

APPLICATION_ID = 0x71614A31  # "qaJ1" in the file's header, so that nobody's database is touched
VERSION = 3

_SLICE = 0.5  # seconds that SQLite waits by itself, deaf to Ctrl-C
_PAUSE = 0.002  # seconds, about a transaction
_SCHEMA = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, circuit TEXT NOT NULL,
    shots INTEGER NOT NULL, seed INTEGER NOT NULL, step INTEGER NOT NULL, purpose TEXT NOT NULL,
    start INTEGER NOT NULL, stop INTEGER NOT NULL, tag TEXT NOT NULL, attempt INTEGER NOT NULL,
    state TEXT NOT NULL, job_id TEXT, backend TEXT NOT NULL, session TEXT, owner TEXT NOT NULL,
    usage_seconds REAL, reason TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    digests BLOB NOT NULL, cause TEXT NOT NULL DEFAULT '');
CREATE INDEX entries_by_rows ON entries (key, start);
CREATE INDEX entries_by_circuit ON entries (circuit);
CREATE INDEX entries_by_job ON entries (job_id);
CREATE TABLE results (
    entry INTEGER PRIMARY KEY, num_rows INTEGER NOT NULL, outcomes INTEGER NOT NULL,
    width INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE circuits (
    circuit TEXT PRIMARY KEY, qubits INTEGER NOT NULL, angles INTEGER NOT NULL);
CREATE TABLE states (name TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL);
"""


class Database:
    """One connection, which the threads of a process take in turn.

    One for all threads, not one for each: SQLite lets only one write anyway, and threads that come
    and go leave none behind.

    Args:
        path: the file; made if there is none, unless reading only.
        read_only: whether to refuse to change anything, or to make a file.

    Raises:
        JournalError: if the file cannot be used, or is not a journal.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path = _checked_path(path, create=not read_only)
        self._read_only = read_only
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._of_parent: list[sqlite3.Connection] = []
        with self._explained():
            self._connection: sqlite3.Connection | None = self._opened()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that changes something: all of it on return, nothing on an error."""
        with self._turn() as connection:
            if _inode(self.path) != self._inode:  # SQLite would write on, and lose all of it
                raise JournalError(
                    f"{self} was removed or replaced while it was in use, so nothing more can be "
                    "recorded; put the file back and start again"
                )
            with self._transaction(connection, "BEGIN IMMEDIATE"):
                yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A transaction that sees one state of the file."""
        with self._turn() as connection, self._transaction(connection, "BEGIN"):
            # The lock is taken by what reads first.
            self._patiently(connection, "SELECT 1 FROM sqlite_master LIMIT 1")
            yield

    def execute(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute a statement in a transaction of this thread."""
        assert self._connection is not None
        return self._connection.execute(query, values)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    @contextmanager
    def _turn(self) -> Iterator[sqlite3.Connection]:
        if self._process != os.getpid():  # forked: SQLite's connections are the parent's alone
            self._lock = threading.RLock()  # a thread of the parent may hold the other one for ever
            self._process = os.getpid()
            if self._connection is not None:
                self._of_parent.append(self._connection)
                with self._explained():
                    self._connection = self._opened()
        with self._lock, self._explained():
            if self._connection is None:
                raise JournalError(f"{self} was closed; make another Journal to go on")
            yield self._connection

    def _opened(self) -> sqlite3.Connection:
        # Never created by SQLite, which would make it readable for everybody.
        address = f"file:{quote(os.fsencode(self.path))}?mode=rw"
        connection = _connect(address, min(_SLICE, BUSY_SECONDS))
        self._inode = _inode(self.path)
        try:
            return self._prepared(connection)
        except BaseException:
            connection.close()
            raise

    def _prepared(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        if self._read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            # EXTRA: FULL, and the folder synced after the rollback journal is unlinked, or a power
            # cut could bring it back and with it the time before the last transaction.
            self._patiently(connection, "PRAGMA synchronous = EXTRA")
        with self._transaction(connection, "BEGIN"):
            self._patiently(connection, "SELECT 1 FROM sqlite_master LIMIT 1")
            self._check_version(connection)
        if not self._read_only:
            self._patiently(connection, "PRAGMA journal_mode = DELETE")
        return connection

    def _check_version(self, connection: sqlite3.Connection) -> None:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if application == APPLICATION_ID and version == VERSION:
            return
        if application == APPLICATION_ID:  # rows had other keys: they would be paid for again
            raise JournalError(
                f"{self} is of version {version}, and this qailab uses version {VERSION}; finish "
                "its jobs with the qailab that wrote it, or give another path"
            )
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master LIMIT 5")]
        raise JournalError(
            f"expected a journal of qailab, but {self} is another program's SQLite database "
            f"(tables {', '.join(tables) or 'none'}); it was left as it is; give another path"
        )

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
        """Execute a statement that may wait for other processes."""
        end = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                connection.execute(statement).fetchall()
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() >= end:
                    raise
            # SQLite waits by itself, except where two might wait for each other (as when one finds
            # the rollback journal of the other).
            time.sleep(_PAUSE)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            advice = next((text for part, text in _ADVICE.items() if part in name), _UNKNOWN)
            if _is_busy(error):
                advice = (
                    f"Another process has held it for {BUSY_SECONDS:g} s: see which (`fuser "
                    f"-v {self.path}`) and end it if it hangs. On a shared file system without "
                    "locks, give each host a journal of its own"
                )
            raise JournalError(f"{self}: {error}. {advice}") from error

    def __reduce__(self) -> tuple[object, ...]:
        """Another process opens the file again."""
        return _pickled, (self.path, self._read_only)

    def __str__(self) -> str:
        return f"the journal {self.path}"


_UNKNOWN = "Nothing was changed; give another path if it happens again"
_ADVICE = {
    "NOTADB": "Expected a journal of qailab; the file is no SQLite database and was left as it "
    "is: give another path",
    "CORRUPT": "The file is damaged: keep it, put a copy of it back, or give another path (jobs "
    "and their results are still at IBM, by their tags)",
    "READONLY": "It cannot be written: check the permissions of the file and its folder",
    "CANTOPEN": "Check the permissions of the file and its folder (SQLite writes there, too)",
    "FULL": "Nothing was changed; make room on the disk and start again",
    "IOERR_LOCK": "Its file system cannot lock files: put the journal on a local disk",
    "PROTOCOL": "Its file system cannot lock files: put the journal on a local disk",
    "IOERR": "Check the disk (and the file system's mount) and start again",
}


def _is_busy(error: sqlite3.Error) -> bool:
    name: str = getattr(error, "sqlite_errorname", "")
    return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _connect(address: str, seconds: float) -> sqlite3.Connection:
    return sqlite3.connect(
        address, uri=True, timeout=seconds, check_same_thread=False, isolation_level=None
    )


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _pickled(path: str, read_only: bool) -> Database:
    return Database(path, read_only=read_only)


def _checked_path(path: str | os.PathLike[str], *, create: bool) -> str:
    """The absolute path of a file that can be used; made if there is none and it may be."""
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(name, str) or "\0" in name:
        raise InputTypeError(f"a journal's path must be text or a path, got {path!r}")
    full = os.path.abspath(name)  # it must mean the same after a chdir
    wrong = f"expected a journal's file at {full}, but "
    try:
        if create and not os.path.lexists(full):
            _create(full, os.path.dirname(full))
        found = os.stat(full)
    except OSError as error:
        raise JournalError(
            f"{wrong}{error.strerror}; give a path in a folder that is there and can be written"
        ) from error
    if stat.S_ISDIR(found.st_mode):
        raise JournalError(f"{wrong}that is a folder; give the path of a file in it")
    if found.st_size == 0:  # a journal is never that: it appears with its tables in it
        raise JournalError(
            f"{wrong}the file is empty: put a copy of it back, or remove it to begin anew"
        )
    return full


def _create(path: str, folder: str) -> None:
    """Make a journal, for this user only: what ran where is nobody else's business.

    It appears whole, or not at all, so that a file that was cut to nothing is not taken for new.
    """
    descriptor, new = tempfile.mkstemp(prefix=".qailab-journal-", dir=folder)
    os.close(descriptor)
    try:
        connection = _connect(new, _SLICE)
        connection.executescript(_SCHEMA)
        name = uuid.uuid4().hex[:12].encode()
        connection.execute("INSERT INTO states VALUES ('id', 1, ?)", (name,))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.close()
        try:
            os.link(new, path)
        except FileExistsError:
            pass  # another process was quicker
        except OSError:  # a file system without links
            if not os.path.exists(path):
                os.rename(new, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(new)
    with suppress(OSError):  # some file systems cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
