"""Problem, algorithm and backend, joined by the `QuantumLauncher`."""

from qailab.launchers.algorithms import Algorithm, BackwardPass, ForwardPass
from qailab.launchers.launcher import (
    Gradient,
    LaunchHandle,
    QuantumLauncher,
    RowEvaluator,
    StepContext,
)
from qailab.launchers.prefetch import Prefetch
from qailab.launchers.problem import CircuitProblem
from qailab.launchers.watched import WatchedPlace

__all__ = [
    "Algorithm",
    "BackwardPass",
    "CircuitProblem",
    "ForwardPass",
    "Gradient",
    "LaunchHandle",
    "Prefetch",
    "QuantumLauncher",
    "RowEvaluator",
    "StepContext",
    "WatchedPlace",
]
