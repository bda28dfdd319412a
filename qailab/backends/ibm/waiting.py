"""Waiting for jobs, and taking in what they come to."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from qailab.backends.ibm.devices import Device, State
from qailab.backends.ibm.faults import classify
from qailab.backends.ibm.patience import Patience
from qailab.backends.ibm.sending import Sender
from qailab.backends.ibm.spending import Spending
from qailab.backends.ibm.waits import IBMWaits
from qailab.errors import BackendError, EvaluationError, TransientBackendError
from qailab.journal import Entry, Journal

logger = logging.getLogger("qailab.backends")

_POLL_SHARE = 0.03
_TOO_LONG = "ran too long"
_WITH_SESSION = "with its session"
_TOO_LATE = "it took longer than"
_CARE_SECONDS = 10.0  # for what is not worth more: to make sure of a cancel, to learn the usage


class Waiter:
    """Waits for jobs that are at the server.

    Args:
        device: where they run.
        sender: who sent them.
        journal: where what becomes of them is recorded.
        spending: what they did cost.
        waits: how long to wait for what.
        owner: this process.
        poll_seconds: the longest pause between two looks at a job.
        timeout: seconds a job may take, its time in the queue included.
    """

    def __init__(
        self,
        device: Device,
        sender: Sender,
        journal: Journal,
        spending: Spending,
        waits: IBMWaits,
        *,
        owner: str,
        poll_seconds: float,
        timeout: float,
    ) -> None:
        self._device = device
        self._sender = sender
        self._journal = journal
        self._spending = spending
        self._waits = waits
        self._owner = owner
        self._poll_seconds = poll_seconds
        self._timeout = timeout

    def wait(self, entry: Entry, num_bits: int, stop: threading.Event) -> Entry:
        """Wait until the job of an entry has ended.

        Args:
            entry: one that is submitted.
            num_bits: measured bits of each shot.
            stop: set to cancel the job.

        Returns:
            The entry as it is then: done, or ended without a result.

        Raises:
            CancelledError: if it was stopped.
            TransientBackendError: if it takes too long, or the server does not answer.
            EvaluationError: if it is not to be had.
        """
        job_id = job_of(entry)
        end = entry.updated + self._timeout  # from when it was sent
        running = False
        began = time.monotonic()
        patience = Patience(self._waits, None, f"job {job_id} on {entry.backend}")
        stop.wait(self._waits.first_poll_seconds)  # it is not done at once
        while not stop.is_set():
            try:
                now = self._device.state(job_id)
                patience.renew()
                running = now.state == "running"
                if now.state == "done":
                    return self._fetch(entry, num_bits)
                if now.state not in ("waiting", "running"):
                    return self._ended(entry, now.state, now.reason, stop)
            except (EvaluationError, TransientBackendError):
                raise
            except Exception as error:
                self._bear(entry, error, patience, stop)
            if time.time() > end:
                return self._too_late(entry, num_bits, running)
            stop.wait(max(0.0, min(self._pause(time.monotonic() - began), end - time.time())))
        with suppress(EvaluationError, TransientBackendError):
            self._cancel(entry, num_bits, "cancelled by the program")
        raise CancelledError("the evaluation was cancelled")

    def _pause(self, waited: float) -> float:
        """Until the next look: a small share of what was waited, so that little is lost by it."""
        share = max(self._waits.first_poll_seconds, _POLL_SHARE * waited)
        return min(share, self._poll_seconds)

    def _bear(
        self, entry: Entry, error: Exception, patience: Patience, stop: threading.Event
    ) -> None:
        fault = classify(error)
        if fault.status == 404 and entry.owner != self._owner:
            raise TransientBackendError(
                f"rows {entry.start} to {entry.stop - 1} are in job {entry.job_id} on "
                f"{entry.backend}, which this account does not see; run them with the account "
                "that sent it"
            ) from error
        patience.bear(fault, error, stop)

    def _fetch(self, entry: Entry, num_bits: int) -> Entry:
        """Take in the result, regardless of any stop: it is paid for."""
        job_id = job_of(entry)
        patience = Patience(self._waits, None, f"the result of job {job_id} on {entry.backend}")
        with ThreadPoolExecutor(1, "qailab-ibm-usage") as beside:
            usage = beside.submit(self._usage, job_id)
            while True:
                try:
                    counts = self._device.counts(job_id, num_bits, entry.num_rows, entry.shots)
                    break
                except EvaluationError as error:
                    raise about(entry, str(error)) from error
                except Exception as error:
                    fault = classify(error)
                    if self._device.is_local:  # no network that could be to blame
                        fault = replace(fault, kind="refused")
                    elif fault.status in (None, 404):  # the server has just said that it is there
                        fault = replace(fault, kind="lost")
                    patience.bear(fault, error)
            self._journal.done(entry.id, counts, usage.result())
        self._sender.settled(entry, job_id)
        self._device.forget(job_id)
        return self._journal.entry(entry.id)

    def _usage(self, job_id: str) -> float | None:
        """What a job cost; None if the service does not say, which must not lose its result."""
        seconds = min(_CARE_SECONDS, self._waits.patience_seconds)
        patience = Patience(replace(self._waits, patience_seconds=seconds), None, "usage")
        while True:
            try:
                return self._device.usage(job_id)
            except Exception as error:
                try:
                    patience.bear(classify(error), error)
                except BackendError:
                    return None

    def _ended(self, entry: Entry, state: str, reason: str, stop: threading.Event) -> Entry:
        """A job ended without a result."""
        job_id = job_of(entry)
        if state == "too long":
            reason = f"{_TOO_LONG}: {reason}"
        elif self._sender.session_ended(entry.session, stop):
            reason = f"{_WITH_SESSION}: {reason}"
        kept = "cancelled" if state == "cancelled" else "failed"
        logger.warning("job %s on %s %s: %s", job_id, entry.backend, kept, reason)
        self._journal.ended(entry.id, kept, reason, self._usage(job_id))
        self._device.forget(job_id)
        ended = self._journal.entry(entry.id)
        self._spending.seen(ended)
        return ended

    def _too_late(self, entry: Entry, num_bits: int, running: bool) -> Entry:
        """A job passed the time-out. One that ran hangs; another one may not."""
        reason = f"{_TOO_LATE} {self._timeout:g} s"
        entry = self._cancel(entry, num_bits, reason)
        if entry.state == "submitted":
            raise TransientBackendError(
                f"job {entry.job_id} on {entry.backend} could not be cancelled, though {reason}; "
                "it is waited for again when its rows are"
            )
        if entry.state == "done" or running:
            return entry
        raise TransientBackendError(
            f"job {entry.job_id} on {entry.backend} was cancelled: {reason}, the time-out; raise "
            "timeout= where the queue is longer than that"
        )

    def _cancel(self, entry: Entry, num_bits: int, reason: str) -> Entry:
        """End a job; if it ended by itself in that moment, keep its result: it is paid for.

        Returns:
            The entry; still submitted if nobody could make sure that it has ended, for then it
            must not be sent again.
        """
        job_id = job_of(entry)
        state: State | None = "cancelled" if self._device.is_local else self._end(job_id)
        if state is None:
            logger.warning("job %s on %s may still run: %s", job_id, entry.backend, reason)
            return entry
        if state == "done":
            entry = self._fetch(entry, num_bits)
        else:
            self._journal.ended(entry.id, "cancelled", reason, self._usage(job_id))
            entry = self._journal.entry(entry.id)
        self._spending.seen(entry)
        return entry

    def _end(self, job_id: str) -> State | None:
        """Cancel a job until it has ended; what it is then, None if nobody can tell."""
        end = time.monotonic() + min(_CARE_SECONDS, self._waits.patience_seconds)
        pause = 0.05
        while True:
            with suppress(Exception):  # it says no to a job that has ended
                self._device.cancel(job_id)
            with suppress(Exception):
                state = self._device.state(job_id).state
                if state not in ("waiting", "running"):
                    return state
            if time.monotonic() > end:
                return None
            time.sleep(pause)
            pause = min(2 * pause, 1.0)


def is_too_long(entry: Entry) -> bool:
    """Whether a job ended because it had too much to do."""
    return entry.reason.startswith(_TOO_LONG)


def given_up(entry: Entry, failures: float) -> BackendError:
    """The error for rows whose jobs end without a result again and again."""
    text = f"{entry.reason} ({failures:g} jobs for these rows ended so)"
    if entry.reason.startswith(_TOO_LATE):  # a fault of the place: others may do better
        return TransientBackendError(
            f"job {entry.job_id} on {entry.backend} (rows {entry.start} to {entry.stop - 1}): "
            f"{text}; raise timeout= if jobs of this size run that long"
        )
    return about(entry, text)


def weight_of(entry: Entry) -> float:
    """How much a job that ended without a result says against its rows."""
    if entry.state == "withdrawn":
        return 0.0
    return 0.1 if entry.reason.startswith(_WITH_SESSION) else 1.0


def job_of(entry: Entry) -> str:
    """The job's id of an entry that has one."""
    assert entry.job_id is not None, f"entry {entry.id} has no job"
    return entry.job_id


def about(entry: Entry, text: str) -> EvaluationError:
    """An error about a job, with what names it."""
    return EvaluationError(
        f"job {entry.job_id} on {entry.backend} (rows {entry.start} to {entry.stop - 1}): {text}"
    )
