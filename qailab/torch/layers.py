"""Circuits as torch modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict, Unpack, get_args

import numpy as np
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from torch import Tensor, nn

from qailab.arguments import check_choice, checked_integer
from qailab.backends import AerBackend, BackendTraits, StatevectorBackend
from qailab.errors import BackendError, InputError
from qailab.gradients.observables import Observable
from qailab.gradients.rows import FloatArray
from qailab.launchers import (
    BackwardPass,
    CircuitProblem,
    ForwardPass,
    Gradient,
    Prefetch,
    QuantumLauncher,
    RowEvaluator,
    StepContext,
)
from qailab.launchers.algorithms import Method
from qailab.torch.autograd import ArgMax, check_floating, check_integers
from qailab.torch.passes import OutputHandle, Pass
from qailab.torch.steps import RecentPasses, TakeStep

GradientMethod = Literal["auto"] | Method

_PREFETCH_BYTES = 256 << 20
_TRAITS = BackendTraits()  # of a place that does not say
_HALF = (torch.float16, torch.bfloat16)


class QLayerOptions(TypedDict, total=False):
    """The keywords of `QLayer`."""

    backend: RowEvaluator | None
    shots: int | None
    gradient: GradientMethod
    seed: int | None
    input_params: Sequence[Parameter] | None
    weight_params: Sequence[Parameter] | None
    prefetch: bool | None
    prefetch_bytes: int


class CircuitLayer(nn.Module):
    """A circuit as a layer: what its outputs are is the subclass's.

    Shot noise is a function of ``(circuit, seed, step, row number)``. ``step`` counts forward
    passes, so noise is fresh every time; ``backward`` uses the step of its own forward pass, and
    so does a pass that `torch.utils.checkpoint` runs again. Passes in ``eval()`` mode or without
    grad are counted apart and have noise of their own, so evaluation never changes training.
    Seed and counters are part of the ``state_dict``, so a resumed run repeats the run that was not
    interrupted. A copy (``deepcopy``, pickle, ``load_state_dict``) goes on like the original, with
    the same noise; give it a seed of its own (``copy.seed.fill_(n)``) for independent noise.

    Args:
        problem: the circuit, its parameters and outputs.
        backend: as for `QLayer`, like all others.
        shots: shots for each row.
        gradient: the method.
        seed: seed of the shot noise.
        prefetch: as for `QLayer`.
        prefetch_bytes: as for `QLayer`.

    Attributes:
        in_features: number of features, I.
        out_features: number of outputs.
        weight: the weights, shape ``(W,)``, radians, uniform in [0, 2 pi) at first.
        seed: the seed, an int64 tensor.
        step: how many forward passes there were in training, an int64 tensor.
        evaluation_step: how many there were in evaluation, an int64 tensor.
        prefetch: as for `QLayer`. Assign another value at any time.
        tracks_output_std_error: set it to have `output_std_error` after each forward pass.
        first_sample: the number of the next batch's first sample, 0 unless it is set. Where workers
            train on parts of one batch, each sets it to its part's place, so that samples have the
            same noise as if one worker had them all.
    """

    weight: nn.Parameter
    seed: Tensor
    step: Tensor
    evaluation_step: Tensor
    __call__: Callable[..., Tensor]  # torch leaves it untyped

    def __init__(
        self,
        problem: CircuitProblem,
        backend: RowEvaluator | None,
        shots: int | None,
        gradient: GradientMethod,
        seed: int | None,
        prefetch: bool | None,
        prefetch_bytes: int,
    ) -> None:
        super().__init__()
        self.prefetch = prefetch
        self.prefetch_bytes = checked_integer("prefetch_bytes", prefetch_bytes, least=0)
        where = _default_backend(problem) if backend is None else backend
        check_choice("gradient", gradient, ("auto", *get_args(Method)))
        self._gradient: GradientMethod = gradient
        self._seed = seed
        self._set_launchers(problem, where, shots)
        self.in_features = problem.num_inputs
        self.out_features = problem.num_outputs
        self.weight = nn.Parameter(torch.empty(problem.num_weights))
        for name in ("seed", "step", "evaluation_step"):
            self.register_buffer(name, torch.empty((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_without_evaluations)  # type: ignore[no-untyped-call]
        self.first_sample = 0
        self.tracks_output_std_error = False
        self._recent = RecentPasses()
        self._last_gradient = Gradient(None, None, None, None)
        self._last_std_error: FloatArray | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin anew: other weights, uniform in [0, 2 pi), the given seed or another, no steps."""
        seed = self._seed
        if seed is None:
            seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        self.seed.fill_(seed)
        self.step.zero_()
        self.evaluation_step.zero_()
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
        self._set_launchers(self.problem, backend, self.shots)

    @property
    def shots(self) -> int | None:
        """Shots for each row; None for exact probabilities. Assign others at any time."""
        return self._forward_launcher.algorithm.shots

    @shots.setter
    def shots(self, shots: int | None) -> None:
        self._set_launchers(self.problem, self.backend, shots)

    @property
    def gradient(self) -> Method:
        """How gradients are computed; what ``"auto"`` stands for on this backend."""
        algorithm = self._backward_launcher.algorithm
        assert isinstance(algorithm, BackwardPass)
        return algorithm.method

    @property
    def weight_std_error(self) -> Tensor | None:
        """Standard error of each entry of the last weight gradient from shot noise, ``(W,)``.

        None if there was none; under vmap with its dimensions in front.
        """
        return self._like_weight(self._last_gradient.weight_std_error)

    @property
    def input_std_error(self) -> Tensor | None:
        """The same for the inputs, ``(*, I)``."""
        return self._like_weight(self._last_gradient.input_std_error)

    @property
    def output_std_error(self) -> Tensor | None:
        """The same for the outputs of the last forward pass, if `tracks_output_std_error`."""
        return self._like_weight(self._last_std_error)

    def _set_launchers(
        self, problem: CircuitProblem, backend: RowEvaluator, shots: int | None
    ) -> None:
        method = self._gradient
        if method == "auto":
            adjoint = shots is None and getattr(backend, "supports_adjoint", False)
            method = "adjoint" if adjoint else "param_shift"
        # The seed is replaced at every step by the one in the state_dict.
        forward = ForwardPass(shots, self._seed)
        backward = BackwardPass(method, None if method == "adjoint" else shots, self._seed)
        self._forward_launcher, self._backward_launcher = (  # both, or an error and neither
            QuantumLauncher(problem, forward, backend),
            QuantumLauncher(problem, backward, backend),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(*, out_features)`` for features ``(*, I)``.

        Raises:
            InputTypeError: if the inputs are not floating-point.
            InputError: if the number of features is wrong, or a value is not finite.
        """
        if torch.compiler.is_compiling():  # one graph break; fullgraph=True shows this line
            disable: Callable[..., Callable[..., Tensor]] = torch.compiler.disable
            return disable(CircuitLayer._run, reason="circuits run outside of graphs")(self, inputs)
        return self._run(inputs)

    def submit(self, inputs: Tensor) -> OutputHandle:
        """Start a forward pass, and go on: other layers' passes can run at the same time.

        Returns:
            A handle whose ``result()`` is what ``forward`` returns, with its gradient: that at the
            weights of now.

        Raises:
            InputTypeError: as `forward`.
            InputError: as `forward`.
        """
        running = self.begin(inputs)
        try:
            return OutputHandle(running, lambda outputs: self.finished(outputs, inputs.dtype))
        except BaseException:
            running.give_back()
            raise

    def finished(self, outputs: Tensor, dtype: torch.dtype) -> Tensor:
        """The layer's outputs, of the inputs' dtype, from the circuit's."""
        return outputs

    def _run(self, inputs: Tensor) -> Tensor:
        running = self.begin(inputs)
        try:
            outputs = running.outputs()
        except BaseException:
            running.give_back()
            raise
        return self.finished(outputs, inputs.dtype)

    def begin(self, inputs: Tensor) -> Pass:
        """Take the number of a forward pass, which does not run yet."""
        check_floating("inputs", inputs)
        evaluation = not (self.training and torch.is_grad_enabled())
        counter = self.evaluation_step if evaluation else self.step
        # Checkpoints run a pass again that first ran with grad, or without it in training mode.
        recent = self._recent if self.training or torch.is_grad_enabled() else None
        wanted = StepContext(
            None, 0, self.first_sample, self._keep_gradient, evaluation=evaluation,
            on_std_error=self._keep_std_error if self.tracks_output_std_error else None,
        )  # fmt: skip
        context = TakeStep.apply(inputs, self.weight, self.seed, counter, wanted, recent)
        prefetch = self._prefetched(inputs, context)
        if prefetch is not None:
            context = replace(context, prefetch=prefetch)
        forward, backward = (
            launcher.at(context) for launcher in (self._forward_launcher, self._backward_launcher)
        )
        return Pass(inputs, self.weight, forward, backward, counter)

    def _prefetched(self, inputs: Tensor, context: StepContext) -> Prefetch | None:
        """What the pass does for its backward pass, if there will be one."""
        algorithm, prefetch = self._backward_launcher.algorithm, self.prefetch
        assert isinstance(algorithm, BackwardPass)
        if prefetch is False or algorithm.method == "adjoint" or not torch.is_grad_enabled():
            return None
        if context.repeated and not context.evaluation:  # the first time it had one, which waits
            return None
        backends = getattr(self.backend, "backends", (self.backend,))  # those of a pool
        traits = [getattr(each, "traits", _TRAITS) for each in backends]
        if prefetch is None:
            prefetch = self.training and all(each.packs_jobs for each in traits)
        if not prefetch or any(each.calibration_rows for each in traits):
            return None
        wanted = [inputs.requires_grad] * self.in_features
        wanted += [self.weight.requires_grad] * self.problem.num_weights
        return Prefetch(algorithm, np.array(wanted), self.prefetch_bytes) if any(wanted) else None

    def _keep_gradient(self, gradient: Gradient) -> None:
        self._last_gradient = gradient

    def _keep_std_error(self, std_error: FloatArray) -> None:
        self._last_std_error = std_error

    def _like_weight(self, values: FloatArray | None) -> Tensor | None:
        if values is None:
            return None
        return torch.tensor(values, dtype=self.weight.dtype, device=self.weight.device)

    def extra_repr(self) -> str:
        problem = self.problem
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"qubits={problem.circuit.num_qubits}, weights={problem.num_weights}, "
            f"shots={self.shots}, gradient={self.gradient!r}, backend={self.backend!r}"
        )


class QLayer(CircuitLayer):
    """A circuit as a layer: features in, the probabilities of the measured outcomes out.

    Noise, steps and attributes are those of `CircuitLayer`.

    Args:
        circuit: a measured circuit, from `qailab.circuit` or not.
        backend: where rows run: a backend, or a ``LauncherPool``; by default in this process, on a
            ``StatevectorBackend()`` if the circuit fits it, else an ``AerBackend()``.
        shots: shots for each row; None for exact probabilities (simulators only).
        gradient: ``"param_shift"``, exact, also with shots; ``"adjoint"``, exact, from the state in
            one sweep, where the backend offers it: with shots it draws the forward pass and
            differentiates the exact distribution; ``"spsa"``, a cheap estimate. ``"auto"`` is
            ``"adjoint"`` where ``shots`` is None and the backend offers it, else
            ``"param_shift"``; the layer's ``repr`` shows which.
        seed: seed of the shot noise; drawn from torch's generator by default, so that
            ``torch.manual_seed`` makes a run repeatable.
        input_params: the features' parameters, in order; see `CircuitProblem`.
        weight_params: the weights' parameters, in order; see `CircuitProblem`.
        prefetch: whether a forward pass whose gradient will be needed runs the rows of the backward
            pass as well: one job for each step and device instead of two, and the same numbers
            (on simulators bit for bit; errors of gradients are estimated from the shots). What was
            measured is kept as long as the graph, the loss included. By default
            in training mode, where rows are jobs in a queue (`IBMBackend`): who evaluates and
            forgets ``no_grad`` does not pay for gradients. Passes stay apart where readout is
            mitigated or the method is ``"adjoint"``.
        prefetch_bytes: of what the rows measure that is kept for a backward pass; where it is more,
            that runs its rows itself, with a warning.

    Raises:
        InputError: if an option is not valid.
        CircuitError: if the circuit cannot be measured or differentiated.
        BackendError: if the circuit does not fit the backend.

    Shape:
        - Input: ``(*, I)``
        - Output: ``(*, K)``
    """

    def __init__(
        self,
        circuit: QuantumCircuit,
        *,
        backend: RowEvaluator | None = None,
        shots: int | None = 1024,
        gradient: GradientMethod = "auto",
        seed: int | None = None,
        input_params: Sequence[Parameter] | None = None,
        weight_params: Sequence[Parameter] | None = None,
        prefetch: bool | None = None,
        prefetch_bytes: int = _PREFETCH_BYTES,
    ) -> None:
        problem = CircuitProblem(circuit, input_params, weight_params)
        super().__init__(problem, backend, shots, gradient, seed, prefetch, prefetch_bytes)


ExpQLayer = QLayer
"""The name of `QLayer` in QAILab."""


class ObservableQLayer(CircuitLayer):
    """A circuit as a layer: features in, expectation values of Pauli observables out.

    One measured row answers every observable that is diagonal in its basis, and no array has 2**m
    entries beyond some 16 measured qubits. Noise, steps and attributes are those of `CircuitLayer`.

    Args:
        circuit: a circuit, from `qailab.circuit` or not. It needs no measurements; those at its end
            are left out.
        observables: ``"Z"`` for Z of each qubit, qubit 0 first; or one observable, or a sequence of
            them: a Pauli label (the rightmost letter is qubit 0's), a ``Pauli`` or a
            ``SparsePauliOp``. Terms that commute qubit by qubit are measured together.
        backend: as for `QLayer`.
        shots: shots for each row in each basis; None for exact values (simulators only).
        gradient: as for `QLayer`.
        seed: as for `QLayer`.
        input_params: the features' parameters, in order; see `CircuitProblem`.
        weight_params: the weights' parameters, in order; see `CircuitProblem`.
        prefetch: as for `QLayer`.
        prefetch_bytes: as for `QLayer`.

    Raises:
        InputError: if an option or an observable is not valid.
        CircuitError: if the circuit cannot be differentiated, or measures anything but at its end.
        BackendError: if the circuit does not fit the backend.

    Shape:
        - Input: ``(*, I)``
        - Output: ``(*, O)``, the observables in the order given
    """

    def __init__(
        self,
        circuit: QuantumCircuit,
        *,
        observables: Observable | Sequence[Observable] = "Z",
        backend: RowEvaluator | None = None,
        shots: int | None = 1024,
        gradient: GradientMethod = "auto",
        seed: int | None = None,
        input_params: Sequence[Parameter] | None = None,
        weight_params: Sequence[Parameter] | None = None,
        prefetch: bool | None = None,
        prefetch_bytes: int = _PREFETCH_BYTES,
    ) -> None:
        problem = CircuitProblem(circuit, input_params, weight_params, observables=observables)
        super().__init__(problem, backend, shots, gradient, seed, prefetch, prefetch_bytes)

    def extra_repr(self) -> str:
        observables = self.problem.observables
        assert observables is not None
        return f"{super().extra_repr()}, bases={observables.num_bases}"


class ExpectedValueQLayer(QLayer):
    """A circuit as a layer: features in, the expected integer of the measured bitstring out.

    Args:
        circuit: a measured circuit.
        rescale_output: ``(low, high)`` maps the integers 0 .. K - 1 linearly onto [low, high];
            by default the integer itself is expected.
        **options: as for `QLayer`.

    Raises:
        InputError: if ``rescale_output`` is not a pair of finite numbers; or if the dtype of the
            inputs has no numbers that large.

    Shape:
        - Input: ``(*, I)``
        - Output: ``(*, 1)``
    """

    def __init__(
        self,
        circuit: QuantumCircuit,
        *,
        rescale_output: tuple[float, float] | None = None,
        **options: Unpack[QLayerOptions],
    ) -> None:
        super().__init__(circuit, **options)
        self.rescale_output = None if rescale_output is None else _finite_pair(rescale_output)
        self.out_features = 1

    def begin(self, inputs: Tensor) -> Pass:
        check_floating("inputs", inputs)
        low, high = self._range
        most = torch.finfo(inputs.dtype).max
        if max(abs(low), abs(high)) > most:
            raise InputError(
                f"expected values between {low:g} and {high:g} do not fit {inputs.dtype}, whose "
                f"largest number is {most:g}; use float32, bfloat16 or rescale_output"
            )
        return super().begin(_at_least_single(inputs))

    def finished(self, outputs: Tensor, dtype: torch.dtype) -> Tensor:
        outcomes = outputs.shape[-1]
        values = torch.linspace(*self._range, outcomes, dtype=outputs.dtype, device=outputs.device)
        return (outputs * values).sum(dim=-1, keepdim=True).to(dtype)

    @property
    def _range(self) -> tuple[float, float]:
        return self.rescale_output or (0.0, self.problem.num_outcomes - 1.0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rescale_output={self.rescale_output}"


class ArgmaxQLayer(QLayer):
    """A circuit as a layer: features in, the most probable outcome's integer out.

    The gradient is `ArgMax`'s: it goes to the probability of the most probable outcome.

    Raises:
        InputError: if the dtype of the inputs does not have every integer below K.

    Shape:
        - Input: ``(*, I)``
        - Output: ``(*, 1)``
    """

    def __init__(self, circuit: QuantumCircuit, **options: Unpack[QLayerOptions]) -> None:
        super().__init__(circuit, **options)
        self.out_features = 1

    def begin(self, inputs: Tensor) -> Pass:
        check_floating("inputs", inputs)
        check_integers(self.problem.num_outcomes, inputs.dtype)
        return super().begin(_at_least_single(inputs))

    def finished(self, outputs: Tensor, dtype: torch.dtype) -> Tensor:
        integers: Tensor = ArgMax.apply(outputs)
        return integers.to(dtype)


def _default_backend(problem: CircuitProblem) -> RowEvaluator:
    try:
        StatevectorBackend().validate(problem.canonical, None)
    except BackendError:  # too many qubits
        return AerBackend()
    return StatevectorBackend()


def _at_least_single(inputs: Tensor) -> Tensor:
    """Inputs whose probabilities are not rounded to half precision before they are summed up."""
    return inputs.float() if inputs.dtype in _HALF else inputs


def _without_evaluations(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Read a ``state_dict`` of qailab 0.1.0, which did not count evaluations."""
    if f"{prefix}step" in state:
        zero = torch.zeros((), dtype=torch.int64)
        state.setdefault(f"{prefix}evaluation_step", zero)


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
