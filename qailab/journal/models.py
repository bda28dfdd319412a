"""What a journal knows besides jobs: the circuits they are of, and the sessions they ran in."""

from __future__ import annotations

import time

from qailab.arguments import check_choice
from qailab.errors import JournalError
from qailab.journal.database import Database

SESSION_STATES = ("open", "closed", "expired")
_SHOWN = 8  # circuits in a message


def register(database: Database, circuit: str, qubits: int, angles: int) -> None:
    """Record a circuit, so that messages can say what it is."""
    with database.writing() as connection:
        connection.execute(
            "INSERT OR REPLACE INTO circuits VALUES (?, ?, ?)", (circuit, qubits, angles)
        )


def check_model(database: Database, circuit: str, qubits: int, angles: int) -> None:
    """Raise an error if all the jobs there are belong to other circuits.

    Raises:
        JournalError: if so.
    """
    query = (
        "SELECT circuit, max(qubits), max(angles), sum(jobs) FROM ("
        "SELECT circuit, qubits, angles, 0 AS jobs FROM circuits UNION ALL "
        "SELECT circuit, NULL, NULL, count(*) FROM entries GROUP BY circuit) "
        "GROUP BY circuit ORDER BY sum(jobs) DESC, circuit"
    )
    with database.reading() as connection:
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
        f"{database} is of another model: it knows the circuits {', '.join(listed)}, and this "
        f"model's is {circuit[:12]} ({_counted(qubits, 'qubit')}, {_counted(angles, 'angle')}); "
        "give this model another path, or go on with the model that the journal is of"
    )


def last_session(database: Database, backend: str, mode: str) -> str | None:
    """The session or batch that was noted last as open."""
    query = (
        "SELECT session FROM sessions WHERE backend = ? AND mode = ? AND state = 'open' "
        "ORDER BY updated DESC, rowid DESC LIMIT 1"
    )
    with database.reading() as connection:
        row = connection.execute(query, (backend, mode)).fetchone()
    return None if row is None else str(row[0])


def note_session(database: Database, backend: str, mode: str, session: str, state: str) -> None:
    """Record a session's state; see `SESSION_STATES`."""
    check_choice("state", state, SESSION_STATES)
    query = (
        "INSERT INTO sessions VALUES (?, ?, ?, ?, ?5, ?5) ON CONFLICT (session) DO UPDATE "
        "SET backend = excluded.backend, mode = excluded.mode, state = excluded.state, "
        "updated = excluded.updated"
    )
    with database.writing() as connection:
        connection.execute(query, (session, backend, mode, state, time.time()))


def _counted(number: int | None, what: str) -> str:
    if number is None:
        return f"{what}s unknown"
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
