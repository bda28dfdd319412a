"""A job from its rows to what was measured: one state machine, whoever goes on with it.

Each job is an entry of a `qailab.journal.Record`, noted before it is sent. What happens next
depends on the entry alone, so any thread or process goes on where another one stopped::

    reserve -> pending --sent--> submitted --answered--> done
                |  ^               ^   |
     an answer  |  | not there     |   +-> failed, cancelled: reserved again, in halves if it
     was lost   v  |               |       was too long; an error after a few times
             unconfirmed --found---+
                                           pending -> withdrawn: it was certainly not sent

A job that nobody can tell about is looked for by its tag before anything is sent again, so none is
paid for twice; a result that is there is taken in, whatever else ended the job's program.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from qailab.backends.budget import UsageMeter
from qailab.backends.ibm.devices import Device, Found, JobStatus
from qailab.backends.ibm.faults import Fault, FaultKind, RequestError
from qailab.backends.ibm.limits import Backoff, IBMTimeouts
from qailab.backends.ibm.programs import Measured, Program
from qailab.backends.ibm.sessions import Sessions
from qailab.errors import BackendError, EvaluationError, JournalError, TransientBackendError
from qailab.gradients.rows import FloatArray
from qailab.journal import Cause, Entry, Record, State, Work, owner_alive, this_owner
from qailab.journal.record import UNSENT

logger = logging.getLogger("qailab.backends")

_LOOK_SECONDS = (0.05, 2.0)  # between two looks at an entry that another process sends
_POLL_SHARE = 0.03  # of what was waited: the pause until the next look at a job
_CARE_SECONDS = 10.0  # for what is not worth more: to make sure of a cancel, to learn the usage
_FAST_SHARE = 0.1  # of the time to settle, after a connection broke: what was accepted shows soon
_MAX_SESSIONS = 20  # that one job may outlive
_MAX_THREADS = 32
_WEIGHTS = {Cause.UNSENT: 0.0, Cause.SESSION: 0.1}  # how much an end says against the rows: 1.0


@dataclass(frozen=True)
class Task:
    """Rows to run.

    Args:
        program: the circuit.
        work: the rows, as the record knows them.
        angles: their angles, shape ``(n, A)``.
        seed: of the noise of row 0, where a simulator draws it.
        group: rows that belong together.
        max_rows: how many rows fit one job.
        resent: whether a process that is gone may have sent jobs for them.
        stop: set to give up.
    """

    program: Program
    work: Work
    angles: FloatArray
    seed: int
    group: int
    max_rows: int
    resent: bool
    stop: threading.Event

    def check_stop(self) -> None:
        if self.stop.is_set():
            raise CancelledError("the evaluation was cancelled")


class Jobs:
    """Runs the rows of tasks as jobs on a device, several at a time.

    Args:
        poll_seconds: the longest pause between two looks at a job.
        timeout: seconds a job may take, its time in the queue included.
        pending_jobs: jobs that may be at the device at a time.
    """

    def __init__(
        self,
        device: Device,
        record: Record,
        sessions: Sessions | None,
        meter: UsageMeter,
        timeouts: IBMTimeouts,
        *,
        poll_seconds: float,
        timeout: float,
        pending_jobs: int,
    ) -> None:
        self._device = device
        self._record = record
        self._sessions = sessions
        self._meter = meter
        self._timeouts = timeouts
        self._poll_seconds = poll_seconds
        self._timeout = timeout
        self._owner = this_owner()
        self._room = threading.Semaphore(pending_jobs)
        self._taken = self._limited_until = 0.0  # when a job was, and none is, taken (monotonic)
        self._lock = threading.Lock()
        self._sending: set[int] = set()  # entries that a thread of this process deals with
        self._begun: set[int] = set()  # entries that one has dealt with: they may have been sent
        self._resent: set[int] = set()  # entries that were unconfirmed, and sent again

    def run(self, task: Task) -> Measured:
        """Run a task.

        Returns:
            What `Program.measured` gives, a line for each row.

        Raises:
            CancelledError: if it was stopped.
            EvaluationError: if the rows cannot be run there.
            BudgetExceededError: if they would pass the budget.
            TransientBackendError: if they cannot be run there for now.
        """
        done = self._run_all(task, self._reserve(task, task.work, task.max_rows, group=task.group))
        # A result that another process took in may have more shots: twirling rounds them up.
        width = min(found.shape[1] for _, found in done)
        measured = np.zeros((task.work.num_rows, width), dtype=done[0][1].dtype)
        for entry, found in done:
            rows = task.work.common(entry.work)
            mine, theirs = (slice(rows.start - at, rows.stop - at)
                            for at in (task.work.start, entry.work.start))  # fmt: skip
            measured[mine] = found[theirs, :width]
        self._record.forget([entry.id for entry, _ in done])
        return measured

    def _reserve(self, task: Task, work: Work, max_rows: int, *, group: int) -> list[Entry]:
        most = max(group, max_rows // group * group)
        name, owner = self._device.name, self._owner
        return self._record.reserve(work, most_rows=most, group=group, backend=name, owner=owner)

    def _run_all(self, task: Task, entries: Sequence[Entry]) -> list[tuple[Entry, Measured]]:
        """Bring entries to their end side by side; if one fails, the others are stopped."""
        if len(entries) == 1:
            return self._run_one(task, entries[0])
        stop = threading.Event()
        part = replace(task, stop=stop)
        with ThreadPoolExecutor(min(len(entries), _MAX_THREADS), "qailab-ibm-jobs") as threads:
            futures = [threads.submit(self._run_one, part, entry) for entry in entries]
            running = set(futures)
            while running:
                ended, running = wait(running, timeout=0.1, return_when=FIRST_EXCEPTION)
                if task.stop.is_set() or any(future.exception() for future in ended):
                    stop.set()
        errors = [error for future in futures if (error := future.exception()) is not None]
        # What the others were cancelled for, not that they were.
        errors.sort(key=lambda error: isinstance(error, CancelledError))
        if errors:
            raise errors[0]
        return [pair for future in futures for pair in future.result()]

    def _run_one(self, task: Task, entry: Entry) -> list[tuple[Entry, Measured]]:
        """Bring an entry, and those that take its place, to where its rows have answers."""
        failures = 0.0
        while entry.state is not State.DONE:
            if entry.state in UNSENT:
                entry = self._send(task, entry)
            elif entry.state is State.SUBMITTED:
                self._meter.adopt(entry)
                entry = self._wait(task, entry)
            else:
                task.check_stop()
                failures += _WEIGHTS.get(entry.cause, 1.0)
                instead = self._instead_of(task, entry, failures)
                if len(instead) > 1:
                    return self._run_all(task, instead)
                entry = instead[0]
        counts = self._record.counts(entry.id)
        self._meter.settle(entry)
        return [(entry, counts)]

    def _instead_of(self, task: Task, entry: Entry, failures: float) -> list[Entry]:
        """Reserve the rows of a job that ended without a result again; too often is an error."""
        rows = task.work.common(entry.work)
        too_long = entry.cause is Cause.TOO_LONG
        if failures >= self._timeouts.job_failures or (too_long and rows.num_rows == 1):
            reason = f"ran too long: {entry.reason}" if too_long else entry.reason
            text = f"{reason} ({failures:g} jobs for these rows ended so)"
            if entry.cause is Cause.TIMEOUT:  # a fault of the place: others may do better
                text += "; raise timeout= if jobs of this size run that long"
                raise TransientBackendError(_about(entry, text))
            raise EvaluationError(_about(entry, text))
        if not too_long:
            return self._reserve(task, rows, task.max_rows, group=task.group)
        logger.warning("%s: its rows are sent again as two jobs", _about(entry, "ran too long"))
        # Even rows that belong together: apart they are answered, in one job they would fail.
        group = task.group if rows.num_rows > task.group else 1
        return self._reserve(task, rows, -(-rows.num_rows // (2 * group)) * group, group=group)

    # pending, unconfirmed -> submitted

    def _send(self, task: Task, entry: Entry) -> Entry:
        """Send an entry, or wait for whoever does."""
        with self._lock:
            ours = entry.owner == self._owner and entry.id not in self._sending
            fresh = entry.id not in self._begun
            if ours:
                self._sending.add(entry.id)
                self._begun.add(entry.id)
        if not ours:
            return self._await_sender(task, entry)
        perhaps_sent = entry.state is State.UNCONFIRMED or not fresh
        try:
            if task.resent or perhaps_sent:
                found = self._find(entry, task.stop, settle=perhaps_sent)
                if found is not None:
                    return self._submitted(entry, found.job_id, found.session)
            if task.work.common(entry.work) != entry.work:  # cut for others, who are gone
                self._withdraw(entry, "its rows are cut anew")
                return self._record.entry(entry.id)
            if perhaps_sent:
                self._record.unsent(entry, State.PENDING, self._owner)
                self._resent.add(entry.id)
                perhaps_sent = False
            return self._submit(task, self._record.entry(entry.id))
        except BaseException:
            with suppress(JournalError):  # a full disk, say: it stays pending, and is looked for
                self._let_go(entry.id, perhaps_sent)
            raise
        finally:
            with self._lock:
                self._sending.discard(entry.id)

    def _let_go(self, entry_id: int, perhaps_sent: bool) -> None:
        """Leave an entry that was not sent to the next; withdraw it if that is certain."""
        entry = self._record.entry(entry_id)
        if entry.state is State.UNCONFIRMED or (perhaps_sent and entry.state is State.PENDING):
            self._record.unsent(entry, State.UNCONFIRMED, "")
        elif entry.state is State.PENDING:
            self._withdraw(entry, "it was not sent")

    def _await_sender(self, task: Task, entry: Entry) -> Entry:
        """Wait for the process or thread that sends an entry, or take over from it."""
        pause, longest = _LOOK_SECONDS
        seconds = self._timeouts.retry_seconds
        end = time.monotonic() + seconds
        while entry.state in UNSENT:
            if entry.owner == self._owner:
                if entry.id not in self._sending:
                    return entry
                alive: bool | None = True
            else:
                alive = owner_alive(entry.owner) if entry.owner else False
            expired = alive is None and time.time() - entry.updated > seconds
            if alive is False or expired:
                self._record.unsent(entry, State.UNCONFIRMED, self._owner)
                return self._record.entry(entry.id)
            if time.monotonic() > end:
                raise TransientBackendError(
                    f"rows {entry.work.start} to {entry.work.stop - 1} have been on their way to "
                    f"{entry.backend} for {seconds:g} s, sent by another process ({entry.owner}) "
                    "that still lives"
                )
            task.stop.wait(pause)
            task.check_stop()
            pause = min(2 * pause, longest)
            entry = self._record.entry(entry.id)
        return entry

    def _submit(self, task: Task, entry: Entry) -> Entry:
        """Send a pending entry, and wait for its job, which has its place among those pending."""
        while not self._room.acquire(timeout=0.05):
            task.check_stop()
        try:
            task.check_stop()
            self._meter.reserve(entry, task.stop)
            job_id, session = self._deliver(task, entry)
            try:
                entry = self._submitted(entry, job_id, session)
            except JournalError:  # the job goes on, and is found by its tag
                self._let_go(entry.id, perhaps_sent=True)
                raise
            return self._wait(task, entry) if entry.state is State.SUBMITTED else entry
        finally:
            self._room.release()

    def _deliver(self, task: Task, entry: Entry) -> tuple[str, str | None]:
        """Send a job until it is there; its id, and that of its session."""
        work = entry.work
        what = f"sending rows {work.start} to {work.stop - 1} to {self._device.name}"
        backoff = Backoff(self._timeouts.retry_seconds, task.stop, what)
        first = work.start - task.work.start
        angles = task.angles[first : first + work.num_rows]
        seed = (task.seed + 2113 * work.start) % (1 << 31)  # as simulators number their rows
        room_end: float | None = None
        replaced = 0
        while True:
            backoff.sleep(max(0.0, self._limited_until - time.monotonic()))
            task.check_stop()
            session_id, mode, sending = None, None, False
            try:
                if self._sessions is not None:
                    session_id, mode = self._sessions.current(task.stop)
                sending = True
                job_id = self._device.submit(
                    task.program, angles, work.shots, tag=entry.tag, seed=seed, mode=mode
                )
                self._taken = time.monotonic()
                return job_id, session_id
            except RequestError as error:
                fault = error.fault
            if fault.is_pending_limit:
                room_end = time.monotonic() + self._timeout if room_end is None else room_end
                if time.monotonic() > room_end:
                    raise TransientBackendError(f"{what}: too many jobs are pending: {fault}")
                backoff.sleep(max(self._poll_seconds / 4, fault.retry_after or 0.0))
                continue
            may_have_ended = fault.is_session_gone and replaced < _MAX_SESSIONS
            if may_have_ended and self._session_ended(session_id, task.stop):
                replaced += 1
                continue
            if sending and fault.kind is FaultKind.LOST:
                found = self._confirm(entry.id, fault, task.stop)
                if found is not None:
                    return found.job_id, session_id
            if fault.status == 429:  # 5 jobs a minute for each user (IBM's REST reference)
                self._limited_until = time.monotonic() + (fault.retry_after or 0.0)
                backoff.count_from(self._taken)  # no fault lasts while other jobs are taken
            backoff.pause(fault)

    def _confirm(self, entry_id: int, fault: Fault, stop: threading.Event) -> Found | None:
        """Look for a job whose answer was lost."""
        self._record.unsent(self._record.entry(entry_id), State.UNCONFIRMED, self._owner)
        entry = self._record.entry(entry_id)
        try:
            found = self._find(entry, stop, settle=fault.is_slow)
        except CancelledError as stopped:
            # Its job would run on, or nobody could say whether it does: one that is there is
            # cancelled, or kept, as all others.
            try:
                found = self._find(entry, None, settle=fault.is_slow)
            except TransientBackendError as error:
                raise stopped from error
        if found is None:
            self._record.unsent(entry, State.PENDING, self._owner)
            self._resent.add(entry_id)
        return found

    def _find(self, entry: Entry, stop: threading.Event | None, *, settle: bool) -> Found | None:
        """Look for an entry's job at the server by its tag.

        If a request may still be on its way, it is worth waiting for it to ``settle``. Without a
        ``stop``, no longer than that is waited for a server that does not answer.
        """
        what = f"looking for a job tagged {entry.tag}"
        longest = self._timeouts.retry_seconds if stop else self._device.settle_seconds
        backoff = Backoff(longest, stop, what)
        share = 1.0 if settle else _FAST_SHARE
        end = time.monotonic() + share * self._device.settle_seconds
        pause = 0.1
        while True:
            try:
                found = self._look(entry)
            except RequestError as error:
                backoff.pause(error.fault)
                continue
            backoff.reset()
            left = end - time.monotonic()
            if found is not None or left <= 0:
                return found
            backoff.sleep(min(pause, left))
            pause = min(2 * pause, 2.0)

    def _look(self, entry: Entry) -> Found | None:
        """An entry's job by its tag; of several one that goes on or is done, None without any."""
        jobs = self._device.find(entry.tag)
        jobs = [job for job in jobs if self._record.entry_of(job.job_id) in (None, entry.id)]
        hopeful = [job for job in jobs if job.status is JobStatus.DONE or job.goes_on]
        if hopeful:
            first, *doubles = reversed(hopeful)  # the oldest is nearest to its answer
            self._cancel_doubles(doubles)
            return first
        return jobs[0] if jobs else None

    def _submitted(self, entry: Entry, job_id: str, session: str | None) -> Entry:
        name = self._device.name
        if not self._record.submitted(entry.id, job_id=job_id, backend=name, session=session):
            logger.warning("job %s came so late that others have its rows: cancelled", job_id)
            self._cancel_quietly(job_id)
        self._begun.discard(entry.id)
        self._meter.sent()
        return self._record.entry(entry.id)

    def _withdraw(self, entry: Entry, reason: str) -> None:
        if self._record.unsent(entry, State.WITHDRAWN, entry.owner, reason):
            self._begun.discard(entry.id)
            self._meter.release(entry)

    def _session_ended(self, session_id: str | None, stop: threading.Event) -> bool:
        if session_id is None or self._sessions is None:
            return False
        what = f"looking at session {session_id}"
        backoff = Backoff(self._timeouts.retry_seconds, stop, what)
        while True:
            try:
                return self._sessions.has_ended(session_id)
            except RequestError as error:
                backoff.pause(error.fault)

    # submitted -> done, failed, cancelled

    def _wait(self, task: Task, entry: Entry) -> Entry:
        """Wait until a job has ended.

        Returns:
            The entry as it is then: done, or ended without a result.

        Raises:
            CancelledError: if it was stopped; the job is cancelled.
            TransientBackendError: if it takes too long, or the server does not answer.
            EvaluationError: if its result is not to be had.
        """
        job_id, stop, program = _job_of(entry), task.stop, task.program
        backoff = Backoff(self._timeouts.retry_seconds, stop, _about(entry, "waiting"))
        first = self._timeouts.first_poll_seconds
        began = time.monotonic()
        # From when it was sent: by the wall's clock, for another process may have.
        end = began + self._timeout - max(0.0, time.time() - entry.updated)
        status = JobStatus.WAITING
        try:
            stop.wait(first)  # it is not done at once
            while not stop.is_set():
                try:
                    status, reason = self._device.status(job_id)
                    backoff.reset()
                except RequestError as error:
                    if error.fault.status == 404:
                        found = self._find(entry, stop, settle=True)
                        if found is None or found.job_id != job_id:
                            return self._deleted(entry)
                    backoff.pause(_passing(error.fault))
                    continue
                if status is JobStatus.DONE:
                    return self._fetch(entry, program)
                if status.is_final:
                    return self._ended(entry, status, reason, stop)
                now = time.monotonic()
                if now > end:
                    return self._timed_out(entry, program, status)
                pause = min(max(first, _POLL_SHARE * (now - began)), self._poll_seconds, end - now)
                stop.wait(pause)
        except CancelledError:
            pass
        with suppress(EvaluationError, TransientBackendError):
            self._cancel(entry, program, Cause.STOPPED, "cancelled by the program")
        raise CancelledError("the evaluation was cancelled")

    def _deleted(self, entry: Entry) -> Entry:
        """End an entry whose job is gone; an error where it may be another account's."""
        if entry.owner == self._owner:
            reason = "the server does not know the job any more"
            return self._note_end(entry, State.FAILED, Cause.DELETED, reason, None)
        raise TransientBackendError(
            f"{_about(entry, 'this account does not see the job')}; run its rows with the account "
            "that sent it, or, if it was deleted, have them sent again: python -m qailab.journal "
            f"{self._record.path} --give-up {entry.id}"
        )

    def _fetch(self, entry: Entry, program: Program) -> Entry:
        """Take in the result, regardless of any stop: it is paid for."""
        job_id, work = _job_of(entry), entry.work
        backoff = Backoff(self._timeouts.retry_seconds, None, _about(entry, "fetching the result"))
        with ThreadPoolExecutor(1, "qailab-ibm-usage") as beside:
            usage = beside.submit(self._usage, job_id)
            while True:
                try:
                    counts = self._device.measured(job_id, program, work.num_rows, work.shots)
                    break
                except EvaluationError as error:
                    raise EvaluationError(_about(entry, str(error))) from error
                except RequestError as error:
                    backoff.pause(_passing(error.fault))
            entry = self._record.done(entry.id, counts, usage.result())
        if entry.id in self._resent:  # if it was sent twice, end the other one before it costs
            self._resent.discard(entry.id)
            with suppress(RequestError):
                others = [job for job in self._device.find(entry.tag) if job.job_id != job_id]
                self._cancel_doubles(others)
        self._device.forget(job_id)
        return entry

    def _cancel_doubles(self, jobs: Sequence[Found]) -> None:
        for job in jobs:
            if job.status is JobStatus.DONE:
                logger.warning(
                    "job %s and a later one have the same rows, and both were paid for: the "
                    "service took it more than %g s after it was sent",
                    job.job_id,
                    self._device.settle_seconds,
                )
            elif job.goes_on:
                logger.warning(
                    "job %s was accepted although its answer was lost: cancelled", job.job_id
                )
                self._cancel_quietly(job.job_id)

    def _ended(self, entry: Entry, status: JobStatus, reason: str, stop: threading.Event) -> Entry:
        """Note that a job ended without a result."""
        cause = Cause.TOO_LONG if status is JobStatus.TOO_LONG else Cause.DEVICE
        if cause is Cause.DEVICE and self._session_ended(entry.session, stop):
            cause = Cause.SESSION
        state = State.CANCELLED if status is JobStatus.CANCELLED else State.FAILED
        logger.warning("%s", _about(entry, f"{state}: {reason}"))
        return self._note_end(entry, state, cause, reason, self._usage(_job_of(entry)))

    def _timed_out(self, entry: Entry, program: Program, status: JobStatus) -> Entry:
        """Cancel a job that passed the time-out. One that ran hangs; another one may not."""
        reason = f"it took longer than {self._timeout:g} s"
        entry = self._cancel(entry, program, Cause.TIMEOUT, reason)
        if entry.state is State.SUBMITTED:
            text = f"it could not be cancelled, though {reason}; it is waited for again"
            raise TransientBackendError(_about(entry, text))
        if entry.state is State.DONE or status is JobStatus.RUNNING:
            return entry
        text = f"cancelled: {reason}, the time-out; raise timeout= where the queue is longer"
        raise TransientBackendError(_about(entry, text))

    def _cancel(self, entry: Entry, program: Program, cause: Cause, reason: str) -> Entry:
        """End a job; if it ended by itself in that moment, keep its result: it is paid for.

        Returns:
            The entry; still submitted if nobody could make sure that it has ended, for then it
            must not be sent again.
        """
        job_id = _job_of(entry)
        end = time.monotonic() + min(_CARE_SECONDS, self._timeouts.retry_seconds)
        pause = 0.05
        while True:
            self._cancel_quietly(job_id)  # it says no to a job that has ended
            status = JobStatus.WAITING
            with suppress(RequestError):
                status, _ = self._device.status(job_id)
            if status is JobStatus.DONE:
                entry = self._fetch(entry, program)
                self._meter.settle(entry)  # nobody else does, if it was stopped
                return entry
            if status.is_final:
                return self._note_end(entry, State.CANCELLED, cause, reason, self._usage(job_id))
            if time.monotonic() > end:
                logger.warning("%s", _about(entry, f"it may still run: {reason}"))
                return entry
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _cancel_quietly(self, job_id: str) -> None:
        with suppress(RequestError):
            self._device.cancel(job_id)

    def _note_end(
        self, entry: Entry, state: State, cause: Cause, reason: str, seconds: float | None
    ) -> Entry:
        entry = self._record.ended(entry.id, state, cause, reason, seconds)
        self._device.forget(_job_of(entry))
        self._meter.settle(entry)
        return entry

    def _usage(self, job_id: str) -> float | None:
        """What a job cost; None if the service does not say, which must not lose its result."""
        backoff = Backoff(min(_CARE_SECONDS, self._timeouts.retry_seconds), None, "usage")
        with suppress(BackendError):
            while True:
                try:
                    return self._device.usage(job_id)
                except RequestError as error:
                    backoff.pause(error.fault)
        return None


def _passing(fault: Fault) -> Fault:
    """A fault of a job that the server has just spoken of: "not found" will pass."""
    if fault.status == 404 or (fault.status is None and fault.names):
        return replace(fault, kind=FaultKind.LOST)
    return fault


def _job_of(entry: Entry) -> str:
    assert entry.job_id is not None, f"{entry} has no job"
    return entry.job_id


def _about(entry: Entry, text: str) -> str:
    """A text about a job, with what names it."""
    rows = f"rows {entry.work.start} to {entry.work.stop - 1}"
    return f"job {entry.job_id} on {entry.backend} ({rows}): {text}"
