"""Small values that several processes agree on: what a budget or a device's session needs.

Whoever changes a value says which version it read. Only one change of a version can win, and the
others read again, so no lock is held and no process that dies can leave one behind.
"""

from __future__ import annotations

import threading
from typing import Protocol


class SharedState(Protocol):
    """Named values, changed by compare-and-swap.

    Attributes:
        group: names the processes together that hold a recipe; they are closed together.
    """

    @property
    def group(self) -> str:
        """The name of these processes together."""
        ...

    def get(self, name: str) -> tuple[int, bytes | None]:
        """The version of a value and the value; ``(0, None)`` if it was never written."""
        ...

    def put(self, name: str, version: int, value: bytes) -> bool:
        """Write a value; False if another process was quicker (read again, and decide anew).

        Args:
            name: which value.
            version: the version that was read.
            value: the new value; its version is one more.
        """
        ...


class LocalState:
    """Shared by the threads of one process."""

    group = ""

    def __init__(self) -> None:
        self._values: dict[str, tuple[int, bytes]] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> tuple[int, bytes | None]:
        with self._lock:
            return self._values.get(name, (0, None))

    def put(self, name: str, version: int, value: bytes) -> bool:
        with self._lock:
            if version != self._values.get(name, (0, b""))[0]:
                return False
            self._values[name] = (version + 1, value)
            return True
