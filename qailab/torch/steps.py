"""Which step a forward pass is: a number taken once, also if autograd runs the pass again.

`torch.utils.checkpoint` runs forward passes a second time, during backward. Such a pass is
recognised by what it is given, features and weights, and gets the number that it had.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from torch import Tensor
from torch.utils.module_tracker import ModuleTracker

from qailab.errors import UnsupportedError
from qailab.launchers import StepContext
from qailab.torch.autograd import ReverseOnly, array_of, check_floating

_REMEMBERED = 1024  # forward passes that may wait for their backward; 500 bytes each
_LOCK = threading.Lock()
_TRACKER = ModuleTracker()  # torch's public way to ask whether a backward is running


class RecentPasses:
    """The contexts of recent forward passes, by what they were given. Copies begin empty.

    Passes that were given the same are handed out in their order; those from before a backward
    that ran passes again are forgotten.
    """

    def __init__(self) -> None:
        self._passes: dict[tuple[bytes, bool], tuple[int, list[StepContext]]] = {}
        self._generation, self._asked = 0, False

    def add(self, given: bytes, context: StepContext) -> None:
        """Remember a pass."""
        if self._asked:
            self._generation, self._asked = self._generation + 1, False
        key = (given, context.evaluation)
        generation, passes = self._passes.pop(key, (-1, []))
        before = passes if generation == self._generation else []
        self._passes[key] = (self._generation, [*before, context][-_REMEMBERED:])
        if len(self._passes) > _REMEMBERED:
            del self._passes[next(iter(self._passes))]

    def again(self, given: bytes, evaluation: bool) -> StepContext | None:
        """The context of a pass that runs again; None if there was none like it."""
        self._asked = True
        for kind in (evaluation, True):  # a reentrant checkpoint first runs it without grad
            _, passes = self._passes.get((given, kind), (-1, []))
            if passes:
                passes.append(passes.pop(0))
                return passes[-1]
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return (RecentPasses, ())


class TakeStep(ReverseOnly):
    """The context of a forward pass, and one more on its counter.

    It is a torch function because those run below the transforms of `torch.func`, where tensors
    have values and may be written.

    Args:
        fn_in: features of the pass.
        weight: its weights.
        seed: the layer's seed.
        counter: of passes of this kind.
        context: what else the noise depends on.
        recent: the layer's passes, or None if this one cannot be run again.
    """

    @staticmethod
    def forward(
        fn_in: Tensor,
        weight: Tensor,
        seed: Tensor,
        counter: Tensor,
        context: StepContext,
        recent: RecentPasses | None,
    ) -> StepContext:
        check_floating("weight", weight)
        given = b""
        if recent is not None:
            values = array_of("inputs", fn_in).tobytes() + array_of("weight", weight).tobytes()
            given = blake2b(values, digest_size=16).digest()
        with _LOCK:
            if recent is not None and _TRACKER.is_bw:
                before = recent.again(given, context.evaluation)
                if before is not None:
                    return replace(before, repeated=True)
            taken = replace(context, seed=int(seed), step=int(counter))
            counter += 1
            if recent is not None:
                recent.add(given, taken)
        return taken

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[StepContext, None]:
        if in_dims[2] is not None or in_dims[3] is not None:
            raise UnsupportedError(
                "a quantum layer cannot be mapped over its buffers (seed and steps), as "
                "stack_module_state's are; give vmap in_dims=None for the buffers of one layer"
            )
        return TakeStep.apply(*args), None


class ReturnStep(ReverseOnly):
    """Give the number of a pass that failed to the next one, unless others were taken since.

    A run that goes on from a checkpoint then repeats the run that had no failure.
    """

    @staticmethod
    def forward(counter: Tensor, step: int) -> None:
        with _LOCK:
            if int(counter) == step + 1 and not _TRACKER.is_bw:
                counter -= 1

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[None, None]:
        return ReturnStep.apply(*args), None
