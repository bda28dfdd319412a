"""Backends: where rows run. The seam is `Backend`; Aer simulates, IBM is hardware."""

from typing import Any

from qailab.backends.aer import AerBackend
from qailab.backends.base import ActorResources, Backend, BackendTraits, Probabilities, Usage
from qailab.backends.budget import Budget
from qailab.backends.emulated import EmulatedBackend
from qailab.backends.ibm import IBMBackend, IBMWaits
from qailab.backends.limits import IBMLimits

__all__ = [
    "ActorResources",
    "AerBackend",
    "Backend",
    "BackendTraits",
    "Budget",
    "EmulatedBackend",
    "IBMBackend",
    "IBMLimits",
    "IBMWaits",
    "Probabilities",
    "Usage",
]

_RENAMED = {"RehearsalBackend": "EmulatedBackend", "Outcomes": "Probabilities"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        import warnings

        new = _RENAMED[name]
        warnings.warn(f"{name} is now called {new}", DeprecationWarning, stacklevel=2)
        return globals()[new]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
