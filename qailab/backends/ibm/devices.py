"""The seam between jobs and where they run: `ServiceDevice` (IBM's service), `LocalDevice`."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from qailab.backends.ibm.programs import Program
from qailab.gradients.rows import FloatArray

Mode = Literal["session", "batch", "job"]


class JobStatus(Enum):
    """Where a job is at a device."""

    WAITING = auto()
    RUNNING = auto()
    DONE = auto()
    FAILED = auto()
    CANCELLED = auto()
    TOO_LONG = auto()

    @property
    def is_final(self) -> bool:
        return self not in (JobStatus.WAITING, JobStatus.RUNNING)


class Found(NamedTuple):
    """A job that was found by its tag."""

    job_id: str
    status: JobStatus
    session: str | None


class Device(Protocol):
    """Runs jobs. Every call may raise a `RequestError`.

    Attributes:
        name: the device's name.
        target: the Qiskit backend to compile for.
        max_shots: the most shots of a row, if it says.
        settle_seconds: how long a request that nobody answered may take to appear.
    """

    name: str
    target: Any
    max_shots: int | None
    settle_seconds: float

    def submit(
        self, program: Program, angles: FloatArray, shots: int, *, tag: str, seed: int, mode: Any
    ) -> str:
        """Send a job, and return its id.

        Args:
            program: the circuit.
            angles: its rows, shape ``(n, A)``.
            shots: shots for each row.
            tag: what to find the job by.
            seed: of the noise, where a simulator draws it.
            mode: the session of the client's to run it in; None for none.
        """

    def status(self, job_id: str) -> tuple[JobStatus, str]:
        """Where a job is, and why it has no result."""

    def counts(self, job_id: str, num_bits: int, num_rows: int, shots: int) -> NDArray[np.uint32]:
        """The result of a job that is done, as `programs.counts_of` has it."""

    def usage(self, job_id: str) -> float | None:
        """QPU seconds of a job that has ended; None if they are not known yet."""

    def cancel(self, job_id: str) -> None:
        """Cancel a job; an error if it has ended already."""

    def find(self, tag: str) -> list[Found]:
        """All jobs with a tag, the newest first."""

    def forget(self, job_id: str) -> None:
        """Drop what is kept of a job here."""


def merged_options(options: Any, more: Any) -> dict[str, Any]:
    """Options of a Sampler with more of them, nested ones as well; lists are joined."""
    together = dict(options)
    for name, value in more.items():
        known = together.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            value = merged_options(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            value = [*known, *value]
        together[name] = value
    return together
