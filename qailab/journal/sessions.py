"""The sessions that jobs ran in, told by the logs of what happened to them.

Whoever sends jobs keeps such a log for each device (see `qailab.backends.ibm.sessions`): JSON
objects with the keys "event" and "time" (seconds since 1970), of which these are for the report::

    {"event": "open", "id": "...", "mode": "batch", "time": 1.7e9}
    {"event": "gone", "id": "...", "time": 1.7e9}

"open" has "given": true if somebody else opened the session, and no "mode" if an older qailab
wrote it.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

_LOGS = "session/"


def log_name(backend: str, settings: str) -> str:
    """The name of the log of a device's sessions.

    Args:
        backend: the device.
        settings: tells those apart who cannot share a session, as of other accounts; without "/".
    """
    return f"{_LOGS}{backend}/{settings}"


def read_sessions(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """Each session that was opened, with the keys of the report, in the order they were.

    Several logs tell of one that somebody opened and gave to others: gone for one, it is for all.
    """
    # GLOB, not LIKE, which no index serves: a budget's log may be long.
    query = f"SELECT name, entry FROM logs WHERE name GLOB '{_LOGS}*' ORDER BY name, number"
    found: dict[str, dict[str, Any]] = {}
    for name, entry in connection.execute(query):
        event = json.loads(entry)
        if event["event"] not in ("open", "gone"):
            continue
        when = event["time"]
        session = found.setdefault(
            event["id"],
            {
                "session": event["id"],
                "backend": name.removeprefix(_LOGS).rpartition("/")[0],
                "mode": None,
                "state": "open",
                "given": True,
                "created": when,
                "updated": when,
            },
        )
        if event["event"] == "gone":
            session["state"] = "closed"
        else:
            session["mode"] = session["mode"] or event.get("mode")
            session["given"] &= event.get("given", False)
        session["created"] = min(session["created"], when)
        session["updated"] = max(session["updated"], when)
    return sorted(found.values(), key=lambda session: session["created"])
