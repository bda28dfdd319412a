"""How it is computed: a forward pass, or a backward pass by one of three methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qailab.arguments import check_choice, checked_integer
from qailab.errors import InputError
from qailab.gradients.noise import NoiseStream, check_seed
from qailab.gradients.plans import AdjointPlan, GradientPlan, ParamShiftPlan, SpsaPlan
from qailab.gradients.rows import FloatArray, PointRows
from qailab.launchers.problem import CircuitProblem

Method = Literal["param_shift", "adjoint", "spsa"]


MAX_SHOTS = 2**31 - 1
"""More than any device takes at once; simulators count shots in 64 bits, but keep lists of them."""


class Algorithm:
    """What every algorithm has: shots and a seed.

    Attributes:
        shots: shots for each row; None for exact probabilities (simulators only).
        seed: shot noise is a function of seed, step and row number; None means fresh noise from
            the operating system for every evaluation.
    """

    shots: int | None
    seed: int | None


@dataclass(frozen=True)
class ForwardPass(Algorithm):
    """The outputs: probabilities or expectation values, one row for each sample and basis.

    Args:
        shots: as in `Algorithm`.
        seed: as in `Algorithm`.

    Raises:
        InputError: if shots or seed are not valid.
    """

    shots: int | None = 1024
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_shots_and_seed(self)

    def rows(
        self, problem: CircuitProblem, parameters: FloatArray, first_sample: int = 0
    ) -> PointRows:
        """The rows to run for logical parameters of shape ``(B, L)``."""
        base = problem.angle_map.values(parameters)[:, None, :]
        return PointRows.numbered(first_sample, base, bases=problem.bases)


@dataclass(frozen=True)
class BackwardPass(Algorithm):
    """The derivative of ``sum_k grad_output[b, k] output_k`` for inputs and weights.

    Rows are as many as told below for each basis that observables are measured in.

    Args:
        method: ``"param_shift"``: exact, two rows for each sample and angle; ``"adjoint"``: the
            derivative of the exact outputs in one sweep for each sample, on backends that
            offer it (`StatevectorBackend`) and with ``shots=None`` only; ``"spsa"``: a random
            estimate from two rows for each sample and resampling.
        shots: as in `Algorithm`.
        seed: as in `Algorithm`.
        spsa_resamplings: directions that SPSA averages over, for each sample.
        spsa_perturbation: size of SPSA's perturbation, in radians; its bias is of second order.

    Raises:
        InputError: if an option is not valid.
    """

    method: Method = "param_shift"
    shots: int | None = 1024
    seed: int | None = None
    spsa_resamplings: int = field(default=1, kw_only=True)
    spsa_perturbation: float = field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(Method))
        _check_shots_and_seed(self)
        if self.method == "adjoint" and self.shots is not None:
            raise InputError(
                f"the adjoint method differentiates exact probabilities, so a backward pass by it "
                f"has shots=None, not {self.shots}; the forward pass may have shots"
            )
        checked_integer("spsa_resamplings", self.spsa_resamplings)
        if not 0.0 < self.spsa_perturbation < np.inf:
            raise InputError(
                f"spsa_perturbation must be positive and finite, got {self.spsa_perturbation!r}"
            )

    def plan(
        self,
        problem: CircuitProblem,
        parameters: FloatArray,
        wanted: NDArray[np.bool_],
        noise: NoiseStream,
        first_sample: int = 0,
        *,
        noiseless: bool = False,
    ) -> GradientPlan:
        """The rows to run, and how their answers become the gradient.

        Args:
            problem: the circuit.
            parameters: logical parameters of each sample, shape ``(B, L)``.
            wanted: which of them are wanted, shape ``(L,)``.
            noise: where random directions come from.
            first_sample: the number of the first sample.
            noiseless: whether the rows run without noise, so that those outside the measured
                qubits' light cone need not run.
        """
        what = (problem.angle_map, parameters, wanted)
        where: dict[str, Any] = {"first_sample": first_sample, "bases": problem.bases}
        if self.method == "param_shift":
            return ParamShiftPlan.of(*what, noiseless=noiseless, **where)
        if self.method == "adjoint":
            return AdjointPlan.of(*what, **where)
        return SpsaPlan.of(
            *what,
            perturbation=self.spsa_perturbation,
            resamplings=self.spsa_resamplings,
            noise=noise,
            **where,
        )


def _check_shots_and_seed(algorithm: Algorithm) -> None:
    if algorithm.shots is not None:
        hint = ", or None for exact probabilities"
        checked_integer("shots", algorithm.shots, most=MAX_SHOTS, hint=hint)
    if algorithm.seed is not None:
        check_seed(algorithm.seed)
