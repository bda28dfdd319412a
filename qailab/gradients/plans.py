"""Plans: which rows to run for a gradient, and how their answers become it.

plan -> run -> reconstruct, where both ends are pure functions of arrays. With ``v[r]`` the answer
of point ``r`` (``sum_k grad_output[b, k] output_k``, over all its bases), the parameter-shift plan
is

    d/d angle[b, a]  =  sum_t coefficients[t] * v[(b * C + c(a)) * T + t]
    d/d parameter[b, l]  =  sum_a  d angle[b, a] / d parameter[b, l]  *  d/d angle[b, a]

The adjoint plan asks for ``d/d angle[b, a]`` itself, of backends that know it, and continues alike;
and the SPSA plan, with random signs ``D[b, s, l]`` and rows ``(b * S + s) * 2 + {plus, minus}``,

    d/d parameter[b, l]  ~  mean_s  D[b, s, l] * (v[plus] - v[minus]) / (2 * perturbation)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qailab.gradients.angles import AngleMap
from qailab.gradients.noise import NoiseStream
from qailab.gradients.rows import FloatArray, IntArray, PointRows, Rows, ShiftedRows, SlopeRows


@dataclass(frozen=True)
class SampleGradients:
    """Gradients of each sample with respect to the logical parameters.

    Args:
        values: shape ``(B, L)``; zero where a parameter was not wanted.
        variances: shot variance of each value, shape ``(B, L)``.
    """

    values: FloatArray
    variances: FloatArray


class GradientPlan(ABC):
    """Rows to run, and the gradient that their answers give."""

    @property
    @abstractmethod
    def rows(self) -> Rows:
        """The rows to run, all of their samples."""

    def reconstruct(self, answers: FloatArray) -> SampleGradients:
        """Turn the rows' answers into gradients.

        Args:
            answers: value and shot variance of each row, in row order, shape ``(N, 2)``.
        """
        return self._from_points(self.rows.over_bases(answers))

    @abstractmethod
    def _from_points(self, answers: FloatArray) -> SampleGradients:
        """The same from value and shot variance of each point."""


@dataclass(frozen=True, eq=False)
class ParamShiftPlan(GradientPlan):
    """The exact gradient: two shifted rows for every sample and every angle that is needed.

    Args:
        angle_map: where the angles come from.
        parameters: logical parameters of each sample, shape ``(B, L)``.
        wanted: the parameters that the gradient is with respect to, shape ``(L,)``.
        shifted: the rows.

    References:
        K. Mitarai, M. Negoro, M. Kitagawa, K. Fujii, Quantum circuit learning, Phys. Rev. A 98,
        032309 (2018), doi:10.1103/PhysRevA.98.032309.
        M. Schuld, V. Bergholm, C. Gogolin, J. Izaac, N. Killoran, Evaluating analytic gradients
        on quantum hardware, Phys. Rev. A 99, 032331 (2019), doi:10.1103/PhysRevA.99.032331.
    """

    angle_map: AngleMap
    parameters: FloatArray
    wanted: NDArray[np.bool_]
    shifted: ShiftedRows

    @classmethod
    def of(
        cls,
        angle_map: AngleMap,
        parameters: FloatArray,
        wanted: NDArray[np.bool_],
        *,
        first_sample: int = 0,
        noiseless: bool = False,
        bases: FloatArray | None = None,
    ) -> ParamShiftPlan:
        """Plan the gradient with respect to the ``wanted`` (shape ``(L,)``) parameters.

        ``noiseless`` says that the rows run without noise, which saves those without effect.
        ``bases`` are those that the rows are measured in, as in `Rows`.
        """
        base, columns = _angles(angle_map, parameters, wanted, noiseless=noiseless)
        shifted = ShiftedRows.numbered(first_sample, base, columns=columns, bases=bases)
        return cls(angle_map, parameters, wanted, shifted)

    @property
    def rows(self) -> Rows:
        return self.shifted

    def _from_points(self, answers: FloatArray) -> SampleGradients:
        samples, angles = self.shifted.base.shape
        columns, rule = self.shifted.columns, self.shifted.rule
        terms = answers.reshape(samples, len(columns), rule.num_terms, 2)
        coefficients = np.asarray(rule.coefficients)
        slopes = np.zeros((samples, angles))
        slopes[:, columns] = terms[..., 0] @ coefficients
        variances = np.zeros((samples, angles))
        variances[:, columns] = terms[..., 1] @ coefficients**2
        return SampleGradients(
            self.angle_map.vjp(self.parameters, slopes, self.wanted, columns),
            self.angle_map.vjp(self.parameters, variances, self.wanted, columns, squared=True),
        )


@dataclass(frozen=True, eq=False)
class AdjointPlan(GradientPlan):
    """The exact gradient from exact slopes: one sweep through the circuit for each sample.

    Args:
        angle_map: where the angles come from.
        parameters: logical parameters of each sample, shape ``(B, L)``.
        wanted: the parameters that the gradient is with respect to, shape ``(L,)``.
        slopes: the rows.

    References:
        T. Jones, J. Gacon, Efficient calculation of gradients in classical simulations of
        variational quantum algorithms (2020), arXiv:2009.02823.
    """

    angle_map: AngleMap
    parameters: FloatArray
    wanted: NDArray[np.bool_]
    slopes: SlopeRows

    @classmethod
    def of(
        cls,
        angle_map: AngleMap,
        parameters: FloatArray,
        wanted: NDArray[np.bool_],
        *,
        first_sample: int = 0,
        bases: FloatArray | None = None,
    ) -> AdjointPlan:
        """Plan the gradient with respect to the ``wanted`` (shape ``(L,)``) parameters."""
        base, columns = _angles(angle_map, parameters, wanted, noiseless=True)
        slopes = SlopeRows.numbered(first_sample, base, columns=columns, bases=bases)
        return cls(angle_map, parameters, wanted, slopes)

    @property
    def rows(self) -> Rows:
        return self.slopes

    def _from_points(self, answers: FloatArray) -> SampleGradients:
        columns = self.slopes.columns
        slopes = np.zeros_like(self.slopes.base)
        slopes[:, columns] = answers[:, 0].reshape(len(slopes), len(columns))
        gradient = self.angle_map.vjp(self.parameters, slopes, self.wanted, columns)
        return SampleGradients(gradient, np.zeros_like(gradient))


@dataclass(frozen=True, eq=False)
class SpsaPlan(GradientPlan):
    """Simultaneous perturbation: two rows a sample and resampling, whatever the parameters.

    The estimate is a random projection: unbiased up to the square of the perturbation, and its
    spread over directions comes on top of the shot variance, which is all that is reported.

    Args:
        signs: +1 or -1 for each sample, resampling and wanted parameter, else 0, ``(B, S, L)``.
        perturbation: size of the perturbation, in radians.
        points: the rows.

    References:
        J. C. Spall, Multivariate stochastic approximation using a simultaneous perturbation
        gradient approximation, IEEE Trans. Autom. Control 37, 332 (1992), doi:10.1109/9.119632.
    """

    signs: FloatArray
    perturbation: float
    points: PointRows

    @classmethod
    def of(
        cls,
        angle_map: AngleMap,
        parameters: FloatArray,
        wanted: NDArray[np.bool_],
        *,
        perturbation: float,
        resamplings: int,
        noise: NoiseStream,
        first_sample: int = 0,
        bases: FloatArray | None = None,
    ) -> SpsaPlan:
        """Plan the estimate for the ``wanted`` (shape ``(L,)``) parameters."""
        samples, size = parameters.shape
        signs = np.empty((samples, resamplings, size))
        directions = noise.for_purpose("directions").generators(first_sample, samples)
        for sample, generator in enumerate(directions):
            signs[sample] = 2.0 * generator.integers(0, 2, size=(resamplings, size)) - 1.0
        signs[..., ~wanted] = 0.0
        steps = np.stack([signs, -signs], axis=2) * perturbation  # (B, S, 2, L)
        points = parameters[:, None, :] + steps.reshape(samples, 2 * resamplings, size)
        # One table for each row of a sample: an error names the sample by its number in a table.
        base = np.stack([angle_map.values(points[:, r]) for r in range(2 * resamplings)], axis=1)
        rows = PointRows.numbered(first_sample, base, pairs=True, bases=bases)
        return cls(signs, perturbation, rows)

    @property
    def rows(self) -> Rows:
        return self.points

    def _from_points(self, answers: FloatArray) -> SampleGradients:
        samples, resamplings, _ = self.signs.shape
        pairs = answers.reshape(samples, resamplings, 2, 2)
        slopes = (pairs[:, :, 0, 0] - pairs[:, :, 1, 0]) / (2.0 * self.perturbation)
        variances = pairs[..., 1].sum(axis=2) / (2.0 * self.perturbation) ** 2
        return SampleGradients(
            np.einsum("bs,bsl->bl", slopes, self.signs) / resamplings,
            np.einsum("bs,bsl->bl", variances, self.signs**2) / resamplings**2,
        )


def _angles(
    angle_map: AngleMap, parameters: FloatArray, wanted: NDArray[np.bool_], *, noiseless: bool
) -> tuple[FloatArray, IntArray]:
    """Angles of each sample, and which of them to differentiate, whose slopes are all finite."""
    base = angle_map.values(parameters)
    columns = angle_map.reached_by(wanted, noiseless=noiseless)
    angle_map.check_slopes(parameters, wanted, columns)
    return base, columns
