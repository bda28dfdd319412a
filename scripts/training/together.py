"""The program's side of workers that train together: it starts them, shows, and saves.

It has the interface of the trainer that trains alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from qailab.errors import PoolError, QailabError
from training.checkpoint import Checkpoint, EpochMetrics, Progress
from training.placement import Placement
from training.runs import RunFolder
from training.storage import remove
from training.workers import Work, work

MAX_FAILURES = 10
"""So often may workers die in one run; more are no bad luck."""
_TOLD_SECONDS, _START_SECONDS = 30.0, 900.0
"""When it is said that workers do not start, and when that is an error: clusters may grow."""
_POLL_SECONDS = 0.1


class WorkersError(QailabError, RuntimeError):
    """The workers failed too often."""


class Together:
    """Trains with Ray Train; `checkpoint` is always one that the workers have left.

    Args:
        start: the state to begin with.
        folder: the run's folder, which must be reached from all nodes unless it has a mirror.
        workers: how many.
        placement: what each takes.
        given: what they are given.
        check: called while it waits.
    """

    def __init__(
        self,
        start: Checkpoint,
        folder: RunFolder,
        workers: int,
        placement: Placement,
        given: Work,
        check: Callable[[], None],
    ) -> None:
        self.checkpoint = start
        self._folder = folder
        self._workers = workers
        self._placement = placement
        self._given = given
        self._check = check
        self._version = 0

    def run(
        self,
        *,
        on_batch: Callable[[Progress], None],
        on_epoch: Callable[[EpochMetrics], None],
    ) -> None:
        """Train until the last epoch is done, saving after each.

        Args:
            on_batch: called with the progress when there is some.
            on_epoch: called after each epoch with its metrics.

        Raises:
            QailabError: if a worker met one, or too many died.
        """
        import ray

        self._folder.save(self.checkpoint)
        fit = _Fit(self._trainer())
        began, told = time.monotonic(), False
        while True:
            over = not fit.thread.is_alive()  # before the last look, not after it
            answer = self._given.post.get.remote(self._version)
            self._version, content, error = ray.get(answer)
            if content is not None:
                self._take(content, on_batch, on_epoch)
            if error is not None:
                raise error
            if over:
                break
            waited = time.monotonic() - began
            if self._version == 0 and waited > _TOLD_SECONDS and not (told or _reserved()):
                print(self._missing(waited), file=sys.stderr, flush=True)
                told = True
            if self._version == 0 and waited > _START_SECONDS:
                raise PoolError(self._missing(waited))
            fit.thread.join(_POLL_SECONDS)
            self._check()
        if fit.error is not None:
            raise WorkersError(
                f"the workers failed more than {MAX_FAILURES} times, or could not be started; "
                f"the last error: {_shortly(fit.error)}"
            ) from fit.error

    def _take(
        self,
        content: bytes,
        on_batch: Callable[[Progress], None],
        on_epoch: Callable[[EpochMetrics], None],
    ) -> None:
        left = Checkpoint.from_bytes(content, "what the workers have left")
        if left.progress.place < self.checkpoint.progress.place:
            return  # they are restored, and repeat what is saved here already
        finished = left.history[len(self.checkpoint.history) :]
        self.checkpoint = left
        if finished:
            self._folder.save(self.checkpoint)
        for metrics in finished:
            on_epoch(metrics)
        if self.checkpoint.progress.seen:
            on_batch(self.checkpoint.progress)

    def _trainer(self) -> Any:
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.config import LoggingConfig

        # Workers wait at each report until Ray Train looks at them, every 2 s by default.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
        clear(self._folder)  # what a program that was killed has left is no newer than the run's
        filesystem, path = _where(self._folder)
        resources = self._placement.worker_resources
        spread = self._placement.strategy == "spread"
        return TorchTrainer(
            work,
            train_loop_config={"work": self._given},
            scaling_config=ScalingConfig(
                num_workers=self._workers,
                use_gpu="GPU" in resources,
                resources_per_worker=resources,
                placement_strategy="SPREAD" if spread else "PACK",
            ),
            run_config=RunConfig(
                name=_NAME,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )

    def _missing(self, seconds: float) -> str:
        """What the workers wait for."""
        import ray

        needs = self._placement.worker_resources
        each = " and ".join(f"{v:g} {k}" for k, v in needs.items())
        free, total = ray.available_resources(), ray.cluster_resources()
        there = ", ".join(f"{free.get(k, 0):g} {k} of {total.get(k, 0):g} free" for k in needs)
        return (
            f"No training worker has begun after {seconds:.0f} s: {self._workers} of {each} each "
            f"are waited for, and the cluster has {there}. If none comes: fewer --workers or "
            "--actors, or --placement worker-cpus=0.5"
        )


_NAME = ".workers"  # where Ray Train keeps its own checkpoints while they run


def clear(folder: RunFolder) -> None:
    """Remove what Ray Train keeps beside the run's own files, if it can be removed."""
    filesystem, path = _where(folder)
    with contextlib.suppress(OSError):
        remove(filesystem, f"{path}/{_NAME}")


def _where(folder: RunFolder) -> tuple[Any, str]:
    if folder.mirror is not None:
        return folder.mirror.filesystem, folder.mirror.path
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem(), str(folder.path.absolute())


def _reserved() -> bool:
    """Whether the workers have their resources, and only take their time."""
    import ray

    return any(name.startswith("CPU_group_") for name in ray.cluster_resources())


class _Fit:
    """``trainer.fit()`` in a thread: in the main one it would take Ctrl-C for itself."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, daemon=True, name="qailab-fit")
        self.thread.start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:
            self.error = error


def _shortly(error: Exception) -> str:
    """What Ray Train's error is about, without the tracebacks of all workers."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    cause = getattr(cause, "controller_failure", cause)
    lines = [line for line in str(cause).splitlines() if line.strip()]
    if any(line.startswith("Traceback") or "ray::" in line for line in lines):
        return lines[-1]
    return f"{type(cause).__name__}: {' '.join(lines[:3])}"
