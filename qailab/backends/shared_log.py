"""A list that several processes append to, and agree on: what a budget and a session need.

Whoever appends says which entry it will be. Only one can be the n-th, so whoever read all entries
before it decides on what everybody else will see: no lock is held, and no process that dies can
leave one behind.
"""

from __future__ import annotations

import threading
from typing import Protocol


class SharedLog(Protocol):
    """Entries of bytes, numbered from 0, in an order that all processes see alike."""

    def read(self, start: int) -> list[bytes]:
        """The entries ``start, start + 1, ...`` so far."""

    def append(self, number: int, entry: bytes) -> bool:
        """Make this the entry of that number; False if another one is (read it, and try again).

        Args:
            number: how many entries there are, to the caller's knowledge.
            entry: what to append.
        """


class LocalLog:
    """A shared log of one process: its threads share it."""

    def __init__(self) -> None:
        self._entries: list[bytes] = []
        self._lock = threading.Lock()

    def read(self, start: int) -> list[bytes]:
        with self._lock:
            return self._entries[start:]

    def append(self, number: int, entry: bytes) -> bool:
        with self._lock:
            if number != len(self._entries):
                return False
            self._entries.append(entry)
            return True
