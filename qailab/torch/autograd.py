"""Circuits as differentiable torch functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from qailab.errors import InputError, InputTypeError
from qailab.gradients.rows import FloatArray
from qailab.launchers import BackwardPass, ForwardPass, QuantumLauncher


class ExpVQCFunction(Function):
    """Outcome probabilities of a circuit, differentiable in inputs and weights.

    ``ExpVQCFunction.apply(fn_in, weight, launcher_forward, launcher_backward)``

    Args:
        fn_in: features, shape ``(*, I)``, any floating-point dtype, any device.
        weight: weights, shape ``(W,)``.
        launcher_forward: launcher of a forward pass.
        launcher_backward: launcher of a backward pass over the same problem.

    Returns:
        Probabilities, shape ``(*, K)``, with ``fn_in``'s dtype and device. The gradient is the
        exact derivative of the probabilities; the weights' is summed over the samples. Only what
        autograd asks for is computed.

    Raises:
        InputTypeError: if an input is not a floating-point tensor.
        InputError: if the launchers do not belong together, a shape is wrong, or a value is not
            finite.
    """

    @staticmethod
    def forward(
        fn_in: Tensor,
        weight: Tensor,
        launcher_forward: QuantumLauncher,
        launcher_backward: QuantumLauncher,
    ) -> Tensor:
        _check_launchers(launcher_forward, launcher_backward)
        handle = launcher_forward.submit_forward(_array("fn_in", fn_in), _array("weight", weight))
        return _tensor(handle.result(), like=fn_in)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        fn_in, weight, _, launcher_backward = inputs
        ctx.save_for_backward(fn_in, weight)
        ctx.launcher_backward = launcher_backward

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        fn_in, weight = ctx.saved_tensors
        for_inputs, for_weights = ctx.needs_input_grad[:2]
        if not (for_inputs or for_weights):
            return None, None, None, None
        launcher: QuantumLauncher = ctx.launcher_backward
        handle = launcher.submit_backward(
            _array("fn_in", fn_in),
            _array("weight", weight),
            _array("grad_output", grad_output),
            for_inputs=for_inputs,
            for_weights=for_weights,
        )
        gradient = handle.result()
        grad_in = _tensor(gradient.inputs, like=fn_in) if for_inputs else None
        grad_weight = _tensor(gradient.weights, like=weight) if for_weights else None
        return grad_in, grad_weight, None, None


class ArgMax(Function):
    """The first index of the maximum along the last dimension, with a gradient to pass on.

    ``ArgMax.apply(fn_in)``

    Args:
        fn_in: shape ``(*, K)``.

    Returns:
        Indices, shape ``(*, 1)``, with ``fn_in``'s dtype and device. Backward puts the sum of
        ``grad_output`` along the last dimension on the arg-max index, zero elsewhere (a
        straight-through estimate: the true derivative is zero almost everywhere).
    """

    @staticmethod
    def forward(fn_in: Tensor) -> Tensor:
        return torch.argmax(fn_in, dim=-1, keepdim=True).to(fn_in.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        (fn_in,) = inputs
        # The index again, not from the output: half precision has no integers beyond 2048.
        ctx.save_for_backward(torch.argmax(fn_in, dim=-1, keepdim=True))
        ctx.outcomes = fn_in.shape[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (index,) = ctx.saved_tensors
        total = grad_output.sum(dim=-1, keepdim=True)
        gradient = total.new_zeros(*index.shape[:-1], ctx.outcomes)
        return gradient.scatter_(-1, index, total)


def _check_launchers(forward: QuantumLauncher, backward: QuantumLauncher) -> None:
    for name, launcher, kind in (
        ("launcher_forward", forward, ForwardPass),
        ("launcher_backward", backward, BackwardPass),
    ):
        if not isinstance(launcher.algorithm, kind):
            raise InputError(f"{name} must have a {kind.__name__}, got {launcher.algorithm!r}")
    first, second = forward.problem, backward.problem
    if first is not second and first.canonical.key != second.canonical.key:
        raise InputError(f"the launchers have different circuits: {first!r} and {second!r}")


def _array(name: str, tensor: Tensor) -> FloatArray:
    if not isinstance(tensor, Tensor):
        raise InputTypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise InputTypeError(
            f"{name} must be a floating-point tensor, got {tensor.dtype}; convert it with .float()"
        )
    array: FloatArray = tensor.detach().to(device="cpu", dtype=torch.float64).numpy()
    return array


def _tensor(array: FloatArray | None, *, like: Tensor) -> Tensor:
    # Results that came over a wire are read-only views, which torch does not accept quietly.
    return torch.tensor(array, dtype=like.dtype, device=like.device)
