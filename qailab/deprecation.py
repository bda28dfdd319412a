"""Names that changed, kept for one release."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that finds old names under their new ones, with a warning.

    Args:
        module: the module's ``__name__``.
        names: the new name of each old one, in the same module.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} is now called {names[name]}", DeprecationWarning, stacklevel=2
        )
        return getattr(importlib.import_module(module), names[name])

    return find
