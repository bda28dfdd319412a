"""Progress of evaluations that take a while: a bar in a terminal or notebook, else nothing.

In a Ray worker the bar is drawn by the driver, with ``ray.experimental.tqdm_ray``.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Any

logger = logging.getLogger("qailab.distributed")

SHOW_AFTER_SECONDS = 2.0
"""Shorter evaluations need no bar."""


class Progress:
    """One bar for all that a pool is evaluating: rows done, rows/s, time left, and a note."""

    def __init__(self) -> None:
        self._began: dict[int, float] = {}  # of the evaluations that have not ended
        self._left: dict[int, int] = {}  # rows of theirs
        self._total = self._done = 0  # rows, since there last was nothing to do
        self._bar: Any = None
        self._off = False

    def began(self, evaluation: int, rows: int, now: float) -> None:
        self._began[evaluation], self._left[evaluation] = now, rows
        self._total += rows

    def answered(self, evaluation: int, rows: int) -> None:
        self._left[evaluation] -= rows
        self._done += rows

    def ended(self, evaluation: int) -> None:
        del self._began[evaluation]
        self._done += self._left.pop(evaluation)  # nobody waits for those that are left

    def show(self, note: str, now: float) -> None:
        """Draw, if there is something to see."""
        if not self._began:
            self.close()
        elif not self._off:
            try:
                self._draw(note, now)
            except Exception:  # a terminal that was closed, say: watching must not cost rows
                logger.debug("progress cannot be shown", exc_info=True)
                self._off = True

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
        self._bar, self._total, self._done = None, 0, 0

    def _draw(self, note: str, now: float) -> None:
        if self._bar is None:
            if now - min(self._began.values()) < SHOW_AFTER_SECONDS:
                return
            self._bar = _new_bar(self._done)
            self._off = self._bar is None  # nobody is looking
            if self._off:
                return
        self._bar.total = self._total
        if hasattr(self._bar, "set_postfix_str"):
            self._bar.set_postfix_str(note, refresh=False)
        else:  # Ray's bar has a description only
            self._bar.set_description(f"qailab, {note}")
        self._bar.update(self._done - self._bar.n)


def _new_bar(done: int) -> Any:
    """Make a bar where somebody can see it, else None.

    Args:
        done: rows that are done already, which say nothing about the speed from now on.
    """
    import ray

    if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        from ray.experimental import tqdm_ray

        return tqdm_ray.tqdm(desc="qailab", total=0, unit="rows")
    if not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        return None
    from tqdm.auto import tqdm

    return tqdm(desc="qailab", initial=done, unit=" rows", unit_scale=True, leave=False)
