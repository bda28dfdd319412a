"""IBM's local testing mode: a fake device or an Aer simulator, without network or account."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from qailab.backends.ibm.devices import Found, JobStatus, merged_options
from qailab.backends.ibm.faults import Fault, FaultKind, RequestError
from qailab.backends.ibm.programs import Measured, Program
from qailab.gradients.rows import FloatArray


class LocalDevice:
    """A `Device` in this process: a fake backend or an ``AerSimulator``, which costs nothing."""

    settle_seconds = 0.0

    def __init__(self, backend: Any, options: Mapping[str, Any]) -> None:
        self.name = str(backend.name)
        self.target = backend
        limit = getattr(backend, "max_shots", None)
        self.max_shots = limit if isinstance(limit, int) else None
        self._options = options
        self._jobs: dict[str, Any] = {}

    def submit(
        self, program: Program, angles: FloatArray, shots: int, *, tag: str, seed: int, mode: Any
    ) -> str:
        from qiskit_ibm_runtime.executor_sampler import Sampler

        # Its simulators give the i-th row the noise of seed + 2113 * i.
        options = merged_options({"simulator": {"seed_simulator": seed}}, self._options)
        try:
            job = Sampler(mode=self.target, options=options).run(program.pubs(angles), shots=shots)
        except Exception as error:
            raise _refused(error) from error
        job_id = f"local-{uuid.uuid4().hex[:12]}"
        self._jobs[job_id] = job
        return job_id

    def status(self, job_id: str) -> tuple[JobStatus, str]:
        job = self._jobs.get(job_id)
        if job is None:
            return JobStatus.CANCELLED, "cancelled"
        return (JobStatus.DONE if job.in_final_state() else JobStatus.RUNNING), ""

    def measured(self, job_id: str, program: Program, num_rows: int, shots: int) -> Measured:
        try:
            result = self._jobs[job_id].result()
        except Exception as error:
            raise _refused(error) from error
        return program.measured(result, num_rows, shots)

    def usage(self, job_id: str) -> float | None:
        return 0.0

    def cancel(self, job_id: str) -> None:
        self.forget(job_id)  # a simulation in a thread cannot be ended; nobody waits for it

    def find(self, tag: str) -> list[Found]:
        return []

    def forget(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)


def _refused(error: Exception) -> RequestError:
    """No network is to blame: it would fail again."""
    return RequestError(Fault(FaultKind.REFUSED, f"{type(error).__name__}: {error}"))
