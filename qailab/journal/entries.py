"""What a record of jobs holds: rows of an evaluation, named by their content, and their job.

::

    reserve -> pending ------> submitted --------> done
                |  ^            ^   |
                |  |            |   +-> failed, cancelled (their rows are reserved again)
                v  |            |
             unconfirmed -------+       sent, perhaps: looked up at the server by its tag first

    pending -> withdrawn                certainly never sent
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise

import numpy as np

from qailab.arguments import check_choice, checked_integer
from qailab.errors import InputError

DIGEST_BYTES = 8
"""A row's digest: 64 bits, so that a billion rows have one chance in forty of any two alike,
and those would need the same number in the same evaluation to be taken for each other."""

PURPOSES = ("forward", "backward", "directions", "both")
_TAG_DIGITS = 24  # 96 bits; IBM allows tags of up to 86 characters
_LARGEST = 2**63 - 1  # SQLite's integers


class State(StrEnum):
    """Where a job is."""

    PENDING = "pending"  # recorded, and not sent yet
    UNCONFIRMED = "unconfirmed"  # perhaps at the server: its sender died, or an answer was lost
    SUBMITTED = "submitted"  # its id is known
    DONE = "done"  # its result is stored
    FAILED = "failed"
    CANCELLED = "cancelled"
    WITHDRAWN = "withdrawn"  # it was never at the server


LIVE = (State.DONE, State.SUBMITTED, State.UNCONFIRMED, State.PENDING)
"""States of jobs that have, or may still get, a result; the surest first."""
UNSENT = (State.PENDING, State.UNCONFIRMED)
ENDED = (State.FAILED, State.CANCELLED, State.WITHDRAWN)


class Cause(StrEnum):
    """Why a job ended without a result."""

    NONE = ""
    DEVICE = "device"  # the service says that it failed, or somebody cancelled it there
    TOO_LONG = "too long"  # it had too much to do: less may do
    SESSION = "session"  # it ended with its session
    TIMEOUT = "timeout"  # it passed the backend's ``timeout``
    STOPPED = "stopped"  # the program gave it up
    DELETED = "deleted"  # the server does not know it any more
    UNSENT = "unsent"


@dataclass(frozen=True)
class Work:
    """The rows ``start .. stop - 1`` of an evaluation, named by what they hold.

    Args:
        circuit: content key of the canonical circuit.
        shots: shots for each row.
        seed: of the noise stream; with step and purpose it names the evaluation.
        step: the training step.
        purpose: "forward", "backward", or "both" where one evaluation has the rows of both.
        start: the number of the first row.
        stop: one past the number of the last row.
        digests: a hash of each row's angles, 8 bytes for each row, so that rows of other data or
            weights are never taken for these.

    Raises:
        InputError: if there are no rows, or not 8 bytes of digest for each.
    """

    circuit: str
    shots: int
    seed: int
    step: int
    purpose: str
    start: int
    stop: int
    digests: bytes

    def __post_init__(self) -> None:
        check_choice("purpose", self.purpose, PURPOSES)
        least = {"shots": 1, "seed": 0, "step": 0, "start": 0, "stop": self.start + 1}
        for name, smallest in least.items():
            # Numpy's integers would be stored as blobs.
            number = checked_integer(name, getattr(self, name), least=smallest, most=_LARGEST)
            object.__setattr__(self, name, number)
        if len(self.digests) != DIGEST_BYTES * self.num_rows:
            raise InputError(
                f"digests must be {DIGEST_BYTES} bytes for each of the {self.num_rows} rows "
                f"{self.start} .. {self.stop - 1}, got {len(self.digests)} in all"
            )

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def key(self) -> str:
        """Names the evaluation: the same for all its rows, whatever they hold."""
        parts = (self.circuit, self.shots, self.seed, self.step, self.purpose)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def tag(self, record_id: str = "", attempt: int = 0) -> str:
        """The tag of a job for these rows, the same in every process and every run.

        Args:
            record_id: of the journal, so that jobs of another one are not taken for these.
            attempt: how many jobs for them ended without a result before: their tags must not be
                this one's, or a search for it would find them.
        """
        named = (self.key, self.start, self.stop, attempt, *([record_id] if record_id else []))
        content = json.dumps(named).encode() + self.digests
        return "qailab-" + hashlib.sha256(content).hexdigest()[:_TAG_DIGITS]

    def part(self, start: int, stop: int) -> Work:
        """The rows ``start .. stop - 1`` of these."""
        if not self.start <= start < stop <= self.stop:
            mine = f"{self.start} .. {self.stop - 1}"
            raise InputError(f"part must be of the rows {mine}, got {start} .. {stop - 1}")
        first, last = (DIGEST_BYTES * (row - self.start) for row in (start, stop))
        return replace(self, start=start, stop=stop, digests=self.digests[first:last])

    def meets(self, other: Work) -> bool:
        """Whether the two share row numbers."""
        return self.start < other.stop and other.start < self.stop

    def common(self, other: Work) -> Work:
        """Of these rows, those whose numbers the other has, too."""
        return self.part(max(self.start, other.start), min(self.stop, other.stop))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a record knows of one job, as of when it was read.

    Args:
        id: the entry's number.
        work: its rows.
        tag: what the job is tagged with at the server.
        attempt: how many jobs for the very same rows were at a server before this one.
        state: where it is.
        cause: why it ended without a result.
        reason: the same for people.
        job_id: the server's name for it, None until it is known.
        backend: where it runs.
        session: the session it runs in, None if in none.
        owner: the process that sends it (`qailab.journal.this_owner`); "" if nobody does.
        usage_seconds: QPU seconds, None until they are known.
        created: when it was recorded, in seconds since 1970.
        updated: when anything about it last changed, in seconds since 1970.
    """

    id: int = 0
    work: Work
    tag: str
    attempt: int
    state: State = State.PENDING
    cause: Cause = Cause.NONE
    reason: str = ""
    job_id: str | None = None
    backend: str
    session: str | None = None
    owner: str
    usage_seconds: float | None = None
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)

    @property
    def executions(self) -> int:
        """Rows times shots."""
        return self.work.num_rows * self.work.shots

    def __str__(self) -> str:
        rows = f"rows {self.work.start} .. {self.work.stop - 1}"
        where = f"step {self.work.step}, {self.work.purpose}, {rows}, {self.state}"
        return f"entry {self.id} ({where})"


def cover(
    work: Work, live: Iterable[Entry], *, most_rows: int, group: int
) -> tuple[list[Entry], list[Work]]:
    """Choose from live entries those that cover some work together, and cut the rest.

    Args:
        work: the rows that are needed.
        live: entries of the same evaluation that share row numbers with it.
        most_rows: how many rows a piece may have, at least ``group``.
        group: how many consecutive rows must stay together.

    Returns:
        The entries, and the pieces of the rows that none of them has.
    """
    free = np.ones(work.num_rows, dtype=bool)
    chosen = []
    for entry in sorted(live, key=lambda e: (LIVE.index(e.state), e.work.start, e.id)):
        covered = free[max(entry.work.start - work.start, 0) : entry.work.stop - work.start]
        alike = entry.work.common(work).digests == work.common(entry.work).digests
        if alike and covered.any():
            covered[:] = False
            chosen.append(entry)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], free.view(np.int8), [0])))) + work.start
    pieces = [
        work.part(*piece)
        for first, last in edges.reshape(-1, 2).tolist()
        for piece in cuts(first, last, most=most_rows, group=group)
    ]
    return chosen, pieces


def cuts(start: int, stop: int, *, most: int, group: int) -> list[tuple[int, int]]:
    """Cut the rows ``start .. stop - 1`` where row numbers are divisible by ``group``.

    The pieces have at most ``most`` rows; they are as few and as equal as groups allow.

    >>> cuts(0, 20, most=9, group=2)
    [(0, 6), (6, 14), (14, 20)]
    """
    # The earliest place of each cut that leaves no more than the pieces after it can hold.
    earliest = [stop]
    while earliest[0] - start > most:
        earliest.insert(0, -(-(earliest[0] - most) // group) * group)
    pieces = len(earliest)
    ends = [start]
    for number, low in enumerate(earliest[:-1], start=1):
        even = round((start + number * (stop - start) / pieces) / group) * group
        latest = (ends[-1] + most) // group * group
        ends.append(min(max(even, low), latest))
    return list(pairwise([*ends, stop]))
