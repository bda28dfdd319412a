"""Where the angles of a canonical circuit come from, and the chain rule back.

An angle is an expression of the logical parameters, or belongs to a state preparation whose
angles are functions of features, which in turn are expressions of the logical parameters.

Affine expressions, which is nearly all of them, are one matrix (`ExpressionMap`); the others become
numpy functions of the samples' columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Parameter, ParameterExpression

from qailab.circuit.amplitude import AmplitudeEncodingGate
from qailab.errors import CircuitError, InputError
from qailab.gradients.rows import FloatArray, IntArray

BoolArray = NDArray[np.bool_]
ColumnFunction = Callable[[FloatArray], FloatArray]

_GOLDEN = 0.6180339887498949  # its multiples are spread evenly: points without a pattern
_AGREEMENT = 1e-12  # of two values that are computed alike, relative to one


class ExpressionMap:
    """The map from logical parameters ``(B, L)`` to the values of expressions ``(B, E)``.

    Args:
        expressions: one expression for each output.
        parameters: the logical parameters, in the order of the columns.
        owners: for each expression, the instruction it belongs to (for messages).

    Raises:
        CircuitError: if an expression is complex, or has a parameter that is not among the logical
            ones or that it has no derivative for (as ``sign(x)`` has none).
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
            unknown = sorted(p.name for p in expression.parameters if p not in column_of)
            if unknown:
                raise CircuitError(
                    f"the angle of {self._owners[row]} has parameters that the circuit does not "
                    f"list ({', '.join(unknown)}): the gate hides them; decompose it first"
                )
            used = sorted((column_of[p], p) for p in expression.parameters)
            columns, own = [col for col, _ in used], [p for _, p in used]
            self.reach[row, columns] = True
            affine = _affine(expression, own, self._owners[row])
            if affine is not None:
                self._matrix[row, columns], self._offset[row] = affine
                continue
            tree, symbols = _sympy_tree(expression, own, self._owners[row])
            self._functions[row] = _column_function(tree, symbols, columns)
            for col, symbol in zip(columns, symbols, strict=True):
                # Not qiskit's own partial: its conversion to sympy is wrong for derivatives.
                partial = _column_function(tree.diff(symbol), symbols, columns)
                self._partials[row, col] = partial

    @property
    def is_affine(self) -> bool:
        """Whether all expressions are, so that their derivatives are finite everywhere."""
        return not self._functions

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
        self,
        parameters: FloatArray,
        cotangent: FloatArray,
        *,
        live: BoolArray | None = None,
        squared: bool = False,
    ) -> FloatArray:
        """Multiply by the Jacobian from the left: ``sum_e cotangent[b, e] * d e / d l``.

        Args:
            parameters: logical parameters, shape ``(B, L)``.
            cotangent: one number for each expression and sample, shape ``(B, E)``.
            live: the entries of the Jacobian that count, shape ``(E, L)``; all by default. The
                others need not be finite.
            squared: whether to use the squares of the Jacobian's entries (for variances).

        Returns:
            Shape ``(B, L)``.
        """
        live = self.reach if live is None else live
        power = 2 if squared else 1
        gradient: FloatArray = cotangent @ np.where(live, self._matrix, 0.0) ** power
        for (row, col), function in self._partials.items():
            if live[row, col]:
                slope = self._checked(function, parameters, row, "the derivative")
                gradient[:, col] += cotangent[:, row] * slope**power
        return gradient

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
        self._is_affine = direct.is_affine and not self._prepared
        # Of what is asked for again at every step, by what is wanted.
        self._reached: dict[tuple[bytes, bool], IntArray] = {}
        self._lives: dict[tuple[bytes, bytes], BoolArray] = {}

    def values(self, parameters: FloatArray) -> FloatArray:
        """Angles in radians, shape ``(B, A)``, for logical parameters of shape ``(B, L)``."""
        angles = np.zeros((len(parameters), self._num_angles))
        angles[:, self._columns] = self._direct.values(parameters)
        for piece in self._prepared:
            angles[:, piece.columns] = piece.gate.angles(piece.features.values(parameters))
        return angles

    def check_slopes(self, parameters: FloatArray, wanted: BoolArray, columns: IntArray) -> None:
        """Raise an error, before anything runs, where a derivative that is needed is not finite.

        Args:
            parameters: logical parameters, shape ``(B, L)``.
            wanted: which of them are differentiated for, shape ``(L,)``.
            columns: the angles that are shifted.

        Raises:
            InputError: naming the instruction and the sample.
        """
        if self._is_affine:
            return
        live = self._live(wanted, columns)
        self._direct.vjp(parameters, np.zeros((len(parameters), len(self._columns))), live=live)
        for piece in self._prepared:
            live = wanted & piece.features.reach
            if np.isin(piece.columns, columns).any() and live.any():
                piece.features.vjp(parameters, np.zeros((len(parameters), len(live))), live=live)
                piece.gate.check_slopes(piece.features.values(parameters))

    def reached_by(self, wanted: BoolArray, *, noiseless: bool = False) -> IntArray:
        """The angles that wanted parameters reach and that can change an outcome, ascending.

        Args:
            wanted: which logical parameters are wanted, shape ``(L,)``.
            noiseless: whether the circuit runs without noise. Then angles outside the measured
                qubits' light cone change nothing; routing and noise may carry them into it.
        """
        known = self._reached.get(key := (wanted.tobytes(), noiseless))
        if known is not None:
            return known
        reached = set(self._columns[self._direct.reach[:, wanted].any(axis=1)].tolist())
        for piece in self._prepared:
            if piece.features.reach[:, wanted].any():
                reached |= set(piece.columns.tolist())
        if noiseless:
            reached &= set(self._relevant.tolist())
        self._reached[key] = np.array(sorted(reached), dtype=np.int64)
        return self._reached[key]

    def vjp(
        self,
        parameters: FloatArray,
        cotangent: FloatArray,
        wanted: BoolArray,
        columns: IntArray,
        *,
        squared: bool = False,
    ) -> FloatArray:
        """Chain rule: derivatives for angles become derivatives for logical parameters.

        Args:
            parameters: logical parameters, shape ``(B, L)``.
            cotangent: one number for each sample and angle, shape ``(B, A)``.
            wanted: which parameters to differentiate for, shape ``(L,)``; others get zero.
            columns: the angles whose cotangents count.
            squared: whether to multiply by squared Jacobian entries, as variances need.

        Returns:
            Shape ``(B, L)``.
        """
        live = self._live(wanted, columns)
        of_direct = cotangent[:, self._columns]
        gradient = self._direct.vjp(parameters, of_direct, live=live, squared=squared)
        for piece in self._prepared:
            live = wanted & piece.features.reach
            if not (live.any() and np.isin(piece.columns, columns).any()):
                continue
            features = piece.features.values(parameters)
            for b, sample in enumerate(features):
                # The two maps are multiplied before squaring: a variance needs whole entries.
                total = piece.features.vjp(
                    np.repeat(parameters[b : b + 1], piece.gate.num_angles, axis=0),
                    piece.gate.jacobian(sample),
                    live=live,
                )
                gradient[b] += cotangent[b, piece.columns] @ (total**2 if squared else total)
        return gradient

    def _live(self, wanted: BoolArray, columns: IntArray) -> BoolArray:
        """The slopes of direct angles that count, shape ``(direct angles, L)``."""
        key = wanted.tobytes(), columns.tobytes()
        if key not in self._lives:
            shifted = np.isin(self._columns, columns)
            self._lives[key] = self._direct.reach & wanted & shifted[:, None]
        return self._lives[key]


def _affine(
    expression: ParameterExpression, parameters: Sequence[Parameter], owner: str
) -> tuple[list[float], float] | None:
    """Slopes and offset of an affine expression; None if it is another, or nobody can tell.

    The offset is the value at zero if that is the offset everywhere: Qiskit may cancel what is
    infinite there, as the logarithms in ``log(2 a) - log(a)``. So two generic points decide.
    """
    if isinstance(expression, Parameter):
        return [1.0], 0.0
    slopes: list[float] = []
    for parameter in parameters:
        slope = _constant_slope(expression, parameter, owner)
        if slope is None:
            return None
        slopes.append(slope)

    point = _generic_point(len(parameters))
    size = 1.0 + float(np.abs(slopes) @ point)

    def offset(scale: float) -> float:
        value = _value_at(expression, parameters, scale * point)
        return value - float(np.dot(slopes, scale * point))

    for sign in (1.0, -1.0):
        first, second, at_zero = offset(0.4 * sign), offset(0.9 * sign), offset(0.0)
        tolerance = _AGREEMENT * (size + abs(first))
        if abs(first - second) <= tolerance:
            return slopes, at_zero if abs(first - at_zero) <= tolerance else first
    return None


def _generic_point(size: int) -> FloatArray:
    """A point between 1 and 2 without a pattern."""
    point: FloatArray = 1.0 + np.modf(np.arange(1, size + 1) * _GOLDEN)[0]
    return point


def _value_at(
    expression: ParameterExpression, parameters: Sequence[Parameter], point: FloatArray
) -> float:
    """Qiskit's value of an expression, nan where it has no real one."""
    try:
        value = complex(expression.bind(dict(zip(parameters, point, strict=True))).numeric())
    except Exception:  # whatever it raises where there is none
        return math.nan
    return value.real if abs(value.imag) < _AGREEMENT * (1.0 + abs(value)) else math.nan


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
    expression: ParameterExpression, parameters: Sequence[Parameter], owner: str
) -> tuple[Any, list[Any]]:
    """The expression as a sympy tree, and the real symbols that stand for the parameters.

    Raises:
        CircuitError: if there is no such tree that has the expression's values.
    """
    import sympy  # only needed for expressions that are not affine, and slow to import

    # Neutral names first: sympy would read a parameter called "E" or "x[0]" as something else.
    names = [f"p{i}" for i in range(len(parameters))]
    neutral = expression.subs(
        {p: Parameter(name) for p, name in zip(parameters, names, strict=True)}
    )
    # Then real symbols: sympy takes plain ones for complex, which abs() and conjugate() show.
    real = [sympy.Dummy(name, real=True) for name in names]
    points = [scale * _generic_point(len(real)) for scale in (0.4, -0.4, 0.9)]
    expected = np.array([_value_at(expression, parameters, point) for point in points])
    # Qiskit's own conversion fails at `2.0**x`; what it writes is Python, but for a few brackets.
    for convert in (
        neutral.sympify,
        lambda: sympy.parse_expr(str(neutral), {"conj": sympy.conjugate, "abs": sympy.Abs}),
    ):
        with suppress(Exception), np.errstate(all="ignore"):
            tree = convert().subs(dict(zip(map(sympy.Symbol, names), real, strict=True)))
            found = _column_function(tree, real, range(len(real)))(np.array(points))
            off = np.abs(found - expected) > 1e-9 * (1.0 + np.abs(expected))
            if not off.any():
                return tree, real
    raise CircuitError(
        f"the angle of {owner} is {expression}, which cannot be translated to be differentiated; "
        "write its powers with exp() and log()"
    )


def _column_function(tree: Any, symbols: Sequence[Any], columns: Sequence[int]) -> ColumnFunction:
    """A sympy tree as a function of the whole ``(B, L)`` table."""
    import sympy

    function = sympy.lambdify(symbols, tree, modules="numpy")

    def evaluate(table: FloatArray) -> FloatArray:
        column = np.asarray(function(*(table[:, i] for i in columns)))
        real: FloatArray = np.where(column.imag == 0, column.real, np.nan).astype(np.float64)
        return real

    return evaluate
