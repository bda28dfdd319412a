"""Limits of IBM's service: what a job may be, how long to wait for answers and when to retry."""

from __future__ import annotations

import math
import random
import threading
import time
import warnings
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, fields

from qailab.arguments import checked_integer
from qailab.backends.ibm.faults import Fault, FaultKind
from qailab.errors import BackendBuildError, EvaluationError, InputError, InputTypeError
from qailab.errors import TransientBackendError as Transient

_BYTES_PER_ANGLE = 8 * 4 / 3
"""A float64 in base64; measured: 500 x 24 angles are sent as 126 kB."""


@dataclass(frozen=True, kw_only=True)
class IBMLimits:
    """What a job may be at most. Each limit may be overridden where yours differ.

    Args:
        executions_per_job: rows times shots; "at most, 10 million executions are allowed".
        payload_bytes: of the angles as they are sent. IBM publishes no limit; connections were
            reset at 33 MB, so half of that.
        pending_jobs: jobs of one user that may wait or run at a time on one backend; the service
            runs 5 at once. The open plan allows 3 (error code 3458).

    Raises:
        InputError: if a limit is not positive.

    References:
        IBM Quantum documentation, Job limits, https://quantum.cloud.ibm.com/docs/guides/job-limits
        Qiskit/qiskit-ibm-runtime issues 497, 652 and 1042: large payloads.
    """

    executions_per_job: int = 10_000_000
    payload_bytes: int = 16_000_000
    pending_jobs: int = 5

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = checked_integer(limit.name, getattr(self, limit.name))
            object.__setattr__(self, limit.name, value)

    def rows_per_job(self, shots: int, angles: int, group: int = 1) -> int:
        """How many rows one job may have.

        Args:
            shots: shots for each row.
            angles: angles of the circuit, A.
            group: rows that must run together; the answer is a multiple of it.

        Raises:
            InputError: if not even one group fits.
        """
        by_executions = self.executions_per_job // shots
        by_payload = int(self.payload_bytes / (_BYTES_PER_ANGLE * max(angles, 1)))
        rows = min(by_executions, by_payload) // group * group
        if rows < 1:
            raise InputError(
                f"{group} rows of {shots:,} shots and {angles:,} angles do not fit one job, of "
                f"{self.executions_per_job:,} executions and {self.payload_bytes:,} bytes at "
                f"most; take at most {self.executions_per_job // group:,} shots"
            )
        return rows


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
