import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qailab.errors import InputError
from qailab.gradients import TWO_TERM_RULE, ShiftRule

angles = st.floats(-10, 10)


@given(angles, angles, angles, angles)
def test_two_term_rule_differentiates_every_sinusoid(t, a, b, c):
    def f(t):
        return a + b * math.cos(t) + c * math.sin(t)

    terms = zip(TWO_TERM_RULE.coefficients, TWO_TERM_RULE.shifts, strict=True)
    derivative = sum(coefficient * f(t + shift) for coefficient, shift in terms)
    assert derivative == pytest.approx(-b * math.sin(t) + c * math.cos(t), abs=1e-12)


def test_a_four_term_rule_for_two_frequencies_exists():
    # Controlled rotations have frequencies 1/2 and 1.
    shifts = (math.pi / 2, -math.pi / 2, 3 * math.pi / 2, -3 * math.pi / 2)
    s = np.array(shifts)
    equations = np.array([np.sin(w * s[::2]) * 2 for w in (0.5, 1.0)])
    c1, c2 = np.linalg.solve(equations, [0.5, 1.0])
    rule = ShiftRule((c1, -c1, c2, -c2), shifts, frequencies=(0.5, 1.0))
    assert rule.num_terms == 4


@pytest.mark.parametrize(
    ("coefficients", "shifts"),
    [
        ((0.5, -0.5), (math.pi / 4, -math.pi / 4)),
        ((0.5, 0.5), (math.pi / 2, -math.pi / 2)),
        ((0.5,), (math.pi / 2,)),
        ((float("nan"), float("nan")), (1.0, -1.0)),
    ],
)
def test_a_wrong_rule_refuses_to_exist(coefficients, shifts):
    with pytest.raises(InputError, match="not exact"):
        ShiftRule(coefficients, shifts)


def test_lengths_must_agree():
    with pytest.raises(InputError, match="2 coefficients and 1 shifts"):
        ShiftRule((0.5, -0.5), (1.0,))
