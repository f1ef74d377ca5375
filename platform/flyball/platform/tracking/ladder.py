"""An evaluation as MLflow views show it: figures, a curve, a table; pure functions of its JSON."""

from collections.abc import Mapping
from typing import Any

__all__ = ["ladder_curve", "ladder_summary", "ladder_table"]

LEARNED = "learned"
CURVE = "val/accuracy_at_utilization"
_FIGURES = {
    "accuracy": "accuracy",
    "utilization": "utilization",
    "gross": "throttle_ratio_gross",
    "net": "throttle_ratio_net",
    "reward": "reward",
}


def ladder_summary(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The figures runs are compared by, as `summary/...`.

    Those of the learned controller, its gain over the static mixture on every split that has one,
    its share of the informed ceiling, and 1 where it is dominated.
    """
    values: dict[str, Any] = {}
    learned = evaluation.get("rungs", {}).get(LEARNED, {})
    for figure, shown in _FIGURES.items():
        values[shown] = learned.get(figure)
    for split, gain in (evaluation.get("gain_over_static") or {}).items():
        values[f"gain_over_static_{split}"] = gain
    values["share_of_informed_ceiling"] = evaluation.get("share_of_informed_ceiling")
    values["dominated"] = evaluation.get("dominated")
    means = {name: _mean(value) for name, value in values.items()}
    return {f"summary/{name}": value for name, value in means.items() if value is not None}


def ladder_curve(evaluation: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
    """Accuracy against utilization as points of one metric, at step = percent of utilization."""
    points = [
        (round(100 * float(point["utilization"])), _mean(point["accuracy"]))
        for point in evaluation.get("curve") or ()
    ]
    return [(step, {CURVE: accuracy}) for step, accuracy in points if accuracy is not None]


def ladder_table(evaluation: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Every rung as a row: its name, and mean, low and high of every figure."""
    columns: dict[str, list[Any]] = {"rung": []}
    for name, rung in evaluation.get("rungs", {}).items():
        columns["rung"].append(name)
        for figure, shown in _FIGURES.items():
            value = rung.get(figure)
            bounds = value if isinstance(value, Mapping) else {}
            columns.setdefault(shown, []).append(_mean(value))
            for bound in ("low", "high"):
                columns.setdefault(f"{shown}_{bound}", []).append(_mean(bounds.get(bound)))
    return columns


def _mean(value: Any) -> float | None:
    if isinstance(value, Mapping):
        value = value.get("mean")
    return None if value is None else float(value)
