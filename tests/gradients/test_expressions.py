import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.circuit import Parameter, ParameterVector

from qailab.errors import CircuitError, InputError
from qailab.gradients.angles import ExpressionMap

x, y = Parameter("x"), Parameter("y")
CASES = {
    "x": (x, lambda x, y: x),
    "2*x + y": (2 * x + y, lambda x, y: 2 * x + y),
    "x - y/3 + 1": (x - y / 3 + 1, lambda x, y: x - y / 3 + 1),
    "2*x - 2*x": (2 * x - 2 * x, lambda x, y: 0 * x),
    "x*y": (x * y, lambda x, y: x * y),
    "sin(x)": (x.sin(), lambda x, y: np.sin(x)),
    "cos(x*y)": ((x * y).cos(), lambda x, y: np.cos(x * y)),
    "tan(x)": (x.tan(), lambda x, y: np.tan(x)),
    "exp(x) * y": (x.exp() * y, lambda x, y: np.exp(x) * y),
    "log(x)": (x.log(), lambda x, y: np.log(x)),
    "arcsin(x)": (x.arcsin(), lambda x, y: np.arcsin(x)),
    "arccos(x)": (x.arccos(), lambda x, y: np.arccos(x)),
    "arctan(x)": (x.arctan(), lambda x, y: np.arctan(x)),
    "x**2": (x**2, lambda x, y: x**2),
    "x**y": (x**y, lambda x, y: x**y),
    "x/y": (x / y, lambda x, y: x / y),
    "abs(x - y)": ((x - y).abs(), lambda x, y: np.abs(x - y)),
    "conj(x)": (x.conjugate(), lambda x, y: x),
    "log(2*x) - log(x) + y": ((2 * x).log() - x.log() + y, lambda x, y: np.log(2) + 0 * x + y),
    "2.0**x": (2.0**x, lambda x, y: 2.0**x),
    "3 * 1.5**(x*y) - y": (3 * 1.5 ** (x * y) - y, lambda x, y: 3 * 1.5 ** (x * y) - y),
}
POINTS = np.array([[0.3, 0.7], [0.9, 0.2], [0.11, 0.5]])


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives(name):
    expression, function = CASES[name]
    mapping = ExpressionMap([expression], [x, y], ["a gate"])
    np.testing.assert_allclose(mapping.values(POINTS)[:, 0], function(*POINTS.T), atol=1e-14)

    cotangent = np.array([[1.0], [-2.0], [0.5]])
    step = 1e-5
    differences = np.stack(
        [
            (function(*(POINTS + step * e).T) - function(*(POINTS - step * e).T)) / (2 * step)
            for e in np.eye(2)
        ],
        axis=1,
    )
    np.testing.assert_allclose(mapping.vjp(POINTS, cotangent), cotangent * differences, atol=1e-7)
    np.testing.assert_allclose(
        mapping.vjp(POINTS, cotangent**2, squared=True),
        (cotangent * differences) ** 2,
        atol=1e-7,
    )


def leaves():
    numbers = st.floats(-2, 2).map(lambda value: round(value, 3))
    return st.one_of(st.sampled_from([x, y]), numbers)


def combined(inner):
    binary = st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner)
    unary = st.tuples(st.sampled_from(["sin", "cos", "arctan", "neg", "power"]), inner)
    return st.one_of(binary, unary)


def build(tree):
    """A tree of operations as a ParameterExpression, and as a function of numbers."""
    if isinstance(tree, float):
        return tree, lambda point: tree
    if isinstance(tree, Parameter):
        return tree, lambda point: point[0 if tree is x else 1]
    if len(tree) == 2:
        name, (inner, number) = tree[0], build(tree[1])
        if name == "neg":
            return -inner, lambda point: -number(point)
        expression = inner if not isinstance(inner, float) else inner + 0 * x
        if name == "power":  # of something small: these trees may grow
            return 1.5 ** expression.sin(), lambda point: 1.5 ** np.sin(number(point))
        return getattr(expression, name)(), lambda point: getattr(np, name)(number(point))
    (left, f), operator, (right, g) = build(tree[0]), tree[1], build(tree[2])
    apply = {"+": np.add, "-": np.subtract, "*": np.multiply}[operator]
    symbolic = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    return symbolic[operator](left, right), lambda point: apply(f(point), g(point))


@given(st.recursive(leaves(), combined, max_leaves=8))
def test_any_expression_has_its_value_and_derivative(tree):
    expression, function = build(tree)
    mapping = ExpressionMap([expression + 0 * x + 0 * y], [x, y], ["a gate"])
    point = np.array([0.37, -0.81])
    assert mapping.values(point[None])[0, 0] == pytest.approx(function(point), abs=1e-12)
    step = 1e-5
    slopes = [
        (function(point + step * e) - function(point - step * e)) / (2 * step) for e in np.eye(2)
    ]
    pulled = mapping.vjp(point[None], np.ones((1, 1)))[0]
    np.testing.assert_allclose(pulled, slopes, rtol=1e-5, atol=1e-6)


@settings(max_examples=15)
@given(st.lists(st.floats(-3, 3).filter(lambda v: abs(v) > 1e-3), min_size=2, max_size=2))
def test_affine_expressions_that_qiskit_cancels_at_zero_keep_their_offset(numbers):
    factor, offset = numbers
    expression = (abs(factor) * x).log() - x.log() + y * y / y + offset
    mapping = ExpressionMap([expression], [x, y], ["a gate"])
    expected = np.log(abs(factor)) + POINTS[:, 1] + offset
    np.testing.assert_allclose(mapping.values(POINTS)[:, 0], expected, atol=1e-12)


def test_derivatives_that_do_not_count_need_not_be_finite():
    mapping = ExpressionMap([x.arcsin() + y], [x, y], ["a gate"])
    point, one = np.array([[1.0, 0.3]]), np.ones((1, 1))
    assert mapping.vjp(point, one, live=np.array([[False, True]])).tolist() == [[0.0, 1.0]]
    with pytest.raises(InputError, match=r"derivative.*a gate.*sample 0: inf"):
        mapping.vjp(point, one)


def test_complex_values_are_no_angles():
    mapping = ExpressionMap([(1j * x).exp()], [x], ["a gate"])
    with pytest.raises(InputError, match=r"value.*a gate.*not a finite number"):
        mapping.values(np.array([[0.3]]))


def test_names_that_sympy_reads_otherwise():
    awkward = [Parameter("E"), Parameter("I"), Parameter("lambda"), *ParameterVector("x[0]", 1)]
    mapping = ExpressionMap([sum((p.sin() for p in awkward), 0 * x)], [x, *awkward], ["a gate"])
    point = np.array([[0.0, 0.1, 0.2, 0.3, 0.4]])
    assert mapping.values(point)[0, 0] == pytest.approx(np.sin(point).sum())


def test_reach_is_which_parameters_an_expression_has():
    mapping = ExpressionMap([x, x * y, 2 * y], [x, y], ["gate"] * 3)
    assert mapping.reach.tolist() == [[True, False], [True, True], [False, True]]


def test_without_derivative_the_instruction_is_named():
    with pytest.raises(CircuitError, match=r"instruction 4.*'x'"):
        ExpressionMap([x.sign()], [x], ["instruction 4"])


def test_a_value_that_is_no_number_names_instruction_and_sample():
    mapping = ExpressionMap([x.log()], [x], ["instruction 2"])
    with pytest.raises(InputError, match=r"instruction 2.*sample 1"):
        mapping.values(np.array([[1.0], [-1.0]]))
    root = ExpressionMap([x**0.5], [x], ["instruction 0"])
    with pytest.raises(InputError, match=r"derivative.*instruction 0.*sample 0"):
        root.vjp(np.array([[0.0]]), np.array([[1.0]]))
