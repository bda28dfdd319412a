"""Limits that IBM Quantum sets to a job, and how many rows fit one."""

from __future__ import annotations

from dataclasses import dataclass, fields

from qailab.arguments import checked_integer
from qailab.errors import InputError

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
