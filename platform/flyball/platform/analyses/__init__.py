"""Analyses: from finished artifacts to typed rows, a table, a picture, and a run in MLflow.

Each is a figure of the TNN paper: `compare_methods` Fig. 3, `component_use` Fig. 4,
`throttling_curves` Fig. 5, `class_curves` Fig. 8, `controller_against_fixed` Fig. 9, and
`measure_path` Fig. 10.
"""

from flyball.platform.analyses.analysis import Analysis, Written, write_analysis
from flyball.platform.analyses.artifacts import (
    Finished,
    finished,
    finished_controller,
    vanilla_of,
    vanilla_phase1,
)
from flyball.platform.analyses.comparisons import comparison_of, open_comparison
from flyball.platform.analyses.components import ComponentRow, ComponentUse, component_use
from flyball.platform.analyses.controller import (
    ControllerAnalysis,
    ControllerRow,
    controller_against_fixed,
)
from flyball.platform.analyses.curves import CurveRow, Curves, Source, throttling_curves
from flyball.platform.analyses.gates import GatePoint, GatesCompared, compare_methods
from flyball.platform.analyses.measured import Measured, MeasuredRow, measure_path
from flyball.platform.analyses.per_class import PerClass, PerClassRow, class_curves
from flyball.platform.analyses.run import ANALYSES, AnalysisOptions, AnalysisResult, run_analysis
from flyball.platform.analyses.timing import MeasureConfig

__all__ = [
    "ANALYSES",
    "Analysis",
    "AnalysisOptions",
    "AnalysisResult",
    "ComponentRow",
    "ComponentUse",
    "ControllerAnalysis",
    "ControllerRow",
    "CurveRow",
    "Curves",
    "Finished",
    "GatePoint",
    "GatesCompared",
    "MeasureConfig",
    "Measured",
    "MeasuredRow",
    "PerClass",
    "PerClassRow",
    "Source",
    "Written",
    "class_curves",
    "compare_methods",
    "comparison_of",
    "component_use",
    "controller_against_fixed",
    "finished",
    "finished_controller",
    "measure_path",
    "open_comparison",
    "run_analysis",
    "throttling_curves",
    "vanilla_of",
    "vanilla_phase1",
    "write_analysis",
]
