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
from typing import Any, Protocol

from qailab.backends.ibm.devices import Mode
from qailab.backends.ibm.faults import RequestError
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


class Opener(Protocol):
    """The calls of the service that sessions need; each may raise a `RequestError`."""

    def open(self, mode: Mode) -> Any: ...

    def attach(self, session_id: str, mode: Mode) -> Any: ...

    def close(self, session: Any) -> None: ...

    def takes_jobs(self, session_id: str, mode: Mode) -> bool: ...


class Sessions:
    """Gives what a Sampler's ``mode`` is: a session, a batch, or nothing (job mode).

    Args:
        mode: what is wanted.
        opener: the service.
        state: what all processes agree on.
        name: the value's name in it.
        session_id: a session to use, which somebody else opened, and will close.
    """

    def __init__(
        self,
        mode: Mode,
        opener: Opener,
        state: SharedState,
        name: str,
        session_id: str | None = None,
    ) -> None:
        self._mode = mode
        self._opener = opener
        self._state = state
        self._name = name
        self._given = session_id
        self._lock = threading.Lock()
        self._attached: dict[str, Any] = {}

    @property
    def mode(self) -> Mode:
        """How jobs are sent, now that it is known what the plan allows."""
        return self._mode

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
                session = _open_one(value)
                if self._mode == "job":
                    return None, None
                if session is not None:
                    try:
                        return session["session"], self._attach(session["session"])
                    except RequestError as error:
                        if error.fault.status != 404:
                            raise
                    self._note_closed(session["session"])
                elif self._given is not None and not value["sessions"]:
                    self._put(version, _with_session(value, self._given, self._mode, given=True))
                elif value["opening"] is None or _is_stale(value["opening"]):
                    opening = {"owner": this_owner(), "time": time.time()}
                    if self._put(version, {**value, "opening": opening}):
                        self._open(opening)
                else:
                    if stop.wait(pause):
                        raise CancelledError("waiting for a session was cancelled")
                    pause = min(2 * pause, longest)

    def has_ended(self, session_id: str) -> bool:
        """Whether a session takes no more jobs: the next `current` opens another one.

        Raises:
            RequestError: if that cannot be told.
        """
        if self._opener.takes_jobs(session_id, self._mode):
            return False
        with self._lock:
            if self._note_closed(session_id):
                logger.warning("%s %s takes no more jobs: it is replaced", self._mode, session_id)
        return True

    def close(self, seconds: float) -> None:
        """Close the session that is open, if it is ours: it is, then, closed for all.

        Args:
            seconds: how long to retry; a warning names a session that could not be closed.
        """
        with self._lock:
            session = _open_one(self._read()[1])
            if session is None or session["given"]:
                return
            session_id = session["session"]
            end, pause = time.monotonic() + seconds, 0.2
            while True:
                try:
                    self._opener.close(self._attach(session_id))
                    break
                except RequestError as error:
                    if self._is_over(session_id):
                        break
                    if time.monotonic() + pause > end:
                        logger.warning(
                            "%s %s could not be closed, and may cost until its max_time; close it "
                            "at quantum.cloud.ibm.com (%s)",
                            self._mode,
                            session_id,
                            error,
                        )
                        return
                time.sleep(pause)
                pause *= 2
            self._note_closed(session_id)

    def _is_over(self, session_id: str) -> bool:
        try:
            return not self._opener.takes_jobs(session_id, self._mode)
        except RequestError:
            return False

    def _open(self, opening: Value) -> None:
        """Open a session, now that it is ours to do."""
        try:
            session = self._opener.open(self._mode)
        except RequestError as error:
            fault = error.fault
            if fault.is_session_refused:
                instead = {"mode": _FALLBACK[self._mode], "text": fault.text, "opening": None}
                self._change(lambda value: {**value, **instead})
                return
            self._change(lambda value: _not_opening(value, opening))
            raise

        session_id, mode = str(session.session_id), self._mode

        def opened(value: Value) -> Value | None:
            if value["opening"] != opening:  # it took so long that another process was quicker
                return None
            return _with_session({**value, "opening": None}, session_id, mode, given=False)

        if self._change(opened):
            self._attached[session_id] = session
        else:
            self._opener.close(session)

    def _attach(self, session_id: str) -> Any:
        if session_id not in self._attached:
            self._attached[session_id] = self._opener.attach(session_id, self._mode)
        return self._attached[session_id]

    def _note_closed(self, session_id: str) -> bool:
        """Note that a session takes no more jobs; False if that was known."""
        self._attached.pop(session_id, None)

        def closed(value: Value) -> Value | None:
            session = _open_one(value)
            if session is None or session["session"] != session_id:
                return None
            ended = {**session, "state": "closed", "updated": time.time()}
            return {**value, "sessions": [*value["sessions"][:-1], ended]}

        return self._change(closed)

    def _read(self) -> tuple[int, Value]:
        version, content = self._state.get(self._name)
        if content is None:
            return version, {"mode": None, "opening": None, "sessions": []}
        value: Value = json.loads(content)
        allowed: Mode = value["mode"] or self._mode
        if allowed != self._mode:
            logger.warning(
                "this plan has no mode %r (%s); jobs are sent in mode %r",
                self._mode,
                value.get("text", ""),
                allowed,
            )
            self._mode = allowed
        return version, value

    def _put(self, version: int, value: Value) -> bool:
        return self._state.put(self._name, version, json.dumps(value).encode())

    def _change(self, change: Callable[[Value], Value | None]) -> bool:
        """Change the value, whoever else does; False if ``change`` declined with None."""
        while True:
            version, value = self._read()
            changed = change(value)
            if changed is None:
                return False
            if self._put(version, changed):
                self._read()
                return True


def _open_one(value: Value) -> Value | None:
    sessions: list[Value] = value["sessions"]
    return sessions[-1] if sessions and sessions[-1]["state"] == "open" else None


def _with_session(value: Value, session_id: str, mode: Mode, *, given: bool) -> Value:
    now = time.time()
    session = {
        "session": session_id,
        "mode": mode,
        "state": "open",
        "given": given,
        "created": now,
        "updated": now,
    }
    return {**value, "sessions": [*value["sessions"], session][-_KEPT:]}


def _not_opening(value: Value, opening: Value) -> Value | None:
    return {**value, "opening": None} if value["opening"] == opening else None


def _is_stale(opening: Value) -> bool:
    if owner_alive(opening["owner"]) is False:
        return True
    return time.time() - float(opening["time"]) > OPENING_SECONDS
