"""A sweep from start to end: atlas, points, front, runs, registered models.

Points are trained in `trial`, by Tune as `tuning` sets it up; what is chosen from lies in `front`.
"""

import json
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import FlyballError, InvalidSetting
from flyball.datapaths.files import fingerprint_of, read_json, write_json
from flyball.datapaths.forwards import forwards_here
from flyball.datapaths.paths import DataPath
from flyball.datapaths.progress import Report, silent
from flyball.platform.cluster import is_joined, ray_session
from flyball.platform.controller_learning import observation_of
from flyball.platform.controller_stage import images_file
from flyball.platform.job import Job
from flyball.platform.nodes import check_nodes, code_fingerprint
from flyball.platform.prepare import Prepared, prepare
from flyball.platform.stages import OutcomesStage, Tell, build_outcomes, build_path, served_path
from flyball.platform.sweep.columns import check_kept
from flyball.platform.sweep.config import SweepConfig
from flyball.platform.sweep.folder import SweepFolder
from flyball.platform.sweep.front import Front, find_front
from flyball.platform.sweep.front_table import front_columns, write_front
from flyball.platform.sweep.grouping import group_points
from flyball.platform.sweep.interruption import sigterm_interrupts
from flyball.platform.sweep.points import Point, make_points
from flyball.platform.sweep.progress_table import ProgressTable
from flyball.platform.sweep.registration import register_points
from flyball.platform.sweep.task import TrialTask
from flyball.platform.sweep.tuning import lacking_resources, run_trials
from flyball.platform.sweep.watch import SweepWatch
from flyball.platform.tracking import Tracking, open_tracking
from flyball.platform.tracking.sweep_runs import SweepRuns

__all__ = ["Counts", "SweepResult", "run_sweep"]


@dataclass(frozen=True)
class Counts:
    """What one call of `run_sweep` did.

    Attributes:
        forwards: sample passes through data paths, by stage; "trials" has those of the processes
            that trained the points, and of this one meanwhile: none are needed.
        trained: points finished by this call.
        reused: points that lay there finished.
        ended_early: points that the scheduler ended.
        failed: why points could not be trained, by key.
        repeated: why points were begun again, by key.
        seconds: wall-clock time, by stage.
    """

    forwards: dict[str, int]
    trained: int = 0
    reused: int = 0
    ended_early: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepResult:
    """What a sweep gave.

    Attributes:
        folder: where it lies.
        front: what to choose from.
        counts: what this call did.
        links: "sweep" and "charts" in MLflow.
        versions: of the registered models, by key of the point.
        refused: why an alias of the front stays with its holder, by alias.
        was_finished: everything lay there; nothing ran.
    """

    folder: Path
    front: Front
    counts: Counts
    links: dict[str, str]
    versions: dict[str, int]
    refused: dict[str, str]
    was_finished: bool


def run_sweep(
    job: Job,
    config: SweepConfig,
    *,
    resume: bool = False,
    registers: bool = True,
    report: Report = silent,
    tell: Tell | None = None,
    is_quiet: bool = True,
) -> SweepResult:
    """The whole sweep.

    Args:
        job: whose fields are varied.
        config: how.
        resume: go on with a sweep that was interrupted.
        registers: export the front and put it into the registry.
        report: hears of progress before the points.
        tell: hears one line for people after every stage.
        is_quiet: show no table of the points.

    Raises:
        BadInput: found before work started; or the folder is in use, full, of another sweep, or
            of one that waits for `resume`.
        NotFinite: no point could be trained.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same command with `resume` goes on.
    """
    say = tell or (lambda line: None)
    config.check(job)
    ready = prepare(job, report=report)
    _check_room(config, ready.job, ready.ray_address, say)
    started = time.monotonic()
    trained = build_path(ready, report=report)
    path = served_path(trained.path, job)
    asked = build_outcomes(ready, path, report=report)
    atlas = asked.atlas
    say(f"Outcome atlas  {asked.folder} ({'reused' if asked.was_reused else asked.how})")
    points = make_points(
        ready.job, config.settings() if config.search != "optuna" else (), atlas.header.fingerprint
    )
    _check_arms(points, ready.job, atlas)
    plan = _plan(ready.job, config, atlas)
    folder = SweepFolder(ready.runs.sweep(job.name, fingerprint_of("sweep", *_identity(plan))))
    counts = Counts({"phase1": trained.forwards, "outcomes": asked.forwards, "trials": 0})
    counts.seconds["atlas"] = time.monotonic() - started
    made = _Made(ready, config, points, path, trained.folder, asked, folder)
    with folder.locked(), sigterm_interrupts():
        is_finished = folder.open_plan(plan, resume=resume, points=config.points)
        if is_finished and not (registers and folder.lacks_registration()):
            return _shown_again(made, counts)
        say(f"Sweep          {config.points} points in {folder.root}")
        return _run(made, counts, say, resume=resume, registers=registers, is_quiet=is_quiet)


@dataclass(frozen=True, eq=False)
class _Made:
    """What there is before the points."""

    ready: Prepared
    config: SweepConfig
    points: Sequence[Point]
    path: DataPath
    path_folder: Path
    asked: OutcomesStage
    folder: SweepFolder


def _run(
    made: _Made,
    counts: Counts,
    say: Tell,
    *,
    resume: bool,
    registers: bool,
    is_quiet: bool,
) -> SweepResult:
    ready, folder, atlas = made.ready, made.folder, made.asked.atlas
    job, tracking = ready.job, ready.job.tracking
    began, forwards = time.monotonic(), forwards_here()
    table = ProgressTable(made.config.points, is_quiet=is_quiet)

    def opened() -> Tracking:
        return open_tracking(tracking.uri, ready.runs.root, experiment=tracking.experiment)

    with SweepRuns(opened, folder.journal, folder.root.name, tell=say) as runs:
        runs.start_parent(
            folder.root.name,
            params=read_json(folder.plan_file),
            tags={"flyball.preset": job.name},
        )
        watch = SweepWatch(folder, job, runs, table)
        reused = watch.reuse()
        _train(made, watch, resume=resume)
        table.close()
        runs.flush()
        for key, result in folder.results().items():
            if result.run_id != runs.run_id(key):
                replace(result, run_id=runs.run_id(key)).save(folder.result_file(key))
        counts.seconds["points"] = time.monotonic() - began
        began = time.monotonic()
        front = _front(folder, atlas, job, watch)
        files = write_front(front, folder.root)
        versions: dict[str, int] = {}
        refused: dict[str, str] = {}
        if registers:
            registered = runs.patiently(
                lambda: register_points(opened(), ready, atlas, made.path_folder, folder, front)
            )
            versions = {key: known.version for key, known in registered.versions.items()}
            refused = registered.refused
        runs.log_table(None, front_columns(front), "points.json")
        runs.finish_parent(front.summary(), files=files)
        runs.flush()
        counts.seconds["front"] = time.monotonic() - began
        links = {"sweep": runs.link(None), "charts": runs.chart_link()}
    results, stopped = folder.results(), folder.stopped()
    in_trials = sum(results[key].forwards for key in watch.trained)
    counts.forwards["trials"] = forwards_here() - forwards + in_trials
    counts = replace(
        counts,
        trained=len(watch.trained),
        reused=reused,
        ended_early=len(stopped),
        failed={key: f"{kind}: {text}" for key, (kind, text) in watch.failures.items()},
        repeated=dict(watch.repeats),
    )
    left = {point.key for point in made.points} - {*results, *stopped, *counts.failed}
    counts.failed.update(dict.fromkeys(sorted(left), "not trained; --resume trains it"))
    if counts.failed:
        # Tune takes a failed point for done: a resume begins its search anew.
        shutil.rmtree(folder.tune, ignore_errors=True)
        folder.outcome_file.unlink(missing_ok=True)
    else:
        outcome = {
            "points": len({*results, *stopped}),
            "is_registered": registers,
            "links": links,
            "versions": versions,
            "refused": refused,
        }
        write_json(folder.outcome_file, outcome)
    return SweepResult(folder.root, front, counts, links, versions, refused, was_finished=False)


def _train(made: _Made, watch: SweepWatch, *, resume: bool) -> None:
    """Trains what is not finished."""
    ready, config, points, asked = made.ready, made.config, made.points, made.asked
    folder, job = made.folder, ready.job
    needs_images = any(
        observation_of(one.controller) == "image"
        for one in (job, *(point.job(job) for point in points))
    )
    task = TrialTask(
        base=job,
        folder=str(folder.root.resolve()),
        atlas=str(asked.folder.resolve()),
        atlas_fingerprint=asked.atlas.header.fingerprint,
        fields=config.space.fields,
        images=str(images_file(ready)) if needs_images else None,
        measures_looks=config.asha,
        gpus=config.gpus_per_trial,
        code=code_fingerprint() if is_joined(ready.ray_address) else "",
    )
    done = {*folder.results(), *folder.stopped()}
    waiting = [point for point in points if point.key not in done]
    is_open = config.search == "optuna" and len(done) < folder.points_of_outcome(config.points)
    if not waiting and not is_open:
        return
    with ray_session(ready.ray_address, threads=1):
        if is_joined(ready.ray_address):
            check_nodes(ready.runs.root)
        elif lacking := lacking_resources(config, job.compute):
            raise InvalidSetting(lacking)
        # Grouped as in a sweep that was never interrupted.
        keys = {point.key for point in waiting}
        groups = [
            group
            for group in group_points(points, job, config.population)
            if keys & {point.key for point in group}
        ]
        run_trials(task, config, groups, watch, resume=resume)


def _front(folder: SweepFolder, atlas: OutcomeAtlas, job: Job, watch: SweepWatch) -> Front:
    results = folder.results().values()
    if not results and watch.failures:
        key, (kind, message) = next(iter(watch.failures.items()))
        raise FlyballError(
            f"No point of the sweep could be trained; {key} ended with {kind}: {message}"
        )
    return find_front(results, atlas, job.evaluation)


def _shown_again(made: _Made, counts: Counts) -> SweepResult:
    """What a finished sweep found; nothing runs."""
    folder, outcome = made.folder, read_json(made.folder.outcome_file)
    results = folder.results()
    front = find_front(results.values(), made.asked.atlas, made.ready.job.evaluation)
    counts = replace(counts, reused=len(results), ended_early=len(folder.stopped()))
    said = (outcome["links"], outcome["versions"], outcome["refused"])
    return SweepResult(folder.root, front, counts, *said, was_finished=True)


def _check_room(config: SweepConfig, job: Job, address: str | None, say: Tell) -> None:
    """Trials fit where they are to run; asked before the data path is trained.

    A cluster may start nodes that it has not got yet, so there it is only said.
    """
    if is_joined(address):
        with ray_session(address, threads=1):
            if lacking := lacking_resources(config, job.compute):
                say(f"Trials wait until the cluster has started nodes for them. {lacking}")
    elif config.gpus_per_trial and not torch.cuda.is_available():
        raise InvalidSetting(
            f"A trial asks for {config.gpus_per_trial:g} GPUs, and there are none here. Leave "
            "--gpus-per-trial out, or join a cluster with --set compute.ray_address=HOST:6379."
        )


def _check_arms(points: Sequence[Point], base: Job, atlas: OutcomeAtlas) -> None:
    """Every point's arms are columns of the atlas."""
    for point in points:
        if any(name == "arms" for name, _ in point.settings):
            job = point.job(base)
            uses_context = observation_of(job.controller) == "context"
            check_kept(atlas.arms, job.arms, uses_context=uses_context)


def _plan(job: Job, config: SweepConfig, atlas: OutcomeAtlas) -> dict[str, Any]:
    """What is written first, and compared when a sweep is taken up again."""
    parts = ("arms", "reward", "controller", "learn", "evaluation")
    plan = {
        "preset": job.name,
        "job": {name: asdict(job)[name] for name in parts},
        **config.plan(),
        "fingerprints": {"path": atlas.header.path_fingerprint, "atlas": atlas.header.fingerprint},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__.split("+")[0],
            "ray": ray.__version__,
        },
    }
    checked: dict[str, Any] = json.loads(json.dumps(plan))
    return checked


def _identity(plan: dict[str, Any]) -> list[Any]:
    """What makes it this sweep; versions do not."""
    return [plan[name] for name in sorted(plan) if name != "versions"]
