"""Where the angles of a canonical circuit come from, and the chain rule back.

An angle is an expression of the logical parameters, or belongs to a state preparation whose
angles are functions of features, which in turn are expressions of the logical parameters.

Affine expressions, which is nearly all of them, are one matrix (`ExpressionMap`); the others become
numpy functions of the samples' columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Parameter, ParameterExpression

from qailab.circuit.amplitude import AmplitudeEncodingGate
from qailab.errors import CircuitError, InputError
from qailab.gradients.rows import FloatArray, IntArray

ColumnFunction = Callable[[FloatArray], FloatArray]


class ExpressionMap:
    """The map from logical parameters ``(B, L)`` to the values of expressions ``(B, E)``.

    Args:
        expressions: one expression for each output.
        parameters: the logical parameters, in the order of the columns.
        owners: for each expression, the instruction it belongs to (for messages).

    Raises:
        CircuitError: if an expression has a parameter without derivative (as ``sign(x)`` has).
    """

    def __init__(
        self,
        expressions: Sequence[ParameterExpression],
        parameters: Sequence[Parameter],
        owners: Sequence[str],
    ) -> None:
        self._owners = tuple(owners)
        column_of = {parameter: column for column, parameter in enumerate(parameters)}
        shape = (len(expressions), len(parameters))
        self.reach = np.zeros(shape, dtype=bool)
        self._matrix = np.zeros(shape)
        self._offset = np.zeros(len(expressions))
        self._functions: dict[int, ColumnFunction] = {}
        self._partials: dict[tuple[int, int], ColumnFunction] = {}
        for row, expression in enumerate(expressions):
            used = sorted((column_of[p], p) for p in expression.parameters)
            columns = [col for col, _ in used]
            self.reach[row, columns] = True
            slopes = [_constant_slope(expression, p, self._owners[row]) for _, p in used]
            if None not in slopes:
                self._matrix[row, columns] = slopes
                zero = expression.bind(dict.fromkeys(expression.parameters, 0.0))
                self._offset[row] = float(zero.numeric())
                continue
            tree, symbols = _sympy_tree(expression, [p for _, p in used])
            self._functions[row] = _column_function(tree, symbols, columns)
            for col, symbol in zip(columns, symbols, strict=True):
                # Not qiskit's own partial: its conversion to sympy is wrong for derivatives.
                partial = _column_function(tree.diff(symbol), symbols, columns)
                self._partials[row, col] = partial

    def values(self, parameters: FloatArray) -> FloatArray:
        """Evaluate every expression for every sample.

        Args:
            parameters: logical parameters in radians, shape ``(B, L)``.

        Returns:
            Values, shape ``(B, E)``.

        Raises:
            InputError: if a value is not finite (``log`` of a negative number, say).
        """
        values = parameters @ self._matrix.T + self._offset
        for row, function in self._functions.items():
            values[:, row] = self._checked(function, parameters, row, "the value")
        return values

    def vjp(
        self, parameters: FloatArray, cotangent: FloatArray, *, squared: bool = False
    ) -> FloatArray:
        """Multiply by the Jacobian from the left: ``sum_e cotangent[b, e] * d e / d l``.

        Args:
            parameters: logical parameters, shape ``(B, L)``.
            cotangent: one number for each expression and sample, shape ``(B, E)``.
            squared: whether to use the squares of the Jacobian's entries (for variances).

        Returns:
            Shape ``(B, L)``.
        """
        power = 2 if squared else 1
        gradient = cotangent @ self._matrix**power
        for (row, col), function in self._partials.items():
            slope = self._checked(function, parameters, row, "the derivative")
            gradient[:, col] += cotangent[:, row] * slope**power
        return gradient

    def check_slopes(self, parameters: FloatArray) -> None:
        """Raise an error where a derivative is not finite.

        Raises:
            InputError: naming the instruction and the sample.
        """
        for (row, _), function in self._partials.items():
            self._checked(function, parameters, row, "the derivative")

    def _checked(
        self, function: ColumnFunction, parameters: FloatArray, row: int, what: str
    ) -> FloatArray:
        with np.errstate(all="ignore"):  # reported below, with the sample's number
            column = np.asarray(function(parameters))
        bad = ~np.isfinite(column)
        if bad.any():
            sample = int(np.flatnonzero(np.broadcast_to(bad, len(parameters)))[0])
            raise InputError(
                f"{what} of the angle of {self._owners[row]} is not a finite number "
                f"for sample {sample}: {np.broadcast_to(column, len(parameters))[sample]}"
            )
        return column


@dataclass(frozen=True)
class PreparedAngles:
    """Angles that a state preparation computes from its features.

    Args:
        gate: the preparation.
        features: the expressions of its features.
        columns: the angles it computes, shape ``(gate.num_angles,)``.
    """

    gate: AmplitudeEncodingGate
    features: ExpressionMap
    columns: IntArray


class AngleMap:
    """The map from logical parameters ``(B, L)`` to angles ``(B, A)``, and its Jacobian.

    Args:
        num_angles: the number of angles, A.
        columns: the angles that are expressions of the logical parameters.
        direct: their expressions, one for each of ``columns``.
        prepared: the state preparations, which compute the other angles.
        relevant: the angles that can change the measured outcomes.
    """

    def __init__(
        self,
        num_angles: int,
        columns: IntArray,
        direct: ExpressionMap,
        prepared: Sequence[PreparedAngles],
        relevant: IntArray,
    ) -> None:
        self._num_angles = num_angles
        self._columns = columns
        self._direct = direct
        self._prepared = tuple(prepared)
        self._relevant = relevant

    def values(self, parameters: FloatArray) -> FloatArray:
        """Angles in radians, shape ``(B, A)``, for logical parameters of shape ``(B, L)``."""
        angles = np.zeros((len(parameters), self._num_angles))
        angles[:, self._columns] = self._direct.values(parameters)
        for piece in self._prepared:
            angles[:, piece.columns] = piece.gate.angles(piece.features.values(parameters))
        return angles

    def check_slopes(self, parameters: FloatArray) -> None:
        """Raise an error, before anything runs, where an expression has no finite derivative.

        Raises:
            InputError: naming the instruction and the sample.
        """
        for expressions in (self._direct, *(piece.features for piece in self._prepared)):
            expressions.check_slopes(parameters)

    def reached_by(self, wanted: NDArray[np.bool_]) -> IntArray:
        """The angles that wanted parameters reach and that can change an outcome, ascending.

        Args:
            wanted: which logical parameters are wanted, shape ``(L,)``.
        """
        reached = set(self._columns[self._direct.reach[:, wanted].any(axis=1)].tolist())
        for piece in self._prepared:
            if piece.features.reach[:, wanted].any():
                reached |= set(piece.columns.tolist())
        return np.array(sorted(reached & set(self._relevant.tolist())), dtype=np.int64)

    def vjp(
        self, parameters: FloatArray, cotangent: FloatArray, *, squared: bool = False
    ) -> FloatArray:
        """Chain rule: derivatives for angles become derivatives for logical parameters.

        Args:
            parameters: logical parameters, shape ``(B, L)``.
            cotangent: one number for each sample and angle, shape ``(B, A)``.
            squared: whether to multiply by squared Jacobian entries, as variances need.

        Returns:
            Shape ``(B, L)``.
        """
        gradient = self._direct.vjp(parameters, cotangent[:, self._columns], squared=squared)
        for piece in self._prepared:
            features = piece.features.values(parameters)
            for b, sample in enumerate(features):
                # The two maps are multiplied before squaring: a variance needs whole entries.
                total = piece.features.vjp(
                    np.repeat(parameters[b : b + 1], piece.gate.num_angles, axis=0),
                    piece.gate.jacobian(sample),
                )
                gradient[b] += cotangent[b, piece.columns] @ (total**2 if squared else total)
        return gradient


def _constant_slope(
    expression: ParameterExpression, parameter: Parameter, owner: str
) -> float | None:
    """The derivative if it does not depend on any parameter, else None.

    Qiskit's derivatives themselves are right; see above for what is wrong with them later.
    """
    try:
        partial = expression.gradient(parameter)
    except RuntimeError as error:  # qiskit's symbol engine knows no derivative
        raise CircuitError(
            f"the angle of {owner} cannot be differentiated with respect to "
            f"{parameter.name!r}: {error}"
        ) from error
    if isinstance(partial, ParameterExpression):
        return None
    if isinstance(partial, complex) and partial.imag:
        raise CircuitError(f"the angle of {owner} is complex; angles must be real")
    return float(partial.real)


def _sympy_tree(
    expression: ParameterExpression, parameters: Sequence[Parameter]
) -> tuple[Any, list[Any]]:
    """The expression as a sympy tree, and the real symbols that stand for the parameters."""
    import sympy  # only needed for expressions that are not affine, and slow to import

    # Neutral names first: sympy would read a parameter called "E" or "x[0]" as something else.
    names = [f"p{i}" for i in range(len(parameters))]
    neutral = {p: Parameter(name) for p, name in zip(parameters, names, strict=True)}
    # Then real symbols: sympy takes plain ones for complex, which abs() and conjugate() show.
    real = [sympy.Dummy(name, real=True) for name in names]
    tree = expression.subs(neutral).sympify()
    return tree.subs({sympy.Symbol(name): r for name, r in zip(names, real, strict=True)}), real


def _column_function(tree: Any, symbols: Sequence[Any], columns: Sequence[int]) -> ColumnFunction:
    """A sympy tree as a function of the whole ``(B, L)`` table."""
    import sympy

    function = sympy.lambdify(symbols, tree, modules="numpy")

    def evaluate(table: FloatArray) -> FloatArray:
        return np.asarray(function(*(table[:, i] for i in columns)), dtype=np.float64)

    return evaluate
