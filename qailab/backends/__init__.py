"""Backends: where rows run. The seam is `Backend`; `AerBackend` simulates."""

from qailab.backends.aer import AerBackend
from qailab.backends.base import ActorResources, Backend, Outcomes, Usage
from qailab.backends.rehearsal import RehearsalBackend

__all__ = ["ActorResources", "AerBackend", "Backend", "Outcomes", "RehearsalBackend", "Usage"]
