"""Gradients of circuits: canonical circuit, shift rule, rows and plans. No torch, no Ray."""

from qailab.gradients.angles import AngleMap
from qailab.gradients.canonical import CanonicalCircuit, canonicalize
from qailab.gradients.noise import NoiseStream
from qailab.gradients.observables import Observable, Observables
from qailab.gradients.plans import (
    AdjointPlan,
    GradientPlan,
    ParamShiftPlan,
    SampleGradients,
    SpsaPlan,
)
from qailab.gradients.rows import JoinedRows, PointRows, RowBatch, Rows, ShiftedRows, SlopeRows
from qailab.gradients.shift_rule import TWO_TERM_RULE, ShiftRule

__all__ = [
    "TWO_TERM_RULE",
    "AdjointPlan",
    "AngleMap",
    "CanonicalCircuit",
    "GradientPlan",
    "JoinedRows",
    "NoiseStream",
    "Observable",
    "Observables",
    "ParamShiftPlan",
    "PointRows",
    "RowBatch",
    "Rows",
    "SampleGradients",
    "ShiftRule",
    "ShiftedRows",
    "SlopeRows",
    "SpsaPlan",
    "canonicalize",
]
