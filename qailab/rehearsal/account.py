"""The devices, the plan and the usage of an instance, and the lock before its state."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from qailab.rehearsal import errors
from qailab.rehearsal.devices import Device
from qailab.rehearsal.errors import ApiError
from qailab.rehearsal.jobs import Clock, Job, Session
from qailab.rehearsal.limits import OPEN_PLAN_SECONDS, Limits


class Account:
    """What an instance has and may do.

    Args:
        devices: its devices.
        plan: its plan, one of `qailab.rehearsal.limits.PLANS`.
        limits: what it allows.
        queue_seconds: time in the queue, of a job on its own and of the first of a session.

    Attributes:
        changed: the lock, and the condition that is notified when a job or session changes.
    """

    def __init__(
        self, devices: Iterable[Device], *, plan: str, limits: Limits, queue_seconds: float
    ) -> None:
        self.devices = {device.name: device for device in devices}
        self.plan = plan
        self.limits = limits
        self.queue_seconds = queue_seconds
        self.clock = Clock()
        self.changed = threading.Condition()
        self._began = time.monotonic()
        self._jobs: dict[str, Job] = {}
        self._pending: dict[str, Job] = {}  # those of them that are queued or running
        self._sessions: dict[str, Session] = {}
        self._open: dict[str, Session] = {}

    def now(self) -> float:
        """Seconds since the server started."""
        return time.monotonic() - self._began

    def device(self, name: str) -> Device:
        """A device by name.

        Raises:
            ApiError: 404 if there is none.
        """
        if name not in self.devices:
            raise ApiError(404, errors.BACKEND_NOT_FOUND, f"Backend {name} not found.")
        return self.devices[name]

    def pending(self, device: Device | None = None) -> int:
        """Jobs that are queued or running."""
        with self.changed:
            return sum(device in (None, job.device) for job in self._pending.values())

    def usage(self) -> dict[str, Any]:
        """The answer of ``GET /instances/usage``."""
        with self.changed:
            consumed = sum(job.qpu_seconds for job in self._jobs.values())
            pending = len(self._pending)
        answer: dict[str, Any] = {
            "plan_id": self.plan,
            "usage_consumed_seconds": consumed,
            "usage_limit_reached": False,
            "pending_jobs": pending,
        }
        if self.plan == "open":
            answer["usage_limit_seconds"] = OPEN_PLAN_SECONDS
            answer["usage_limit_reached"] = consumed >= OPEN_PLAN_SECONDS
        limit = self.limits.pending_jobs_of(self.plan)
        if limit is not None:
            answer["max_pending_jobs"] = limit
        return answer
