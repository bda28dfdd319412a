"""Backends: where rows run. The seam is `Backend`; kernels and Aer simulate, IBM is hardware."""

from qailab.backends.aer import AerBackend
from qailab.backends.answers import Probabilities, Usage
from qailab.backends.base import ActorResources, Backend, BackendTraits
from qailab.backends.budget import Budget
from qailab.backends.emulated import EmulatedBackend
from qailab.backends.ibm import IBMBackend, IBMTimeouts, IBMWaits
from qailab.backends.ibm.limits import IBMLimits
from qailab.backends.statevector import StatevectorBackend
from qailab.deprecation import renamed

__all__ = [
    "ActorResources",
    "AerBackend",
    "Backend",
    "BackendTraits",
    "Budget",
    "EmulatedBackend",
    "IBMBackend",
    "IBMLimits",
    "IBMTimeouts",
    "IBMWaits",
    "Probabilities",
    "StatevectorBackend",
    "Usage",
]

__getattr__ = renamed(
    __name__, {"RehearsalBackend": "EmulatedBackend", "Outcomes": "Probabilities"}
)
