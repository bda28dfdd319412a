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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote

from qailab.errors import InputTypeError, JournalError
from qailab.journal.upgrade import upgrade

BUSY_SECONDS = 60.0
"""How long to wait for other processes; a transaction takes milliseconds, a sync on a busy shared
file system seconds."""

APPLICATION_ID = 0x71614A31  # "qaJ1" in the file's header, so that nobody's database is touched
VERSION = 2

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
        busy_seconds: how long to wait for other processes.
        read_only: whether to refuse to change anything, or to make a file.

    Raises:
        JournalError: if the file cannot be used, or is not a journal.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_seconds: float = BUSY_SECONDS,
        read_only: bool = False,
    ) -> None:
        self.path = _checked_path(path, create=not read_only)
        self.busy_seconds = busy_seconds
        self._read_only = read_only
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._of_parent: sqlite3.Connection | None = None
        self._inode = 0
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
            self._execute(connection, "SELECT 1 FROM sqlite_master LIMIT 1")
            yield connection

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
                self._of_parent, self._connection = self._connection, None
                with self._explained():
                    self._open()
        with self._lock, self._explained():
            if self._connection is None:
                raise JournalError(f"{self} was closed; make another Journal to go on")
            yield self._connection

    def _open(self) -> None:
        # Never created by SQLite, which would make it readable for everybody.
        address = f"file:{quote(os.fsencode(self.path))}?mode=rw"
        connection = sqlite3.connect(
            address,
            uri=True,
            timeout=min(_SLICE, self.busy_seconds),
            check_same_thread=False,
            isolation_level=None,
        )
        with suppress(OSError):  # whoever writes first hears of it
            self._inode = os.stat(self.path).st_ino
        try:
            self._connection = self._prepared(connection)
        except BaseException:
            connection.close()
            raise

    def _prepared(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        if self._read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            # EXTRA: FULL, and the folder synced after the rollback journal is unlinked, or a power
            # cut could bring it back and with it the time before the last transaction.
            self._execute(connection, "PRAGMA synchronous = EXTRA")
        with self._transaction(connection, "BEGIN"):
            self._execute(connection, "SELECT 1 FROM sqlite_master LIMIT 1")
            version = self._version(connection)
        if version == 1 and self._read_only:  # the file is left as it is
            copy = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
            connection.backup(copy)
            connection.close()
            upgrade(copy, VERSION)
            return copy
        if not self._read_only:
            self._execute(connection, "PRAGMA journal_mode = DELETE")
        if version == 1:
            with self._transaction(connection, "BEGIN IMMEDIATE"):
                if self._version(connection) == 1:  # nobody was quicker
                    upgrade(connection, VERSION, in_use=f"{self} is in use")
        return connection

    def _version(self, connection: sqlite3.Connection) -> int:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if application == APPLICATION_ID and version in (1, VERSION):
            return version
        if application == APPLICATION_ID:
            raise JournalError(
                f"{self} is of version {version}, and this qailab reads versions 1 to {VERSION}; "
                "use the qailab that wrote it, or another path"
            )
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master LIMIT 5")]
        raise JournalError(
            f"expected a journal of qailab, but {self} is another program's SQLite database "
            f"(tables {', '.join(tables) or 'none'}); it was left as it is; give another path"
        )

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection, begin: str) -> Iterator[None]:
        self._execute(connection, begin)
        try:
            yield
            self._execute(connection, "COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _execute(self, connection: sqlite3.Connection, statement: str) -> None:
        """Execute a statement that waits for other processes."""
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
        """Raise if the file was removed: SQLite writes on, and all of it is lost."""
        with suppress(OSError):
            if os.stat(self.path).st_ino == self._inode:
                return
        raise JournalError(
            f"{self} was removed or replaced while it was in use, so nothing more can be recorded; "
            "put the file back and start again"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"{self}: {error}. {self._advice(error)}") from error

    def _advice(self, error: sqlite3.Error) -> str:
        if _is_busy(error):
            return (
                f"Another process has held it for {self.busy_seconds:g} s: see which (`fuser -v "
                f"{self.path}`) and end it if it hangs. On a shared file system without locks, "
                "give each host a journal of its own"
            )
        name = getattr(error, "sqlite_errorname", "")
        for part, advice in _ADVICE.items():
            if part in name:
                return advice
        return "Nothing was changed; give another path if it happens again"

    def __reduce__(self) -> tuple[object, ...]:
        """Another process opens the file again."""
        return _opened, (self.path, self.busy_seconds, self._read_only)

    def __str__(self) -> str:
        return f"the journal {self.path}"


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


def _checked_path(path: str | os.PathLike[str], *, create: bool) -> str:
    """The absolute path of a file that can be used; made if there is none and it may be."""
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(name, str) or "\0" in name:
        raise InputTypeError(f"a journal's path must be text or a path, got {path!r}")
    full = os.path.abspath(name)  # it must mean the same after a chdir
    folder = os.path.dirname(full)
    wrong = f"expected a journal's file at {full}, but "
    if create and not os.path.isdir(folder):
        raise JournalError(f"{wrong}there is no folder {folder}; make it, or give another path")
    try:
        found = os.stat(full)
    except FileNotFoundError:
        if not create:
            raise JournalError(f"{wrong}there is no such file") from None
        try:
            _create(full, folder)
        except OSError as error:
            raise JournalError(
                f"{wrong}it cannot be made there ({error.strerror}); give a path that can be "
                "written"
            ) from error
        return full
    except OSError as error:
        raise JournalError(f"{wrong}{error.strerror}; give another path") from error
    if stat.S_ISDIR(found.st_mode):
        raise JournalError(f"{wrong}that is a folder; give the path of a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise JournalError(f"{wrong}that is no regular file; give another path")
    if not os.access(full, os.R_OK) or (create and not os.access(full, os.W_OK)):
        doing = "written" if os.access(full, os.R_OK) else "read"
        raise JournalError(f"{wrong}it cannot be {doing}; change its permissions (chmod u+rw)")
    if create and not os.access(folder, os.W_OK):
        raise JournalError(
            f"{wrong}its folder cannot be written, where SQLite keeps what it needs to undo a "
            f"transaction; change its permissions (chmod u+w {folder})"
        )
    if found.st_size == 0:  # a journal is never that: it appears with its tables in it
        raise JournalError(
            f"{wrong}the file is empty: put a copy of the journal back, or remove it to begin anew"
        )
    return full


def _create(path: str, folder: str) -> None:
    """Make a journal, for this user only: what ran where is nobody else's business.

    It appears whole, or not at all, so that a file that was cut to nothing is not taken for new.
    """
    descriptor, new = tempfile.mkstemp(prefix=".qailab-journal-", dir=folder)
    os.close(descriptor)
    try:
        connection = sqlite3.connect(new, isolation_level=None)
        connection.executescript(_SCHEMA)
        connection.execute(
            "INSERT INTO states VALUES ('id', 1, ?)", (uuid.uuid4().hex[:12].encode(),)
        )
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
