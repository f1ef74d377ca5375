"""What each verb of the `flyball` command does; how it is called is in `cli`."""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flyball.controllers.evaluate import Evaluation
from flyball.datapaths.arms import default_arms
from flyball.datapaths.data import ImageSet, load_images
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.files import read_json
from flyball.datapaths.outcomes import truth_of
from flyball.datapaths.pose import image_pckh
from flyball.datapaths.splits import CONTROLLER_VAL, TEST
from flyball.platform.governor import Predictions, sees_poses
from flyball.platform.job import Job
from flyball.platform.overrides import field_names, with_overrides
from flyball.platform.prepare import prepare
from flyball.platform.presets import PRESETS, preset
from flyball.platform.progress_bars import ProgressBars
from flyball.platform.report import draw_ladder, ladder_table
from flyball.platform.stages import JobResult, build_outcomes, build_path, run_job, served_path
from flyball.platform.tracking import Tracking, list_versions, load_governor, open_tracking
from flyball.platform.tracking.address import resolve_address
from flyball.platform.tracking.serving import serve_model

__all__ = [
    "run_demo",
    "run_evaluate",
    "run_outcomes",
    "run_path",
    "run_presets",
    "run_report",
    "run_serve",
    "run_train",
]

ROWS_AT_ONCE = 1024


def run_presets(options: argparse.Namespace) -> int:
    """Lists the presets with what they are, or every field of one with its value."""
    if options.preset is None:
        rows = {name: _first_line(make.__doc__) for name, make in PRESETS.items()}
        _print(options, rows, [f"{name:<14} {purpose}" for name, purpose in rows.items()])
    else:
        fields = field_names(preset(options.preset))
        _print(options, fields, [f"{name:<32} {value}" for name, value in fields.items()])
    return 0


def run_path(options: argparse.Namespace) -> int:
    """Phase 1 alone; prints how right every arm is on controller_val, and what it costs."""
    job = _job(options)
    with ProgressBars(is_quiet=options.json) as bars:
        ready = prepare(job, report=bars)
        stage = build_path(ready, report=bars)
    path = served_path(stage.path, job)
    rows = ready.images.rows(CONTROLLER_VAL)
    right, spent = np.zeros(len(path.arms)), np.zeros(len(path.arms))
    for some in np.array_split(rows, -(-len(rows) // ROWS_AT_ONCE)):
        images = torch.from_numpy(np.asarray(ready.images.images[some])).float() / 255.0
        truth = truth_of(ready.images, some)
        for arm, u in enumerate(path.arms):
            output, macs = path(images, u)
            right[arm] += float(path.judge(output, truth).correct.sum())
            spent[arm] += float(macs.sum())
    found, executed = (right / len(rows)).tolist(), (spent / len(rows)).tolist()
    values = {
        "folder": str(stage.folder),
        "fingerprint": path.fingerprint,
        "was_reused": stage.was_reused,
        "forwards": stage.forwards,
        "arms": path.arms,
        "controller_val_accuracy": found,
        "macs": path.arm_macs,
        "controller_val_macs": executed,
    }
    what = "key points" if sees_poses(path) else "accuracy"
    lines = [f"Data path {path.fingerprint} in {stage.folder}" + _reused(stage.was_reused)]
    lines += [f"{'u':>6} {what:>10} {'MACs':>14} {'throttle ratio':>15} {'executed':>9}"]
    lines += [
        f"{u:>6.2f} {share:>10.4f} {macs:>14,} {macs / path.full_macs:>15.4f} "
        f"{mean / path.full_macs:>9.4f}"
        for u, share, macs, mean in zip(path.arms, found, path.arm_macs, executed, strict=True)
    ]
    _print(options, values, lines)
    return 0


def run_outcomes(options: argparse.Namespace) -> int:
    """Data path and atlas; prints where they are and what they took."""
    job = _job(options)
    if options.arms is not None:
        job = replace(job, arms=default_arms(options.arms))
    with ProgressBars(is_quiet=options.json) as bars:
        ready = prepare(job, report=bars)
        path = served_path(build_path(ready, report=bars).path, job)
        stage = build_outcomes(ready, path, report=bars)
    header = stage.atlas.header
    values = {
        "folder": str(stage.folder),
        "fingerprint": header.fingerprint,
        "was_reused": stage.was_reused,
        "forwards": stage.forwards,
        "rows": stage.atlas.split_sizes(),
        "arms": stage.atlas.arms,
    }
    sizes = ", ".join(f"{name} {size:,}" for name, size in stage.atlas.split_sizes().items())
    lines = [
        f"Outcome atlas {header.fingerprint} in {stage.folder}" + _reused(stage.was_reused),
        f"{len(stage.atlas.arms)} arms, rows: {sizes}; {stage.how}",
    ]
    _print(options, values, lines)
    return 0


def run_train(options: argparse.Namespace) -> int:
    """The main job; ends with the ladder, the picture, the run and the model version."""
    start = time.monotonic()
    with ProgressBars(is_quiet=options.json) as bars:
        result = run_job(_job(options), report=bars, tell=None if options.json else _tell)
    if options.json:
        print(json.dumps(_result_values(result), indent=1))
        return 0
    version = result.published.version
    passes = " + ".join(f"{count:,} ({name})" for name, count in result.forwards.items())
    for line in (
        "",
        ladder_table(result.evaluation),
        "",
        f"Picture        {result.picture}",
        f"MLflow run     {result.published.link}",
        f"Model          {version.name} version {version.version}, alias {version.alias}"
        + ("" if version.is_new else " (was registered already)"),
        f"Forwards       {passes} data-path forwards in this run",
        "Reused         "
        + (", ".join(f"{k} from {v}" for k, v in result.reused.items()) or "nothing"),
        f"Time           {time.monotonic() - start:.1f} s ("
        + ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items())
        + ")",
    ):
        print(line)
    return 0


def run_evaluate(options: argparse.Namespace) -> int:
    """The ladder again; whatever of the job is not there yet is made first."""
    return run_train(options)


def run_report(options: argparse.Namespace) -> int:
    """Prints the ladder of the newest finished job of a preset, and draws its picture again."""
    ignored = [text for text in options.settings if not text.startswith("storage.root=")]
    if ignored:
        raise InvalidSetting(
            f"`flyball report` shows the newest finished job of a preset as it was; {ignored[0]!r} "
            "cannot change it. For other settings run `flyball evaluate` with them."
        )
    job = _job(options)
    folder = _newest_job(job)
    evaluation = Evaluation.from_json(read_json(folder / "evaluation.json"))
    draw_ladder(evaluation, folder / "ladder.png")
    values = {"folder": str(folder), "evaluation": evaluation.to_json()}
    _print(
        options, values, [ladder_table(evaluation), "", f"Picture        {folder / 'ladder.png'}"]
    )
    return 0


def run_demo(options: argparse.Namespace) -> int:
    """Answers some test images with a registered governor: how right, u and cost of each."""
    job = _job(options)
    if options.count < 1:
        raise InvalidSetting(f"--count is at least 1, not {options.count}.")
    tracking = _tracking(job)
    governor = load_governor(tracking, job.model_name, _alias(options, tracking, job))
    images = load_images(job.data)
    rows = images.rows(TEST)[: options.count]
    pixels = np.asarray(images.images[rows]).astype(np.float32) / np.float32(255)
    given = governor.predict(pixels, options.budget)
    truth = [images.classes[label] for label in images.labels[rows]]
    full = governor.path.full_macs
    right = _rightness(given, images, rows)
    is_pose = given.key_points is not None
    answers = [f"{share:.0%} found" for share in right] if is_pose else given.label
    lines = [f"{'image':>6}  {'truth':<12} {'answer':<12} {'sure':>5} {'u':>5} {'net ratio':>9}"]
    lines += [
        f"{row:>6}  {true:<12} {answer:<12} {confidence:>5.2f} {u:>5.2f} {macs / full:>9.3f}"
        for row, true, answer, confidence, u, macs in zip(
            rows,
            truth,
            answers,
            given.confidence,
            given.utilization,
            given.macs,
            strict=True,
        )
    ]
    ratio = float(given.macs.mean()) / full
    told = (
        f"{right.mean():.1%} of the key points" if is_pose else f"{right.sum():.0f} of {len(rows)}"
    )
    lines.append(f"{told} right at a mean net throttle ratio of {ratio:.3f}")
    values = {name: np.asarray(column).tolist() for name, column in given.columns().items()}
    told_of = {"truth": truth, "correct": right.tolist(), "row": rows.tolist()}
    _print(options, {**values, **told_of}, lines)
    return 0


def run_serve(options: argparse.Namespace) -> int:
    """Serves a registered governor over HTTP on loopback until it is interrupted."""
    job = _job(options)
    tracking = _tracking(job)
    alias = _alias(options, tracking, job)
    _tell(
        f"Serving {job.model_name}@{alias} on http://127.0.0.1:{options.port}/invocations "
        '(POST {"inputs": IMAGES}); end it with Ctrl-C.'
    )
    return serve_model(tracking, job.model_name, alias, port=options.port)


def _rightness(given: Predictions, images: ImageSet, rows: NDArray[np.int64]) -> NDArray[Any]:
    """How right every answer is: 1 or 0 of a class, the share of an image's key points; (B,)."""
    truth = truth_of(images, rows)
    right: NDArray[Any]
    if given.key_points is None:
        right = np.equal(given.prediction, np.asarray(truth)).astype(np.float32)
    else:
        right = image_pckh(torch.from_numpy(given.key_points[..., :2]), truth).numpy()
    return right


def _tracking_there(job: Job) -> Tracking | None:
    """Where runs are recorded; None if that is a local database which does not exist yet."""
    database = resolve_address(job.tracking.uri, Path(job.storage.root)).database
    return None if database is not None and not database.exists() else _open(job)


def _tracking(job: Job) -> Tracking:
    tracking = _tracking_there(job)
    if tracking is None:
        raise DataError(
            f"Nothing is registered under {job.storage.root} yet. "
            f"Run `flyball train {job.name}` first."
        )
    return tracking


def _open(job: Job) -> Tracking:
    return open_tracking(
        job.tracking.uri, Path(job.storage.root), experiment=job.tracking.experiment
    )


def _alias(options: argparse.Namespace, tracking: Tracking, job: Job) -> str:
    """The alias asked for, else champion where there is one, else challenger."""
    if options.alias:
        return str(options.alias)
    taken = {alias for v in list_versions(tracking, job.model_name) for alias in v.aliases}
    return "champion" if "champion" in taken else "challenger"


def _job(options: argparse.Namespace) -> Job:
    return with_overrides(preset(options.preset), options.settings)


def _newest_job(job: Job) -> Path:
    jobs = Path(job.storage.root) / "jobs"
    found = sorted(jobs.glob(f"{job.name}-*/evaluation.json"), key=lambda f: f.stat().st_mtime)
    if not found:
        raise DataError(
            f"There is no finished job of {job.name!r} under {jobs}. "
            f"Run `flyball train {job.name}` first."
        )
    return found[-1].parent


def _result_values(result: JobResult) -> dict[str, Any]:
    version = result.published.version
    return {
        "evaluation": result.evaluation.to_json(),
        "folder": str(result.folder),
        "picture": str(result.picture),
        "run": {"id": result.published.run_id, "link": result.published.link},
        "model": {
            "name": version.name,
            "version": version.version,
            "alias": version.alias,
            "is_new": version.is_new,
        },
        "forwards": result.forwards,
        "reused": result.reused,
        "seconds": result.seconds,
    }


def _print(options: argparse.Namespace, values: Any, lines: list[str]) -> None:
    print(json.dumps(values, indent=1, default=str) if options.json else "\n".join(lines))


def _tell(line: str) -> None:
    print(line, flush=True)


def _reused(was_reused: bool) -> str:
    return " (reused)" if was_reused else ""


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]
