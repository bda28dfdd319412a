"""One forward pass of a layer, from its start to its outputs, for whoever starts several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qailab.gradients.rows import FloatArray
from qailab.launchers import LaunchHandle, QuantumLauncher
from qailab.torch.autograd import ExpVQCFunction, array_of
from qailab.torch.steps import ReturnStep


@dataclass(frozen=True, eq=False)
class Pass:
    """What a forward pass is made of.

    Args:
        inputs: features, shape ``(*, I)``.
        weight: weights, shape ``(W,)``.
        forward: the launcher of this step's forward pass.
        backward: the launcher of its backward pass.
        counter: of the layer's passes of this kind.
    """

    inputs: Tensor
    weight: Tensor
    forward: QuantumLauncher
    backward: QuantumLauncher
    counter: Tensor

    def start(self) -> LaunchHandle[FloatArray]:
        """Start it."""
        return self.forward.submit_forward(
            array_of("inputs", self.inputs), array_of("weight", self.weight)
        )

    def outputs(self, started: LaunchHandle[FloatArray] | None = None) -> Tensor:
        """Run it, or wait for what was started; its outputs are differentiable."""
        forward = self.forward
        if started is not None:
            forward = forward.at(replace(forward.context, started=started))
        outputs: Tensor = ExpVQCFunction.apply(self.inputs, self.weight, forward, self.backward)
        return outputs

    def give_back(self) -> None:
        """Give its number to the next pass, as this one failed."""
        ReturnStep.apply(self.counter, self.forward.context.step)


class OutputHandle:
    """The outputs of a layer, some time later, in the words of ``concurrent.futures``.

    Args:
        running: the pass.
        finish: makes the layer's outputs of the circuit's.
    """

    def __init__(self, running: Pass, finish: Callable[[Tensor], Tensor]) -> None:
        # What changes in place from now on, an optimizer's step say, does not change the gradient.
        self._pass = replace(running, inputs=running.inputs.clone(), weight=running.weight.clone())
        self._finish = finish
        self._grad = torch.is_grad_enabled()
        self._outputs: Tensor | None = None
        self._gave_back = False
        self._started = self._pass.start()

    def result(self, timeout: float | None = None) -> Tensor:
        """Wait for the outputs, which are differentiable if they are where they were asked for.

        Args:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: if it takes longer; it goes on.
            CancelledError: if it was cancelled.
            QailabError: whatever went wrong where the rows ran.
        """
        try:
            self._started.result(timeout)
        except TimeoutError:  # it may end in this moment, and well
            raise
        except BaseException:
            if self._started.done() and not self._gave_back:
                self._gave_back = True  # later it would be another pass's number
                self._pass.give_back()
            raise
        if self._outputs is None:
            with torch.set_grad_enabled(self._grad):
                self._outputs = self._finish(self._pass.outputs(self._started))
        return self._outputs

    def done(self) -> bool:
        """Whether the pass has ended, one way or another."""
        return self._started.done()

    def cancel(self) -> bool:
        """Stop the pass; False if it is already done."""
        return self._started.cancel()
