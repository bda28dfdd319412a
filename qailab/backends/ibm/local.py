"""IBM's local testing mode: a fake device or an Aer simulator, without network or account."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qailab.backends.ibm.devices import JobState
from qailab.backends.ibm.programs import Program
from qailab.backends.ibm.results import counts_of
from qailab.backends.ibm.samplers import Kind, make_sampler, merged
from qailab.gradients.rows import FloatArray

_RUNNING = {"INITIALIZING", "QUEUED", "VALIDATING", "RUNNING"}


class LocalDevice:
    """A `Device` in this process.

    Args:
        backend: a fake backend or an ``AerSimulator``.
        sampler: which Sampler to use.
        options: its options.
    """

    is_local = True

    def __init__(self, backend: Any, sampler: Kind, options: Mapping[str, Any]) -> None:
        self.target = backend
        self._sampler = sampler
        self._options = options
        self._jobs: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return str(self.target.name)

    @property
    def max_shots(self) -> int | None:
        limit = getattr(self.target, "max_shots", None)
        return int(limit) if isinstance(limit, int) else None

    def submit(
        self, program: Program, angles: FloatArray, shots: int, *, tag: str, seed: int, mode: Any
    ) -> str:
        # Its simulators give the i-th row the noise of seed + 2113 * i.
        options = merged({"simulator": {"seed_simulator": seed}}, self._options)
        sampler = make_sampler(self._sampler, self.target, options)
        job = sampler.run(program.pubs(angles), shots=shots)
        job_id = f"local-{uuid.uuid4().hex[:12]}"
        with self._lock:
            self._jobs[job_id] = job
        return job_id

    def state(self, job_id: str) -> JobState:
        job = self._jobs[job_id]
        return JobState("running" if job.status().name in _RUNNING else "done")

    def counts(self, job_id: str, num_bits: int, num_rows: int, shots: int) -> NDArray[np.uint32]:
        return counts_of(self._jobs[job_id].result(), num_bits, num_rows, shots)

    def usage(self, job_id: str) -> float | None:
        return 0.0

    def cancel(self, job_id: str) -> None:
        pass  # a simulation in a thread cannot be ended; its result is not waited for

    def find(self, tag: str) -> list[str]:
        return []

    def session_of(self, job_id: str) -> str | None:
        return None

    def forget(self, job_id: str) -> None:
        with self._lock:
            self._jobs.pop(job_id, None)
