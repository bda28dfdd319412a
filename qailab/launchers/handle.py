"""What ``submit`` returns: a result that is on its way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from qailab.gradients.rows import FloatArray

Result = TypeVar("Result")


class LaunchHandle(Generic[Result]):
    """A running evaluation, in the words of ``concurrent.futures``.

    Args:
        answers: the rows' answers, some time later.
        finish: turns the answers into the result; called once, by whoever asks first.
    """

    def __init__(self, answers: Future[FloatArray], finish: Callable[[FloatArray], Result]) -> None:
        self._answers = answers
        self._finish = finish
        self._finished: list[Result] = []
        self._lock = threading.Lock()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the result.

        An interrupt (Ctrl-C) while waiting cancels the evaluation, also what is in flight.

        Args:
            timeout: seconds to wait at most; the evaluation goes on after a time-out.

        Raises:
            TimeoutError: if it takes longer.
            CancelledError: if it was cancelled.
            QailabError: whatever went wrong where the rows ran.
        """
        try:
            answers = self._answers.result(timeout)
        except KeyboardInterrupt:
            self.cancel()
            raise
        with self._lock:
            if not self._finished:
                self._finished.append(self._finish(answers))
            return self._finished[0]

    def done(self) -> bool:
        """Whether the evaluation has ended, one way or another."""
        return self._answers.done()

    def cancel(self) -> bool:
        """Stop the evaluation; False if it is already done."""
        return self._answers.cancel()

    def cancelled(self) -> bool:
        """Whether the evaluation was cancelled."""
        return self._answers.cancelled()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end and return the error, or None if there is none.

        Args:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: if it takes longer.
        """
        return self._answers.exception(timeout)
