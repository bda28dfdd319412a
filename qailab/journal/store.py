"""`Journal`: the record of jobs in an SQLite file."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from types import TracebackType
from typing import Self

import numpy as np

from qailab.errors import JournalError
from qailab.journal.database import BUSY_SECONDS, Database
from qailab.journal.entries import ENDED, LIVE, Cause, Entry, State, Work
from qailab.journal.record import Counts, Record, Rows

_WORK = tuple(field.name for field in fields(Work))
_OWN = tuple(field.name for field in fields(Entry) if field.name not in ("id", "work"))
_CHANGING = (
    "state", "cause", "reason", "job_id", "backend", "session", "owner", "usage_seconds", "updated",
)  # fmt: skip
_COLUMNS = ", ".join(("id", *_WORK, *_OWN))
_DTYPES = {1: "<u1", 2: "<u2", 4: "<u4"}
_ZLIB_LEVEL = 1  # ten times faster than zlib's default, and within a fifth of its size on counts
_SHOWN = 8  # circuits in a message


@dataclass(frozen=True)
class Totals:
    """What all jobs of a journal come to.

    Args:
        jobs: jobs that reached a server, whatever became of them.
        rows: rows of these.
        executions: rows times shots of these.
        qpu_seconds: what they used, as far as it is known.
    """

    jobs: int
    rows: int
    executions: int
    qpu_seconds: float


class Journal(Record):
    """A record of hardware jobs and their results, in a file.

    It is safe against ``kill -9`` and power cuts, is readable for its user only (mode 0600), and
    may be used by several processes, on several hosts as far as the file system locks files.
    Threads may share it. A pickled one opens the file again.

    It is a `qailab.backends.shared.SharedState` as well: what its processes agree on.

    Args:
        path: the file, made if there is none. One of an earlier qailab is brought up to date.
        busy_seconds: how long to wait for other processes.

    Raises:
        JournalError: if the file cannot be used: no SQLite database, another program's, of a newer
            qailab, empty, a folder, in no folder, or not writable.
    """

    group = ""  # all who have the file

    def __init__(self, path: str | os.PathLike[str], *, busy_seconds: float = BUSY_SECONDS) -> None:
        self._database = Database(path, busy_seconds=busy_seconds)
        self.path: str = self._database.path
        self.id = (self.get("id")[1] or b"").decode()

    @contextmanager
    def _writing(self) -> Iterator[Rows]:
        with self._database.writing() as connection:
            yield _FileRows(connection)

    @contextmanager
    def _reading(self) -> Iterator[Rows]:
        with self._database.reading() as connection:
            yield _FileRows(connection)

    def get(self, name: str) -> tuple[int, bytes | None]:
        """A shared value and its version; 0 and None if it was never written."""
        query = "SELECT version, value FROM states WHERE name = ?"
        with self._database.reading() as connection:
            row: tuple[int, bytes] | None = connection.execute(query, (name,)).fetchone()
        return row or (0, None)

    def put(self, name: str, version: int, value: bytes) -> bool:
        """Write a shared value if its version is still the one that was read."""
        query = (
            "INSERT INTO states SELECT ?1, 1, ?3 WHERE ?2 = 0 ON CONFLICT DO NOTHING"
            if version == 0
            else "UPDATE states SET version = version + 1, value = ?3 "
            "WHERE name = ?1 AND version = ?2"
        )
        with self._database.writing() as connection:
            return connection.execute(query, (name, version, value)).rowcount == 1

    def register(self, circuit: str, qubits: int, angles: int) -> None:
        """Note a circuit, so that its jobs are accepted, and messages can say what it is."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO circuits VALUES (?, ?, ?)", (circuit, qubits, angles)
            )

    def check_model(self, circuit: str, qubits: int, angles: int) -> None:
        """Raise if there are jobs, but none of this circuit, nor is it registered.

        Raises:
            JournalError: it says of which circuits the jobs are.
        """
        query = (
            "SELECT circuit, max(qubits), max(angles), sum(jobs) FROM ("
            "SELECT circuit, qubits, angles, 0 AS jobs FROM circuits UNION ALL "
            "SELECT circuit, NULL, NULL, count(*) FROM entries GROUP BY circuit) "
            "GROUP BY circuit ORDER BY sum(jobs) DESC, circuit"
        )
        with self._database.reading() as connection:
            known = connection.execute(query).fetchall()
        jobs = sum(count for *_, count in known)
        if not jobs or circuit in (name for name, *_ in known):
            return
        listed = [
            f"{name[:12]} ({_counted(theirs, 'qubit')}, {_counted(turned, 'angle')}, "
            f"{_counted(count, 'job')})"
            for name, theirs, turned, count in known[:_SHOWN]
        ]
        if len(known) > _SHOWN:
            listed.append(f"and {len(known) - _SHOWN} more")
        raise JournalError(
            f"{self._database} is of another model: it knows the circuits {', '.join(listed)}, and "
            f"this model's is {circuit[:12]} ({_counted(qubits, 'qubit')}, "
            f"{_counted(angles, 'angle')}); give this model another path, or go on with the model "
            "that the journal is of"
        )

    def totals(self) -> Totals:
        """What all jobs that reached a server come to."""
        return self._totals("")

    def ended_totals(self, beside: Collection[str]) -> Totals:
        """What jobs come to that have ended, but for those of the given tags."""
        states = ", ".join(f"'{state}'" for state in (State.DONE, *ENDED))
        places = ", ".join("?" * len(beside))
        return self._totals(f"AND state IN ({states}) AND tag NOT IN ({places})", *beside)

    def _totals(self, only: str, *values: str) -> Totals:
        query = (
            "SELECT count(*), total(stop - start), total((stop - start) * shots), "
            f"total(usage_seconds) FROM entries WHERE job_id IS NOT NULL {only}"
        )
        with self._database.reading() as connection:
            jobs, rows, executions, seconds = connection.execute(query, values).fetchone()
        return Totals(jobs, int(rows), int(executions), seconds)

    def give_up(self, entry_id: int, reason: str) -> Entry:
        """Note that an entry's job will have no result, as where it was deleted at the server.

        Its rows are sent again by whoever needs them.

        Raises:
            JournalError: if it is done, or has ended.
        """
        entry = self.entry(entry_id)
        if entry.state is State.DONE or entry.state in ENDED:
            raise JournalError(f"{entry} is over: there is nothing to give up")
        return self.ended(entry_id, State.FAILED, Cause.DELETED, reason, None)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Journal({self.path!r})"


class _FileRows(Rows):
    """Entries in a transaction of a file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def get(self, entry_id: int) -> Entry:
        found = self._entries("WHERE id = ?", (entry_id,))
        if not found:
            raise JournalError(
                f"expected the number of an entry of this journal, got {entry_id!r}: there is none"
            )
        return found[0]

    def of_job(self, job_id: str) -> int | None:
        query = "SELECT id FROM entries WHERE job_id = ?"
        row = self._connection.execute(query, (job_id,)).fetchone()
        return None if row is None else int(row[0])

    def overlapping(self, work: Work) -> list[Entry]:
        # The index gives the evaluation's entries that begin before the work ends: a step's.
        where = (
            f"WHERE key = ? AND start < ? AND stop > ? AND state IN ({', '.join('?' * len(LIVE))})"
        )
        return self._entries(where, (work.key, work.stop, work.start, *LIVE))

    def attempts(self, work: Work) -> int:
        query = (
            "SELECT count(*) FROM entries WHERE key = ? AND start = ? AND stop = ? "
            "AND digests = ? AND job_id IS NOT NULL"
        )
        same = (work.key, work.start, work.stop, work.digests)
        return int(self._connection.execute(query, same).fetchone()[0])

    def insert(self, entry: Entry) -> Entry:
        names = ("key", *_WORK, *_OWN)
        own = (getattr(entry, name) for name in _OWN)
        values = (entry.work.key, *astuple(entry.work), *own)
        query = f"INSERT INTO entries ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        number = self._connection.execute(query, values).lastrowid
        assert number is not None
        return replace(entry, id=number)

    def put(self, entry: Entry) -> None:
        query = f"UPDATE entries SET {', '.join(f'{name} = ?' for name in _CHANGING)} WHERE id = ?"
        values = (getattr(entry, name) for name in _CHANGING)
        self._connection.execute(query, (*values, entry.id))

    def keep(self, entry: Entry, counts: Counts) -> None:
        width = next(width for width in _DTYPES if int(counts.max(initial=0)) < 256**width)
        data = zlib.compress(np.ascontiguousarray(counts, _DTYPES[width]).data, _ZLIB_LEVEL)
        self._connection.execute(
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)",
            (entry.id, *counts.shape, width, data),
        )

    def kept(self, entry: Entry) -> Counts:
        query = "SELECT num_rows, outcomes, width, data FROM results WHERE entry = ?"
        row = self._connection.execute(query, (entry.id,)).fetchone()
        try:
            return _unpacked(row, entry.work.num_rows)
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise JournalError(
                f"the result of {entry} is damaged ({error}); the job {entry.job_id} on "
                f"{entry.backend} can be fetched again from IBM by its id, and recorded as done"
            ) from error

    def _entries(self, where: str, values: Iterable[object]) -> list[Entry]:
        found = []
        for row in self._connection.execute(
            f"SELECT {_COLUMNS} FROM entries {where}", tuple(values)
        ):
            number, *rest = row
            own = dict(zip(_OWN, rest[len(_WORK) :], strict=True))
            own |= {"state": State(own["state"]), "cause": Cause(own["cause"])}
            found.append(Entry(id=number, work=Work(*rest[: len(_WORK)]), **own))
        return found


def _unpacked(row: tuple[int, int, int, bytes] | None, num_rows: int) -> Counts:
    if row is None:
        raise ValueError("it is missing")
    rows, outcomes, width, packed = row
    expected = rows * outcomes * width
    data = zlib.decompress(packed, bufsize=expected + 1)
    if rows != num_rows or len(data) != expected:
        raise ValueError(f"{rows} rows in {len(data)} bytes, not {num_rows} in {expected}")
    return np.frombuffer(data, dtype=_DTYPES[width]).reshape(rows, outcomes).astype(np.uint32)


def _counted(number: int | None, what: str) -> str:
    if number is None:
        return f"{what}s unknown"
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
