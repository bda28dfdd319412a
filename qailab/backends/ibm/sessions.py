"""One session for all processes that use a device, however many ask for it at once.

What happened to it is a `SharedLog`, which decides who opens the next one; no process needs to
live for another to go on::

    opening --> open --> gone --> opening ...
       +--> refused: the plan has none, and all go on in the next mode

In a journal, `qailab.journal.sessions` reads "open" and "gone" for its report.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import CancelledError
from typing import Any, Protocol

from qailab.backends.ibm.devices import Mode
from qailab.backends.ibm.faults import classify
from qailab.backends.shared_log import SharedLog
from qailab.journal import owner_alive, this_owner

logger = logging.getLogger("qailab.backends")

OPENING_SECONDS = 120.0
"""After this long, whoever was opening a session has died over it, and another one tries; at once
where one can see that it has."""
_FALLBACK: dict[Mode, Mode] = {"session": "batch", "batch": "job"}


class Opener(Protocol):
    """The calls of the service that sessions need."""

    def open(self, mode: Mode) -> Any:
        """Open a session or batch of the client's."""

    def attach(self, session_id: str, mode: Mode) -> Any:
        """A session or batch that was opened elsewhere."""


class Sessions:
    """Gives what a Sampler's ``mode`` is to be: a session, a batch, or nothing (job mode).

    Args:
        mode: what is wanted.
        opener: the service.
        log: what all processes agree on.
        session_id: a session to use, which somebody else opened, and will close.
    """

    def __init__(
        self, mode: Mode, opener: Opener, log: SharedLog, session_id: str | None = None
    ) -> None:
        self._mode = mode
        self._opener = opener
        self._log = log
        self._given = session_id
        self._lock = threading.Lock()
        self._number = 0
        self._last: dict[str, Any] = {}
        self._live: dict[str, Any] = {}

    @property
    def mode(self) -> Mode:
        """How jobs are sent, now that it is known what the plan allows."""
        return self._mode

    def current(self, stop: threading.Event | None = None) -> tuple[str | None, Any]:
        """The session's id and the client's object for it, ``(None, None)`` in job mode.

        Raises:
            CancelledError: if ``stop`` was set while another process was opening it.
            Exception: whatever the client raises when it cannot be opened.
        """
        with self._lock:
            pause = 0.01
            while True:
                self._catch_up()
                if self._mode == "job":
                    return None, None
                event = self._last.get("event")
                if event == "open":
                    try:
                        return self._attached(self._last["id"])
                    except Exception as error:
                        if classify(error).status != 404:
                            raise
                        self._append(event="gone", id=self._last["id"])
                        continue
                if self._given is not None and event is None:
                    self._append(event="open", id=self._given, mode=self._mode, given=True)
                elif event != "opening" or self._is_stale():
                    if self._append(event="opening", owner=this_owner()):
                        self._open()
                else:
                    if (stop or threading.Event()).wait(pause):
                        raise CancelledError("waiting for a session was cancelled")
                    pause = min(2 * pause, 1.0)

    def replace(self, session_id: str, why: str) -> None:
        """Note that a session takes no more jobs: the next `current` opens another one."""
        with self._lock:
            self._catch_up()
            if self._last.get("event") == "open" and self._last["id"] == session_id:
                given = " (given as session_id)" if self._last.get("given") else ""
                logger.warning("%s %s%s is replaced: %s", self._mode, session_id, given, why)
                self._append(event="gone", id=session_id)
            self._live.pop(session_id, None)

    def close(self) -> None:
        """Close the session that is open, if it is ours: it is, then, closed for all."""
        with self._lock:
            self._catch_up()
            if self._last.get("event") != "open" or self._last.get("given"):
                return
            session_id = self._last["id"]
            if self._append(event="gone", id=session_id):
                self._end(session_id)

    def _end(self, session_id: str) -> None:
        """Close one at the service; try more than once, as an open one costs."""
        for pause in (0.2, 1.0, None):
            try:
                self._attached(session_id)[1].close()
                return
            except Exception as error:
                if pause is None or classify(error).kind == "refused":
                    raise
                time.sleep(pause)

    def _open(self) -> None:
        try:
            session = self._opener.open(self._mode)
        except Exception as error:
            fault = classify(error)
            if fault.is_session_refused:
                self._append(event="refused", mode=self._mode, text=fault.text)
                return
            self._append(event="failed", text=fault.text)
            raise
        session_id = str(session.session_id)
        if self._append(event="open", id=session_id, mode=self._mode):
            self._live[session_id] = session
        else:  # it took so long that another process has opened one meanwhile
            session.close()

    def _attached(self, session_id: str) -> tuple[str, Any]:
        if session_id not in self._live:
            self._live[session_id] = self._opener.attach(session_id, self._mode)
        return session_id, self._live[session_id]

    def _is_stale(self) -> bool:
        if owner_alive(self._last.get("owner", "")) is False:
            return True
        return time.time() - float(self._last.get("time", 0.0)) > OPENING_SECONDS

    def _catch_up(self) -> None:
        for entry in self._log.read(self._number):
            self._apply(entry)

    def _append(self, **event: Any) -> bool:
        """Append an event unless another process was faster."""
        entry = json.dumps({**event, "time": time.time()}).encode()
        if self._log.append(self._number, entry):
            self._apply(entry)
            return True
        self._catch_up()
        return False

    def _apply(self, entry: bytes) -> None:
        self._number += 1
        self._last = json.loads(entry)
        if self._last["event"] == "refused" and self._last["mode"] == self._mode:
            instead = _FALLBACK[self._mode]
            logger.warning(
                "this plan has no mode %r (%s); jobs are sent in mode %r",
                self._mode,
                self._last["text"],
                instead,
            )
            self._mode = instead
