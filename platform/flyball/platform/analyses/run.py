"""From the name of an analysis and jobs to its folder and its run in MLflow."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from flyball.datapaths.errors import InvalidSetting, unknown_name
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.splits import TEST
from flyball.platform.analyses.analysis import Analysis, Written, write_analysis
from flyball.platform.analyses.artifacts import (
    chosen_arms,
    finished,
    finished_controller,
)
from flyball.platform.analyses.components import component_use
from flyball.platform.analyses.controller import controller_against_fixed
from flyball.platform.analyses.curves import Source, throttling_curves
from flyball.platform.analyses.dynamic_run import blocks, executed, ponder, static
from flyball.platform.analyses.gates import compare_methods
from flyball.platform.analyses.means import rows_of
from flyball.platform.analyses.measured import measure_path
from flyball.platform.analyses.per_class import class_curves
from flyball.platform.analyses.request import AnalysisOptions, Found, Request, parents_of
from flyball.platform.analyses.tables import columns_of
from flyball.platform.job import Job
from flyball.platform.run_folder import check_storage
from flyball.platform.tracking import check_tracking, open_tracking
from flyball.platform.tracking.analyses import AnalysisRun, record_analysis

__all__ = ["ANALYSES", "AnalysisOptions", "AnalysisResult", "run_analysis"]


@dataclass(frozen=True)
class AnalysisResult:
    """What was found, and where it lies.

    Attributes:
        analysis: its rows and everything made of them.
        folder: of its files.
        written: the files.
        run: in MLflow.
    """

    analysis: Analysis
    folder: Path
    written: Written
    run: AnalysisRun


def run_analysis(
    name: str,
    jobs: Sequence[Job],
    options: AnalysisOptions | None = None,
    *,
    report: Report = silent,
    tell: Callable[[str], None] | None = None,
) -> AnalysisResult:
    """Makes an analysis, writes it whole under the run folder, and records it in MLflow.

    Args:
        name: of the analysis; a key of `ANALYSES`.
        jobs: what to analyse; the first one says where everything is written and recorded.
        options: what is not a matter of the jobs.
        report: hears of progress.
        tell: hears a line for people before what may take long.

    Raises:
        UnknownName: there is no such analysis; suggests the nearest.
        DataError: a job has no finished artifacts; says what to run.
        BadInput: a job cannot be used, or the run folder not written.
    """
    if name not in ANALYSES:
        raise unknown_name("analysis", name, ANALYSES)
    if not jobs:
        raise InvalidSetting("An analysis is of at least one job; none came. Name a preset.")
    first = jobs[0]
    runs = check_storage(Path(first.storage.root), least_free_mb=first.storage.least_free_mb)
    check_tracking(first.tracking.uri, runs.root)
    request = Request(jobs, options or AnalysisOptions(), report, tell or (lambda line: None))
    found = ANALYSES[name](request)
    key = f"{name}-{fingerprint_of(name, found.parents, found.settings)}"
    folder = runs.root / "analyses" / key
    provenance = {
        "fingerprints": found.parents,
        "settings": found.settings,
        "jobs": [asdict(job) for job in jobs],
    }
    with runs.locked(folder):
        written = write_analysis(found.analysis, folder, provenance)
    tracking = open_tracking(first.tracking.uri, runs.root, experiment=first.tracking.experiment)
    run = record_analysis(
        tracking,
        name,
        key=key,
        tags={
            "flyball.preset": ", ".join(dict.fromkeys(job.name for job in jobs)),
            **{f"flyball.{parent}": print_ for parent, print_ in found.parents.items()},
        },
        params={"job": asdict(first), "settings": found.settings},
        summary=found.analysis.summary(),
        curves=found.analysis.points(),
        columns=columns_of(found.analysis.rows),
        files=written.files,
    )
    return AnalysisResult(found.analysis, folder, written, run)


def _gates(request: Request) -> Found:
    """Accuracy of gating methods against complexity and executed MACs (TNN Fig. 3)."""
    found, parents, settings = request.comparisons()
    return Found(compare_methods(found), parents, settings)


def _components(request: Request) -> Found:
    """Component utilization of learned gates, T-module by T-module (TNN Fig. 4)."""
    found, parents, settings = request.comparisons()
    return Found(component_use(found), parents, settings)


def _curves(request: Request) -> Found:
    """Accuracy against utilization and cost of several data paths (TNN Fig. 5)."""
    sources: list[Source] = []
    parents: dict[str, str] = {}
    for position, (name, job) in enumerate(zip(request.names(), request.jobs, strict=True)):
        done = finished(job, report=request.report)
        twin = request.vanilla(done)
        sources.append(Source(name, done.atlas, None if twin is None else twin.atlas))
        parents |= parents_of(done, twin, suffix=f".{position}" if position else "")
    return Found(throttling_curves(sources), parents)


def _per_class(request: Request) -> Found:
    """Accuracy against utilization class by class, and the vanilla line (TNN Fig. 8)."""
    done = request.one()
    twin = request.vanilla(done)
    found = class_curves(done.atlas, None if twin is None else twin.atlas)
    return Found(found, parents_of(done, twin))


def _controller(request: Request) -> Found:
    """The learned controller against fixed u and the bound, with histograms (TNN Fig. 9)."""
    done = request.one()
    stage = finished_controller(done)
    twin = request.vanilla(done)
    line = None
    if twin is not None:
        line = float(np.asarray(rows_of(twin.atlas, TEST).correct, np.float64)[:, -1].mean())
    found = controller_against_fixed(
        rows_of(done.atlas, TEST),
        chosen_arms(done, stage, TEST),
        controller_macs=stage.controller.macs,
        uses_context=stage.controller.observation == "context",
        vanilla=line,
    )
    return Found(found, {**parents_of(done, twin), "controller": stage.folder.name})


def _measured(request: Request) -> Found:
    """Accuracy, time, power and energy on the machine at hand (TNN Fig. 10)."""
    done = request.one()
    taken = rows_of(done.atlas, TEST)
    means = np.asarray(taken.correct, np.float64).mean(axis=0)
    found = measure_path(
        done.path,
        np.asarray(done.ready.images.images[taken.sample[: request.options.measure.batch]]),
        dict(zip(taken.arms, (float(mean) for mean in means), strict=True)),
        request.options.measure,
        device=done.ready.job.compute.device,
        report=request.report,
    )
    # Two measurements are two, even of the same data path.
    return Found(found, parents_of(done, None), asdict(found.setting))


ANALYSES: dict[str, Callable[[Request], Found]] = {
    "gates": _gates,
    "components": _components,
    "curves": _curves,
    "per_class": _per_class,
    "controller": _controller,
    "measured": _measured,
    "ponder": ponder,
    "executed": executed,
    "blocks": blocks,
    "static": static,
}
"""Analyses by name; the first line of each docstring says what it is, for lists."""
