"""Progress of evaluations that take a while: a bar in a terminal or notebook, else nothing.

In a Ray worker the bar is drawn by the driver, with ``ray.experimental.tqdm_ray``.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from qailab.distributed.jobs import Job
from qailab.distributed.slots import Slot

SHOW_AFTER_SECONDS = 2.0
"""Shorter evaluations need no bar."""
_REDRAW_SECONDS = 0.2


class Progress:
    """One bar for all that a pool is evaluating: rows done, rows/s, time left, retries, actors.

    Args:
        wanted: whether to show any.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        self._wanted = wanted
        self._bar: Any = None
        self._done_before = 0  # rows of jobs that ended while the bar was there
        self._last: dict[int, Job] = {}
        self._next_draw = 0.0

    def show(self, jobs: Collection[Job], slots: Sequence[Slot], retries: int, now: float) -> None:
        """Draw, if it is time.

        Args:
            jobs: the unfinished jobs.
            slots: the pool's slots.
            retries: chunks that had to run again so far.
            now: the time.
        """
        if not self._wanted:
            return
        if not jobs:
            self.close()
            return
        if now < self._next_draw:
            return
        self._next_draw = now + _REDRAW_SECONDS
        if self._bar is None:
            if now - min(job.began for job in jobs) < SHOW_AFTER_SECONDS:
                return
            self._bar = _new_bar(sum(job.answered for job in jobs))
            if self._bar is None:
                self._wanted = False  # nobody is looking
                return
        try:
            self._draw({job.number: job for job in jobs}, slots, retries)
        except (OSError, ValueError):  # a terminal that was closed is no reason to fail
            self._wanted = False

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
            self._bar = None
        self._last = {}
        self._done_before = 0

    def _draw(self, jobs: dict[int, Job], slots: Sequence[Slot], retries: int) -> None:
        ended = [job for number, job in self._last.items() if number not in jobs]
        self._done_before += sum(job.batch.num_rows for job in ended)
        self._last = jobs
        self._bar.total = self._done_before + sum(job.batch.num_rows for job in jobs.values())
        done = self._done_before + sum(job.answered for job in jobs.values())
        ready = sum(slot.state == "ready" for slot in slots)
        note = f"actors {ready}/{len(slots)}" + (f", retries {retries}" if retries else "")
        if hasattr(self._bar, "set_postfix_str"):
            self._bar.set_postfix_str(note, refresh=False)
        else:  # Ray's bar has a description only
            self._bar.set_description(f"qailab, {note}")
        self._bar.update(done - self._bar.n)


def _new_bar(done: int) -> Any:
    """A bar where somebody can see it, else None.

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
