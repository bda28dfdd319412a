"""What a training run will cost on hardware, told before the first job is sent."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import nn

from qailab.arguments import checked_integer
from qailab.backends import BackendTraits
from qailab.backends.budget import Cost, UsageEstimate, price_in_words
from qailab.backends.ibm.limits import IBMLimits
from qailab.backends.sampling import measured_width
from qailab.errors import InputError, InputTypeError
from qailab.gradients.rows import FloatArray, JoinedRows, PointRows, Rows, ShiftedRows
from qailab.launchers.algorithms import MAX_SHOTS, Method
from qailab.torch.layers import CircuitLayer

_DEVICE_METHODS: Final[tuple[Method, ...]] = ("param_shift", "spsa")
_STEP = ("forward rows", "backward rows", "jobs", "executions", "QPU s")
_ALL = ("rows", "jobs", "executions", "QPU s")


@dataclass(frozen=True)
class MethodEstimate:
    """What training costs with one gradient method.

    Args:
        method: the ``gradient`` argument of the layers.
        resamplings: directions that SPSA averages over; 1 for other methods.
        forward_rows: rows of a step's forward pass, of all layers.
        backward_rows: rows of a step's backward pass, of all layers.
        step: the cost of a training step.
        total: the cost of all steps.
    """

    method: Method
    resamplings: int
    forward_rows: int
    backward_rows: int
    step: Cost
    total: Cost

    @property
    def name(self) -> str:
        """The method, with its resamplings if there are several."""
        return self.method if self.resamplings == 1 else f"{self.method} x {self.resamplings}"


@dataclass(frozen=True)
class TrainingEstimate:
    """What training costs, for every gradient method; ``str`` makes a table of it.

    Args:
        methods: one estimate for each method.
        layers: how many quantum layers the model has.
        batch: samples of a step.
        shots: shots of a row, as asked for; None for each layer's own.
        steps: training steps.
    """

    methods: tuple[MethodEstimate, ...]
    layers: int
    batch: int
    shots: int | None
    steps: int

    def __str__(self) -> str:
        table = [("gradient", *_STEP, *_ALL), *(_cells(method) for method in self.methods)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        first = widths[0] + 2
        second = first + sum(widths[1 : 1 + len(_STEP)]) + 2 * len(_STEP)
        groups = f"{'':{first}}{'each step':{second - first}}{_count(self.steps, 'step')} in all"
        shots = "the layers' own shots" if self.shots is None else _count(self.shots, "shot")
        title = (
            f"{_count(self.layers, 'quantum layer')}, {_count(self.batch, 'sample')} a step, "
            f"{shots} a row"
        )
        lines = [title, groups, *("  ".join(_aligned(row, widths)) for row in table)]
        prices = (f"{each.name}: {price_in_words(each.total.qpu_seconds)}" for each in self.methods)
        return "\n".join([*lines, *prices])


def estimate_cost(
    model: nn.Module,
    batch: int,
    shots: int | None = None,
    steps: int = 1,
    *,
    spsa_resamplings: int = 1,
    limits: IBMLimits | None = None,
    usage: UsageEstimate | None = None,
    show: bool = True,
) -> TrainingEstimate:
    """Tell rows, jobs, executions, QPU seconds and price of a training run; nothing is run.

    Each layer is taken to see ``(batch, I)`` features, once a step, and to run on one device, whose
    calibration rows (``readout_mitigation``) count like others; with its rows of both passes in one
    job, unless ``prefetch`` is False, its answers are too large, or readout is mitigated. Its
    inputs are taken to need gradients if a trainable parameter comes before it in the order of
    ``model.modules()``, which is the data flow's in an ``nn.Sequential``. For layers side by side
    that is an upper bound, and features that need gradients themselves are not seen. Retries, and
    evaluation without gradients, come on top.

    Args:
        model: a module with quantum layers in it, or one of them. Frozen parameters
            (``requires_grad=False``) need no rows.
        batch: samples of a step.
        shots: shots for each row; None for each layer's own.
        steps: training steps.
        spsa_resamplings: directions that SPSA averages over.
        limits: what a job may be at most; IBM's by default.
        usage: how long jobs take; by a rule of thumb by default. One that has learned from
            measured jobs is better.
        show: whether to print the table.

    Returns:
        The estimate, one for each gradient method.

    Raises:
        InputError: if the model has no quantum layer, a number is not valid, or a layer has exact
            probabilities and no ``shots`` are given.
    """
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"model must be a torch module, got {type(model).__name__}")
    batch = checked_integer("batch", batch)
    steps = checked_integer("steps", steps)
    spsa_resamplings = checked_integer("spsa_resamplings", spsa_resamplings)
    if shots is not None:
        shots = checked_integer("shots", shots, most=MAX_SHOTS, hint=", or None for the layers'")
    demands = _demands(model, shots)
    limits, usage = limits or IBMLimits(), usage or UsageEstimate()
    methods = []
    for method in _DEVICE_METHODS:
        resamplings = spsa_resamplings if method == "spsa" else 1
        first, second, step = 0, 0, Cost()
        for demand in demands:
            forward = _point_rows(batch, 1, demand.bases)
            backward = demand.backward_rows(method, batch, resamplings)
            first, second = first + forward.num_rows, second + backward.num_rows
            for rows in demand.evaluations(forward, backward, limits):
                step += demand.cost(rows, limits, usage)
        methods.append(MethodEstimate(method, resamplings, first, second, step, step * steps))
    told = TrainingEstimate(tuple(methods), len(demands), batch, shots, steps)
    if show:
        sys.stdout.write(f"{told}\n")
    return told


@dataclass(frozen=True)
class _Demand:
    """What a training step asks of a layer."""

    layer: CircuitLayer
    shots: int
    for_inputs: bool
    for_weights: bool

    @property
    def bases(self) -> FloatArray | None:
        return self.layer.problem.bases

    def backward_rows(self, method: Method, batch: int, resamplings: int) -> Rows:
        """The rows of the plan, without their angles, which their number does not depend on."""
        problem = self.layer.problem
        if not (self.for_inputs or self.for_weights):
            return _point_rows(0, 1, self.bases)
        if method == "spsa":
            return _point_rows(batch, 2 * resamplings, self.bases, pairs=True)
        wanted = [self.for_inputs] * problem.num_inputs + [self.for_weights] * problem.num_weights
        columns = problem.angle_map.reached_by(np.array(wanted, dtype=bool))
        return ShiftedRows(base=np.empty((batch, 0)), columns=columns, bases=self.bases)

    def evaluations(self, forward: Rows, backward: Rows, limits: IBMLimits) -> list[Rows]:
        """The rows of each evaluation of a step."""
        joined, circuit = JoinedRows.of(forward, backward), self.layer.problem.canonical
        apart = self.layer.prefetch is False or self._calibration_rows > 0
        if apart or backward.num_rows == 0:
            return [forward, backward]
        needed = 8 * joined.num_rows * measured_width(circuit, self.shots)
        most = limits.rows_per_job(self.shots, circuit.num_angles)
        fits = needed <= self.layer.prefetch_bytes and joined.group <= most
        return [joined] if fits else [forward, backward]

    @property
    def _calibration_rows(self) -> int:
        backends = getattr(self.layer.backend, "backends", (self.layer.backend,))  # of a pool
        traits = [getattr(each, "traits", BackendTraits()) for each in backends]
        return max(each.calibration_rows for each in traits)

    def cost(self, rows: Rows, limits: IBMLimits, usage: UsageEstimate) -> Cost:
        """What these rows cost, in as few jobs as the limits allow."""
        if rows.num_rows == 0:
            return Cost()
        count = rows.num_rows + self._calibration_rows
        angles = self.layer.problem.canonical.num_angles
        jobs = -(-count // limits.rows_per_job(self.shots, angles, rows.group))
        executions = count * self.shots
        return Cost(jobs, count, executions, usage.seconds(executions, jobs))


def _demands(model: nn.Module, shots: int | None) -> list[_Demand]:
    demands, trainable_before = [], False
    for name, module in model.named_modules():
        trainable = any(each.requires_grad for each in module.parameters(recurse=False))
        if isinstance(module, CircuitLayer):
            own = module.shots if shots is None else shots
            if own is None:
                raise InputError(
                    f"layer {name or type(module).__name__!r} has shots=None (exact "
                    f"probabilities), which no device has; pass shots= to estimate"
                )
            demands.append(_Demand(module, own, trainable_before, module.weight.requires_grad))
        trainable_before = trainable_before or trainable
    if not demands:
        raise InputError(
            f"{type(model).__name__} has no quantum layer (QLayer, ObservableQLayer or a subclass) "
            f"in it: nothing of it runs on hardware"
        )
    return demands


def _point_rows(samples: int, each: int, bases: FloatArray | None, *, pairs: bool = False) -> Rows:
    return PointRows(base=np.empty((samples, each, 0)), bases=bases, pairs=pairs)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _cells(method: MethodEstimate) -> tuple[str, ...]:
    step, total = method.step, method.total
    numbers = (
        *(method.forward_rows, method.backward_rows, step.jobs, step.shots, step.qpu_seconds),
        *(total.rows, total.jobs, total.shots, total.qpu_seconds),
    )
    return (method.name, *(f"{number:,.0f}" for number in numbers))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(cells, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
