"""Circuits as differentiable torch functions.

Each function has its gradient in a function of its own. That makes `torch.func.vmap` reach it, and
gives every gradient that autograd might differentiate once more a node that raises when it does.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from qailab.errors import InputError, InputTypeError, UnsupportedError
from qailab.gradients.rows import FloatArray
from qailab.launchers import BackwardPass, ForwardPass, Gradient, LaunchHandle, QuantumLauncher

Gradients = tuple[Tensor | None, Tensor | None]


class _Bound(NamedTuple):
    """Arguments of a function, as they came."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def apply_defaults(self) -> None:
        """Do nothing: no function here has defaults."""


class _Positional(inspect.Signature):
    """A signature that takes arguments as they come.

    Torch looks for it at every call, unless it is there, and binds the arguments: together a fifth
    of the time around small circuits.
    """

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != len(self.parameters):
            return super().bind(*args, **kwargs)
        return _Bound(args, kwargs)


class ReverseOnly(Function):
    """A function without a forward-mode derivative."""

    apply: ClassVar[Callable[..., Any]]  # torch leaves it untyped

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = inspect.signature(cls.forward)
        signature = _Positional(tuple(own.parameters.values()))
        cls.forward.__signature__ = signature  # type: ignore[attr-defined]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save nothing, unless a function says what."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        raise UnsupportedError(
            "circuits have no forward-mode derivatives (jvp, jacfwd, hessian); use reverse mode: "
            "backward(), torch.func.grad, vjp or jacrev"
        )


class OnceDifferentiable(ReverseOnly):
    """A gradient, which cannot be differentiated itself."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> NoReturn:
        raise UnsupportedError(
            "circuits are once_differentiable: a gradient that was made with create_graph=True "
            "cannot be differentiated through a quantum layer; detach() it, or take differences "
            "of first derivatives"
        )


class ExpVQCFunction(ReverseOnly):
    """Outputs of a circuit, probabilities or expectation values, differentiable in its parameters.

    ``ExpVQCFunction.apply(fn_in, weight, launcher_forward, launcher_backward)``

    Under `torch.func.vmap` all samples are one evaluation, numbered through, so each has noise of
    its own; over weights, too, which then have shape ``(*G, W)``, one set for each group ``*G`` of
    inputs ``(*G, *, I)``.

    Args:
        fn_in: features, shape ``(*, I)``, any floating-point dtype, any device.
        weight: weights, shape ``(W,)``.
        launcher_forward: launcher of a forward pass.
        launcher_backward: launcher of a backward pass over the same problem.

    Returns:
        Probabilities, shape ``(*, K)``, or values of observables, ``(*, O)``, with ``fn_in``'s
        dtype and device. The gradient is the exact derivative of these; the weights' is summed over
        the samples. Only what autograd asks for is computed.

    Raises:
        InputTypeError: if an input is not a floating-point tensor.
        InputError: if the launchers do not belong together, a shape is wrong, or a value is not
            finite.
        UnsupportedError: if the gradient is differentiated again, or in forward mode.
    """

    @staticmethod
    def forward(
        fn_in: Tensor,
        weight: Tensor,
        launcher_forward: QuantumLauncher,
        launcher_backward: QuantumLauncher,
    ) -> Tensor:
        _check_launchers(launcher_forward, launcher_backward)
        inputs, weights = array_of("inputs (fn_in)", fn_in), array_of("weight", weight)
        outputs = launcher_forward.submit_forward(inputs, weights, wait=True).result()
        return tensor_of(outputs, like=fn_in)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        fn_in, weight, _, launcher_backward = inputs
        ctx.save_for_backward(fn_in, weight)
        ctx.launcher_backward = launcher_backward

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        wanted = ctx.needs_input_grad[:2]
        if not any(wanted):
            return None, None, None, None
        tensors = (*ctx.saved_tensors, grad_output)
        return (*_VQCGradient.apply(*tensors, ctx.launcher_backward, *wanted), None, None)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], fn_in: Tensor, weight: Tensor, *launchers: Any
    ) -> tuple[Tensor, int]:
        if in_dims[1] is None and weight.dim() == 1:  # one set of weights: one larger batch
            fn_in = fn_in.movedim(in_dims[0] or 0, 0)
        else:
            fn_in, weight = _with_leading(info.batch_size, in_dims, fn_in, weight)
        return ExpVQCFunction.apply(fn_in, weight, *launchers), 0


class _VQCGradient(OnceDifferentiable):
    """The gradients for ``fn_in`` and ``weight``, each None if it is not wanted."""

    @staticmethod
    def forward(
        fn_in: Tensor,
        weight: Tensor,
        grad_output: Tensor,
        launcher: QuantumLauncher,
        for_inputs: bool,
        for_weights: bool,
    ) -> Gradients:
        wanted = for_inputs, for_weights
        started = start_gradient(launcher, fn_in, weight, grad_output, wanted, wait=True)
        return gradients_of(started.result(), fn_in, weight)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *args: Any
    ) -> tuple[Gradients, tuple[int, int]]:
        tensors = _with_leading(info.batch_size, in_dims, *args[:3])
        return _VQCGradient.apply(*tensors, *args[3:]), (0, 0)


def start_gradient(
    launcher: QuantumLauncher,
    fn_in: Tensor,
    weight: Tensor,
    grad_output: Tensor,
    wanted: tuple[bool, bool],
    *,
    wait: bool = False,
) -> LaunchHandle[Gradient]:
    """Start a backward pass for inputs and weights, as far as they are wanted."""
    cotangents = array_of("grad_output", grad_output)
    _warn_unless_finite(cotangents, grad_output.dtype)
    return launcher.submit_backward(
        array_of("inputs (fn_in)", fn_in),
        array_of("weight", weight),
        cotangents,
        for_inputs=wanted[0],
        for_weights=wanted[1],
        wait=wait,
    )


def gradients_of(gradient: Gradient, fn_in: Tensor, weight: Tensor) -> Gradients:
    """A gradient like its tensors; None for what was not wanted."""
    inputs, weights = gradient.inputs, gradient.weights
    return (
        None if inputs is None else tensor_of(inputs, like=fn_in),
        None if weights is None else tensor_of(weights, like=weight),
    )


class ArgMax(ReverseOnly):
    """The first index of the maximum along the last dimension, with a gradient to pass on.

    ``ArgMax.apply(fn_in)``

    Args:
        fn_in: shape ``(*, K)``.

    Returns:
        Indices, shape ``(*, 1)``, with ``fn_in``'s dtype and device. Backward puts the sum of
        ``grad_output`` along the last dimension on the arg-max index, zero elsewhere (a
        straight-through estimate: the true derivative is zero almost everywhere).

    Raises:
        InputError: if the dtype does not have every index below K.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(fn_in: Tensor) -> Tensor:
        check_integers(fn_in.shape[-1], fn_in.dtype)
        return torch.argmax(fn_in, dim=-1, keepdim=True).to(fn_in.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        gradient: Tensor = _ArgMaxGradient.apply(*ctx.saved_tensors, grad_output)
        return gradient


class _ArgMaxGradient(OnceDifferentiable):
    generate_vmap_rule = True

    @staticmethod
    def forward(fn_in: Tensor, grad_output: Tensor) -> Tensor:
        index = torch.argmax(fn_in, dim=-1, keepdim=True)
        total = grad_output.sum(dim=-1, keepdim=True)
        return torch.zeros_like(fn_in).scatter(-1, index, total)


def check_integers(outcomes: int, dtype: torch.dtype) -> None:
    """Raise if a dtype does not have each of the integers below ``outcomes``.

    Raises:
        InputError: saying how many bits may be measured.
    """
    largest = round(2 / torch.finfo(dtype).eps)
    if outcomes - 1 > largest:
        raise InputError(
            f"{dtype} has every integer up to {largest:,} only, and there are {outcomes:,} "
            f"outcomes; use float32 or float64, or measure at most {largest.bit_length() - 1} bits"
        )


def check_floating(name: str, tensor: object) -> None:
    """Raise if it is not a floating-point tensor with values.

    Raises:
        InputTypeError: saying how to make it one.
        InputError: if it is on the meta device.
    """
    if not isinstance(tensor, Tensor):
        raise InputTypeError(
            f"{name} must be a tensor, got {type(tensor).__name__}; write torch.as_tensor(...), "
            f"and .float() if it has integers"
        )
    if not tensor.is_floating_point():
        advice = "pass .real, .abs() or .angle()" if tensor.is_complex() else "write .float()"
        raise InputTypeError(
            f"{name} must be a floating-point tensor, got {tensor.dtype}; {advice}"
        )
    if tensor.is_meta:
        raise InputError(
            f"{name} must have values, and is on the meta device; after to_empty(device=...) call "
            f"reset_parameters() or load_state_dict()"
        )


def array_of(name: str, tensor: Tensor) -> FloatArray:
    """The values of a floating-point tensor, in double precision.

    Raises:
        InputError: if it has none, or none that are floating-point numbers.
        UnsupportedError: inside a transform that does not let its values be read.
    """
    check_floating(name, tensor)
    try:
        array: FloatArray = tensor.detach().to(device="cpu", dtype=torch.float64).numpy()
    except RuntimeError as error:  # torch's older vmap, and fake tensors
        raise UnsupportedError(
            f"{name} has no values that can be read here ({error}): use torch.func.jacrev or vmap "
            f"in place of is_grads_batched=True and vectorize=True; circuits cannot be exported"
        ) from error
    return array


def _check_launchers(forward: QuantumLauncher, backward: QuantumLauncher) -> None:
    for name, launcher, kind in (
        ("launcher_forward", forward, ForwardPass),
        ("launcher_backward", backward, BackwardPass),
    ):
        if not isinstance(launcher.algorithm, kind):
            raise InputError(f"{name} must have a {kind.__name__}, got {launcher.algorithm!r}")
    first, second = forward.problem, backward.problem
    if first is not second and first.key != second.key:
        raise InputError(
            f"the launchers have different circuits or observables, or parameters with different "
            f"expressions or roles: {first!r} and {second!r}"
        )


def _warn_unless_finite(cotangents: FloatArray, dtype: torch.dtype) -> None:
    """Warn, except of float16's infinities: a gradient scaler looks for them, and skips a step."""
    scaled = dtype == torch.float16 and not np.isnan(cotangents).any()
    if not (scaled or np.isfinite(cotangents).all()):
        warnings.warn(
            "grad_output of a quantum layer has values that are not finite, so its gradient is nan "
            "and no circuit ran. The log of a zero count does this: with shots, outcomes have "
            "probability 0; write torch.log(probabilities.clamp_min(1e-6))",
            RuntimeWarning,
            stacklevel=2,
        )


def _with_leading(size: int, dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """Put the dimension that vmap maps over first; tensors without it are repeated."""
    return [
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for dim, tensor in zip(dims, tensors, strict=False)
    ]


def tensor_of(array: FloatArray, *, like: Tensor) -> Tensor:
    """An array as a tensor of another's dtype and device."""
    # A copy: whoever else has the array must not see what is done to the tensor in place.
    own = np.array(array, order="C")
    return torch.from_numpy(own).to(dtype=like.dtype, device=like.device)
