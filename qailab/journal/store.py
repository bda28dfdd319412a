"""`Journal`: the record of jobs in an SQLite file."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import astuple, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np

from qailab.errors import JournalError
from qailab.journal.database import Database
from qailab.journal.record import ENDED, LIVE, Cause, Counts, Entry, Record, State, Work

_WORK = tuple(field.name for field in fields(Work))
_OWN = tuple(field.name for field in fields(Entry) if field.name not in ("id", "work"))
_FIXED = {"tag", "attempt", "created"}
_CHANGING = tuple(name for name in _OWN if name not in _FIXED)
_COLUMNS = ", ".join(("id", *_WORK, *_OWN))
_DTYPES = {1: "<u1", 2: "<u2", 4: "<u4"}
_ZLIB_LEVEL = 1  # ten times faster than zlib's default, and within a fifth of its size on counts


class Totals(NamedTuple):
    """What jobs come to that reached a server, whatever became of them."""

    jobs: int
    rows: int
    executions: int  # rows times shots
    qpu_seconds: float  # as far as they are known


class Journal(Record):
    """A record of hardware jobs and their results, in a file.

    It is safe against ``kill -9`` and power cuts, is readable for its user only (mode 0600), and
    may be used by several processes, on several hosts as far as the file system locks files.
    Threads may share it. A pickled one opens the file again.

    It is a `qailab.backends.shared.SharedState` as well: what its processes agree on.

    Args:
        path: the file, made if there is none.

    Raises:
        JournalError: if the file cannot be used: no SQLite database, another program's, of another
            version, empty, a folder, in no folder, or not writable.
    """

    group = ""  # all who have the file

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._database = Database(path)
        self.path: str = self._database.path
        self.id = (self.get("id")[1] or b"").decode()

    def get(self, name: str) -> tuple[int, bytes | None]:
        """A shared value and its version; 0 and None if it was never written."""
        with self._transaction(write=False):
            row = self._one("SELECT version, value FROM states WHERE name = ?", name)
        return row or (0, None)

    def put(self, name: str, version: int, value: bytes) -> bool:
        """Write a shared value if its version is still the one that was read."""
        query = "UPDATE states SET version = version + 1, value = ? WHERE name = ? AND version = ?"
        if version == 0:
            query = "INSERT INTO states SELECT ?2, 1, ?1 WHERE ?3 = 0 ON CONFLICT DO NOTHING"
        with self._transaction():
            return self._execute(query, value, name, version).rowcount == 1

    def bind(self, service: str) -> None:
        """Note where its jobs run: what is measured at one place is no answer for another one.

        Raises:
            JournalError: if its jobs run elsewhere, as those of a rehearsal do.
        """
        self.put("service", 0, service.encode())  # the first one stays
        known = (self.get("service")[1] or b"").decode()
        if known != service:
            raise JournalError(
                f"{self._database} is of jobs at {known}, and this backend's run at {service}: "
                "what the one measured is no answer for the other; give another path"
            )

    def register(self, circuit: str, qubits: int, angles: int) -> None:
        """Note a circuit, so that its jobs are accepted, and messages can say what it is.

        Raises:
            JournalError: if there are jobs, but of other circuits: it is another model's.
        """
        query = (
            "SELECT circuit, max(qubits), max(angles), sum(jobs) FROM ("
            "SELECT circuit, qubits, angles, 0 AS jobs FROM circuits UNION ALL "
            "SELECT circuit, NULL, NULL, count(*) FROM entries GROUP BY circuit) "
            "GROUP BY circuit ORDER BY sum(jobs) DESC, circuit"
        )
        with self._transaction():
            known = self._execute(query).fetchall()
            if not any(jobs for *_, jobs in known) or circuit in (name for name, *_ in known):
                note = "INSERT OR REPLACE INTO circuits VALUES (?, ?, ?)"
                self._execute(note, circuit, qubits, angles)
                return
        listed = [f"{_shown(*facts)} with {jobs} jobs" for *facts, jobs in known[:8]]
        raise JournalError(
            f"{self._database} is of another model: it knows {len(known)} circuits "
            f"({', '.join(listed)}), and this model's is {_shown(circuit, qubits, angles)}; give "
            "this model another path, or go on with the model that the journal is of"
        )

    def totals(self, *, ended_beside: Collection[str] | None = None) -> Totals:
        """What all jobs that reached a server come to.

        Args:
            ended_beside: only those that have ended, and are not of these tags.
        """
        query = (
            "SELECT count(*), total(stop - start), total((stop - start) * shots), "
            "total(usage_seconds) FROM entries WHERE job_id IS NOT NULL"
        )
        if ended_beside is not None:
            states = ", ".join(f"'{state}'" for state in (State.DONE, *ENDED))
            places = ", ".join("?" * len(ended_beside))
            query += f" AND state IN ({states}) AND tag NOT IN ({places})"
        with self._transaction(write=False):
            jobs, rows, executions, seconds = self._one(query, *(ended_beside or ()))
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

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Journal({self.path!r})"

    def _transaction(self, *, write: bool = True) -> AbstractContextManager[Any]:
        return self._database.writing() if write else self._database.reading()

    def _execute(self, query: str, *values: Any) -> sqlite3.Cursor:
        return self._database.execute(query, values)

    def _one(self, query: str, *values: Any) -> Any:
        return self._execute(query, *values).fetchone()

    def _get(self, entry_id: int) -> Entry:
        found = self._entries("WHERE id = ?", entry_id)
        if not found:
            raise JournalError(f"there is no entry {entry_id!r} in {self._database}")
        return found[0]

    def _of_job(self, job_id: str) -> int | None:
        row = self._one("SELECT id FROM entries WHERE job_id = ?", job_id)
        return None if row is None else int(row[0])

    def _overlapping(self, work: Work) -> list[Entry]:
        # The index gives the evaluation's entries that begin before the work ends: a step's.
        states = ", ".join(f"'{state}'" for state in LIVE)
        where = f"WHERE key = ? AND start < ? AND stop > ? AND state IN ({states})"
        return self._entries(where, work.key, work.stop, work.start)

    def _attempts(self, work: Work) -> int:
        query = (
            "SELECT count(*) FROM entries WHERE key = ? AND start = ? AND stop = ? "
            "AND digests = ? AND job_id IS NOT NULL"
        )
        return int(self._one(query, work.key, work.start, work.stop, work.digests)[0])

    def _insert(self, entry: Entry) -> Entry:
        names = ("key", *_WORK, *_OWN)
        query = f"INSERT INTO entries ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        own = (getattr(entry, name) for name in _OWN)
        number = self._execute(query, entry.work.key, *astuple(entry.work), *own).lastrowid
        assert number is not None
        return replace(entry, id=number)

    def _put(self, entry: Entry) -> None:
        query = f"UPDATE entries SET {', '.join(f'{name} = ?' for name in _CHANGING)} WHERE id = ?"
        self._execute(query, *(getattr(entry, name) for name in _CHANGING), entry.id)

    def _keep(self, entry: Entry, counts: Counts) -> None:
        width = next(width for width in _DTYPES if int(counts.max(initial=0)) < 256**width)
        data = zlib.compress(np.ascontiguousarray(counts, _DTYPES[width]).data, _ZLIB_LEVEL)
        query = "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)"
        self._execute(query, entry.id, *counts.shape, width, data)

    def _kept(self, entry: Entry) -> Counts:
        query = "SELECT num_rows, outcomes, width, data FROM results WHERE entry = ?"
        try:
            rows, outcomes, width, packed = self._one(query, entry.id)
            expected = rows * outcomes * width
            data = zlib.decompress(packed, bufsize=expected + 1)
            if rows != entry.work.num_rows or len(data) != expected:
                raise ValueError(f"{rows} rows in {len(data)} bytes")
            counts = np.frombuffer(data, dtype=_DTYPES[width]).reshape(rows, outcomes)
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise JournalError(
                f"the result of {entry} is damaged ({error}); the job {entry.job_id} on "
                f"{entry.backend} can be fetched again from IBM by its id, and recorded as done"
            ) from error
        return counts.astype(np.uint32)

    def _entries(self, where: str, *values: Any) -> list[Entry]:
        found = []
        for number, *rest in self._execute(f"SELECT {_COLUMNS} FROM entries {where}", *values):
            own = dict(zip(_OWN, rest[len(_WORK) :], strict=True))
            own |= {"state": State(own["state"]), "cause": Cause(own["cause"])}
            found.append(Entry(id=number, work=Work(*rest[: len(_WORK)]), **own))
        return found


def _shown(circuit: str, qubits: int | None, angles: int | None) -> str:
    return f"{circuit[:12]} of {qubits or '?'} qubits and {angles or '?'} angles"
