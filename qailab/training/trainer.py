"""The trainer: it owns the weights, hands tasks to lanes, and applies gradients as they arrive."""

from __future__ import annotations

import copy
import logging
import math
import os
import queue
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from qailab.arguments import check_choice, checked_integer
from qailab.errors import (
    BackendError,
    CheckpointError,
    InputError,
    JournalError,
    PoolClosedError,
    PoolError,
    PoolExhaustedError,
)
from qailab.launchers import RowEvaluator
from qailab.training.batches import Batches
from qailab.training.lanes import (
    Arrival,
    Lane,
    LossFunction,
    Passes,
    Result,
    Work,
    check_parts,
    copy_of,
    first_steps_of,
    loss_of_batch,
    passes_of,
    quantum_layers,
    shared_tensors,
    table_of,
)
from qailab.training.log import Entry, RunLog, about_of, digest, plain
from qailab.training.schedule import LiveSchedule, ReplaySchedule, Staleness, Task
from qailab.training.weighting import LaneWeights, Weighting

logger = logging.getLogger("qailab.training")

MAX_FAILURES = 3  # of a lane, one after the other; backends retry what passes by themselves
_PLACE_ERRORS = (BackendError, PoolError, JournalError, CancelledError, OSError)  # not the model's
_POLL_SECONDS = 0.5  # how often deadlines are looked at
_FIRST_SECONDS = 900.0  # of a batch, before any has arrived
_LEAST_SECONDS, _LONGER = 30.0, 20.0  # then: so many times the longest one
_CLOSE_SECONDS = 5.0  # for all lanes to end
_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.RReLU)


@dataclass(frozen=True)
class Step:
    """A gradient that is applied.

    Args:
        number: of the step, from 1; it makes this version of the weights.
        epoch: the epoch of its batch, from 0.
        batch: the number of its batch, from the first epoch on.
        lane: where it comes from.
        staleness: how many versions it is behind.
        scale: what the step is multiplied by.
        loss: of the batch.
        metrics: of the batch, as the loss function gave them.
        epochs_ended: how many epochs have all their batches applied with this one; mostly 0 or 1.
    """

    number: int
    epoch: int
    batch: int
    lane: int
    staleness: int
    scale: float
    loss: float
    metrics: Mapping[str, float]
    epochs_ended: int


class AsyncTrainer:
    """Trains a model on several lanes, each of which never waits for another.

    A lane takes the next batch at the newest weights, computes its gradient on a copy of the model
    whose circuits run at the lane's place, and the gradient is applied as it arrives. A gradient is
    stale by as many versions as were applied since its weights were the newest: with K equal lanes
    by K - 1. Batches of the next epoch are taken while stragglers of the last one are out.

    Shot noise is a function of the layers' seeds, the batch and how often it was tried; the order
    of the data, of ``seed`` and the epoch; all that is left is the order of arrivals, which is in
    ``log``. ``replay=log`` repeats a run bit for bit on simulators, with any lanes. One lane with
    ``max_staleness=0`` equals the ordinary loop over the same batches, bit for bit.

    Args:
        model: has a quantum layer. Lanes keep its ``train()`` or ``eval()`` mode of now.
        optimizer: any of torch's, of the model's parameters, but ``LBFGS``.
        loss_fn: a module such as ``CrossEntropyLoss()``, for batches of inputs and targets; or
            ``loss_fn(model, batch)``, which gives the loss of a batch, a scalar tensor, or a pair
            of it and metrics by name.
        lanes: where circuits run: a backend or a ``LauncherPool`` for each lane. ``[pool] * 5`` are
            five places on one pool.
        max_staleness: the most versions that a gradient may be behind; by default twice the lanes.
        staleness: ``"drop"``: older gradients are dropped, and their batches taken again;
            ``"scale"``: their steps are divided by ``1 + staleness``.
        weighting: of the lanes' steps: ``"uniform"``, ``"quality"`` (0.75 to 1, by calibration),
            ``"standard_error"`` (0.75 to 1, by shot noise), or weights by the lanes' numbers.
        replay: a log, or its file, whose run is repeated; ``max_staleness``, ``staleness`` and
            ``weighting`` are the log's then.
        scheduler: a learning-rate scheduler, which `fit` steps after each epoch.
        seed: of the order in which a loader shuffles.
        timeout: seconds that a lane may take for a batch before others take it and its evaluations
            are cancelled; by default 20 times the longest so far and at least 30 s, but for ever on
            backends whose queues may last hours.
        progress: whether to show a bar, where there is a terminal.

    Attributes:
        log: the gradients that arrived so far, a `RunLog`.

    Raises:
        InputError: if an option is not valid, a circuit does not fit a lane, or the model cannot be
            copied.
        OSError: if there is no such file to replay.

    >>> trainer = AsyncTrainer(model, optimizer, loss_fn, [pool] * 5)  # doctest: +SKIP
    >>> trainer.fit(loader, epochs=3)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: LossFunction | nn.Module,
        lanes: Sequence[RowEvaluator],
        *,
        max_staleness: int | None = None,
        staleness: Staleness = "drop",
        weighting: Weighting = "uniform",
        replay: RunLog | str | os.PathLike[str] | None = None,
        scheduler: Any = None,
        seed: int = 0,
        timeout: float | None = None,
        progress: bool = True,
    ) -> None:
        check_parts(model, optimizer, loss_fn, lanes, scheduler)
        check_choice("staleness", staleness, get_args(Staleness))
        bound = 2 * len(lanes)
        if max_staleness is not None:
            bound = checked_integer("max_staleness", max_staleness, least=0)
        if timeout is not None and not timeout > 0:
            raise InputError(f"timeout must be a positive number of seconds, got {timeout!r}")
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.log = RunLog()
        self._loss_fn, self._progress = loss_of_batch(loss_fn), progress
        self._seed = checked_integer("seed", seed, least=0)
        self._timeout = timeout
        self._replay = replay if isinstance(replay, RunLog | None) else RunLog.read(replay)
        self._schedule: LiveSchedule | ReplaySchedule
        if self._replay is None:
            self._schedule = LiveSchedule(bound, staleness)
        else:
            self._schedule = ReplaySchedule(self._replay.entries)
        layers = quantum_layers(model)
        self._parameters, self._buffers = shared_tensors(model)
        self._about = about_of(model, optimizer)
        self._first_steps = {name: int(layer.step) for name, layer in layers.items()}
        self._passes: dict[str, Passes] | None = None  # of a batch, for each layer; not known yet
        self._snapshots: dict[int, Sequence[Tensor]] = {}
        self._results: dict[Task, Result] = {}
        self._arrivals: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
        self._scale, self._rates = 1.0, list[Any]()  # of this step; of the optimizer's groups
        self._longest, self._running, self._warned = 0.0, False, False
        self._epochs_done = 0
        self._template = copy_of(model)
        circuits = [layer.problem.canonical.circuit for layer in layers.values()]
        self._weights = LaneWeights(weighting, circuits)
        self._lanes: list[Lane] = []
        for place in lanes:
            self.add_lane(place)
        if len(lanes) > 1 and any(isinstance(each, _RANDOM) for each in model.modules()):
            warnings.warn(
                "the model draws from torch's generator (dropout), in the order in which lanes "
                "happen to run: this run cannot be repeated bit for bit",
                stacklevel=2,
            )

    # Lanes come and go, also while it trains.

    def add_lane(self, place: RowEvaluator) -> int:
        """Add a lane; its number."""
        number = len(self._lanes)
        model = copy.deepcopy(self._template)
        lane = Lane(number, model, place, self._loss_fn, self._arrivals)
        self._weights.add(number, place)
        self._lanes.append(lane)
        self._arrivals.put(None)  # somebody may wait who has something for it
        return number

    def remove_lane(self, number: int) -> None:
        """Give a lane no more batches; the one that it has still counts."""
        lane = self._lanes[number]
        lane.leaving = True
        self._arrivals.put(None)

    def stats(self) -> list[dict[str, Any]]:
        """What each lane did, the columns of `table` by name."""
        return [lane.row() for lane in self._lanes]

    def table(self) -> str:
        """A table of the lanes: gradients, their staleness in versions, seconds, jobs."""
        return table_of(self.stats())

    # Training.

    def fit(
        self,
        loader: Any,
        epochs: int,
        callbacks: Iterable[Callable[[Step], None]] = (),
        *,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        """Train until so many epochs are done, with those before a resume: a loop over `steps`.

        Args:
            loader: as for `steps`.
            epochs: how often each batch counts.
            callbacks: called after each step of the optimizer.
            checkpoint: as for `steps`.
        """
        calls = list(callbacks)
        for step in self.steps(loader, epochs, checkpoint=checkpoint):
            self.optimizer.step()
            if self.scheduler is not None:
                for _ in range(step.epochs_ended):
                    self.scheduler.step()
            for call in calls:
                call(step)

    def steps(
        self, loader: Any, epochs: int, *, checkpoint: str | os.PathLike[str] | None = None
    ) -> Iterator[Step]:
        """Gradients as they are applied; the body of the loop is that of any torch loop.

        ``.grad`` of the model's parameters is there, as after ``backward()``: clip it, call
        ``optimizer.step()`` (which makes a step that is scaled) and ``scheduler.step()``. Lanes go
        on meanwhile; the weights that they take are those at the body's end. After
        an error in the body, go on from the checkpoint.

        Args:
            loader: a ``DataLoader``, or a list of batches; it is iterated once an epoch.
            epochs: how often each batch counts; with a log, as often as in it.
            checkpoint: a file, written after each body: ``load`` it to go on after whatever
                happens.

        Raises:
            InputError: if the loader or the log is not that of the run that goes on.
            PoolExhaustedError: if all lanes are lost. The last checkpoint is kept.
        """
        if self._running:
            raise InputError("this trainer trains already; end that loop first")
        batches = self._begin(loader, checked_integer("epochs", epochs))
        schedule, self._running = self._schedule, True
        with ExitStack() as closing:
            closing.callback(self._end)
            for hook in (
                self.optimizer.register_step_pre_hook(self._scale_rates),
                self.optimizer.register_step_post_hook(self._restore_rates),
            ):
                closing.callback(hook.remove)
            bar = closing.enter_context(
                tqdm(
                    total=epochs * batches.per_epoch, initial=schedule.version, unit=" steps",
                    disable=None if self._progress else True, leave=False, dynamic_ncols=True,
                )
            )  # fmt: skip
            while not schedule.is_over:
                entry = schedule.next_entry()
                if entry is None:
                    self._hand_out(batches)
                    self._wait(checkpoint)
                    continue
                step = self._take_in(entry, batches)
                if step is None:
                    continue
                yield step
                self._keep_snapshots()
                if checkpoint is not None:
                    self.save(checkpoint)
                bar.set_postfix_str(f"loss {step.loss:.3f}", refresh=False)
                bar.update()

    def _begin(self, loader: Any, epochs: int) -> Batches:
        """Check that the run is the one that it was, or that the log is of, and know its data."""
        schedule = self._schedule
        first = Batches(loader, self._seed)
        data = first.get(0)
        about = self._about | {"data": digest(data), "seed": self._seed}
        about["batches"] = first.per_epoch
        if self.log.about:
            self.log.check_same({k: about[k] for k in ("data", "seed", "batches")})
        elif self._replay is not None:
            self._replay.check_same(about)
        self.log.about = self.log.about or about
        if self._passes is None:
            self._passes = passes_of(copy.deepcopy(self._template), self._loss_fn, data)
        if isinstance(schedule, LiveSchedule):
            schedule.batches = epochs * first.per_epoch
        self._epochs_done = schedule.finished // first.per_epoch
        self._keep_snapshots()
        return Batches(loader, self._seed, schedule.is_done, self._epochs_done)

    def _end(self) -> None:
        """Stop the lanes; what they had is taken once more, as it was, if the training goes on."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        for lane in self._lanes:
            lane.stop()
        for lane in self._lanes:
            lane.close(max(0.0, deadline - time.monotonic()))
        self._arrivals = queue.SimpleQueue()
        for lane in self._lanes:
            lane.arrivals = self._arrivals
        self._results.clear()
        self._schedule.restore(self._schedule.state())
        self._restore_rates()
        self._running = False

    def _hand_out(self, batches: Batches) -> None:
        """Give idle lanes something to do."""
        for lane in self._lanes:
            if lane.state != "idle":
                continue
            if lane.leaving:
                lane.done("left")
                continue
            task = self._schedule.take()
            if task is None:
                return
            assert self._passes is not None
            steps = first_steps_of(task, self._passes, self._first_steps)
            data = batches.get(task.batch)
            lane.start(Work(task, self._snapshots[task.version], data, steps))

    def _wait(self, checkpoint: str | os.PathLike[str] | None) -> None:
        """Wait for an arrival, and see to lanes that take too long."""
        if all(lane.state in ("left", "lost") for lane in self._lanes):
            raise self._all_lost(checkpoint)
        try:
            arrival = self._arrivals.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            arrival = None
        if arrival is not None:
            self._receive(arrival)
        for lane in self._lanes:
            if lane.work is None or lane.seconds() < self._limit(lane):
                continue
            if lane.state == "hangs":  # although all its evaluations were cancelled
                lane.done("lost")
                continue
            logger.warning(
                "lane %d takes %.0f s: others take its batch", lane.number, lane.seconds()
            )
            self._schedule.doubt(lane.work.task)
            lane.hang()

    def _limit(self, lane: Lane) -> float:
        """Seconds after which a lane is taken to hang."""
        if self._timeout is not None:
            return self._timeout
        places = getattr(lane.place, "backends", (lane.place,))
        if not all(getattr(getattr(each, "traits", None), "detect_hangs", True) for each in places):
            return math.inf
        return max(_LEAST_SECONDS, _LONGER * self._longest) if self._longest else _FIRST_SECONDS

    def _receive(self, arrival: Arrival) -> None:
        lane, task, outcome = arrival.lane, arrival.task, arrival.outcome
        if lane.state == "lost":  # and comes back
            lane.done("idle")
            return
        seconds = lane.seconds()
        if isinstance(outcome, Result):
            lane.failures = 0
            self._longest = max(self._longest, seconds)
            if not self._schedule.is_done(task.batch):
                self._results[task] = outcome
            weight = self._weights.of(lane.number, outcome.std_error)
            self._schedule.arrive(task, lane.number, weight)
            lane.done("idle")
            return
        self._schedule.lose(task)
        if lane.state == "hangs":  # and was cancelled
            outcome = TimeoutError(f"a batch took more than {self._limit(lane):.3g} s")
        if not isinstance(outcome, _PLACE_ERRORS):
            outcome.add_note(f"in lane {lane.number} ({lane.place!r}), batch {task.batch}")
            raise outcome
        lane.counts["failed"] += 1
        lane.failures += 1
        lane.last_error = outcome
        lost = lane.failures >= MAX_FAILURES or isinstance(outcome, PoolClosedError)
        lane.done("lost" if lost else "idle")
        logger.warning(
            "lane %d %s: %s: %s", lane.number, "is lost" if lost else "failed on a batch",
            type(outcome).__name__, outcome,
        )  # fmt: skip

    def _take_in(self, entry: Entry, batches: Batches) -> Step | None:
        """Log an entry, and put its gradient where the optimizer looks for it."""
        self.log.entries.append(entry)
        schedule, task = self._schedule, Task(entry.batch, entry.attempt, entry.version)
        staleness = schedule.version - entry.applied - entry.version
        if entry.lane < len(self._lanes):  # a replay may have fewer
            self._lanes[entry.lane].count(entry.applied, staleness)
        result = self._results.pop(task, None)
        if not entry.applied:
            return None
        assert result is not None
        if result.passes != self._passes:
            warnings.warn(
                "a batch passes a quantum layer another number of times than the first one: its "
                "noise is not the ordinary loop's, and others may share it; replays are the same",
                stacklevel=2,
            )
        batches.release(entry.batch)
        self._scale = entry.scale
        with torch.no_grad():
            for parameter, gradient in zip(self._parameters, result.gradients, strict=True):
                parameter.grad = gradient
            for buffer, value in zip(self._buffers, result.buffers, strict=True):
                self._warn_if_shared(buffer, value)
                buffer.copy_(value)
            assert self._passes is not None
            for name, layer in quantum_layers(self.model).items():
                each, more = self._passes[name]
                layer.step.fill_(self._first_steps[name] + each * schedule.version)
                layer.evaluation_step += more
        ended = schedule.finished // batches.per_epoch - self._epochs_done
        self._epochs_done += ended
        return Step(
            number=schedule.version,
            epoch=entry.batch // batches.per_epoch,
            batch=entry.batch,
            lane=entry.lane,
            staleness=staleness,
            scale=entry.scale,
            loss=result.loss,
            metrics=result.metrics,
            epochs_ended=ended,
        )

    def _warn_if_shared(self, buffer: Tensor, value: Tensor) -> None:
        if self._warned or len(self._lanes) == 1 or torch.equal(buffer, value):
            return
        self._warned = True
        warnings.warn(
            "the model has buffers that change in training (batch norm): they are those of the "
            "gradient that was applied last, and do not add up what lanes did at the same time",
            stacklevel=2,
        )

    def _scale_rates(self, *_: object) -> None:
        groups = self.optimizer.param_groups
        self._rates = [group["lr"] for group in groups]
        if self._scale != 1.0:
            for group in groups:
                group["lr"] = group["lr"] * self._scale

    def _restore_rates(self, *_: object) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=False):
            group["lr"] = rate
        self._rates = []

    def _snapshot(self) -> Sequence[Tensor]:
        return [each.detach().clone() for each in (*self._parameters, *self._buffers)]

    def _keep_snapshots(self) -> None:
        """Keep the newest weights, and those at which there is something to compute."""
        trained = [each for each in self.model.parameters() if each.requires_grad]
        if list(map(id, trained)) != list(map(id, self._parameters)):
            raise InputError(
                "parameters were frozen or unfrozen since the trainer was made, and lanes train "
                "those of then; make another AsyncTrainer of the model as it is"
            )
        kept = {k: v for k, v in self._snapshots.items() if k in self._schedule.needed}
        self._snapshots = {self._schedule.version: self._snapshot()} | kept

    def _all_lost(self, checkpoint: str | os.PathLike[str] | None) -> PoolExhaustedError:
        reasons = [
            f"lane {lane.number} ({lane.place!r}) {lane.state}"
            + (f": {type(lane.last_error).__name__}: {lane.last_error}" if lane.last_error else "")
            for lane in self._lanes
        ]
        written = checkpoint is not None and os.path.exists(checkpoint)
        kept = f"{checkpoint} is kept" if written else "there is no checkpoint"
        return PoolExhaustedError(
            f"no lane is left after {self._schedule.version} steps; {kept}. Go on with other lanes "
            f"from it, or call add_lane and fit again. {'; '.join(reasons)}"
        )

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as tensors and plain data, between two steps.

        What is in flight is in it as tasks, with the weights that they are computed at: a resumed
        run computes the same gradients again (with a journal, from the jobs that were paid).
        """
        schedule = self._schedule
        older = {v: self._snapshots[v] for v in schedule.needed if v in self._snapshots}
        return {
            "about": self.log.about,
            "log": [astuple(entry) for entry in self.log.entries],
            "schedule": schedule.state(),
            "snapshots": older,
            "model": self.model.state_dict(),
            "optimizer": plain(self.optimizer.state_dict()),
            "scheduler": None if self.scheduler is None else plain(self.scheduler.state_dict()),
            "first_steps": self._first_steps,
            "passes": self._passes,
            "weights": self._weights.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, with the same or other lanes.

        Raises:
            CheckpointError: if it is of another model, seed or log.
        """
        if self._running:
            raise CheckpointError("this trainer trains; end its loop first")
        about = dict(state["about"])
        try:
            if about.get("seed", self._seed) != self._seed:
                raise ValueError(f"its seed is {about['seed']}, not {self._seed}")
            if self._replay is not None and self._replay.about != about:
                raise ValueError("it is not of the log that is replayed")
            for model in (self.model, self._template, *(lane.model for lane in self._lanes)):
                model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            self._schedule.restore(state["schedule"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"the checkpoint does not fit this trainer: {error}") from error
        self.log = RunLog(about, [Entry(*each) for each in state["log"]])
        self._snapshots = dict(state["snapshots"])
        self._first_steps, self._passes = dict(state["first_steps"]), state["passes"]
        self._weights.restore(state["weights"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint: a new file takes the old one's place."""
        new = Path(f"{os.fspath(path)}.new")
        with open(new, "wb") as file:
            torch.save(self.state_dict(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save` wrote.

        Raises:
            CheckpointError: if it cannot be read, or is of another run.
            OSError: if there is none.
        """
        try:
            state = torch.load(path, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch promises no type
            raise CheckpointError(f"{path} cannot be read ({error}): it is damaged") from error
        self.load_state_dict(state)
