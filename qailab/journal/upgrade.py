"""Journals of an earlier qailab: version 1 becomes version 2 when it is opened.

Version 1 had no ``cause`` and no ``states``: sessions and budgets were lists of events in ``logs``.
The sessions are told from these; what a budget has spent is the sum of the entries. Old journals
have no id, so the tags of their jobs stay what they are.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from qailab.errors import JournalError
from qailab.journal.owners import owner_alive

_CHANGES = """
ALTER TABLE entries ADD COLUMN cause TEXT NOT NULL DEFAULT '';
CREATE INDEX entries_by_job ON entries (job_id);
UPDATE entries SET state = 'unconfirmed', owner = replace(owner, 'nobody', '')
    WHERE state = 'intended';
CREATE TABLE states (name TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL);
INSERT INTO states VALUES ('id', 1, x'')"""


def upgrade(connection: sqlite3.Connection, version: int, *, in_use: str = "") -> None:
    """Bring a journal up to date, in a transaction of the caller's.

    Args:
        connection: to the journal.
        version: what it becomes.
        in_use: begins the error if a process of the earlier qailab still works with it; "" where
            the connection is to a copy.

    Raises:
        JournalError: if one does: it would not see what this one writes.
    """
    query = "SELECT DISTINCT owner FROM entries WHERE state IN ('intended', 'submitted')"
    for (owner,) in connection.execute(query).fetchall():
        if in_use and owner_alive(owner):
            raise JournalError(
                f"{in_use} by an earlier qailab ({owner}); end that process, and start again"
            )
    for statement in _CHANGES.split(";"):
        connection.execute(statement)
    logs: dict[str, list[dict[str, Any]]] = {}
    query = "SELECT name, entry FROM logs WHERE name GLOB 'session/*' ORDER BY name, number"
    for name, event in connection.execute(query):
        logs.setdefault(name, []).append(json.loads(event))
    for name, events in logs.items():
        value = json.dumps(_sessions(events)).encode()
        connection.execute("INSERT INTO states VALUES (?, 1, ?)", (name, value))
    connection.execute(f"PRAGMA user_version = {version}")


def _sessions(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What `qailab.backends.ibm.sessions` keeps of a device, from a list of events."""
    found: dict[str, dict[str, Any]] = {}
    mode = None
    for event in events:
        when = event["time"]
        if event["event"] == "open":
            found[event["id"]] = {
                "session": event["id"], "mode": event.get("mode"), "state": "open",
                "given": event.get("given", False), "created": when, "updated": when,
            }  # fmt: skip
        elif event["event"] == "gone" and event["id"] in found:
            found[event["id"]] |= {"state": "closed", "updated": when}
        elif event["event"] == "refused":
            mode = {"session": "batch", "batch": "job"}[event["mode"]]
    return {"mode": mode, "opening": None, "sessions": list(found.values())}
