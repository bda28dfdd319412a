"""Entries in the file: reading and changing them, and covering rows with them, in a transaction."""

from __future__ import annotations

import math
import sqlite3
import time
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from qailab.errors import InputError, JournalError
from qailab.journal.cutting import cuts
from qailab.journal.results import Packed, unpack
from qailab.journal.work import DIGEST_BYTES, ENDED, LIVE, Entry, Work

COLUMNS = ", ".join(field.name for field in fields(Entry))
_INSERTED = [field.name for field in fields(Entry) if field.name != "id"]
_INSERT = f"INSERT INTO entries ({', '.join(_INSERTED)}) VALUES ({', '.join('?' * len(_INSERTED))})"

_SUMS = (
    "SELECT count(*) AS jobs, coalesce(sum(stop - start), 0) AS num_rows, "
    "coalesce(sum((stop - start) * shots), 0) AS executions, "
    "coalesce(sum(usage_seconds), 0.0) AS qpu_seconds FROM entries WHERE job_id IS NOT NULL"
)


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


def read_entry(connection: sqlite3.Connection, entry_id: int) -> Entry:
    """The entry of that number.

    Raises:
        JournalError: if there is none.
    """
    query = f"SELECT {COLUMNS} FROM entries WHERE id = ?"
    row = connection.execute(query, (entry_id,)).fetchone()
    if row is None:
        raise JournalError(
            f"expected the number of an entry of this journal, got {entry_id!r}: there is none"
        )
    return entry_of(row)


def entry_of(row: tuple[object, ...]) -> Entry:
    """An entry from a row of `COLUMNS`."""
    return Entry(**dict(zip((field.name for field in fields(Entry)), row, strict=True)))  # type: ignore[arg-type]


def named(entry: Entry) -> str:
    """An entry in words, for messages."""
    return (
        f"entry {entry.id} (step {entry.step}, {entry.purpose}, rows {entry.start} .. "
        f"{entry.stop - 1}, {entry.state})"
    )


def live_entries(connection: sqlite3.Connection, work: Work) -> list[Entry]:
    """Live entries that share rows with some work and hold the same there, the surest first."""
    # The index gives the evaluation's entries that begin before the work ends: a step's, no more.
    query = (
        f"SELECT {COLUMNS} FROM entries WHERE key = ? AND start < ? AND stop > ? "
        f"AND state IN ({', '.join('?' * len(LIVE))})"
    )
    rows = connection.execute(query, (work.key, work.stop, work.start, *LIVE))
    found = [entry for entry in map(entry_of, rows) if _alike(entry, work)]
    return sorted(found, key=lambda entry: (LIVE.index(entry.state), entry.start, entry.id))


def cover(
    connection: sqlite3.Connection,
    work: Work,
    *,
    most_rows: int,
    group: int,
    backend: str,
    owner: str,
) -> list[Entry]:
    """Live entries that cover some work together, in the order of their rows.

    Rows that have none get new ones of at most ``most_rows`` rows, cut at multiples of ``group``.
    """
    free = np.ones(work.num_rows, dtype=bool)
    chosen = []
    for entry in live_entries(connection, work):
        covered = free[max(entry.start - work.start, 0) : entry.stop - work.start]
        if covered.any():
            covered[:] = False
            chosen.append(entry)
    for first, last in _runs(free):
        pieces = cuts(work.start + first, work.start + last, most=most_rows, group=group)
        chosen += [_insert(connection, work.part(*piece), backend, owner) for piece in pieces]
    return sorted(chosen, key=lambda entry: entry.start)


def change(connection: sqlite3.Connection, entry_id: int, **values: str | float | None) -> None:
    """Set columns of an entry."""
    values["updated"] = time.time()
    columns = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE entries SET {columns} WHERE id = ?", (*values.values(), entry_id))


def change_intended(connection: sqlite3.Connection, entry: Entry, **values: str) -> bool:
    """Set columns of an entry if it is still intended by the same owner; return whether it was."""
    columns = ", ".join(f"{name} = ?" for name in values)
    query = (
        f"UPDATE entries SET {columns}, updated = ? "
        "WHERE id = ? AND state = 'intended' AND owner = ?"
    )
    given = (*values.values(), time.time(), entry.id, entry.owner)
    return connection.execute(query, given).rowcount == 1


def usage_of(entry: Entry, seconds: float | None) -> float | None:
    """The QPU seconds of an entry when it is said to have used some: never less than were known."""
    if seconds is None:
        return entry.usage_seconds
    return max(checked_seconds(seconds), entry.usage_seconds or 0.0)


def checked_seconds(seconds: float) -> float:
    """Return QPU seconds as a float if they can be that.

    Raises:
        InputError: if they are negative or not finite.
    """
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"QPU seconds must be finite and at least 0, got {seconds!r}")
    return float(seconds)


def record_job(
    connection: sqlite3.Connection, entry: Entry, job_id: str, backend: str, session: str | None
) -> list[Entry]:
    """Record the job of an entry.

    Returns:
        Who else has its rows, if it had been given up: the job is then one too many.

    Raises:
        JournalError: if it has another job.
    """
    if entry.job_id not in (None, job_id):
        raise JournalError(
            f"{named(entry)} has the job {entry.job_id} already, so {job_id} is a second job for "
            f"the same rows: cancel {job_id}"
        )
    given_up = entry.job_id is None and entry.state in ENDED
    theirs = live_entries(connection, entry.work) if given_up else []
    state = entry.state if entry.job_id or theirs else "submitted"
    change(connection, entry.id, job_id=job_id, backend=backend, session=session, state=state)
    return theirs


def keep_result(connection: sqlite3.Connection, entry_id: int, packed: Packed) -> None:
    """Store the result of an entry, instead of what may be there."""
    values = (packed.rows, packed.outcomes, packed.width, packed.data)
    connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)", (entry_id, *values))


def read_counts(connection: sqlite3.Connection, entry: Entry) -> NDArray[np.uint32]:
    """The result of an entry, shape ``(rows, K)``.

    Raises:
        JournalError: if there is none, or it is damaged.
    """
    if entry.state != "done":
        raise JournalError(f"{named(entry)} is not done, so it has no result")
    query = "SELECT num_rows, outcomes, width, data FROM results WHERE entry = ?"
    row = connection.execute(query, (entry.id,)).fetchone()
    try:
        if row is None:
            raise ValueError("it is missing")
        counts = unpack(Packed(*row))
        if len(counts) != entry.num_rows:
            raise ValueError(f"{len(counts)} rows instead of {entry.num_rows}")
    except ValueError as error:
        raise JournalError(
            f"the result of {named(entry)} is damaged ({error}); the job {entry.job_id} on "
            f"{entry.backend} can be fetched again from IBM by its id, and recorded as done"
        ) from error
    return counts


def forget(connection: sqlite3.Connection, entry_id: int) -> None:
    """Drop an entry that is done, and its result; the totals keep it."""
    of_it = "id = ? AND state = 'done'"
    connection.execute(f"INSERT INTO forgotten {_SUMS} AND {of_it}", (entry_id,))
    if connection.execute(f"DELETE FROM entries WHERE {of_it}", (entry_id,)).rowcount:
        connection.execute("DELETE FROM results WHERE entry = ?", (entry_id,))


def totals(connection: sqlite3.Connection) -> Totals:
    """What all jobs come to, those that were forgotten as well."""
    query = (
        "SELECT sum(jobs), sum(num_rows), sum(executions), sum(qpu_seconds) "
        f"FROM (SELECT * FROM forgotten UNION ALL {_SUMS})"
    )
    return Totals(*connection.execute(query).fetchone())


def _insert(connection: sqlite3.Connection, work: Work, backend: str, owner: str) -> Entry:
    # Tags are not reused once a job bore one; before that the same tag is wanted, so that a job
    # that came to be after all is found by it.
    query = (
        "SELECT count(*) FROM entries WHERE key = ? AND start = ? AND stop = ? AND digests = ? "
        "AND job_id IS NOT NULL"
    )
    same = (work.key, work.start, work.stop, work.digests)
    attempt = connection.execute(query, same).fetchone()[0]
    now = time.time()
    values = {
        "key": work.key,
        "circuit": work.circuit,
        "shots": work.shots,
        "seed": work.seed,
        "step": work.step,
        "purpose": work.purpose,
        "start": work.start,
        "stop": work.stop,
        "tag": work.tag_of(attempt),
        "attempt": attempt,
        "state": "intended",
        "job_id": None,
        "backend": backend,
        "session": None,
        "owner": owner,
        "usage_seconds": None,
        "reason": "",
        "created": now,
        "updated": now,
        "digests": work.digests,
    }
    number = connection.execute(_INSERT, [values[name] for name in _INSERTED]).lastrowid
    return entry_of((number, *(values[name] for name in _INSERTED)))


def _alike(entry: Entry, work: Work) -> bool:
    """Whether the rows that they share hold the same."""
    first, last = max(entry.start, work.start), min(entry.stop, work.stop)
    ours, theirs = (
        digests[DIGEST_BYTES * (first - start) : DIGEST_BYTES * (last - start)]
        for digests, start in ((work.digests, work.start), (entry.digests, entry.start))
    )
    return ours == theirs


def _runs(free: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The stretches of True as (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], free.view(np.int8), [0]))))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]
