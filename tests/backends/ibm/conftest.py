"""IBMBackend against a rehearsal server, through the real client. Every wait has a deadline."""

import warnings

import numpy as np
import pytest

from qailab.backends import IBMBackend, IBMTimeouts
from qailab.rehearsal import Fault, FaultPlan, RehearsalServer
from tests.support.contracts import backward_batch, model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the client's dependencies warn of while they load
    import qiskit_ibm_runtime  # noqa: F401
    from qiskit_ibm_runtime.fake_provider import FakeManilaV2  # noqa: F401

DEADLINE = 120
IMPATIENT = IBMTimeouts(request_seconds=1.0, retry_seconds=4.0, settle_seconds=1.0)


def on(kind, where="POST /jobs", **options):
    return Fault(kind, where, **options)


@pytest.fixture
def rehearse(monkeypatch, tmp_path):
    """Starts servers, and points the client of this process at the last one."""
    running = []

    def start(*backends, faults=(), seed=5, **options):
        plan = faults if isinstance(faults, FaultPlan) else FaultPlan(faults)
        server = RehearsalServer(backends or ("manila",), faults=plan, seed=seed, **options).start()
        running.append(server)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        return server

    monkeypatch.setenv("HOME", str(tmp_path))
    yield start
    for server in running:
        server.stop()


def device(name="ibmq_manila", **options):
    return IBMBackend(name, **{"timeouts": IMPATIENT, "poll_interval": 0.1, **options})


def gradient_rows(shots=200, seed=1, samples=3):
    """A circuit and the rows of its gradient, 36 of 3 samples."""
    _, canonical, angle_map, values = model(qubits=2, reps=1)
    return canonical, backward_batch(canonical, angle_map, values[:samples], shots, seed)


def standard_errors(answers, expected):
    """How far answers are from others, in standard errors of their difference."""
    spread = np.sqrt(answers[:, 1] + expected[:, 1]) + 1e-9
    return np.abs(answers[:, 0] - expected[:, 0]) / spread


def live_jobs(server):
    """Jobs that gave, or may still give, a result."""
    return [job for job in server.jobs if job.state in ("Queued", "Running", "Completed")]
