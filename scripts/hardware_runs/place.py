"""The server of a run, and this process's way to it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qailab.rehearsal import FaultPlan, RehearsalServer

_SETTLED_SECONDS = 3.0


@contextmanager
def server_for(
    devices: Sequence[str], *, seed: int, faults: FaultPlan | None = None, **options: Any
) -> Iterator[RehearsalServer]:
    """A rehearsal server, to which the environment leads; shots are a function of the content."""
    with RehearsalServer(devices, seed=seed, faults=faults, **options) as server:
        os.environ |= server.environment
        yield server


def let_settle(server: RehearsalServer) -> None:
    """Wait a little for jobs that are on their way to an end."""
    end = time.monotonic() + _SETTLED_SECONDS
    while time.monotonic() < end and not all(job.is_final for job in server.jobs):
        time.sleep(0.02)
