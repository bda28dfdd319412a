"""The launcher: a problem, an algorithm and a place to run, joined.

"Launcher" is this field's word for what Qiskit calls a primitive bound to a backend.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from qiskit.circuit import Parameter
from qiskit.providers import BackendV2

from qailab.arguments import checked_integer
from qailab.backends.answers import answer_width, contract_measured
from qailab.errors import InputError, InputTypeError, MemoryLimitError
from qailab.gradients.canonical import CanonicalCircuit
from qailab.gradients.noise import NoiseStream, Purpose
from qailab.gradients.plans import SampleGradients
from qailab.gradients.rows import FloatArray, RowBatch
from qailab.launchers.algorithms import Algorithm, BackwardPass, ForwardPass
from qailab.launchers.prefetch import Prefetch
from qailab.launchers.problem import CircuitProblem

Result = TypeVar("Result")


class LaunchHandle(Generic[Result]):
    """A running evaluation, in the words of ``concurrent.futures``.

    Args:
        answers: the rows' answers, some time later.
        finish: turns the answers into the result; called once, by whoever asks first.
    """

    def __init__(self, answers: Future[FloatArray], finish: Callable[[FloatArray], Result]) -> None:
        self._answers = answers
        self._finish = finish
        self._finished: list[Result] = []
        self._lock = threading.Lock()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the result.

        An interrupt (Ctrl-C) while waiting cancels the evaluation, also what is in flight.

        Args:
            timeout: seconds to wait at most; the evaluation goes on after a time-out.

        Raises:
            TimeoutError: if it takes longer.
            CancelledError: if it was cancelled.
            QailabError: whatever went wrong where the rows ran.
        """
        try:
            answers = self._answers.result(timeout)
        except KeyboardInterrupt:
            self.cancel()
            raise
        with self._lock:
            if not self._finished:
                self._finished.append(self._finish(answers))
            return self._finished[0]

    def done(self) -> bool:
        """Whether the evaluation has ended, one way or another."""
        return self._answers.done()

    def cancel(self) -> bool:
        """Stop the evaluation; False if it is already done."""
        return self._answers.cancel()

    def cancelled(self) -> bool:
        """Whether the evaluation was cancelled."""
        return self._answers.cancelled()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end and return the error, or None if there is none.

        Args:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: if it takes longer.
        """
        return self._answers.exception(timeout)


class RowEvaluator(Protocol):
    """What a launcher needs of a place to run: a backend is one, a pool of them is one."""

    @property
    def supports_exact(self) -> bool:
        """Whether ``shots=None`` is possible there."""
        ...

    @property
    def supports_adjoint(self) -> bool:
        """Whether ``BackwardPass(method="adjoint")`` is possible there."""
        ...

    @property
    def noiseless(self) -> bool:
        """Whether probabilities there are those of the circuit itself."""
        ...

    def validate(self, circuit: CanonicalCircuit, shots: int | None) -> None:
        """Raise a clear error if rows of the circuit cannot run there."""

    def submit(self, circuit: CanonicalCircuit, batch: RowBatch) -> Future[FloatArray]:
        """Start a batch of rows."""
        ...

    def run(self, circuit: CanonicalCircuit, batch: RowBatch) -> FloatArray:
        """``submit(...).result()``, perhaps without another thread."""
        ...


@dataclasses.dataclass(frozen=True)
class Gradient:
    """What a backward pass gives; a part that was not wanted is None.

    Args:
        inputs: gradient for each sample's features, shape ``(*, I)``.
        weights: gradient for the weights, summed over samples, shape ``(W,)``.
        input_std_error: standard error of each entry of ``inputs`` from shot noise.
        weight_std_error: standard error of each entry of ``weights`` from shot noise.
    """

    inputs: FloatArray | None
    weights: FloatArray | None
    input_std_error: FloatArray | None
    weight_std_error: FloatArray | None


@dataclasses.dataclass(frozen=True)
class StepContext:
    """What changes from step to step.

    Args:
        seed: seed of the shot noise; None for the algorithm's own.
        step: the training step, which shot noise depends on.
        first_sample: the number of the first sample, which shot noise depends on as well: where a
            batch is one worker's part of a larger one, its place in that.
        on_gradient: called with each gradient (for its standard errors).
        on_std_error: called with the standard errors of a forward pass's outputs, ``(*, K)`` or
            ``(*, O)``; those of observables are computed where they are asked for only.
        evaluation: whether it is an evaluation; those have steps, and noise, of their own.
        repeated: whether autograd runs the pass again, as a checkpoint does.
        prefetch: where the forward pass runs the backward pass's rows along with its own.
        started: the forward pass, if it was started before.

    Raises:
        InputError: if the first sample's number is negative.
    """

    seed: int | None = None
    step: int = 0
    first_sample: int = 0
    on_gradient: Callable[[Gradient], None] | None = None
    on_std_error: Callable[[FloatArray], None] | None = dataclasses.field(
        default=None, kw_only=True
    )
    evaluation: bool = dataclasses.field(default=False, kw_only=True)
    repeated: bool = dataclasses.field(default=False, kw_only=True)
    prefetch: Prefetch | None = dataclasses.field(default=None, kw_only=True)
    started: LaunchHandle[FloatArray] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        checked_integer("first_sample", self.first_sample, least=0)


@dataclasses.dataclass(frozen=True, eq=False)
class QuantumLauncher:
    """A problem bound to an algorithm and a backend.

    Args:
        problem: what.
        algorithm: how; `ForwardPass` for `forward`, `BackwardPass` for `backward`.
        backend: where: a backend of this process, or a ``LauncherPool``.
        context: the seed, step and samples that this evaluation is of.
        validate: whether to check that the circuit can run there.

    Raises:
        InputError: if the backend cannot give what the algorithm asks for.
        BackendError: if the circuit does not fit the backend.
    """

    problem: CircuitProblem
    algorithm: Algorithm
    backend: RowEvaluator
    context: StepContext = dataclasses.field(default=StepContext(), kw_only=True)
    validate: dataclasses.InitVar[bool] = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self, validate: bool) -> None:
        if not validate:
            return
        if isinstance(self.backend, type) or not hasattr(self.backend, "submit"):
            raise InputTypeError(
                f"backend must be a qailab backend or a LauncherPool, got {self.backend!r}; "
                f"write {meant_backend(self.backend)}"
            )
        if isinstance(self.algorithm, BackwardPass) and self.algorithm.method == "adjoint":
            _check_adjoint(self.backend)
        if self.algorithm.shots is None and not self.backend.supports_exact:
            raise InputError(
                f"shots=None asks for exact probabilities, which only simulators have; "
                f"{self.backend!r} needs a positive number of shots"
            )
        self.backend.validate(self.problem.canonical, self.algorithm.shots)

    def at(self, context: StepContext) -> QuantumLauncher:
        """The same launcher at another step."""
        return QuantumLauncher(
            self.problem, self.algorithm, self.backend, context=context, validate=False
        )

    def submit(
        self, inputs: ArrayLike, weights: ArrayLike, grad_output: ArrayLike | None = None
    ) -> LaunchHandle[FloatArray] | LaunchHandle[Gradient]:
        """Start a forward pass, or a backward pass for all inputs and weights.

        Args:
            inputs: features, shape ``(*, I)``.
            weights: weights, shape ``(W,)``.
            grad_output: for a backward pass, one number for each output.

        Returns:
            A handle of the outputs, ``(*, K)`` or ``(*, O)``, or of the `Gradient`.
        """
        if isinstance(self.algorithm, BackwardPass):
            if grad_output is None:
                shape = f"(*, {self.problem.num_outputs})"
                raise InputError(f"a backward pass needs grad_output, of shape {shape}")
            return self.submit_backward(inputs, weights, grad_output)
        return self.submit_forward(inputs, weights)

    def run(
        self, inputs: ArrayLike, weights: ArrayLike, grad_output: ArrayLike | None = None
    ) -> FloatArray | Gradient:
        """``submit(...).result()``."""
        return self.submit(inputs, weights, grad_output).result()

    def submit_forward(
        self, inputs: ArrayLike, weights: ArrayLike, *, wait: bool = False
    ) -> LaunchHandle[FloatArray]:
        """Start computing the probabilities of the outcomes, or the values of the observables.

        Args:
            inputs: features in radians (or what the circuit takes), shape ``(*, I)``.
            weights: weights, shape ``(W,)``; or ``(*G, W)``, one set for each group of inputs
                ``(*G, *, I)``.
            wait: whether to return when it is done, which may save the way to another thread.

        Returns:
            A handle of them, shape ``(*, K)`` or ``(*, O)``.

        Raises:
            InputError: if a shape is wrong or a value is not finite.
        """
        if not isinstance(self.algorithm, ForwardPass):
            raise InputError(f"a forward pass needs a ForwardPass, not {self.algorithm!r}")
        if self.context.started is not None:
            return self.context.started
        lead, parameters = self._parameters(inputs, weights)
        rows = self.algorithm.rows(self.problem, parameters, self.context.first_sample)
        shots, observables = self.algorithm.shots, self.problem.observables
        constants = 0.0 if observables is None else observables.constants
        tell, width = self.context.on_std_error, self.problem.num_outputs
        variances = observables is not None and tell is not None
        forward = RowBatch(rows, shots, self._noise("forward"), variances=variances)
        batch, prefetch = forward, self.context.prefetch
        if prefetch is not None:
            batch = prefetch.joined(self.problem, parameters, forward, noiseless=self._noiseless)

        def finish(answers: FloatArray) -> FloatArray:
            if prefetch is not None and batch is not forward:
                measured = prefetch.keep(batch, answers)
                answers = contract_measured(self.problem.canonical, forward, measured)
            found = rows.over_bases(answers)
            outputs: FloatArray = found[:, :width] + constants
            if tell is not None:
                with np.errstate(invalid="ignore"):  # one shot has no variance
                    spread = outputs * (1 - outputs) / ((shots or np.inf) - np.float64(1))
                    spread = found[:, width:] if variances else spread
                    tell(np.sqrt(np.maximum(spread, 0.0)).reshape(*lead, width))
            return outputs.reshape(*lead, width)

        return LaunchHandle(self._start(batch, wait), finish)

    def submit_backward(
        self,
        inputs: ArrayLike,
        weights: ArrayLike,
        grad_output: ArrayLike,
        *,
        for_inputs: bool = True,
        for_weights: bool = True,
        wait: bool = False,
    ) -> LaunchHandle[Gradient]:
        """Start computing the derivative of ``sum(grad_output * outputs)``.

        Args:
            inputs: features, shape ``(*, I)``.
            weights: weights, shape ``(W,)`` or ``(*G, W)``, as in `submit_forward`.
            grad_output: shape ``(*, K)`` or ``(*, O)``. If any of it is not finite, nothing runs
                and the gradient is nan, which gradient scalers look for.
            for_inputs: whether the gradient for the inputs is wanted.
            for_weights: whether the gradient for the weights is wanted.
            wait: as in `submit_forward`.

        Returns:
            A handle of the gradient.

        Raises:
            InputError: if a shape is wrong or an input or weight is not finite.
        """
        if not isinstance(self.algorithm, BackwardPass):
            raise InputError(f"a backward pass needs a BackwardPass, not {self.algorithm!r}")
        lead, parameters = self._parameters(inputs, weights)
        cotangents = _real("grad_output", grad_output)
        expected = (*lead, self.problem.num_outputs)
        if cotangents.shape != expected:
            raise InputError(f"grad_output must have shape {expected}, got {cotangents.shape}")
        wanted = np.array(
            [for_inputs] * self.problem.num_inputs + [for_weights] * self.problem.num_weights,
            dtype=bool,
        )
        noise = self._noise("backward")
        plan = self.algorithm.plan(
            self.problem,
            parameters,
            wanted,
            noise,
            self.context.first_sample,
            noiseless=self._noiseless,
        )
        batch = RowBatch(
            plan.rows,
            self.algorithm.shots,
            noise,
            cotangents.reshape(len(parameters), self.problem.num_outputs),
        )

        groups = np.shape(weights)[:-1]

        def finish(answers: FloatArray) -> Gradient:
            each = plan.reconstruct(answers)
            gradient = self._gradient(each, lead, groups, for_inputs, for_weights)
            if self.context.on_gradient is not None:
                self.context.on_gradient(gradient)
            return gradient

        return LaunchHandle(self._start(batch, wait), finish)

    @property
    def _noiseless(self) -> bool:
        return getattr(self.backend, "noiseless", False)  # who does not say may be noisy

    def _start(self, batch: RowBatch, wait: bool) -> Future[FloatArray]:
        cotangents, done = batch.cotangents, Future[FloatArray]()
        if batch.num_rows == 0 or not (cotangents is None or np.isfinite(cotangents).all()):
            shape = (batch.num_rows, batch.answer_width(self.problem.num_outputs))
            done.set_result(np.full(shape, np.nan))
            return done
        prefetch = self.context.prefetch
        if cotangents is None:
            self._check_table(batch)
        elif prefetch is not None:
            answers = prefetch.answers(self.problem.canonical, batch)
            if answers is not None:
                done.set_result(answers)
                return done
        if wait:
            done.set_result(self.backend.run(self.problem.canonical, batch))
            return done
        return self.backend.submit(self.problem.canonical, batch)

    def _check_table(self, batch: RowBatch) -> None:
        """Raise if the outputs of all rows, which are held at once, do not fit the memory."""
        num_rows, outcomes = batch.num_rows, answer_width(self.problem.canonical, batch)
        table = 8 * outcomes * num_rows
        limit = _half_of_memory()
        if table > limit:
            raise MemoryLimitError(
                f"the probabilities of {outcomes:,} outcomes for {num_rows:,} rows need "
                f"{table / 2**20:,.0f} MiB, more than half of this machine's memory "
                f"({limit / 2**20:,.0f} MiB); use smaller batches, or measure fewer qubits"
            )

    def _noise(self, purpose: Purpose) -> NoiseStream:
        seed = self.algorithm.seed if self.context.seed is None else self.context.seed
        if seed is None:
            return NoiseStream.fresh(purpose)
        # Layers with one seed, but other circuits, must not have the same noise row by row.
        kind = "evaluation" if self.context.evaluation else "training"
        return NoiseStream.of(f"{self.problem.key} {kind}", seed, self.context.step, purpose)

    def _gradient(
        self,
        each: SampleGradients,
        lead: tuple[int, ...],
        groups: tuple[int, ...],
        for_inputs: bool,
        for_weights: bool,
    ) -> Gradient:
        split = self.problem.num_inputs
        by_group = (*groups, math.prod(lead[len(groups) :]), self.problem.num_weights)

        def of_inputs(values: FloatArray) -> FloatArray | None:
            return values[:, :split].reshape(*lead, split) if for_inputs else None

        def of_weights(values: FloatArray) -> FloatArray | None:
            return values[:, split:].reshape(by_group).sum(axis=-2) if for_weights else None

        def root(variances: FloatArray | None) -> FloatArray | None:
            return None if variances is None else np.sqrt(variances)

        return Gradient(
            of_inputs(each.values),
            of_weights(each.values),
            root(of_inputs(each.variances)),
            root(of_weights(each.variances)),
        )

    def _parameters(
        self, inputs: ArrayLike, weights: ArrayLike
    ) -> tuple[tuple[int, ...], FloatArray]:
        """Check the values; leading dimensions, and logical parameters ``(B, L)``."""
        features = _real("inputs", inputs)
        values = _real("weights", weights)
        expected = self.problem.num_inputs
        if features.ndim == 0 or features.shape[-1] != expected:
            got = features.shape[-1] if features.ndim else "a single number"
            raise InputError(
                f"the circuit has {expected} input parameters, so inputs must have shape "
                f"(*, {expected}); got {got} features (shape {features.shape})"
            )
        lead, groups = features.shape[:-1], values.shape[:-1]
        if values.shape[-1:] != (self.problem.num_weights,) or lead[: len(groups)] != groups:
            raise InputError(
                f"the circuit has {self.problem.num_weights} weights, so weights must have shape "
                f"({self.problem.num_weights},); got {values.shape}"
            )
        _check_finite("inputs", features, self.problem.input_parameters)
        _check_finite("weights", values, self.problem.weight_parameters)
        table = np.empty((*lead, expected + values.shape[-1]))
        table[..., :expected] = features
        within = (1,) * (len(lead) - len(groups))  # the dimensions that share a set of weights
        table[..., expected:] = values.reshape(*groups, *within, values.shape[-1])
        return lead, table.reshape(math.prod(lead), table.shape[-1])


@functools.cache
def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _real(what: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values)
    if array.dtype.kind != "f":
        advice = {"c": "; pass the real part", "O": ""}.get(array.dtype.kind, "; use astype(float)")
        raise InputTypeError(
            f"{what} must be floating-point numbers, got dtype {array.dtype}{advice}"
        )
    return array.astype(np.float64, copy=False)


def _check_adjoint(backend: RowEvaluator) -> None:
    backends = getattr(backend, "backends", (backend,))  # those of a pool
    others = [each for each in backends if not getattr(each, "supports_adjoint", False)]
    if others:
        raise InputError(
            f"the adjoint method needs the state, which {others[0]!r} does not have; use "
            f"StatevectorBackend(), or gradient='param_shift'"
        )


def meant_backend(backend: object) -> str:
    """What somebody meant who passed this as a backend."""
    if isinstance(backend, type):
        return f"{backend.__name__}(), with parentheses"
    if isinstance(backend, str) and backend.startswith("ibm_"):
        return f"IBMBackend({backend!r})"
    if isinstance(backend, list | tuple):
        return "LauncherPool([...]), for several"
    if isinstance(backend, BackendV2) and type(backend).__name__ != "AerSimulator":
        return "AerBackend(from_backend=...) to simulate the device, IBMBackend(...) to run on it"
    return "AerBackend(), which makes its AerSimulator by itself"


def _check_finite(what: str, values: FloatArray, parameters: Sequence[Parameter]) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.argwhere(~finite)
        where = ", ".join(map(str, bad[0]))
        raise InputError(
            f"{what}[{where}] (parameter {parameters[bad[0][-1]].name!r}) is "
            f"{values[tuple(bad[0])]}; all {what} must be finite "
            f"({len(bad)} of {values.size} are not)"
        )
