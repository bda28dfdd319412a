"""The seam between jobs and the service that runs them.

`service.ServiceDevice` is the real client, `local.LocalDevice` its local testing mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qailab.backends.ibm.programs import Program
from qailab.gradients.rows import FloatArray

Mode = Literal["session", "batch", "job"]
State = Literal["waiting", "running", "done", "failed", "cancelled", "too long"]


@dataclass(frozen=True)
class JobState:
    """Where a job is.

    Args:
        state: one of `State`.
        reason: why it has no result.
    """

    state: State
    reason: str = ""


class Device(Protocol):
    """Runs jobs. All calls raise what IBM's client raises; `faults.classify` says what it means."""

    @property
    def name(self) -> str:
        """The device's name."""

    @property
    def is_local(self) -> bool:
        """Whether it is a simulation in this process: no sessions, no tags, no cost."""

    @property
    def target(self) -> Any:
        """The Qiskit backend to compile for."""

    @property
    def max_shots(self) -> int | None:
        """The most shots of a row, if it says."""

    def submit(
        self, program: Program, angles: FloatArray, shots: int, *, tag: str, seed: int, mode: Any
    ) -> str:
        """Send a job.

        Args:
            program: the circuit.
            angles: its rows, shape ``(n, A)``.
            shots: shots for each row.
            tag: what to find the job by.
            seed: of the noise, where a simulator draws it.
            mode: what `Sessions` gives.

        Returns:
            The job's id.
        """

    def state(self, job_id: str) -> JobState:
        """Where a job is."""

    def counts(self, job_id: str, num_bits: int, num_rows: int, shots: int) -> NDArray[np.uint32]:
        """The result of a job that is done, as `results.counts_of` has it."""

    def usage(self, job_id: str) -> float | None:
        """QPU seconds of a job that has ended; None if they are not known yet."""

    def cancel(self, job_id: str) -> None:
        """Cancel a job; an error if it has ended already."""

    def find(self, tag: str) -> list[str]:
        """The ids of all jobs with a tag, the newest first."""

    def session_of(self, job_id: str) -> str | None:
        """The session of a job that was found; None if in none, or not known."""

    def forget(self, job_id: str) -> None:
        """Drop what is kept of a job here."""
