"""Parameter expressions over a batch: values and Jacobians, in numpy.

``ExpressionMap`` evaluates ``E`` expressions of ``L`` logical parameters for ``B`` samples at
once. Affine expressions, which is nearly all of them, are one matrix; the others become numpy
functions of the samples' columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from qiskit.circuit import Parameter, ParameterExpression

from qailab.errors import CircuitError, InputError
from qailab.gradients.rows import FloatArray

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

    def pull_back(
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
        pulled = cotangent @ self._matrix**power
        for (row, col), function in self._partials.items():
            slope = self._checked(function, parameters, row, "the derivative")
            pulled[:, col] += cotangent[:, row] * slope**power
        return pulled

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
