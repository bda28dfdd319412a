"""A timeline of a pool in Chrome's trace format: what each actor did when.

Open the file in https://ui.perfetto.dev or chrome://tracing.

References:
    Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qailab.distributed.slots import Slot

MAX_EVENTS = 200_000
"""The newest events are kept: about 100 MB of memory, and as much of a file."""

Event = tuple[str, int, str, float, float, dict[str, Any]]
"""Kind ("X" lasts, "i" is an instant), slot, name, start and duration in seconds, details."""


class Trace:
    """Events of a pool, the newest `MAX_EVENTS` of them.

    Args:
        began: the time that the trace begins at.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)

    def chunk(self, slot: int, start: float, seconds: float, details: dict[str, Any]) -> None:
        """Note a chunk that an actor worked on."""
        name = f"rows {details['first_row']}-{details['last_row']}"
        self._events.append(("X", slot, name, start, seconds, details))

    def instant(self, slot: int, name: str, when: float, details: dict[str, Any]) -> None:
        """Note something that happened to an actor."""
        self._events.append(("i", slot, name, when, 0.0, details))

    def write(self, path: str | os.PathLike[str], slots: Sequence[Slot]) -> None:
        """Write the file.

        Args:
            path: where to; a file that is there is replaced.
            slots: the pool's slots, for the names of the rows.
        """
        entries: list[dict[str, Any]] = [
            {"name": "process_name", "ph": "M", "pid": 0, "args": {"name": "qailab pool"}}
        ]
        for slot in slots:
            name = {"name": f"actor {slot.index}: {slot.backend!r}"}
            entries.append({"name": "thread_name", "ph": "M", "pid": 0, "tid": slot.index,
                            "args": name})  # fmt: skip
            entries.append({"name": "thread_sort_index", "ph": "M", "pid": 0, "tid": slot.index,
                            "args": {"sort_index": slot.index}})  # fmt: skip
        for kind, index, name_of_event, start, seconds, details in list(self._events):
            entry = {
                "name": name_of_event,
                "ph": kind,
                "pid": 0,
                "tid": index,
                "ts": (start - self._began) * 1e6,
                "args": details,
            }
            entry |= {"dur": seconds * 1e6} if kind == "X" else {"s": "t"}
            entries.append(entry)
        content = json.dumps({"traceEvents": entries, "displayTimeUnit": "ms"})
        Path(path).write_text(content, encoding="utf-8")
