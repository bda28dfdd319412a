"""Checks of what an `IBMBackend` is made with."""

from __future__ import annotations

import math
from typing import Any

from qiskit.providers import BackendV2

from qailab.errors import InputError, InputTypeError


def checked_name(name: object) -> str | BackendV2 | None:
    """A backend's name, or a simulator.

    Raises:
        InputError: if it is neither, or a live backend.
    """
    if name is None or (isinstance(name, str) and name):
        return name
    if not isinstance(name, BackendV2):
        raise InputTypeError(
            f"name must be a backend's name, None for the least busy one, a fake backend or an "
            f"AerSimulator; got {name!r}"
        )
    if getattr(name, "service", None) is not None:
        raise InputError(
            f"give the backend's name, {name.name!r}: a live backend holds an account, which must "
            "not travel; the client's own is used where the rows run"
        )
    return name


def checked_seconds(name: str, value: object) -> float:
    """A positive number of seconds.

    Raises:
        InputError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputTypeError(f"{name} must be a number of seconds, got {value!r}")
    if not 0 < value < math.inf:
        raise InputError(f"{name} must be positive and finite (seconds), got {value!r}")
    return float(value)


def checked_instance(kind: type[Any], name: str, value: object) -> Any:
    """An instance of a class; one with its defaults for None.

    Raises:
        InputTypeError: if it is of another class.
    """
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InputTypeError(f"{name} must be {kind.__name__}, got {value!r}")
    return value
