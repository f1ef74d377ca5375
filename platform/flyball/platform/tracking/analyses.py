"""An analysis in MLflow: a run of its own with table, picture and JSON, found by its key."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyball.platform.tracking.runs import Tracking

__all__ = ["ANALYSIS_TAG", "AnalysisRun", "record_analysis"]

ANALYSIS_TAG = "flyball.analysis"


@dataclass(frozen=True)
class AnalysisRun:
    """Where an analysis can be seen, and whether this very analysis was recorded before."""

    run_id: str
    link: str
    was_there: bool


def record_analysis(
    tracking: Tracking,
    name: str,
    *,
    key: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    summary: Mapping[str, float],
    curves: Iterable[tuple[int, Mapping[str, float]]],
    columns: Mapping[str, list[Any]],
    files: Sequence[Path],
) -> AnalysisRun:
    """Records an analysis, or finds the finished run of the same one.

    Args:
        tracking: where.
        name: of the analysis, such as "curves".
        key: names what was analysed and how; the same key is recorded once.
        tags: fingerprints of what was analysed, by short names.
        params: settings; nested dictionaries become dotted names.
        summary: the figures that runs are compared by.
        curves: figures by step, where a step is a per cent of utilization.
        columns: the table, lists of one length by column.
        files: picture, table and JSON.

    Raises:
        StorageError, TrackingUnreachable: it cannot be recorded.
    """
    known = tracking.find_run(key)
    if known is not None and known.is_finished:
        return AnalysisRun(known.run_id, known.link, True)
    run = tracking.start_run(key, key=key, tags={ANALYSIS_TAG: name, **tags}, params=params)
    run.log_metrics({f"{name}/{figure}": value for figure, value in summary.items()})
    run.log_curve(curves)
    run.log_table(columns, f"analysis/{name}_rows.json")
    for file in files:
        run.log_file(file, "analysis")
    run.finish()
    return AnalysisRun(run.run_id, run.link, False)
