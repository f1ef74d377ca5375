"""Learned gates g_psi(x, u): which components serve a utilization, learned once it is trained."""

from flyball.datapaths.learned_gates.comparison import Labelled, compare_gates
from flyball.datapaths.learned_gates.comparison_config import (
    METHODS,
    ComparisonConfig,
    short_comparison,
)
from flyball.datapaths.learned_gates.comparison_result import (
    Comparison,
    GateRow,
    MethodResult,
    read_comparison,
)
from flyball.datapaths.learned_gates.complexity import (
    complexity,
    component_weights,
    distance_penalty,
    hinge_penalty,
)
from flyball.datapaths.learned_gates.config import GateConfig
from flyball.datapaths.learned_gates.curves import GateCurve, accuracy_at, fixed_curve, gate_curve
from flyball.datapaths.learned_gates.gate_networks import BlindGate, ContextualGate, GateShape
from flyball.datapaths.learned_gates.learned import GateSpec, LearnedGate
from flyball.datapaths.learned_gates.training import GateResult, train_gates

__all__ = [
    "METHODS",
    "BlindGate",
    "Comparison",
    "ComparisonConfig",
    "ContextualGate",
    "GateConfig",
    "GateCurve",
    "GateResult",
    "GateRow",
    "GateShape",
    "GateSpec",
    "Labelled",
    "LearnedGate",
    "MethodResult",
    "accuracy_at",
    "compare_gates",
    "complexity",
    "component_weights",
    "distance_penalty",
    "fixed_curve",
    "gate_curve",
    "hinge_penalty",
    "read_comparison",
    "short_comparison",
    "train_gates",
]
