"""The circuits that a journal's jobs are of."""

from __future__ import annotations

from qailab.errors import JournalError
from qailab.journal.database import Database

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


def _counted(number: int | None, what: str) -> str:
    if number is None:
        return f"{what}s unknown"
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
