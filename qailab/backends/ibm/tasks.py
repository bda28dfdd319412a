"""Rows that are to run, on their way to being jobs."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from qailab.backends.ibm.programs import Program
from qailab.gradients.rows import FloatArray
from qailab.journal import Entry, Work


@dataclass(frozen=True)
class Task:
    """Rows to run.

    Args:
        program: the circuit.
        work: the rows, as the journal knows them.
        angles: their angles, shape ``(n, A)``.
        group: rows that belong together.
        most_rows: how many rows fit one job.
        resent: whether a process that is gone may have sent jobs for them.
        stop: set to give up.
    """

    program: Program
    work: Work
    angles: FloatArray
    group: int
    most_rows: int
    resent: bool
    stop: threading.Event

    def has(self, entry: Entry) -> bool:
        """Whether all rows of an entry are of this task."""
        return self.work.start <= entry.start and entry.stop <= self.work.stop

    def common(self, work: Work) -> Work:
        """The rows that are of this task as well."""
        return work.part(max(work.start, self.work.start), min(work.stop, self.work.stop))

    def angles_of(self, entry: Entry) -> FloatArray:
        """The angles of an entry's rows, all of which must be of this task."""
        return self.angles[entry.start - self.work.start : entry.stop - self.work.start]


class EitherEvent(threading.Event):
    """Set if it is set itself, or the other one is."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        end = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = 0.1 if end is None else min(0.1, end - time.monotonic())
            if left <= 0 or super().wait(left):
                break
        return self.is_set()
