"""A place to run, whose evaluations somebody else may cancel."""

from __future__ import annotations

import threading
from typing import Any

from qailab.backends.answers import NOTHING_USED
from qailab.backends.base import RowFuture
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray, RowBatch
from qailab.launchers.launcher import RowEvaluator


class WatchedPlace:
    """A place to run whose evaluations can be cancelled from another thread, and are counted."""

    def __init__(self, place: RowEvaluator) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._running: set[RowFuture] = set()
        self._cancelled = False
        self.usage = NOTHING_USED

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)

    def submit(self, circuit: CanonicalCircuit, batch: RowBatch) -> RowFuture:
        """Start evaluating rows."""
        future: RowFuture = self._place.submit(circuit, batch)  # type: ignore[assignment]
        with self._lock:
            self._running.add(future)
            cancelled = self._cancelled
        future.add_done_callback(self._ended)
        if cancelled:
            future.cancel()
        return future

    def run(self, circuit: CanonicalCircuit, batch: RowBatch) -> FloatArray:
        """``submit(...).result()``."""
        return self.submit(circuit, batch).result()

    def cancel(self, cancelled: bool = True) -> None:
        """Cancel what runs and what will be submitted; or run again."""
        with self._lock:
            self._cancelled = cancelled
            running = list(self._running) if cancelled else []
        for future in running:
            future.cancel()

    def _ended(self, future: Any) -> None:
        with self._lock:
            self._running.discard(future)
            self.usage += getattr(future, "usage", NOTHING_USED)

    def __repr__(self) -> str:
        return repr(self._place)
