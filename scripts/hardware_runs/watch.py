"""Deadlines: what does not end in time is left behind, and reported with where it was."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Hang(Exception):
    """Something did not end in time; the text has the stacks of all threads."""


class Watched(Generic[Result]):
    """A call in a thread of its own.

    Args:
        call: what to do.

    Attributes:
        seconds: how long it took.
    """

    def __init__(self, call: Callable[[], Result]) -> None:
        self.seconds = 0.0
        self._results: list[Result] = []
        self._errors: list[BaseException] = []
        self._call = call
        self._thread = threading.Thread(target=self._run, name="watched", daemon=True)
        self._began = time.monotonic()
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def result(self, deadline: float) -> Result:
        """What the call returns or raises.

        Args:
            deadline: seconds it may take, from its beginning.

        Raises:
            Hang: if it does not end in time.
        """
        self._thread.join(max(0.0, self._began + deadline - time.monotonic()))
        if not self.done:
            raise Hang(f"nothing after {deadline:g} s\n{stacks()}")
        if self._errors:
            raise self._errors[0]
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._call())
        except BaseException as error:
            self._errors.append(error)
        self.seconds = time.monotonic() - self._began


def stacks() -> str:
    """Where all threads are."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"--- {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
