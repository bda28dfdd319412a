"""Statevectors without noise, on compiled kernels: program, kernels, sampling, work, backend."""

from qailab.backends.statevector.backend import StatevectorBackend

__all__ = ["StatevectorBackend"]
