"""The thread of a device: takes jobs off its queue, one at a time, and runs them."""

from __future__ import annotations

import logging
import threading
import time

from qailab.rehearsal import errors
from qailab.rehearsal.devices import Device
from qailab.rehearsal.errors import JobError
from qailab.rehearsal.instance import Instance
from qailab.rehearsal.jobs import Job
from qailab.rehearsal.programs import ProgramRunner
from qailab.rehearsal.records import CANCELLED, COMPLETED, FAILED, RAN_TOO_LONG, RUNNING

logger = logging.getLogger("qailab.rehearsal")


class DeviceWorker(threading.Thread):
    """Runs the jobs of one device.

    Args:
        instance: whose jobs.
        device: the device.
        runner: runs them.
        realtime: whether a job holds the device for its QPU seconds.
    """

    def __init__(
        self, instance: Instance, device: Device, runner: ProgramRunner, *, realtime: bool
    ) -> None:
        super().__init__(name=f"rehearsal-{device.short_name}", daemon=True)
        self._instance = instance
        self._device = device
        self._runner = runner
        self._realtime = realtime
        self._stopping = False

    def stop(self) -> None:
        """Stop after the job that is running."""
        with self._instance.changed:
            self._stopping = True
            self._instance.changed.notify_all()

    def run(self) -> None:
        while True:
            with self._instance.changed:
                if self._stopping:
                    return
                job, wait = self._instance.next_job(self._device)
                if job is None:
                    self._instance.changed.wait(wait)
                    continue
                job.state, job.started = RUNNING, self._instance.now()
                if job.session is not None:
                    job.session.activate(job.started)
                    job.session.used = job.started
            self._execute(job)

    def _execute(self, job: Job) -> None:
        if job.outcome == "job-stuck":
            with self._instance.changed:
                job.stuck = True  # it stays running; the device goes on with other jobs
            return
        if job.outcome or job.estimate > job.max_seconds:
            self._fail(job)
            return
        began = time.perf_counter()
        try:
            result = self._runner.run(job.submission).encode()
        except JobError as error:
            with self._instance.changed:
                self._instance.end(job, FAILED, str(error), error.code)
            return
        except Exception as error:
            logger.exception("job %s failed in the simulator", job.id)
            with self._instance.changed:
                self._instance.end(job, FAILED, f"Internal error: {error!r}", errors.INTERNAL)
            return
        seconds = time.perf_counter() - began
        with self._instance.changed:
            job.run_seconds = seconds
            if self._realtime:
                self._hold(job, job.estimate - seconds)
            if not job.is_final:
                job.result, job.qpu_seconds = result, job.estimate
                self._instance.end(job, COMPLETED, "", None)

    def _hold(self, job: Job, seconds: float) -> None:
        """Keep the device for the time its job takes; the lock is released meanwhile."""
        until = self._instance.now() + seconds
        while not job.is_final and not self._stopping:
            left = until - self._instance.now()
            if left <= 0:
                return
            self._instance.changed.wait(left)

    def _fail(self, job: Job) -> None:
        with self._instance.changed:
            if job.outcome == "job-cancelled":
                self._instance.end(job, CANCELLED, "Cancelled by the service.", None)
            elif job.outcome == "job-failed":
                reason = "Internal error: the device failed while it ran the job."
                self._instance.end(job, FAILED, reason, errors.INTERNAL)
            else:
                job.qpu_seconds = min(job.estimate, job.max_seconds)
                reason = f"Ran too long: the job was stopped after {job.qpu_seconds:g} s."
                self._instance.end(job, RAN_TOO_LONG, reason, errors.RAN_TOO_LONG_CODE)
