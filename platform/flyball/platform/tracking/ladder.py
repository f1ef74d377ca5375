"""An evaluation as MLflow views show it: figures, curves, a table; pure functions of its JSON.

The JSON is what `Evaluation.to_json` gives; an interval is [mean, low, high].
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["ladder_curves", "ladder_summary", "ladder_table"]

_SPLITS = {"val": "validation_rungs", "test": "rungs"}
_FIGURES = ("accuracy", "utilization", "gross", "net", "reward")
_FIXED_ARM = "fixed_"


def ladder_summary(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The figures that runs are compared by, as `summary/...`; fixed arms left out."""
    return {f"summary/{name}": float(value) for name, value in evaluation["summary"].items()}


def ladder_curves(evaluation: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
    """Accuracy of the fixed arms against utilization, at step = percent of utilization.

    `val/accuracy_at_utilization` is measured on controller_val, `test/...` on test.
    """
    points: dict[int, dict[str, float]] = {}
    for split, rungs in _SPLITS.items():
        for rung in evaluation[rungs]:
            if rung["name"].startswith(_FIXED_ARM):
                step = round(100 * rung["utilization"][0])
                curve = f"{split}/accuracy_at_utilization"
                points.setdefault(step, {})[curve] = float(rung["accuracy"][0])
    return sorted(points.items())


def ladder_table(evaluation: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A row for every rung of every split: mean, low and high of every figure, by column."""
    columns: dict[str, list[Any]] = {"split": [], "rung": [], "detail": []}
    for split, rungs in _SPLITS.items():
        for rung in evaluation[rungs]:
            row = {"split": split, "rung": rung["name"], "detail": rung["detail"]}
            for figure in _FIGURES:
                names = (figure, f"{figure}_low", f"{figure}_high")
                row |= dict(zip(names, rung[figure], strict=True))
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    return columns
