"""The journal: which rows went to which job, recorded before it is sent and after.

Every method is one transaction. Several processes may use one file at once; whatever they do, each
row of an evaluation belongs to one live entry, so it is neither sent twice nor lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qailab.arguments import check_choice, checked_integer
from qailab.errors import InputError, JournalError
from qailab.journal import entries, models
from qailab.journal.database import BUSY_SECONDS, Database
from qailab.journal.entries import Totals, change, named
from qailab.journal.results import checked_counts, pack
from qailab.journal.shared import JournalLog
from qailab.journal.work import ENDED, Entry, Work


class Journal:
    """A record of hardware jobs and their results.

    A file is safe against ``kill -9`` and power cuts, is readable for its user only (mode 0600),
    and may be used by several processes, on several hosts as far as the file system locks files.
    Threads may share a journal. It can be pickled if it has a path: the copy opens it again.

    Args:
        path: the file, made if there is none. None keeps everything in memory, for one process.
        busy_seconds: how long to wait for other processes.

    Raises:
        JournalError: if the file cannot be used: no SQLite database, another program's, of a newer
            qailab, a folder, in no folder, or not writable.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, *, busy_seconds: float = BUSY_SECONDS
    ) -> None:
        self._database = Database(path, busy_seconds=busy_seconds)

    @property
    def path(self) -> str | None:
        """The file's absolute path, None for memory."""
        return self._database.path

    def claim(
        self, work: Work, *, most_rows: int, group: int, backend: str, owner: str
    ) -> list[Entry]:
        """Entries that cover these rows: those there are, and new ones to be sent for the rest.

        A new entry is "intended" and has `owner` as its owner; one that somebody else intends has
        theirs. Entries that hold something else in these rows (other digests) are left alone.

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
        with self._database.writing() as connection:
            return entries.cover(
                connection, work, most_rows=most_rows, group=group, backend=backend, owner=owner
            )

    def submitted(self, entry_id: int, *, job_id: str, backend: str, session: str | None) -> None:
        """Record that the server has a job for an entry.

        Raises:
            JournalError: if the entry has another job already; or if it had ended, and others have
                its rows now (this job is recorded, and must be cancelled).
        """
        if not isinstance(job_id, str) or not job_id:
            raise InputError(f"job_id must be the server's name for the job, got {job_id!r}")
        with self._database.writing() as connection:
            entry = entries.read_entry(connection, entry_id)
            theirs = entries.record_job(connection, entry, job_id, backend, session)
        if theirs:
            raise JournalError(
                f"{named(entry)} was given up ({entry.reason}) before the job {job_id} was "
                f"recorded, and {named(theirs[0])} has its rows now: cancel {job_id}"
            )

    def done(
        self, entry_id: int, counts: NDArray[np.uint32], usage_seconds: float | None = None
    ) -> None:
        """Store the result of a job, whatever was recorded of it before: it was paid for.

        Args:
            entry_id: whose it is.
            counts: how often each outcome came, shape ``(rows, K)``.
            usage_seconds: QPU seconds; None if they are not known.

        Raises:
            InputError: if there are not as many rows of counts as the entry has.
            JournalError: if the entry has no job yet.
        """
        packed = pack(checked_counts(counts))
        with self._database.writing() as connection:
            entry = entries.read_entry(connection, entry_id)
            if packed.rows != entry.num_rows:
                raise InputError(
                    f"{named(entry)} has {entry.num_rows} rows, got counts of {packed.rows}"
                )
            if entry.job_id is None:
                raise JournalError(f"{named(entry)} has no job yet: record it as submitted first")
            entries.keep_result(connection, entry_id, packed)
            used = entries.usage_of(entry, usage_seconds)
            change(connection, entry_id, state="done", reason="", usage_seconds=used)

    def ended(
        self, entry_id: int, state: str, reason: str, usage_seconds: float | None = 0.0
    ) -> None:
        """Record that a job ended without a result; an entry that is done or ended stays so.

        Args:
            entry_id: whose it is.
            state: "failed", "cancelled" or "withdrawn".
            reason: why, for people.
            usage_seconds: QPU seconds; None if they are not known.

        Raises:
            JournalError: if an entry that has a job is to be withdrawn.
        """
        check_choice("state", state, ENDED)
        with self._database.writing() as connection:
            entry = entries.read_entry(connection, entry_id)
            if state == "withdrawn" and entry.job_id is not None:
                raise JournalError(
                    f"{named(entry)} has the job {entry.job_id}, so it cannot be withdrawn; "
                    "record it as failed or cancelled"
                )
            if entry.state == "done" or entry.state in ENDED:
                state, reason = entry.state, entry.reason
            used = entries.usage_of(entry, usage_seconds)
            change(connection, entry_id, state=state, reason=reason, usage_seconds=used)

    def take_over(self, entry: Entry, owner: str) -> bool:
        """Become the owner of an intended entry whose own is gone.

        Returns:
            Whether it worked; if not, the entry has changed since it was read.
        """
        with self._database.writing() as connection:
            return entries.change_intended(connection, entry, owner=owner)

    def withdraw(self, entry: Entry, reason: str) -> bool:
        """Give up an intended entry that never reached the server, if its owner is still the same.

        Returns:
            Whether it worked; if not, the entry has changed since it was read.
        """
        with self._database.writing() as connection:
            return entries.change_intended(connection, entry, state="withdrawn", reason=reason)

    def entry(self, entry_id: int) -> Entry:
        """An entry as it is now.

        Raises:
            JournalError: if there is none of that number.
        """
        with self._database.reading() as connection:
            return entries.read_entry(connection, entry_id)

    def counts(self, entry_id: int) -> NDArray[np.uint32]:
        """The result of an entry that is done, shape ``(rows, K)``.

        Raises:
            JournalError: if it is not done, or the result is damaged.
        """
        with self._database.reading() as connection:
            return entries.read_counts(connection, entries.read_entry(connection, entry_id))

    def register(self, circuit: str, qubits: int, angles: int) -> None:
        """Record a circuit, so that messages can say what it is."""
        models.register(self._database, circuit, qubits, angles)

    def check_model(self, circuit: str, qubits: int, angles: int) -> None:
        """Raise an error if there are jobs, but none of this circuit, nor is it registered.

        Raises:
            JournalError: if so; it says of which circuits the jobs are.
        """
        models.check_model(self._database, circuit, qubits, angles)

    def log(self, name: str) -> JournalLog:
        """A list that all processes append to, and see alike; kept under that name."""
        return JournalLog(self._database, name)

    def forget(self, entry_ids: Iterable[int]) -> None:
        """Drop entries that are done from memory, but not from the totals. Files keep all."""
        if self.path is None:
            with self._database.writing() as connection:
                for entry_id in entry_ids:
                    entries.forget(connection, entry_id)

    def totals(self) -> Totals:
        """What all jobs that reached a server come to."""
        with self._database.reading() as connection:
            return entries.totals(connection)

    def close(self) -> None:
        """Close the file (memory is lost). Safe to call twice."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Journal({self.path!r})"
