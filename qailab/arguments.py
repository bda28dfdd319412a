"""Checks of arguments, each with a message that says what is valid and what came."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

from qailab.errors import InputError, InputTypeError


def check_choice(what: str, value: object, valid: Sequence[str]) -> None:
    """Raise an error that lists the valid choices if ``value`` is none of them.

    Raises:
        InputError: if the value is not valid.
    """
    if value not in valid:
        raise InputError(f"{what} must be one of {', '.join(map(repr, valid))}; got {value!r}")


def checked_integer(
    what: str, value: object, *, least: int = 1, most: int | None = None, hint: str = ""
) -> int:
    """Return ``value`` as an int if it is an integer in range.

    Args:
        what: the argument's name.
        value: what was passed; numpy's integers count, booleans do not.
        least: the smallest valid value.
        most: the largest valid value, or None.
        hint: what to say about other valid values, or what to do.

    Raises:
        InputTypeError: if it is not an integer.
        InputError: if it is out of range.
    """
    if type(value) is int and least <= value and (most is None or value <= most):
        return value  # quick, as it is asked at every step
    kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
    if most is not None:
        kind += f" of at most {most}" if least == 1 else f" and at most {most}"
    wrong = f"{what} must be {kind}{hint}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputTypeError(wrong)
    number = int(value)
    if number < least or (most is not None and number > most):
        raise InputError(wrong)
    return number
