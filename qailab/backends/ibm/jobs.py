"""From rows to jobs and back, so that no row is lost and none is paid for twice.

Each job is an entry of the journal, recorded before it is sent; what happens next depends on the
entry alone, so any process can go on where another one stopped::

    intended --sent--> submitted --answered--> done
       |  ^               |
       |  +---- again ----+ failed, cancelled, too long (in halves)
       +-- an answer was lost, or the sender died: looked for by its tag first
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from qailab.backends.ibm.sending import Sender
from qailab.backends.ibm.spending import Spending
from qailab.backends.ibm.tasks import EitherEvent, Task
from qailab.backends.ibm.waiting import Waiter, given_up, is_too_long, weight_of
from qailab.backends.ibm.waits import IBMWaits
from qailab.errors import JournalError, TransientBackendError
from qailab.journal import Entry, Journal, Work, owner_alive

logger = logging.getLogger("qailab.backends")

Take = Callable[[Entry, NDArray[np.uint32]], None]

_LOOK_SECONDS = (0.05, 2.0)  # between two looks at an entry that another process deals with
_MAX_THREADS = 32
_NOBODY = "nobody"  # owns entries that were given up, though they may be at the server


class JobRunner:
    """Runs the rows of tasks as jobs, several at a time.

    Args:
        device_name: where they run.
        sender: how they get there.
        waiter: how they come back.
        journal: what is known of all jobs.
        spending: what they may cost, and did.
        waits: how long to wait for what.
        pending_jobs: jobs that may be at the server at a time.
        owner: this process.
    """

    def __init__(
        self,
        device_name: str,
        sender: Sender,
        waiter: Waiter,
        journal: Journal,
        spending: Spending,
        waits: IBMWaits,
        pending_jobs: int,
        owner: str,
    ) -> None:
        self._device_name = device_name
        self._sender = sender
        self._waiter = waiter
        self._journal = journal
        self._spending = spending
        self._waits = waits
        self._owner = owner
        self._lock = threading.Lock()
        self._begun: set[int] = set()  # entries that this process may have sent
        self._active: set[int] = set()  # those that one of its threads is about to send
        self._room = threading.Semaphore(pending_jobs)

    def run(self, task: Task) -> NDArray[np.uint32]:
        """Run a task.

        Returns:
            How often each outcome came, shape ``(n, K)``.

        Raises:
            CancelledError: if it was stopped.
            EvaluationError: if the rows cannot be run there.
            BudgetExceededError: if they would pass the budget.
            TransientBackendError: if they cannot be run there for now.
        """
        counts = np.zeros((task.work.num_rows, 1 << task.program.num_bits), dtype=np.uint32)
        used: list[int] = []

        def take(entry: Entry, found: NDArray[np.uint32]) -> None:
            part = task.common(entry.work)
            offset = task.work.start
            counts[part.start - offset : part.stop - offset] = found[
                part.start - entry.start : part.stop - entry.start
            ]
            used.append(entry.id)

        self._all(task, self._claimed(task, task.work), take)
        self._journal.forget(used)
        return counts

    def _claimed(self, task: Task, work: Work) -> list[Entry]:
        return self._journal.claim(
            work,
            most_rows=max(task.group, task.most_rows // task.group * task.group),
            group=task.group,
            backend=self._device_name,
            owner=self._owner,
        )

    def _all(self, task: Task, entries: Sequence[Entry], take: Take) -> None:
        """See to entries side by side; if one fails, the others are stopped."""
        if len(entries) == 1:
            self._one(task, entries[0], take)
            return
        give_up = EitherEvent(task.stop)
        part = dataclasses.replace(task, stop=give_up)

        def one(entry: Entry) -> None:
            try:
                self._one(part, entry, take)
            except BaseException:
                give_up.set()
                raise

        with ThreadPoolExecutor(min(len(entries), _MAX_THREADS), "qailab-ibm-jobs") as threads:
            futures = [threads.submit(one, entry) for entry in entries]
        errors = [error for future in futures if (error := future.exception()) is not None]
        # What the others were cancelled for, not that they were.
        errors.sort(key=lambda error: isinstance(error, CancelledError))
        if errors:
            raise errors[0]

    def _one(self, task: Task, entry: Entry, take: Take) -> None:
        """See to an entry, and to those that take its place, until its rows have answers."""
        failures = 0.0
        while entry.state != "done":
            if task.stop.is_set():
                raise CancelledError("the evaluation was cancelled")
            if entry.state == "intended":
                entry = self._send(task, entry)
            elif entry.state == "submitted":
                entry = self._waiter.wait(entry, task.program.num_bits, task.stop)
            else:
                failures += weight_of(entry)
                if failures >= self._waits.job_failures or self._is_hopeless(task, entry):
                    raise given_up(entry, failures)
                instead = self._instead_of(task, entry)
                if len(instead) > 1:
                    self._all(task, instead, take)
                    return
                entry = instead[0]
        counts = self._journal.counts(entry.id)
        self._spending.seen(entry)
        take(entry, counts)

    def _is_hopeless(self, task: Task, entry: Entry) -> bool:
        """Whether the job had too much to do, and cannot have less."""
        return is_too_long(entry) and task.common(entry.work).num_rows <= task.group

    def _instead_of(self, task: Task, entry: Entry) -> list[Entry]:
        """What takes the place of a job that ended without a result."""
        rows = task.common(entry.work)
        if not is_too_long(entry):
            return self._claimed(task, rows)
        logger.warning(
            "job %s of %d rows was too long for %s; its rows are sent again as two jobs",
            entry.job_id,
            entry.num_rows,
            entry.backend,
        )
        half = -(-rows.num_rows // (2 * task.group)) * task.group
        return self._claimed(dataclasses.replace(task, most_rows=half), rows)

    def _send(self, task: Task, entry: Entry) -> Entry:
        """Send an entry that is intended, or wait for whoever does."""
        with self._lock:
            ours = entry.owner == self._owner and entry.id not in self._active
            fresh = ours and entry.id not in self._begun
            if ours:
                self._begun.add(entry.id)
                self._active.add(entry.id)
        if not ours:
            return self._left_to_another(task, entry)
        try:
            if task.resent or not fresh:
                found = self._sender.find(entry, task.stop, settle=not fresh)
                if found is not None:
                    return self._submitted(entry, found, self._sender.session_of(found))
            if not task.has(entry):  # cut for others, who are gone: cut anew
                if self._journal.withdraw(entry, "its rows are cut anew"):
                    self._spending.release(entry)
                return self._journal.entry(entry.id)
            return self._submit(task, entry)
        finally:
            with self._lock:
                self._active.discard(entry.id)

    def _left_to_another(self, task: Task, entry: Entry) -> Entry:
        """An entry that another process or thread sends: wait for it, or take over."""
        pause, longest = _LOOK_SECONDS
        patience = self._waits.patience_seconds
        end = time.monotonic() + patience
        while entry.state == "intended":
            alive = False if entry.owner == _NOBODY else owner_alive(entry.owner)
            expired = alive is None and time.time() - entry.updated > patience
            if alive is False or expired:
                if self._journal.take_over(entry, self._owner):
                    with self._lock:
                        self._begun.add(entry.id)  # it may have been sent: it is not fresh
                return self._journal.entry(entry.id)
            if time.monotonic() > end:
                raise TransientBackendError(
                    f"rows {entry.start} to {entry.stop - 1} have been on their way to "
                    f"{entry.backend} for {patience:g} s, sent by another process "
                    f"({entry.owner}) that still lives"
                )
            if task.stop.wait(pause):
                raise CancelledError("the evaluation was cancelled")
            pause = min(2 * pause, longest)
            entry = self._journal.entry(entry.id)
        return entry

    def _submit(self, task: Task, entry: Entry) -> Entry:
        try:
            self._enter(task.stop)
            try:
                self._spending.reserve(entry, task.stop)
                angles = task.angles_of(entry)
                job_id, session = self._sender.send(task.program, angles, entry, task.stop)
                entry = self._submitted(entry, job_id, session)
                return self._waiter.wait(entry, task.program.num_bits, task.stop)
            finally:
                self._room.release()
        except BaseException:
            self._withdraw(entry)
            raise

    def _enter(self, stop: threading.Event) -> None:
        """Wait until one more job may be at the server."""
        while not self._room.acquire(timeout=0.05):
            if stop.is_set():
                raise CancelledError("the evaluation was cancelled")

    def _withdraw(self, entry: Entry) -> None:
        """Give up an entry that has certainly not been sent; one in doubt is left to the next."""
        entry = self._journal.entry(entry.id)
        if entry.state != "intended":
            return
        if self._sender.is_in_doubt(entry):
            self._journal.take_over(entry, _NOBODY)
        elif self._journal.withdraw(entry, "it was not sent"):
            self._spending.release(entry)

    def _submitted(self, entry: Entry, job_id: str, session: str | None) -> Entry:
        try:
            self._journal.submitted(
                entry.id, job_id=job_id, backend=self._device_name, session=session
            )
        except JournalError as error:  # it took so long that others have the rows by now
            logger.warning("%s", error)
            self._sender.end(job_id)
        self._spending.sent()
        return self._journal.entry(entry.id)
