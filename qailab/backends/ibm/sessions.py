"""One session for all processes that use a device, however many ask for it at once.

What they agree on is a value of a `SharedState`; no process needs to live for another to go on::

    {"mode": what the plan allows, "opening": {"owner", "time"} or null,
     "sessions": [{"session", "mode", "state": "open" or "closed", "given", "created", "updated"}]}

The last of the sessions is the current one, if it is open. A journal's report reads them.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from qailab.backends.ibm.devices import Mode
from qailab.backends.ibm.faults import RequestError
from qailab.backends.ibm.service import ServiceSessions
from qailab.backends.shared import SharedState
from qailab.journal import owner_alive, this_owner

logger = logging.getLogger("qailab.backends")

OPENING_SECONDS = 120.0
"""After this long, whoever was opening a session has died over it, and another one tries; at once
where one can see that it has."""
_FALLBACK: dict[Mode, Mode] = {"session": "batch", "batch": "job"}
_KEPT = 100  # sessions in the value, so that it stays small
_PAUSES = (0.01, 1.0)

Value = dict[str, Any]


class Sessions:
    """Gives what a Sampler's ``mode`` is: a session, a batch, or nothing (job mode).

    Args:
        mode: what is wanted.
        service: opens and closes them.
        state: what all processes agree on.
        name: the value's name in it.
        session_id: a session to use, which somebody else opened, and will close.
    """

    def __init__(
        self,
        mode: Mode,
        service: ServiceSessions,
        state: SharedState,
        name: str,
        session_id: str | None = None,
    ) -> None:
        self.mode = mode
        self._service = service
        self._state = state
        self._name = name
        self._given = session_id
        self._lock = threading.Lock()
        self._attached: dict[str, Any] = {}

    def current(self, stop: threading.Event | None = None) -> tuple[str | None, Any]:
        """The session's id and the client's object for it, ``(None, None)`` in job mode.

        Raises:
            CancelledError: if ``stop`` was set while another process was opening it.
            RequestError: if it cannot be opened.
        """
        stop = threading.Event() if stop is None else stop
        pause, longest = _PAUSES
        with self._lock:
            while True:
                version, value = self._read()
                session_id = _open_one(value)
                if self.mode == "job":
                    return None, None
                if session_id is not None:
                    try:
                        return session_id, self._attach(session_id)
                    except RequestError as error:
                        if error.fault.status != 404:
                            raise
                    self._note_closed(session_id)
                elif self._given is not None and not value["sessions"]:
                    self._put(version, _with_session(value, self._given, self.mode, given=True))
                elif value["opening"] is None or _is_stale(value["opening"]):
                    opening = {"owner": this_owner(), "time": time.time()}
                    if self._put(version, {**value, "opening": opening}):
                        self._open(opening)
                else:
                    if stop.wait(pause):
                        raise CancelledError("waiting for a session was cancelled")
                    pause = min(2 * pause, longest)

    def has_ended(self, session_id: str) -> bool:
        """Whether a session takes no more jobs: the next `current` opens another one."""
        if self._service.takes_jobs(session_id, self.mode):
            return False
        with self._lock:
            if self._note_closed(session_id):
                logger.warning("%s %s takes no more jobs: it is replaced", self.mode, session_id)
        return True

    def close(self, seconds: float) -> None:
        """Close the session that is open, if it is ours: it is, then, closed for all.

        It is retried for so many seconds; a warning names a session that could not be closed.
        """
        with self._lock:
            value = self._read()[1]
            session_id = _open_one(value)
            if session_id is None or value["sessions"][-1]["given"]:
                return
            end, pause = time.monotonic() + seconds, 0.2
            while (error := self._failure_to_close(session_id)) is not None:
                if time.monotonic() + pause > end:
                    logger.warning(
                        "%s %s could not be closed, and may cost until its max_time; close it at "
                        "quantum.cloud.ibm.com (%s)",
                        *(self.mode, session_id, error),
                    )
                    return
                time.sleep(pause)
                pause *= 2
            self._note_closed(session_id)

    def _failure_to_close(self, session_id: str) -> RequestError | None:
        try:
            self._service.close(self._attach(session_id))
        except RequestError as error:
            try:
                return error if self._service.takes_jobs(session_id, self.mode) else None
            except RequestError:
                return error
        return None

    def _open(self, opening: Value) -> None:
        """Open a session, now that it is ours to do."""
        try:
            session = self._service.open(self.mode)
        except RequestError as error:
            fault = error.fault
            if fault.is_session_refused:
                instead = {"mode": _FALLBACK[self.mode], "text": fault.text, "opening": None}
                self._change(lambda value: {**value, **instead})
                return
            self._change(lambda value: {**value, "opening": None}, only=opening)
            raise
        session_id, mode = str(session.session_id), self.mode
        if self._change(
            lambda value: _with_session({**value, "opening": None}, session_id, mode, given=False),
            only=opening,
        ):
            self._attached[session_id] = session
        else:  # it took so long that another process was quicker
            self._service.close(session)

    def _attach(self, session_id: str) -> Any:
        if session_id not in self._attached:
            self._attached[session_id] = self._service.attach(session_id, self.mode)
        return self._attached[session_id]

    def _note_closed(self, session_id: str) -> bool:
        """Note that a session takes no more jobs; False if that was known."""
        self._attached.pop(session_id, None)

        def closed(value: Value) -> Value | None:
            if _open_one(value) != session_id:
                return None
            *others, session = value["sessions"]
            ended = {**session, "state": "closed", "updated": time.time()}
            return {**value, "sessions": [*others, ended]}

        return self._change(closed)

    def _read(self) -> tuple[int, Value]:
        version, content = self._state.get(self._name)
        if content is None:
            return version, {"mode": None, "opening": None, "sessions": []}
        value: Value = json.loads(content)
        allowed: Mode = value["mode"] or self.mode
        if allowed != self.mode:
            logger.warning(
                "this plan has no mode %r (%s); jobs are sent in mode %r",
                *(self.mode, value.get("text", ""), allowed),
            )
            self.mode = allowed
        return version, value

    def _put(self, version: int, value: Value) -> bool:
        return self._state.put(self._name, version, json.dumps(value).encode())

    def _change(
        self, change: Callable[[Value], Value | None], *, only: Value | None = None
    ) -> bool:
        """Change the value, whoever else does.

        Returns:
            False if ``change`` declined with None, or somebody else opens a session by now than
            the ``only`` one.
        """
        while True:
            version, value = self._read()
            changed = None if only not in (None, value["opening"]) else change(value)
            if changed is None:
                return False
            if self._put(version, changed):
                self._read()
                return True


def _open_one(value: Value) -> str | None:
    """The id of the session that is open."""
    sessions: list[Value] = value["sessions"]
    return sessions[-1]["session"] if sessions and sessions[-1]["state"] == "open" else None


def _with_session(value: Value, session_id: str, mode: Mode, *, given: bool) -> Value:
    session = {"session": session_id, "mode": mode, "state": "open", "given": given}
    session |= {"created": time.time(), "updated": time.time()}
    return {**value, "sessions": [*value["sessions"], session][-_KEPT:]}


def _is_stale(opening: Value) -> bool:
    dead = owner_alive(opening["owner"]) is False
    return dead or time.time() - float(opening["time"]) > OPENING_SECONDS
