"""Devices of a rehearsal server, rows for them, and what the server has seen."""

import os
from contextlib import contextmanager
from unittest import mock

import numpy as np

from qailab.backends import IBMBackend, IBMTimeouts
from tests.support.contracts import backward_batch, model
from tests.support.servers import server_with

QUICK = IBMTimeouts(request_seconds=1.0, retry_seconds=4.0, settle_seconds=0.5)
PATIENT = IBMTimeouts(request_seconds=30.0, retry_seconds=60.0, settle_seconds=1.0)


@contextmanager
def rehearsed(*backends, faults=(), seed=5, **options):
    """A server that the client of this process is pointed at."""
    server = server_with(*backends, faults=faults, seed=seed, **options)
    try:
        with mock.patch.dict(os.environ, server.environment):
            yield server
    finally:
        server.stop()


def device(name="ibmq_manila", **options):
    return IBMBackend(name, **{"timeouts": QUICK, "poll_interval": 0.1, **options})


def patient_device(*name, **options):
    """A device of actors, which start on a machine that is busy with their imports."""
    return device(*name, **{"timeouts": PATIENT, **options})


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
