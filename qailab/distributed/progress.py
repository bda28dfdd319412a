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

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted
        self._open: dict[int, tuple[float, int]] = {}  # when evaluations began, rows they have left
        self._total = self._done = 0  # rows, since there last was nothing to do
        self._bar: Any = None

    def began(self, evaluation: int, rows: int, now: float) -> None:
        self._open[evaluation] = now, rows
        self._total += rows

    def answered(self, evaluation: int, rows: int) -> None:
        began, left = self._open[evaluation]
        self._open[evaluation] = began, left - rows
        self._done += rows

    def ended(self, evaluation: int) -> None:
        self._done += self._open.pop(evaluation)[1]  # nobody waits for those that are left

    def show(self, note: str, now: float) -> None:
        """Draw, if there is something to see."""
        if not self._open:
            self.close()
        elif self._wanted and now - min(began for began, _ in self._open.values()) >= (
            SHOW_AFTER_SECONDS
        ):
            try:
                self._draw(note)
            except Exception:  # a terminal that was closed, say: watching must not cost rows
                logger.debug("progress cannot be shown", exc_info=True)
                self._wanted = False

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
        self._bar, self._total, self._done = None, 0, 0

    def _draw(self, note: str) -> None:
        if self._bar is None:
            self._bar = _new_bar(self._done)
        if self._bar is None:  # nobody is looking
            self._wanted = False
            return
        self._bar.total = self._total
        if hasattr(self._bar, "set_postfix_str"):
            self._bar.set_postfix_str(note, refresh=False)
        else:  # Ray's bar has a description only
            self._bar.set_description(f"qailab, {note}")
        self._bar.update(self._done - self._bar.n)


def _new_bar(done: int) -> Any:
    """Make a bar where somebody can see it, else None; what is ``done`` says nothing of speed."""
    import ray

    if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        from ray.experimental import tqdm_ray

        return tqdm_ray.tqdm(desc="qailab", total=0, unit="rows")
    if not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        return None
    from tqdm.auto import tqdm

    return tqdm(desc="qailab", initial=done, unit=" rows", unit_scale=True, leave=False)
