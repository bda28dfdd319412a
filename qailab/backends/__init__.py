"""Backends: where rows run. The seam is `Backend`; Aer simulates, IBM is hardware."""

from qailab.backends.aer import AerBackend
from qailab.backends.base import ActorResources, Backend, Outcomes, Usage
from qailab.backends.budget import Budget
from qailab.backends.ibm import IBMBackend, IBMWaits
from qailab.backends.limits import IBMLimits
from qailab.backends.rehearsal import RehearsalBackend

__all__ = [
    "ActorResources",
    "AerBackend",
    "Backend",
    "Budget",
    "IBMBackend",
    "IBMLimits",
    "IBMWaits",
    "Outcomes",
    "RehearsalBackend",
    "Usage",
]
