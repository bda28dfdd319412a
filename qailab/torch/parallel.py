"""Several circuits, or batches, at once: what runs on one backend does not wait for another."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qailab.arguments import checked_integer
from qailab.errors import InputError, InputTypeError
from qailab.gradients.rows import FloatArray
from qailab.launchers import LaunchHandle, QuantumLauncher, WatchedPlace
from qailab.torch.autograd import (
    OnceDifferentiable,
    ReverseOnly,
    gradients_of,
    start_gradient,
    tensor_of,
)
from qailab.torch.layers import CircuitLayer
from qailab.torch.passes import Pass

Result = TypeVar("Result")


class ParallelQLayers(nn.Module):
    """Quantum layers side by side, all of whose rows are in flight before any result is waited for.

    Forward and backward take as long as the slowest layer, where each has a backend of its own, and
    keep a pool full that they share. Outputs and gradients are those of the layers one by one.

    Args:
        layers: quantum layers.
        concatenate: whether the outputs are one tensor, joined along the last dimension.

    Raises:
        InputTypeError: if something else is among the layers.

    Shape:
        - Input: ``(*, I)`` for all layers, or a sequence with one tensor for each
        - Output: a list of each layer's ``(*, out_features)``, or ``(*, sum of out_features)``
    """

    __call__: Callable[..., list[Tensor] | Tensor]  # torch leaves it untyped

    def __init__(self, layers: Iterable[CircuitLayer], *, concatenate: bool = False) -> None:
        super().__init__()
        given = list(layers)
        for number, layer in enumerate(given):
            if not isinstance(layer, CircuitLayer):
                raise InputTypeError(
                    f"layer {number} must be a quantum layer (QLayer, ObservableQLayer, ...), got "
                    f"{type(layer).__name__}; put other modules before or after ParallelQLayers"
                )
        if not given:
            raise InputError("layers is empty; give at least one quantum layer")
        self.layers = nn.ModuleList(given)
        self.concatenate = concatenate

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> list[Tensor] | Tensor:
        """The layers' outputs.

        Raises:
            InputError: if there is another number of inputs than of layers, or as a layer does.
        """
        layers: list[CircuitLayer] = list(self.layers)  # type: ignore[arg-type]
        each = [inputs] * len(layers) if isinstance(inputs, Tensor) else list(inputs)
        if len(each) != len(layers):
            raise InputError(f"there are {len(layers)} layers and {len(each)} inputs")
        passes: list[Pass] = []
        try:
            for layer, features in zip(layers, each, strict=True):
                passes.append(layer.begin(features))
            tensors = chain.from_iterable((one.inputs, one.weight) for one in passes)
            circuits: tuple[Tensor, ...] = _Parallel.apply(passes, *tensors)
        except BaseException:
            for begun in reversed(passes):
                begun.give_back()
            raise
        outputs = [
            layer.finished(found, features.dtype)
            for layer, found, features in zip(layers, circuits, each, strict=True)
        ]
        return torch.cat(outputs, dim=-1) if self.concatenate else outputs


class _Parallel(ReverseOnly):
    """The outputs of several passes, of ``(inputs, weight, inputs, weight, ...)``."""

    @staticmethod
    def forward(passes: Sequence[Pass], *tensors: Tensor) -> tuple[Tensor, ...]:
        found = _all_results(one.start() for one in passes)
        return tuple(map(_like_inputs, found, passes))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        passes, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.launchers = [one.backward for one in passes]
        ctx.set_materialize_grads(False)  # an output that nobody used needs no rows

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        tasks = [
            (launcher, place, wanted[2 * place : 2 * place + 2])
            for place, launcher in enumerate(ctx.launchers)
            if grad_outputs[place] is not None and any(wanted[2 * place : 2 * place + 2])
        ]
        grads = [grad_outputs[place] for _, place, _ in tasks]
        found = _ParallelGradient.apply(tasks, len(grads), *grads, *ctx.saved_tensors)
        gradients: list[Tensor | None] = [None] * len(wanted)
        for number, (_, place, _) in enumerate(tasks):
            gradients[2 * place : 2 * place + 2] = found[2 * number : 2 * number + 2]
        return (None, *gradients)


class _ParallelGradient(OnceDifferentiable):
    """The gradients of several passes: for inputs and weights of each, None if not wanted."""

    @staticmethod
    def forward(
        tasks: Sequence[tuple[QuantumLauncher, int, tuple[bool, bool]]], count: int, *given: Tensor
    ) -> tuple[Tensor | None, ...]:
        grads, tensors = given[:count], given[count:]
        pairs = [(tensors[2 * place], tensors[2 * place + 1]) for _, place, _ in tasks]
        found = _all_results(
            start_gradient(launcher, *pair, grad, wanted)
            for (launcher, _, wanted), pair, grad in zip(tasks, pairs, grads, strict=True)
        )
        each = (gradients_of(one, *pair) for one, pair in zip(found, pairs, strict=True))
        return tuple(chain.from_iterable(each))


def _like_inputs(outputs: FloatArray, one: Pass) -> Tensor:
    return tensor_of(outputs, like=one.inputs)


def _all_results(starting: Iterable[LaunchHandle[Result]]) -> list[Result]:
    """Start all, then wait for all; if one fails, the others are cancelled."""
    handles: list[LaunchHandle[Result]] = []
    try:
        handles.extend(starting)
        return [handle.result() for handle in handles]
    except BaseException:
        for handle in handles:
            handle.cancel()
        raise


def evaluate(
    model: nn.Module,
    batches: Iterable[Tensor | Sequence[Any]],
    *,
    ahead: int = 8,
) -> Iterator[Tensor]:
    """Yield a model's outputs for batches, some of which run at the same time.

    Without gradients and in evaluation mode, whatever the model's mode is. A pool has the rows of
    several batches at once, so none of its actors waits for the end of a batch. Outputs come in
    order, with the noise that they have one batch after the other. Batches run in threads, which do
    not see an ``autocast`` around this: put it into the model, as for torch's ``DataParallel``.

    Args:
        model: a module with quantum layers in it.
        batches: inputs of each batch, or a tuple or list of the model's arguments.
        ahead: batches that run at the same time.

    Raises:
        InputError: if ``ahead`` is not positive.

    >>> outputs = torch.cat(list(evaluate(model, batches)))  # doctest: +SKIP
    """
    checked_integer("ahead", ahead)
    counters = [each.evaluation_step for each in model.modules() if isinstance(each, CircuitLayer)]
    before, passes = [int(counter) for counter in counters], [0] * len(counters)
    running: deque[Future[tuple[Tensor, list[int]]]] = deque()
    backends = [each.backend for each in model.modules() if isinstance(each, CircuitLayer)]
    places = {id(backend): WatchedPlace(backend) for backend in backends}

    def run(batch: Any, number: int) -> tuple[Tensor, list[int]]:
        """The outputs of a batch, and what counters are after it."""
        own, steps = _shadow(model, places)
        first = [begin + number * each for begin, each in zip(before, passes, strict=True)]
        for step, value in zip(steps, first, strict=True):
            step.fill_(value)
        with torch.no_grad():
            outputs = own(batch) if isinstance(batch, Tensor) else own(*batch)
        after = [int(step) for step in steps]
        if number and [step - value for step, value in zip(after, first, strict=True)] != passes:
            warnings.warn(
                f"batch {number} passes a quantum layer another number of times than the first "
                f"one, so the noise is not that of one batch after the other",
                stacklevel=2,
            )
        return outputs, after

    def next_outputs() -> Tensor:
        outputs, after = running.popleft().result()
        for counter, step in zip(counters, after, strict=True):
            counter.fill_(step)
        return outputs

    threads = ThreadPoolExecutor(ahead, "qailab-evaluate")
    try:
        for number, batch in enumerate(batches):
            running.append(threads.submit(run, batch, number))
            if number == 0:  # it tells how often a batch passes each layer
                yield next_outputs()
                passes = [int(c) - begin for c, begin in zip(counters, before, strict=True)]
            elif len(running) == ahead:
                yield next_outputs()
        while running:
            yield next_outputs()
    finally:  # nobody waits for what still runs after an error, or Ctrl-C
        for place in places.values():
            place.cancel()
        threads.shutdown(cancel_futures=True)


def _shadow(model: nn.Module, places: Mapping[int, WatchedPlace]) -> tuple[nn.Module, list[Tensor]]:
    """The model in evaluation mode, with counters of its own, which are returned.

    Args:
        model: the model.
        places: what its circuits run on instead of their backends, by these ones' ``id``.
    """
    layers = [each for each in model.modules() if isinstance(each, CircuitLayer)]
    tensors = [*model.parameters(), *model.buffers()]
    for layer in layers:
        tensors = [each for each in tensors if each is not layer.evaluation_step]
    shared = {id(each): each for each in (*tensors, *(layer.problem for layer in layers))}
    own = copy.deepcopy(model, {**shared, **places}).eval()
    steps = [each.evaluation_step for each in own.modules() if isinstance(each, CircuitLayer)]
    return own, steps
