"""The seam between jobs and where they run: `ServiceDevice` (IBM's service), `LocalDevice`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Literal, NamedTuple, Protocol

from qailab.backends.ibm.programs import Measured, Program
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

    @property
    def goes_on(self) -> bool:
        return not self.status.is_final


class Device(Protocol):
    """Runs jobs. Every call may raise a `RequestError`.

    ``submit`` sends rows of angles ``(n, A)`` and returns the job's id; ``tag`` is what ``find``
    finds the job by (the newest first), ``seed`` that of the noise where a simulator draws it,
    ``mode`` the client's session or None. ``status`` says where a job is, and why it has no result;
    ``measured`` is as `Program.measured` has it; ``usage`` is in QPU seconds, None as long as
    they are not known; ``forget`` drops what is kept of a job here.

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
    ) -> str: ...

    def status(self, job_id: str) -> tuple[JobStatus, str]: ...

    def measured(self, job_id: str, program: Program, num_rows: int, shots: int) -> Measured: ...

    def usage(self, job_id: str) -> float | None: ...

    def cancel(self, job_id: str) -> None: ...

    def find(self, tag: str) -> list[Found]: ...

    def forget(self, job_id: str) -> None: ...


def merged_options(options: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a Sampler with more of them, nested ones as well; lists are joined."""
    together = dict(options)
    for name, value in more.items():
        known = together.get(name)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            value = merged_options(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            value = [*known, *value]
        together[name] = value
    return together
