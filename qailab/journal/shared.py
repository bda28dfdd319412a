"""A list in a journal's file that all its processes append to, and see alike."""

from __future__ import annotations

from qailab.journal.database import Database


class JournalLog:
    """Entries of bytes by number; it has the methods of `qailab.backends.shared_log.SharedLog`.

    Args:
        database: where they are.
        name: whose they are; logs of other names are others.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name

    def read(self, start: int) -> list[bytes]:
        """The entries ``start, start + 1, ...`` so far."""
        query = "SELECT entry FROM logs WHERE name = ? AND number >= ? ORDER BY number"
        with self._database.reading() as connection:
            return [entry for (entry,) in connection.execute(query, (self._name, start))]

    def append(self, number: int, entry: bytes) -> bool:
        """Make this the entry of that number; False if there are more or fewer before it.

        Args:
            number: how many entries there are, to the caller's knowledge.
            entry: what to append.
        """
        query = (
            "INSERT INTO logs SELECT ?1, ?2, ?3 "
            "WHERE ?2 = (SELECT coalesce(max(number) + 1, 0) FROM logs WHERE name = ?1)"
        )
        with self._database.writing() as connection:
            return connection.execute(query, (self._name, number, entry)).rowcount == 1
