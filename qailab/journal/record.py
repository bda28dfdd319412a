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
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qailab.arguments import checked_integer
from qailab.errors import InputError, JournalError
from qailab.journal.entries import ENDED, LIVE, UNSENT, Cause, Entry, State, Work, cover

Counts = NDArray[np.uint32]


class Rows(ABC):
    """The entries in one transaction."""

    @abstractmethod
    def get(self, entry_id: int) -> Entry:
        """The entry of that number; a `JournalError` if there is none."""

    @abstractmethod
    def of_job(self, job_id: str) -> int | None:
        """The number of the entry that has a job."""

    @abstractmethod
    def overlapping(self, work: Work) -> list[Entry]:
        """Live entries of its evaluation that share rows with some work."""

    @abstractmethod
    def attempts(self, work: Work) -> int:
        """How many jobs for these very rows were at a server."""

    @abstractmethod
    def insert(self, entry: Entry) -> Entry:
        """Add an entry; it is returned with its number."""

    @abstractmethod
    def put(self, entry: Entry) -> None:
        """Write what may have changed of an entry."""

    @abstractmethod
    def keep(self, entry: Entry, counts: Counts) -> None:
        """Store a result."""

    @abstractmethod
    def kept(self, entry: Entry) -> Counts:
        """A stored result; a `JournalError` if it is damaged."""


class Record(ABC):
    """What is known of jobs. Threads may share it.

    Attributes:
        id: part of the tags of its jobs.
        path: the file; None in memory.
    """

    id: str = ""
    path: str | None = None

    @abstractmethod
    def _writing(self) -> AbstractContextManager[Rows]:
        """A transaction that changes something: all of it on return, nothing on an error."""

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Rows]:
        """A transaction that sees one state."""

    @abstractmethod
    def close(self) -> None:
        """Safe to call twice."""

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
        with self._writing() as rows:
            live = rows.overlapping(work)
            chosen, pieces = cover(work, live, most_rows=most_rows, group=group)
            now = time.time()
            for piece in pieces:
                # Tags are not reused once a job had one; before that the same tag is wanted, so
                # that a job that came to be after all is found by it.
                attempt = rows.attempts(piece)
                entry = Entry(
                    id=0,
                    work=piece,
                    tag=piece.tag(self.id, attempt),
                    attempt=attempt,
                    backend=backend,
                    owner=owner,
                    created=now,
                    updated=now,
                )
                chosen.append(rows.insert(entry))
        return sorted(chosen, key=lambda entry: entry.work.start)

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
        with self._writing() as rows:
            entry = rows.get(entry_id)
            other = rows.of_job(job_id)
            if entry.job_id not in (None, job_id):
                raise JournalError(
                    f"{entry} has the job {entry.job_id} already, so {job_id} is a second job for "
                    f"the same rows: cancel {job_id}"
                )
            if other not in (None, entry_id):
                raise JournalError(f"the job {job_id} is that of {rows.get(other)}, not of {entry}")
            late = entry.job_id is None and entry.state in ENDED
            _, missing = cover(
                entry.work, rows.overlapping(entry.work) if late else [], most_rows=2**62, group=1
            )
            taken = late and missing != [entry.work]
            state = entry.state if entry.job_id or taken else State.SUBMITTED
            known = {"job_id": job_id, "backend": backend, "session": session}
            self._change(rows, entry, state=state, **known)
        return not taken

    def done(self, entry_id: int, counts: Counts, usage_seconds: float | None = None) -> Entry:
        """Store the result of a job, whatever was noted of it before: it was paid for.

        Args:
            entry_id: whose it is.
            counts: how often each outcome came, shape ``(rows, K)``.
            usage_seconds: QPU seconds; None if they are not known.

        Raises:
            InputError: if there are not as many rows of counts as the entry has.
            JournalError: if the entry has no job yet.
        """
        with self._writing() as rows:
            entry = rows.get(entry_id)
            if counts.ndim != 2 or len(counts) != entry.work.num_rows or counts.dtype.kind != "u":
                raise InputError(
                    f"{entry} has {entry.work.num_rows} rows; got counts of shape {counts.shape}, "
                    f"{counts.dtype}"
                )
            if entry.job_id is None:
                raise JournalError(f"{entry} has no job yet: note it as submitted first")
            rows.keep(entry, counts)
            used = _most(entry.usage_seconds, usage_seconds)
            return self._change(
                rows, entry, state=State.DONE, cause=Cause.NONE, reason="", usage_seconds=used
            )

    def ended(
        self,
        entry_id: int,
        state: State,
        cause: Cause,
        reason: str,
        usage_seconds: float | None = 0.0,
    ) -> Entry:
        """Note that a job ended without a result; an entry that is done or ended stays so.

        Raises:
            JournalError: if an entry that has a job is to be withdrawn.
        """
        if state not in ENDED:
            raise InputError(f"state must be one of {', '.join(ENDED)}; got {state!r}")
        with self._writing() as rows:
            entry = rows.get(entry_id)
            if state is State.WITHDRAWN and entry.job_id is not None:
                raise JournalError(f"{entry} has the job {entry.job_id}: it cannot be withdrawn")
            used = _most(entry.usage_seconds, usage_seconds)
            if entry.state is State.DONE or entry.state in ENDED:
                return self._change(rows, entry, usage_seconds=used)
            return self._change(
                rows, entry, state=state, cause=cause, reason=reason, usage_seconds=used
            )

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
        with self._writing() as rows:
            now = rows.get(entry.id)
            if now.state not in UNSENT or (now.state, now.owner) != (entry.state, entry.owner):
                return False
            cause = Cause.UNSENT if state is State.WITHDRAWN else Cause.NONE
            used = 0.0 if state is State.WITHDRAWN else None
            self._change(
                rows, now, state=state, owner=owner, cause=cause, reason=reason, usage_seconds=used
            )
        return True

    def entry(self, entry_id: int) -> Entry:
        """An entry as it is now.

        Raises:
            JournalError: if there is none of that number.
        """
        with self._reading() as rows:
            return rows.get(entry_id)

    def counts(self, entry_id: int) -> Counts:
        """The result of an entry that is done, shape ``(rows, K)``.

        Raises:
            JournalError: if it is not done, or the result is damaged.
        """
        with self._reading() as rows:
            entry = rows.get(entry_id)
            if entry.state is not State.DONE:
                raise JournalError(f"{entry} is not done, so it has no result")
            return rows.kept(entry)

    def entry_of(self, job_id: str) -> int | None:
        """The number of the entry that has a job."""
        with self._reading() as rows:
            return rows.of_job(job_id)

    def forget(self, entry_ids: Iterable[int]) -> None:  # noqa: B027 (files keep all)
        """Drop entries whose results were used."""

    @staticmethod
    def _change(rows: Rows, entry: Entry, **values: Any) -> Entry:
        changed = replace(entry, **values, updated=time.time())
        rows.put(changed)
        return changed


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
        self._rows = _MemoryRows()
        self._lock = threading.RLock()

    @contextmanager
    def _writing(self) -> Iterator[Rows]:
        with self._lock:
            yield self._rows

    _reading = _writing

    def forget(self, entry_ids: Iterable[int]) -> None:
        with self._lock:
            self._rows.drop(entry_ids)

    def close(self) -> None:
        pass


class _MemoryRows(Rows):
    def __init__(self) -> None:
        self._last = 0
        self._entries: dict[int, Entry] = {}
        self._counts: dict[int, Counts] = {}

    def get(self, entry_id: int) -> Entry:
        if entry_id not in self._entries:
            raise JournalError(f"there is no entry {entry_id!r}")
        return self._entries[entry_id]

    def of_job(self, job_id: str) -> int | None:
        return next((e.id for e in self._entries.values() if e.job_id == job_id), None)

    def overlapping(self, work: Work) -> list[Entry]:
        key = work.key
        return [
            entry
            for entry in self._entries.values()
            if entry.state in LIVE
            and entry.work.start < work.stop
            and entry.work.stop > work.start
            and entry.work.key == key
        ]

    def attempts(self, work: Work) -> int:
        return sum(e.job_id is not None and e.work == work for e in self._entries.values())

    def insert(self, entry: Entry) -> Entry:
        self._last += 1
        self._entries[self._last] = replace(entry, id=self._last)
        return self._entries[self._last]

    def put(self, entry: Entry) -> None:
        self._entries[entry.id] = entry

    def keep(self, entry: Entry, counts: Counts) -> None:
        self._counts[entry.id] = counts

    def kept(self, entry: Entry) -> Counts:
        return self._counts[entry.id]

    def drop(self, entry_ids: Iterable[int]) -> None:
        """Drop entries that are done, and those that ended without a result for the same rows."""
        for done in [self._entries[one] for one in entry_ids if one in self._entries]:
            for entry in list(self._entries.values()):
                if entry.id == done.id or (entry.state in ENDED and entry.work == done.work):
                    del self._entries[entry.id]
            self._counts.pop(done.id, None)
