"""The charts by which MLflow's UI shows a sweep, as the UI keeps a view that is shared.

MLflow 3 keeps a shared view in a tag of the experiment, `mlflow.sharedViewState.KEY`, and opens it
by `?viewStateShareKey=KEY`. An UI that knows no such tag shows its usual charts.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flyball.datapaths.files import fingerprint_of

__all__ = ["view_of_sweep"]

VIEW_TAG = "mlflow.sharedViewState."
CURVE = "val/accuracy_at_utilization"
_FIRST = ("summary/accuracy", "summary/net", "summary/gain_over_static")
_SECTION = "sweep"
_COLUMNS, _CARD_PIXELS = 2, 440  # wide enough for the names on six axes


def view_of_sweep(
    sweep: str,
    wanted: str,
    params: Sequence[Mapping[str, str]],
    metrics: Sequence[Mapping[str, float]],
) -> tuple[str, str]:
    """The view of a sweep: its key, and what its tag holds.

    Parallel coordinates run from the settings that differ between points to accuracy, cost and
    gain; beside them the accuracy-utilization curves and accuracy over cost, of all points.

    Args:
        sweep: name of the sweep.
        wanted: the filter that finds its points.
        params, metrics: of every point, as recorded.
    """
    names = sorted({name for each in params for name in each})
    swept = [name for name in names if len({each.get(name) for each in params}) > 1]
    recorded = {name for each in metrics for name in each}
    figures = [name for name in _FIRST if name in recorded]
    figures = figures or sorted(name for name in recorded if name.startswith("summary/"))
    charts = [
        _chart("PARALLEL")
        | {"selectedParams": swept, "selectedMetrics": figures, "showAllRuns": True},
        _chart("LINE")
        | {"metricKey": CURVE, "selectedMetricKeys": [CURVE], "xAxisKey": "step"}
        | {"yAxisKey": "metric", "scaleType": "linear", "xAxisScaleType": "linear"}
        | {"lineSmoothness": 0, "range": {}, "yAxisExpressions": [], "ignoreOutliers": False}
        | {"useGlobalXaxisKey": False, "useGlobalLineSmoothing": False},
        _chart("SCATTER")
        | {"xaxis": {"key": "summary/net", "type": "METRIC"}}
        | {"yaxis": {"key": "summary/accuracy", "type": "METRIC"}, "showAllRuns": True},
    ]
    # The UI adds a section for every family of figures; they come after ours, folded.
    families = sorted({name.partition("/")[0] for name in recorded if "/" in name})
    sections = [_section(_SECTION, f"Sweep {sweep}", is_open=True)]
    sections += [_section(f"{_SECTION}-{name}", name, is_open=False) for name in families]
    state = {
        "searchFilter": wanted,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
    }
    return fingerprint_of("view", sweep), json.dumps(state, separators=(",", ":"))


def _section(uuid: str, name: str, *, is_open: bool) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": name,
        "display": is_open,
        "isReordered": True,
        "deleted": False,
        "isGenerated": not is_open,
        "columns": _COLUMNS,
        "cardHeight": _CARD_PIXELS,
    }


def _chart(kind: str) -> dict[str, Any]:
    return {
        "uuid": f"{_SECTION}-{kind.lower()}",
        "type": kind,
        "metricSectionId": _SECTION,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }
