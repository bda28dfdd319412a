"""The record of jobs: which rows went to which job, noted before it is sent and after.

::

    reserve -> pending ------> submitted --------> done
                |  ^            ^   |
                |  |            |   +-> failed, cancelled (their rows are reserved again)
                v  |            |
             unconfirmed -------+       sent, perhaps: looked up at the server by its tag first

    pending -> withdrawn                certainly never sent

`Record` has the rules, whatever keeps the entries: `MemoryRecord` for one process, `Journal` an
SQLite file. Every method is one transaction; whatever processes do, each row of an evaluation
belongs to one live entry, so it is neither sent twice nor lost. A `Work` is named by what it holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qailab.arguments import check_choice, checked_integer
from qailab.errors import InputError, JournalError

Counts = NDArray[np.unsignedinteger[Any]]

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


class Record(ABC):
    """What is known of jobs. Threads may share it.

    Attributes:
        id: part of the tags of its jobs.
        path: the file; None in memory.
    """

    id: str = ""
    path: str | None = None

    def reserve(
        self, work: Work, *, most_rows: int, group: int, backend: str, owner: str
    ) -> list[Entry]:
        """Get entries that cover these rows: those there are, and new ones for the rest.

        Entries that hold something else in these rows (other digests) are left alone.

        Args:
            work: the rows that are needed.
            most_rows: how many rows a new entry may have, at least ``group``.
            group: how many consecutive rows must stay together; new entries are cut where row
                numbers are divisible by it.
            backend: where new ones are to run.
            owner: who will send new ones (`qailab.journal.this_owner`).

        Returns:
            Entries in the order of their rows. They may reach beyond ``work``, for others may have
            cut the evaluation elsewhere.
        """
        group = checked_integer("group", group)
        most_rows = checked_integer("most_rows", most_rows, least=group)
        with self._transaction():
            live = self._overlapping(work)
            entries, pieces = cover(work, live, most_rows=most_rows, group=group)
            for piece in pieces:
                # Tags are not reused once a job had one; before that the same tag is wanted, so
                # that a job that came to be after all is found by it.
                attempt = self._attempts(piece)
                tag = piece.tag(self.id, attempt)
                new = Entry(work=piece, tag=tag, attempt=attempt, backend=backend, owner=owner)
                entries.append(self._insert(new))
        return sorted(entries, key=lambda entry: entry.work.start)

    def submitted(self, entry_id: int, *, job_id: str, backend: str, session: str | None) -> bool:
        """Note that the server has a job for an entry.

        Returns:
            False if the entry had been given up, and others have its rows now: the job is noted,
            and must be cancelled.

        Raises:
            JournalError: if the entry has another job already, or another entry has this one.
        """
        if not isinstance(job_id, str) or not job_id:
            raise InputError(f"job_id must be the server's name for the job, got {job_id!r}")
        with self._transaction():
            entry, other = self._get(entry_id), self._of_job(job_id)
            if entry.job_id not in (None, job_id):
                raise JournalError(
                    f"{entry} has the job {entry.job_id} already, so {job_id} is a second job for "
                    f"the same rows: cancel {job_id}"
                )
            if other not in (None, entry_id):
                raise JournalError(f"the job {job_id} is that of {self._get(other)}, not {entry}")
            late = entry.job_id is None and entry.state in ENDED
            others = self._overlapping(entry.work) if late else []
            taken = bool(cover(entry.work, others, most_rows=2**62, group=1)[0])
            state = entry.state if entry.job_id or taken else State.SUBMITTED
            self._change(entry, state=state, job_id=job_id, backend=backend, session=session)
        return not taken

    def done(self, entry_id: int, counts: Counts, usage_seconds: float | None = None) -> Entry:
        """Store the result of a job, whatever was noted of it before: it was paid for.

        Args:
            entry_id: whose it is.
            counts: what was measured, a line of integers for each row: how often each of K
                outcomes came, or the bytes of its shots.
            usage_seconds: QPU seconds; None if they are not known.

        Raises:
            InputError: if there are not as many rows of counts as the entry has.
            JournalError: if the entry has no job yet.
        """
        with self._transaction():
            entry = self._get(entry_id)
            if counts.ndim != 2 or len(counts) != entry.work.num_rows or counts.dtype.kind != "u":
                raise InputError(
                    f"{entry} has {entry.work.num_rows} rows; got counts of shape {counts.shape}, "
                    f"{counts.dtype}"
                )
            if entry.job_id is None:
                raise JournalError(f"{entry} has no job yet: note it as submitted first")
            self._keep(entry, counts)
            used = _most(entry.usage_seconds, usage_seconds)
            ended = {"cause": Cause.NONE, "reason": "", "usage_seconds": used}
            return self._change(entry, state=State.DONE, **ended)

    def ended(
        self,
        entry_id: int,
        state: State,
        cause: Cause,
        reason: str,
        usage_seconds: float | None = 0.0,
    ) -> Entry:
        """Note that a job ended without a result; an entry that is done or ended stays so."""
        if state not in ENDED:
            raise InputError(f"state must be one of {', '.join(ENDED)}; got {state!r}")
        with self._transaction():
            entry = self._get(entry_id)
            used = _most(entry.usage_seconds, usage_seconds)
            if entry.state is State.DONE or entry.state in ENDED:
                return self._change(entry, usage_seconds=used)
            ended = {"cause": cause, "reason": reason, "usage_seconds": used}
            return self._change(entry, state=state, **ended)

    def unsent(self, entry: Entry, state: State, owner: str, reason: str = "") -> bool:
        """Change an entry that has no job yet, if it is still as it was read.

        Args:
            entry: as it was read.
            state: UNCONFIRMED if it may be at the server, PENDING if it is certainly not,
                WITHDRAWN to give it up.
            owner: who sends it from now on; "" if nobody does.
            reason: why it is given up.

        Returns:
            Whether it worked; if not, another process was quicker.
        """
        cause, used = (Cause.UNSENT, 0.0) if state is State.WITHDRAWN else (Cause.NONE, None)
        with self._transaction():
            now = self._get(entry.id)
            if now.state not in UNSENT or (now.state, now.owner) != (entry.state, entry.owner):
                return False
            changed = {"cause": cause, "reason": reason, "usage_seconds": used}
            self._change(now, state=state, owner=owner, **changed)
        return True

    def entry(self, entry_id: int) -> Entry:
        """An entry as it is now; a `JournalError` if there is none of that number."""
        with self._transaction(write=False):
            return self._get(entry_id)

    def entry_of(self, job_id: str) -> int | None:
        """The number of the entry that has a job."""
        with self._transaction(write=False):
            return self._of_job(job_id)

    def counts(self, entry_id: int) -> Counts:
        """The result of an entry that is done, a line for each row.

        Raises:
            JournalError: if it is not done, or the result is damaged.
        """
        with self._transaction(write=False):
            entry = self._get(entry_id)
            if entry.state is not State.DONE:
                raise JournalError(f"{entry} is not done, so it has no result")
            return self._kept(entry)

    def forget(self, entry_ids: Iterable[int]) -> None:  # noqa: B027 (files keep all)
        """Drop entries whose results were used."""

    def close(self) -> None:  # noqa: B027 (memory has nothing to close)
        """Safe to call twice."""

    def _change(self, entry: Entry, **values: Any) -> Entry:
        changed = replace(entry, **values, updated=time.time())
        self._put(changed)
        return changed

    # What keeps the entries; called in a transaction.

    @abstractmethod
    def _transaction(self, *, write: bool = True) -> AbstractContextManager[Any]: ...

    @abstractmethod
    def _get(self, entry_id: int) -> Entry: ...

    @abstractmethod
    def _of_job(self, job_id: str) -> int | None: ...

    @abstractmethod
    def _overlapping(self, work: Work) -> list[Entry]:
        """Live entries of its evaluation that share rows with some work."""

    @abstractmethod
    def _attempts(self, work: Work) -> int:
        """How many jobs for these very rows were at a server."""

    @abstractmethod
    def _insert(self, entry: Entry) -> Entry:
        """Add an entry, and return it with its number."""

    @abstractmethod
    def _put(self, entry: Entry) -> None: ...

    @abstractmethod
    def _keep(self, entry: Entry, counts: Counts) -> None: ...

    @abstractmethod
    def _kept(self, entry: Entry) -> Counts: ...


def _most(known: float | None, seconds: float | None) -> float | None:
    """QPU seconds once more were reported: never less than were known."""
    if seconds is None:
        return known
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"QPU seconds must be finite and at least 0, got {seconds!r}")
    return max(float(seconds), known or 0.0)


class MemoryRecord(Record):
    """A record for one process, as long as it lives."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._last = 0
        self._entries: dict[int, Entry] = {}
        self._counts: dict[int, Counts] = {}

    def forget(self, entry_ids: Iterable[int]) -> None:
        """Drop entries that are done, and those that ended without a result for rows of them."""
        with self._lock:
            for done in [self._entries[one] for one in entry_ids if one in self._entries]:
                near = [e for e in self._entries.values() if e.work.meets(done.work)]
                for entry in near:
                    ended = entry.state in ENDED and entry.work.key == done.work.key
                    if ended or entry.id == done.id:
                        del self._entries[entry.id]
                self._counts.pop(done.id, None)

    def _transaction(self, *, write: bool = True) -> AbstractContextManager[Any]:
        return self._lock

    def _get(self, entry_id: int) -> Entry:
        if entry_id not in self._entries:
            raise JournalError(f"there is no entry {entry_id!r}")
        return self._entries[entry_id]

    def _of_job(self, job_id: str) -> int | None:
        return next((e.id for e in self._entries.values() if e.job_id == job_id), None)

    def _overlapping(self, work: Work) -> list[Entry]:
        near = (e for e in self._entries.values() if e.state in LIVE and e.work.meets(work))
        return [entry for entry in near if entry.work.key == work.key]

    def _attempts(self, work: Work) -> int:
        return sum(e.job_id is not None and e.work == work for e in self._entries.values())

    def _insert(self, entry: Entry) -> Entry:
        self._last += 1
        self._entries[self._last] = replace(entry, id=self._last)
        return self._entries[self._last]

    def _put(self, entry: Entry) -> None:
        self._entries[entry.id] = entry

    def _keep(self, entry: Entry, counts: Counts) -> None:
        self._counts[entry.id] = counts

    def _kept(self, entry: Entry) -> Counts:
        return self._counts[entry.id]
