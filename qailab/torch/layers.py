"""Circuits as torch modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from qiskit.circuit import Parameter, QuantumCircuit
from torch import Tensor, nn

from qailab.backends import AerBackend
from qailab.errors import InputError
from qailab.gradients.noise import check_seed
from qailab.launchers import (
    BackwardPass,
    CircuitProblem,
    ForwardPass,
    Gradient,
    QuantumLauncher,
    RowEvaluator,
    StepContext,
)
from qailab.launchers.algorithms import Method
from qailab.torch.autograd import ArgMax, ExpVQCFunction


class QLayer(nn.Module):
    """A circuit as a layer: features in, the probabilities of the measured outcomes out.

    Shot noise is a function of ``(seed, step, row number)``. ``step`` counts forward passes, so
    noise is fresh every time; both are part of the ``state_dict``, so a resumed run repeats the
    run that was not interrupted. ``backward`` uses the step of its own forward pass.

    Args:
        circuit: a measured circuit, from `qailab.circuit` or not.
        backend: where rows run: a backend, or a ``LauncherPool``; an in-process ``AerBackend()``
            by default.
        shots: shots for each row; None for exact probabilities (simulators only).
        gradient: ``"param_shift"`` (exact) or ``"spsa"``.
        seed: seed of the shot noise; drawn from torch's generator by default, so that
            ``torch.manual_seed`` makes a run repeatable.
        input_params: the features' parameters, in order; see `CircuitProblem`.
        weight_params: the weights' parameters, in order; see `CircuitProblem`.

    Attributes:
        in_features: number of features, I.
        out_features: number of outcomes, K = 2**m for m measured bits.
        weight: the weights, shape ``(W,)``, radians, uniform in [0, 2 pi) at first.
        seed: the seed, an int64 tensor.
        step: how many forward passes there were, an int64 tensor.
        first_sample: the number of the next batch's first sample, 0 unless it is set. Where workers
            train on parts of one batch, each sets it to its part's place, so that samples have the
            same noise as if one worker had them all.
        weight_std_error: standard error of each entry of the last backward's weight gradient
            from shot noise, shape ``(W,)``; None before, or if no gradient was asked for.
        input_std_error: the same for the inputs, shape ``(*, I)``.

    Raises:
        InputError: if an option is not valid.
        CircuitError: if the circuit cannot be measured or differentiated.
        BackendError: if the circuit does not fit the backend.

    Shape:
        - Input: ``(*, I)``
        - Output: ``(*, K)``
    """

    weight: nn.Parameter
    seed: Tensor
    step: Tensor

    def __init__(
        self,
        circuit: QuantumCircuit,
        *,
        backend: RowEvaluator | None = None,
        shots: int | None = 1024,
        gradient: Method = "param_shift",
        seed: int | None = None,
        input_params: Sequence[Parameter] | None = None,
        weight_params: Sequence[Parameter] | None = None,
    ) -> None:
        super().__init__()
        problem = CircuitProblem(circuit, input_params, weight_params)
        where = AerBackend() if backend is None else backend
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()).item())
        check_seed(seed)
        # The launchers' own seed is replaced at every step by the one in the state_dict.
        self._forward_launcher = QuantumLauncher(problem, ForwardPass(shots, seed), where)
        self._backward_launcher = QuantumLauncher(
            problem, BackwardPass(gradient, shots, seed), where
        )
        self.in_features = problem.num_inputs
        self.out_features = problem.num_outcomes
        self.weight = nn.Parameter(torch.empty(problem.num_weights))
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.first_sample = 0
        self.weight_std_error: Tensor | None = None
        self.input_std_error: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, uniform in [0, 2 pi)."""
        nn.init.uniform_(self.weight, 0.0, 2.0 * torch.pi)

    @property
    def problem(self) -> CircuitProblem:
        """The circuit, and which of its parameters are features and weights."""
        return self._forward_launcher.problem

    @property
    def backend(self) -> RowEvaluator:
        """Where rows run. Assign another one to move the layer."""
        return self._forward_launcher.backend

    @backend.setter
    def backend(self, backend: RowEvaluator) -> None:
        forward, backward = self._forward_launcher, self._backward_launcher
        self._forward_launcher = QuantumLauncher(self.problem, forward.algorithm, backend)
        self._backward_launcher = QuantumLauncher(self.problem, backward.algorithm, backend)

    @property
    def shots(self) -> int | None:
        """Shots for each row; None for exact probabilities."""
        return self._forward_launcher.algorithm.shots

    def forward(self, inputs: Tensor) -> Tensor:
        """Probabilities ``(*, K)`` for features ``(*, I)``.

        Raises:
            InputTypeError: if the inputs are not floating-point.
            InputError: if the number of features is wrong, or a value is not finite.
        """
        return self._probabilities(inputs)

    def _probabilities(self, inputs: Tensor) -> Tensor:
        context = StepContext(
            int(self.seed), int(self.step), self.first_sample, self._keep_std_errors
        )
        forward = self._forward_launcher.at(context)
        backward = self._backward_launcher.at(context)
        apply: Callable[..., Tensor] = ExpVQCFunction.apply  # torch leaves it untyped
        outputs = apply(inputs, self.weight, forward, backward)
        self.step += 1
        return outputs

    def _keep_std_errors(self, gradient: Gradient) -> None:
        def tensor(values: Any) -> Tensor | None:
            if values is None:
                return None
            return torch.as_tensor(values, dtype=self.weight.dtype, device=self.weight.device)

        self.weight_std_error = tensor(gradient.weight_std_error)
        self.input_std_error = tensor(gradient.input_std_error)

    def extra_repr(self) -> str:
        problem, backward = self.problem, self._backward_launcher.algorithm
        assert isinstance(backward, BackwardPass)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"qubits={problem.circuit.num_qubits}, weights={problem.num_weights}, "
            f"shots={self.shots}, gradient={backward.method!r}, backend={self.backend!r}"
        )


ExpQLayer = QLayer
"""The name of `QLayer` in QAILab."""


class ExpectedValueQLayer(QLayer):
    """A circuit as a layer: features in, the expected integer of the measured bitstring out.

    Args:
        circuit: a measured circuit.
        rescale_output: ``(low, high)`` maps the integers 0 .. K - 1 linearly onto [low, high];
            by default the integer itself is expected.
        **options: as for `QLayer`.

    Raises:
        InputError: if ``rescale_output`` is not a pair of finite numbers.

    Shape:
        - Input: ``(*, I)``
        - Output: ``(*, 1)``
    """

    def __init__(
        self,
        circuit: QuantumCircuit,
        *,
        rescale_output: tuple[float, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(circuit, **options)
        self.rescale_output = None if rescale_output is None else _finite_pair(rescale_output)
        self.out_features = 1

    def forward(self, inputs: Tensor) -> Tensor:
        """Expected values ``(*, 1)`` for features ``(*, I)``."""
        probabilities = self._probabilities(inputs)
        outcomes = probabilities.shape[-1]
        low, high = self.rescale_output or (0.0, outcomes - 1.0)
        values = torch.linspace(
            low, high, outcomes, dtype=probabilities.dtype, device=probabilities.device
        )
        return (probabilities * values).sum(dim=-1, keepdim=True)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rescale_output={self.rescale_output}"


class ArgmaxQLayer(QLayer):
    """A circuit as a layer: features in, the most probable outcome's integer out.

    The gradient is `ArgMax`'s: it goes to the probability of the most probable outcome.

    Shape:
        - Input: ``(*, I)``
        - Output: ``(*, 1)``
    """

    def __init__(self, circuit: QuantumCircuit, **options: Any) -> None:
        super().__init__(circuit, **options)
        self.out_features = 1

    def forward(self, inputs: Tensor) -> Tensor:
        """Most probable outcomes ``(*, 1)`` for features ``(*, I)``."""
        apply: Callable[..., Tensor] = ArgMax.apply  # torch leaves it untyped
        return apply(self._probabilities(inputs))


def _finite_pair(pair: object) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in pair)  # type: ignore[attr-defined]
        if not torch.isfinite(torch.tensor([low, high])).all():
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(
            f"rescale_output must be a pair (low, high) of finite numbers, got {pair!r}"
        ) from None
    return low, high
