"""Timeouts for IBM's service, and pauses between retries."""

from __future__ import annotations

import math
import random
import threading
import time
import warnings
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass

from qailab.backends.ibm.faults import Fault, FaultKind
from qailab.errors import BackendBuildError, EvaluationError, InputError, InputTypeError
from qailab.errors import TransientBackendError as Transient

_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, kw_only=True)
class IBMTimeouts:
    """Timeouts and retries; each can be set where yours differ.

    Args:
        request_seconds: how long the server may be silent in answer to one request.
        retry_seconds: how long to retry after faults of network and server, which may pass.
        settle_seconds: how long a request that nobody answered may take to appear at the server.
        first_poll_seconds: the first pause between two looks at a job; then some percent of what
            was waited, up to the backend's ``poll_interval``.
        job_failures: how often jobs for the same rows may end without a result before that is an
            error.

    Raises:
        InputError: if one is not positive.
    """

    request_seconds: float = 120.0
    retry_seconds: float = 900.0
    settle_seconds: float = 10.0
    first_poll_seconds: float = 0.005
    job_failures: int = 3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_positive(name, value)


def IBMWaits(**seconds: float) -> IBMTimeouts:
    """`IBMTimeouts` under its old name, where ``retry_seconds`` was ``patience_seconds``."""
    warnings.warn("IBMWaits is IBMTimeouts now", DeprecationWarning, stacklevel=2)
    names = {"patience_seconds": "retry_seconds"}
    return IBMTimeouts(**{names.get(name, name): value for name, value in seconds.items()})  # type: ignore[arg-type]


def check_positive(name: str, value: object) -> float:
    """Return a number of seconds; an `InputError` if it is not positive and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputTypeError(f"{name} must be a number of seconds, got {value!r}")
    if not 0 < value < math.inf:
        raise InputError(f"{name} must be positive and finite (seconds), got {value!r}")
    return float(value)


class Backoff:
    """Longer and longer pauses after faults, until they have lasted for ``seconds``.

    ``stop`` ends a pause with a `CancelledError`; ``what`` is being done, in words.
    """

    def __init__(self, seconds: float, stop: threading.Event | None, what: str) -> None:
        self._seconds = seconds
        self._stop = stop
        self._what = what
        self.reset()

    def reset(self) -> None:
        """Start anew: a request succeeded."""
        self._since: float | None = None
        self._pause = _FIRST_PAUSE
        self._faults = 0

    def count_from(self, moment: float) -> None:
        """Count the faults' time from a later ``moment`` on (`time.monotonic`)."""
        self._since = None if self._since is None else max(self._since, moment)

    def pause(self, fault: Fault) -> None:
        """Pause after a fault.

        Raises:
            EvaluationError: if it will not pass.
            BackendBuildError: if the account is refused.
            TransientBackendError: if faults have lasted too long.
        """
        if fault.kind is FaultKind.REFUSED:
            kind = BackendBuildError if fault.is_unauthorized else EvaluationError
            raise kind(f"{self._what}: {fault}")
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._faults += 1
        left = self._since + self._seconds - now
        if left <= 0:
            within = f"{self._faults} faults within {now - self._since:.0f} s"
            raise Transient(f"{self._what}: {within}, the last one: {fault}")
        # Jitter, so that actors that met the same fault do not come back together.
        pause = self._pause * random.uniform(0.5, 1.0) + (fault.retry_after or 0.0)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self.sleep(min(pause, left))

    def sleep(self, seconds: float) -> None:
        if self._stop is None:
            time.sleep(seconds)
        elif self._stop.wait(seconds):
            raise CancelledError(f"{self._what} was cancelled")
