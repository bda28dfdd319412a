"""The record of jobs: which rows went to which job, noted before it is sent and after.

`Record` has the rules, whatever keeps the entries: `MemoryRecord` for one process, `Journal` an
SQLite file. Every method is one transaction; whatever processes do, each row of an evaluation
belongs to one live entry, so it is neither sent twice nor lost.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qailab.arguments import checked_integer
from qailab.errors import InputError, JournalError
from qailab.journal.entries import ENDED, LIVE, UNSENT, Cause, Entry, State, Work, cover

Counts = NDArray[np.unsignedinteger[Any]]


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
        """Drop entries that are done, and those that ended without a result for the same rows."""
        with self._lock:
            for done in [self._entries[one] for one in entry_ids if one in self._entries]:
                for entry in list(self._entries.values()):
                    if entry.id == done.id or (entry.state in ENDED and entry.work == done.work):
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
