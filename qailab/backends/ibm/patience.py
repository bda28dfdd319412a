"""How long to go on after faults that may pass."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import CancelledError

from qailab.backends.ibm.faults import Fault
from qailab.backends.ibm.waits import IBMWaits
from qailab.errors import BackendBuildError, EvaluationError, TransientBackendError

_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 30.0


class Patience:
    """Pauses after faults, longer and longer ones, until it runs out.

    Args:
        waits: how long that takes.
        stop: set to give up; None to go on regardless.
        what: what is being done, in words.
    """

    def __init__(self, waits: IBMWaits, stop: threading.Event | None, what: str) -> None:
        self._waits = waits
        self._stop = stop
        self._what = what
        self.renew()

    def renew(self) -> None:
        """Things go well again."""
        self._since: float | None = None
        self._pause = _FIRST_PAUSE
        self._faults = 0

    def bear(self, fault: Fault, error: BaseException, wake: threading.Event | None = None) -> None:
        """Pause after a fault that may pass.

        Args:
            fault: what it means.
            error: the error itself.
            wake: ends the pause when it is set.

        Raises:
            EvaluationError: if it will not pass.
            BackendBuildError: if the account is refused.
            TransientBackendError: if it has not passed for too long.
            CancelledError: if it was stopped.
        """
        if fault.kind == "refused":
            kind = BackendBuildError if fault.is_unauthorized else EvaluationError
            raise kind(f"{self._what}: {described(fault)}") from error
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._faults += 1
        left = self._since + self._waits.patience_seconds - now
        if left <= 0:
            raise TransientBackendError(
                f"{self._what}: {self._faults} faults within {now - self._since:.0f} s, the last "
                f"one: {described(fault)}"
            ) from error
        # Jitter, so that actors that met the same fault do not come back together.
        pause = max(self._pause * random.uniform(0.5, 1.0), fault.retry_after or 0.0)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if wake is None:
            self.rest(min(pause, left))
        else:
            wake.wait(min(pause, left))

    def rest(self, seconds: float) -> None:
        """Pause.

        Raises:
            CancelledError: if it was stopped.
        """
        if self._stop is None:
            time.sleep(seconds)
        elif self._stop.wait(seconds):
            raise CancelledError(f"{self._what} was cancelled")


def described(fault: Fault) -> str:
    """A fault in words."""
    status = f" (HTTP {fault.status})" if fault.status is not None else ""
    if fault.is_unauthorized:
        return f"IBM refuses the account or its API key{status}: {fault.text}"
    return f"{fault.text}{status}"
