"""Lanes, each a thread with a copy of the model, whose circuits run at a place of its own.

The threads are the driver's, as the rows are what takes time: these run in actors or on devices.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from qailab.errors import InputError, InputTypeError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.rows import FloatArray, RowBatch
from qailab.launchers import RowEvaluator, WatchedPlace
from qailab.launchers.launcher import meant_backend
from qailab.torch.layers import CircuitLayer
from qailab.training.schedule import Task

LossFunction = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Mapping[str, float]]]
Passes = tuple[int, int]  # of a quantum layer: in training, and in evaluation or without grad
ATTEMPT_STEPS = 1 << 40
"""Steps between the attempts at a batch: each has shot noise of its own."""
_PLACE_LETTERS = 40  # of a place in a table
_COUNTERS = ("seed", "step", "evaluation_step")  # of quantum layers: no lane shares them


@dataclass(frozen=True, eq=False)
class Work:
    """A task with all that its gradient is a function of."""

    task: Task
    state: Sequence[Tensor]  # values of `shared_tensors`
    data: Any  # the batch
    steps: Mapping[str, Passes]  # of each quantum layer's first passes, by its name


@dataclass(frozen=True, eq=False)
class Result:
    """What came of a batch: gradients of the trained parameters, and the buffers after it."""

    loss: float
    metrics: Mapping[str, float]
    gradients: Sequence[Tensor | None]
    buffers: Sequence[Tensor]
    passes: Mapping[str, Passes]  # of each quantum layer, by its name
    std_error: float | None  # the root of the mean variance of the quantum weights' gradients


@dataclass(frozen=True, eq=False)
class Arrival:
    """A lane is done with a task."""

    lane: Lane
    task: Task
    outcome: Result | BaseException


def quantum_layers(model: nn.Module) -> dict[str, CircuitLayer]:
    """The quantum layers of a model by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, CircuitLayer)}


def shared_tensors(model: nn.Module) -> tuple[list[nn.Parameter], list[Tensor]]:
    """The trained parameters, and the buffers that lanes share, in the order of the model."""
    own = {
        id(getattr(layer, name)) for layer in quantum_layers(model).values() for name in _COUNTERS
    }
    parameters = [each for each in model.parameters() if each.requires_grad]
    return parameters, [each for each in model.buffers() if id(each) not in own]


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of a model.

    Raises:
        InputError: naming the attribute that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        for name, module in model.named_modules():
            own = {k: v for k, v in vars(module).items() if k != "_modules"}
            for attribute, value in {**own, **own.pop("_buffers"), **own["_parameters"]}.items():
                try:
                    copy.deepcopy(value)
                except Exception:
                    where = f"{name}.{attribute}" if name else attribute
                    raise InputError(
                        f"each lane trains a copy of the model, whose attribute {where} "
                        f"({type(value).__name__}) cannot be copied: {error}"
                    ) from error
        raise


class _DryPlace:
    """Answers at once, whatever the circuit: what is asked of it is all that counts."""

    supports_exact = supports_adjoint = noiseless = True

    def validate(self, circuit: CanonicalCircuit, shots: int | None) -> None:
        """All circuits fit."""

    def submit(self, circuit: CanonicalCircuit, batch: RowBatch) -> Future[FloatArray]:
        done = Future[FloatArray]()
        done.set_result(self.run(circuit, batch))
        return done

    def run(self, circuit: CanonicalCircuit, batch: RowBatch) -> FloatArray:
        value = 1 / circuit.num_outputs if circuit.observables is None else 0.0
        return np.full((batch.num_rows, batch.answer_width(circuit.num_outputs)), value)


def loss_of_batch(loss_fn: LossFunction | nn.Module) -> LossFunction:
    """A loss of model and batch, from one of outputs and targets if it is a module of torch's."""
    if not isinstance(loss_fn, nn.Module):
        return loss_fn

    def loss_of_pair(model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, Sequence) or len(batch) != 2:
            raise InputError(
                f"with {loss_fn!r} a batch is a pair of inputs and targets, got "
                f"{type(batch).__name__}; give loss_fn(model, batch) for other batches"
            )
        loss: Tensor = loss_fn(model(batch[0]), batch[1])
        return loss

    return loss_of_pair


def passes_of(model: nn.Module, loss_fn: LossFunction, data: Any) -> dict[str, Passes]:
    """How often each quantum layer runs for a batch; no circuit is run.

    What is wrong with the data or the loss shows here as well, before anything is paid.

    Args:
        model: a copy, which is changed.
        loss_fn: the loss.
        data: a batch.
    """
    layers = quantum_layers(model)
    for layer in layers.values():
        layer.backend, layer.prefetch = _DryPlace(), False
        layer.step.zero_()
        layer.evaluation_step.zero_()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        given = loss_fn(model, data)
    loss = given[0] if isinstance(given, tuple) else given
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError(
            f"loss_fn must return the loss, a tensor of one number, or a pair of it and metrics by "
            f"name; got {type(loss).__name__}"
        )
    return {name: (int(each.step), int(each.evaluation_step)) for name, each in layers.items()}


def first_steps_of(
    task: Task, passes: Mapping[str, Passes], begins: Mapping[str, int]
) -> dict[str, Passes]:
    """The numbers of each quantum layer's first passes for a task, in training and in evaluation.

    Args:
        task: the task.
        passes: `passes_of` a batch.
        begins: the step of each layer at the training's begin. Evaluations are counted from 0, as
            the same run may have evaluated its model before, or not.
    """
    again = ATTEMPT_STEPS * task.attempt
    # At least one for each batch: another may pass a layer that the first one does not.
    return {
        name: (begins[name] + max(1, each) * task.batch + again, max(1, more) * task.batch + again)
        for name, (each, more) in passes.items()
    }


State = Literal["idle", "busy", "hangs", "left", "lost"]


@dataclass(eq=False)
class Lane:
    """A lane; all its attributes are the owner's.

    Args:
        number: which.
        model: the lane's own copy.
        place: where its circuits run.
        loss_fn: ``loss_fn(model, batch)``.
        arrivals: where it puts what is done.

    Raises:
        InputTypeError: if the place is none.
        InputError, BackendError: if the circuits cannot run there.
    """

    number: int
    model: nn.Module
    place: RowEvaluator
    loss_fn: LossFunction
    arrivals: queue.SimpleQueue[Arrival | None]
    state: State = field(default="idle", init=False)
    leaving: bool = field(default=False, init=False)
    work: Work | None = field(default=None, init=False)
    since: float = field(default=0.0, init=False)  # when its state began
    failures: int = field(default=0, init=False)  # one after the other
    last_error: BaseException | None = field(default=None, init=False)
    counts: Counter[str] = field(default_factory=Counter, init=False)
    most_stale: int = field(default=0, init=False)
    spent: Counter[str] = field(default_factory=Counter, init=False)  # seconds, by state

    def __post_init__(self) -> None:
        place = self.place
        if isinstance(place, type) or not hasattr(place, "submit"):
            raise InputTypeError(
                f"lane {self.number} must be a qailab backend or a LauncherPool, got {place!r}; "
                f"write {meant_backend(place)}"
            )
        self.since = time.monotonic()
        self._watched = WatchedPlace(place)
        self._layers = quantum_layers(self.model)
        self._parameters, self._buffers = shared_tensors(self.model)
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        for layer in self._layers.values():
            layer.backend = self._watched

    def count(self, applied: bool, staleness: int) -> None:
        """A gradient of it was applied or dropped."""
        self.counts.update({"applied" if applied else "dropped": 1, "staleness": staleness})
        self.most_stale = max(self.most_stale, staleness)

    def row(self) -> dict[str, Any]:
        """Its row of a table."""
        counts, usage = self.counts, self._watched.usage
        return {
            "lane": self.number, "place": repr(self.place), "state": self.state,
            "applied": counts["applied"], "dropped": counts["dropped"], "failed": counts["failed"],
            "mean staleness": counts["staleness"] / max(1, counts["applied"] + counts["dropped"]),
            "max staleness": self.most_stale,
            "busy s": float(self.spent["busy"] + self.spent["hangs"]),
            "waiting s": float(self.spent["idle"]),
            "jobs": usage.jobs, "QPU s": usage.qpu_seconds,
        }  # fmt: skip

    def start(self, work: Work) -> None:
        """Begin with a task."""
        self._watched.cancel(False)
        self._change("busy")
        self.work = work
        if self._thread is None:
            name = f"qailab-lane-{self.number}"
            self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
            self._thread.start()
        self._inbox.put(work)

    def done(self, state: State) -> None:
        """The task's arrival was seen."""
        self.work = None
        self._change(state)

    def seconds(self) -> float:
        """How long its state lasts."""
        return time.monotonic() - self.since

    def hang(self) -> None:
        """Cancel a task that takes too long; nobody waits for it any more."""
        self._change("hangs")
        self.cancel()

    def cancel(self) -> None:
        """Cancel what runs."""
        self._watched.cancel()

    def stop(self) -> None:
        """Cancel what runs, and let the thread end."""
        self.cancel()
        self._inbox.put(None)

    def close(self, seconds: float) -> None:
        """Wait for the thread's end after `stop`."""
        state: State = "idle" if self.state in ("idle", "busy", "hangs") else self.state
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():  # it still uses the lane's model
                state = "lost"
        self._thread, self._inbox = None, queue.SimpleQueue()
        self.done(state)

    def _change(self, state: State) -> None:
        now = time.monotonic()
        self.spent.update({self.state: now - self.since})
        self.state, self.since = state, now

    def _loop(self) -> None:
        inbox = self._inbox
        while (work := inbox.get()) is not None:
            outcome: Result | BaseException
            try:
                outcome = self._run(work)
            except BaseException as error:  # the owner has to hear of it, whatever it is
                outcome = error
            self.arrivals.put(Arrival(self, work.task, outcome))

    def _run(self, work: Work) -> Result:
        model = self.model
        with torch.no_grad():
            for tensor, value in zip((*self._parameters, *self._buffers), work.state, strict=True):
                tensor.copy_(value)
            for name, steps in work.steps.items():
                self._layers[name].step.fill_(steps[0])
                self._layers[name].evaluation_step.fill_(steps[1])
        model.zero_grad(set_to_none=True)
        given = self.loss_fn(model, work.data)
        loss, metrics = given if isinstance(given, tuple) else (given, {})
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in self._parameters]
        if all(gradient is None for gradient in gradients):
            raise InputError(
                "the loss does not depend on the model that loss_fn was given: write "
                "loss_fn(model, batch) with that model, which is a lane's copy"
            )
        passes = {
            name: (int(each.step) - begun[0], int(each.evaluation_step) - begun[1])
            for name, each in self._layers.items()
            for begun in (work.steps[name],)
        }
        return Result(
            loss.item(), dict(metrics), gradients, [each.clone() for each in self._buffers],
            passes, self._std_error(),
        )  # fmt: skip

    def _std_error(self) -> float | None:
        errors = [layer.weight_std_error for layer in self._layers.values()]
        known = [error.double().flatten() for error in errors if error is not None]
        if not known:
            return None
        return float(torch.cat(known).square().mean().sqrt())


def check_parts(
    model: object,
    optimizer: object,
    loss_fn: object,
    lanes: Sequence[RowEvaluator],
    scheduler: object,
) -> None:
    """Raise if a training cannot be made of these parts."""
    if not isinstance(model, nn.Module) or not quantum_layers(model):
        raise InputError(f"the model must be a torch module with a quantum layer, got {model!r}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputTypeError(f"optimizer must be one of torch.optim, got {optimizer!r}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError("LBFGS evaluates the loss itself, and cannot take gradients that arrive")
    own = {id(parameter) for parameter in model.parameters()}
    groups = [group["params"] for group in optimizer.param_groups]
    others = [each for params in groups for each in params if id(each) not in own]
    if others:
        raise InputError(
            f"the optimizer has {len(others)} parameters that are not the model's; make it of "
            f"model.parameters(), after the model was built or moved"
        )
    if not callable(loss_fn):
        raise InputTypeError(
            f"loss_fn must be a module such as CrossEntropyLoss(), or a function of the model and "
            f"a batch, got {loss_fn!r}"
        )
    if not isinstance(lanes, Sequence) or not lanes:
        raise InputError(f"lanes must be a list of at least one backend or pool, got {lanes!r}")
    if isinstance(scheduler, ReduceLROnPlateau):
        raise InputError(
            "ReduceLROnPlateau needs a metric, which fit does not know: call "
            "scheduler.step(metric) yourself, in a loop over trainer.steps(...)"
        )


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of lanes as text; words to the left, numbers to the right."""

    def cell(value: Any) -> str:
        return format(value, ".1f") if isinstance(value, float) else str(value)[:_PLACE_LETTERS]

    cells = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = [isinstance(value, str) for value in rows[0].values()]
    return "\n".join(
        "  ".join(
            text.ljust(width) if left else text.rjust(width)
            for text, width, left in zip(row, widths, words, strict=True)
        )
        for row in cells
    )
