"""The program's side of workers that train together: it starts them, shows, and saves.

It has the interface of the trainer that trains alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from qailab.errors import PoolError, QailabError
from training.checkpoint import Checkpoint, EpochMetrics, Progress
from training.place import here
from training.placement import Placement
from training.runs import RunFolder
from training.storage import remove
from training.workers import FOLDER, Plan, Work, fit

MAX_FAILURES = 10
"""So often may workers die in one run; more are no bad luck."""
_TOLD_SECONDS, _START_SECONDS = 30.0, 900.0
"""When it is said that workers do not start, and when that is an error: clusters may grow."""
_POLL_SECONDS, _END_SECONDS = 0.1, 10.0
_BAD_LUCK = ("a worker died", "the process of Ray Train died")
"""Troubles that may well come twice at the same step."""


class WorkersError(QailabError, RuntimeError):
    """The workers failed too often, or cannot be started."""


class Together:
    """Trains with Ray Train; `checkpoint` is always one that the workers have left.

    Args:
        start: the state to begin with.
        folder: the run's folder, which must be reached from all nodes unless it has a mirror.
        workers: how many.
        placement: what each takes.
        given: what they are given; the checkpoint in it is replaced.
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
        self._version = self._failures = 0
        self._last_failure: tuple[str, tuple[int, int]] | None = None

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
            QailabError: if a worker met one, too many died, or they do not start.
        """
        self._folder.save(self.checkpoint)
        while self.checkpoint.progress.epoch < self.checkpoint.config.epochs:
            counted = self._failures
            with self._training() as training:
                what, again = self._follow(training, on_batch, on_epoch)
            if self.checkpoint.progress.epoch == self.checkpoint.config.epochs:
                return
            if not again:
                raise WorkersError(f"the workers cannot be started: {what}")
            if what or counted == self._failures:
                self._failed(what or _BAD_LUCK[0])

    def _failed(self, what: str) -> None:
        """Count a failure, and say what it is.

        Raises:
            WorkersError: if it is one too many.
        """
        self._failures += 1
        if self._failures > MAX_FAILURES:
            raise WorkersError(f"workers failed more than {MAX_FAILURES} times, last: {what}")
        here = (what, self.checkpoint.progress.place)
        if what not in _BAD_LUCK and here == self._last_failure:
            raise WorkersError(f"{what}, and again at the same step")
        self._last_failure = here
        epoch = self.checkpoint.progress.epoch + 1
        _say(f"{what}; going on from epoch {epoch} ({self._failures} of {MAX_FAILURES})")

    @contextlib.contextmanager
    def _training(self) -> Iterator[Any]:
        """Ray Train, from the last checkpoint on; nothing of it is left afterwards."""
        import ray

        plan = Plan(
            self._workers,
            self._placement.worker_resources,
            self._placement.strategy == "spread",
            *_where(self._folder),
            MAX_FAILURES - self._failures,
        )
        given = ray.put(dataclasses.replace(self._given, start=self.checkpoint.to_bytes()))
        task = ray.remote(fit).options(num_cpus=0, max_retries=0, scheduling_strategy=here())
        training = task.remote([given], plan, self._given.post)
        try:
            yield training
        finally:
            with contextlib.suppress(Exception):  # Ray may be gone
                ray.cancel(training, force=True)
                ray.wait([training], timeout=_END_SECONDS)
                for group, _ in _groups():
                    ray.util.remove_placement_group(group)

    def _follow(
        self,
        training: Any,
        on_batch: Callable[[Progress], None],
        on_epoch: Callable[[EpochMetrics], None],
    ) -> tuple[str, bool]:
        """Take what the workers leave until Ray Train has ended; what `fit` says of that."""
        import ray

        last, told = time.monotonic(), False  # when workers were last heard of
        while True:
            # Before the last look, not after it.
            over, _ = ray.wait([training], timeout=_POLL_SECONDS)
            answer = self._given.post.get.remote(self._version)
            self._version, content, error, troubles = ray.get(answer)
            if content is not None or troubles:
                last, told = time.monotonic(), False
            if content is not None:
                self._take(content, on_batch, on_epoch)
            if error is not None:
                raise error
            for what in troubles:
                self._failed(what)
            if over:
                break
            self._check()
            waited = time.monotonic() - last
            if waited < (_START_SECONDS if told else _TOLD_SECONDS):
                continue
            if any(state == "CREATED" for _, state in _groups()):
                continue  # they have what they need, and only take their time
            free, total = ray.available_resources(), ray.cluster_resources()
            why = self._placement.waiting(self._workers, free, total)
            message = f"No training worker has begun after {waited:.0f} s: {why}"
            if told:
                raise PoolError(message)
            told = True
            _say(message)
        try:
            what: tuple[str, bool] = ray.get(training)
        except ray.exceptions.RayError:
            return "the process of Ray Train died", True
        return what

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


def clear(folder: RunFolder) -> None:
    """Remove what Ray Train keeps beside the run's own files, if it can be removed."""
    filesystem, path = _where(folder)
    with contextlib.suppress(OSError):
        remove(filesystem, f"{path}/{FOLDER}")


def _where(folder: RunFolder) -> tuple[Any, str]:
    if folder.mirror is not None:
        return folder.mirror.filesystem, folder.mirror.path
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem(), str(folder.path.absolute())


def _groups() -> list[tuple[Any, str]]:
    """The workers' placement groups, which are all that this program has, and their states."""
    import ray
    from ray.util.placement_group import PlacementGroup, PlacementGroupID

    job = ray.get_runtime_context().get_job_id()  # what the id of each of its groups ends with
    return [
        (PlacementGroup(PlacementGroupID(bytes.fromhex(name))), group["state"])
        for name, group in ray.util.placement_group_table().items()
        if name.endswith(job) and group["state"] != "REMOVED"
    ]


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)  # above the bar if there is one
    sys.stderr.flush()
