"""Sending jobs so that each is at the server once, whatever happens to requests and answers."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from qailab.backends.ibm.devices import Device
from qailab.backends.ibm.faults import Fault, classify
from qailab.backends.ibm.patience import Patience
from qailab.backends.ibm.programs import Program
from qailab.backends.ibm.sessions import Sessions
from qailab.backends.ibm.waits import IBMWaits
from qailab.errors import TransientBackendError
from qailab.gradients.rows import FloatArray
from qailab.journal import Entry

logger = logging.getLogger("qailab.backends")

_ENDED = ("failed", "cancelled", "too long")
_SHARE_OF_SETTLING = 0.1  # after a connection that broke: what was accepted shows at once
_MAX_REPLACED = 20  # sessions that one job may outlive


class SessionStates(Protocol):
    """What the service says of a session."""

    def takes_jobs(self, session_id: str) -> bool:
        """Whether it takes more jobs."""


class Sender:
    """Sends jobs.

    Args:
        device: where to.
        sessions: in which session; None where there are none.
        states: what becomes of sessions.
        waits: how long to wait for what.
        poll_seconds: between two tries while the plan's limit of pending jobs is reached.
        timeout: how long to wait for that.
    """

    def __init__(
        self,
        device: Device,
        sessions: Sessions | None,
        states: SessionStates | None,
        waits: IBMWaits,
        *,
        poll_seconds: float,
        timeout: float,
    ) -> None:
        self._device = device
        self._sessions = sessions
        self._states = states
        self._waits = waits
        self._poll_seconds = poll_seconds
        self._timeout = timeout
        self._doubts: set[int] = set()  # entries that may be at the server
        self._doubted: set[int] = set()  # and those that were, before they were sent again

    def send(
        self, program: Program, angles: FloatArray, entry: Entry, stop: threading.Event
    ) -> tuple[str, str | None]:
        """Send a job for an entry; go on until it is there.

        Returns:
            The job's id, and the id of its session.

        Raises:
            CancelledError: if it was stopped.
            EvaluationError: if the server refuses it.
            TransientBackendError: if it cannot be sent for now.
        """
        what = f"rows {entry.start} to {entry.stop - 1} for {self._device.name}"
        patience = Patience(self._waits, stop, f"sending {what}")
        end: float | None = None  # of waiting for room, once there was none
        replaced = 0
        while True:
            if stop.is_set():
                raise CancelledError(f"sending {what} was cancelled")
            session_id: str | None = None
            sending = False
            try:
                session_id, mode = self._session(stop)
                sending = True
                job_id = self._device.submit(
                    program, angles, entry.shots, tag=entry.tag, seed=_seed(entry), mode=mode
                )
                return job_id, session_id
            except CancelledError:
                raise
            except Exception as error:
                fault = classify(error)
                if self._device.is_local:  # no network that could be to blame
                    fault = replace(fault, kind="refused")
                if fault.is_pending_limit and fault.kind != "lost":
                    end = time.monotonic() + self._timeout if end is None else end
                    if time.monotonic() > end:
                        text = f"{what}: the limit of pending jobs is reached: {fault.text}"
                        raise TransientBackendError(text) from error
                    patience.rest(max(self._poll_seconds / 4, fault.retry_after or 0.0))
                    continue
                if replaced < _MAX_REPLACED and self._session_ended(session_id, fault, stop):
                    replaced += 1
                    continue
                if sending and fault.kind == "lost" and not self._device.is_local:
                    self._doubts.add(entry.id)
                    self._doubted.add(entry.id)
                    found = self.find(entry, stop, settle=fault.slow)
                    if found is not None:
                        return found, session_id
                patience.bear(fault, error)

    def find(self, entry: Entry, stop: threading.Event, *, settle: bool) -> str | None:
        """The job that an entry has at the server, if it has one.

        Args:
            entry: one that may have been sent.
            stop: set to give up.
            settle: whether a request may still be on its way, so that it is worth waiting for.

        Returns:
            The job's id; that of one that goes on or is done, if there are several.
        """
        patience = Patience(self._waits, stop, f"looking for a job tagged {entry.tag}")
        share = 1.0 if settle else _SHARE_OF_SETTLING
        end = time.monotonic() + share * self._waits.settle_seconds
        pause = 0.1
        while True:
            try:
                jobs = self._device.find(entry.tag)
                ended = {job for job in jobs if self._device.state(job).state in _ENDED}
            except Exception as error:
                patience.bear(classify(error), error)
                continue
            patience.renew()
            going_on = [job for job in jobs if job not in ended]
            if going_on:
                first, *doubles = reversed(going_on)  # the oldest is nearest to its answer
                self._end(doubles)
                return first
            if jobs:
                return jobs[0]
            left = end - time.monotonic()
            if left <= 0:
                self._doubts.discard(entry.id)
                return None
            patience.rest(min(pause, left))
            pause = min(2 * pause, 2.0)

    def is_in_doubt(self, entry: Entry) -> bool:
        """Whether it may be at the server, although no answer said so."""
        return entry.id in self._doubts

    def settled(self, entry: Entry, job_id: str) -> None:
        """A job is done: if it was sent twice after all, end the other before it costs."""
        self._doubts.discard(entry.id)
        if entry.id not in self._doubted:
            return
        self._doubted.discard(entry.id)
        with suppress(Exception):
            others = [job for job in self._device.find(entry.tag) if job != job_id]
            states = {job: self._device.state(job).state for job in others}
            self._end([job for job in others if states[job] in ("waiting", "running")])
            for job in others:
                if states[job] == "done":
                    logger.warning(
                        "jobs %s and %s have the same rows, and both were paid for: the service "
                        "took the first more than %g s after it was sent",
                        job,
                        job_id,
                        self._waits.settle_seconds,
                    )

    def session_ended(self, session_id: str | None, stop: threading.Event) -> bool:
        """Whether a job ended because its session did; that is then replaced."""
        return self._session_ended(session_id, None, stop)

    def _session(self, stop: threading.Event) -> tuple[str | None, Any]:
        return (None, None) if self._sessions is None else self._sessions.current(stop)

    def _session_ended(
        self, session_id: str | None, fault: Fault | None, stop: threading.Event
    ) -> bool:
        if session_id is None or self._states is None or self._sessions is None:
            return False
        if fault is not None and not fault.is_session_gone:
            return False
        patience = Patience(self._waits, stop, f"looking at session {session_id}")
        while True:
            try:
                takes_jobs = self._states.takes_jobs(session_id)
                break
            except Exception as error:
                looking = classify(error)
                if looking.kind == "refused":
                    takes_jobs = looking.status != 404
                    break
                patience.bear(looking, error)
        if not takes_jobs:
            self._sessions.replace(session_id, "it takes no more jobs")
        return not takes_jobs

    def session_of(self, job_id: str) -> str | None:
        """The session that a job which was found is in."""
        return self._device.session_of(job_id)

    def end(self, job_id: str) -> None:
        """Cancel a job that is one too many."""
        with suppress(Exception):
            self._device.cancel(job_id)

    def _end(self, doubles: list[str]) -> None:
        for job in doubles:
            logger.warning("job %s was accepted although its answer was lost: cancelled", job)
            self.end(job)


def _seed(entry: Entry) -> int:
    """A seed of the job's noise, for simulators: of its evaluation and the number of its rows."""
    return (int(entry.key[:8], 16) + 2113 * entry.start) % (1 << 31)
