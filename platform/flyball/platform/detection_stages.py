"""The stages of the detection job: detector, outcome atlas, mAP at every arm, controller, ladder.

Each is skipped where its artifact lies in the run folder.
"""

import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from flyball.controllers.evaluate import Evaluation
from flyball.datapaths.atlas import HEADER_FILE
from flyball.datapaths.detection.atlas import build_detection_atlas, detections_at_every_arm
from flyball.datapaths.detection.calibration import calibrate_norms
from flyball.datapaths.detection.detection_set import DetectionSet
from flyball.datapaths.detection.detector import DetectorConfig, ThrottleableDetector
from flyball.datapaths.detection.load import load_detection
from flyball.datapaths.detection.path import DetectorPath
from flyball.datapaths.detection.spec import DetectorSpec
from flyball.datapaths.detection.training import train_detector
from flyball.datapaths.files import fingerprint_of, write_atomically, write_json
from flyball.datapaths.frozen import SPEC_FILE
from flyball.datapaths.outcomes import atlas_fingerprint
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.splits import PATH_TRAIN, SPLITS, TEST
from flyball.platform.analyses.analysis import write_analysis
from flyball.platform.controller_stage import ControllerStage, train_controller
from flyball.platform.detection_job import DetectionJob
from flyball.platform.detection_report import MapCurve, map_curve
from flyball.platform.prepare import Prepared, use_threads
from flyball.platform.report import draw_ladder, ladder_table
from flyball.platform.run_folder import RunFolder, check_storage
from flyball.platform.stages import Tell, evaluate_controller
from flyball.platform.training_images import channel_statistics

__all__ = ["DetectionResult", "run_detection", "train_detector_path"]

_MOST_FOR_STATISTICS = 512
CHECKPOINT_FOLDER = "checkpoint"


@dataclass(frozen=True)
class DetectionResult:
    """What the job gave.

    Attributes:
        curve: mAP, F1 and cost of every arm.
        evaluation: the ladder.
        path: the frozen detector.
        folder: of the job's report: map.txt, map.png, map.json, ladder.txt, ladder.png,
            evaluation.json, job.json.
        forwards: image passes through the detector in this call, by stage.
        reused: folders of what was taken from an earlier run, by stage.
        seconds: wall-clock time of this call, by stage.
    """

    curve: MapCurve
    evaluation: Evaluation
    path: DetectorPath
    folder: Path
    forwards: dict[str, int]
    reused: dict[str, str]
    seconds: dict[str, float]

    def text(self) -> str:
        """The table of the arms and the ladder."""
        return f"{self.curve.table()}\n\n{ladder_table(self.evaluation)}"


def run_detection(
    job: DetectionJob, *, report: Report = silent, tell: Tell | None = None
) -> DetectionResult:
    """The whole detection job.

    Every stage is skipped where its artifact lies in the run folder. MLflow hears nothing and no
    model is registered: a governor serves classes, not boxes.

    Args:
        job: what to do.
        report: hears of progress.
        tell: hears one line for people after every stage.

    Raises:
        BadInput: found before training started.
        NotFinite: a loss, reward or answer was NaN or infinite; names its step.
    """
    say = tell or (lambda line: None)
    runs = check_storage(Path(job.storage.root), least_free_mb=job.storage.least_free_mb)
    use_threads(job.compute.threads)
    device = job.compute.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds, reused = {}, {}
    data = load_detection(job.data, report=report)
    sizes = ", ".join(f"{name} {len(data.rows(name)):,}" for name in SPLITS)
    say(f"Images         {data.name}: {sizes}; {len(data.boxes):,} boxes")
    if data.skipped:
        say(f"Left out       {len(data.skipped)} samples; the first: {data.skipped[0]}")

    start = time.monotonic()
    config = replace(job.detector, classes=len(data.classes), image_size=data.shape[1])
    trained, passes, is_old = train_detector_path(
        job, data, config, runs, device=device, report=report
    )
    path = trained.with_threshold(job.score_threshold).with_arms(job.arms)
    seconds["phase1"] = time.monotonic() - start
    if is_old:
        reused["phase1"] = str(runs.path(_path_fingerprint(job, data, config)))
    say(f"Detector       {seconds['phase1']:.1f} s, {passes:,} image passes")

    start = time.monotonic()
    like = cast(Any, data)
    atlas_folder = runs.outcomes(atlas_fingerprint(path, like, job.outcomes))
    if (atlas_folder / HEADER_FILE).exists():
        reused["outcomes"] = str(atlas_folder)
    path.to(device)
    with runs.locked(atlas_folder):
        atlas = build_detection_atlas(path, data, atlas_folder, job.outcomes, report=report)
    asked = path.forwards
    seconds["outcomes"] = time.monotonic() - start
    say(f"Outcome atlas  {seconds['outcomes']:.1f} s, {asked:,} image passes")

    start = time.monotonic()
    found = detections_at_every_arm(path, data, TEST, report=report)
    path.to("cpu")
    curve = map_curve(atlas, found, data.truth_rows(data.rows(TEST)), title=job.name)
    seconds["map"] = time.monotonic() - start

    ready = Prepared(cast(Any, job), like, config, runs, job.compute.ray_address)
    learned = train_controller(ready, path, atlas, atlas_folder, report=report)
    seconds["controller"] = learned.seconds
    if learned.was_reused:
        reused["controller"] = str(learned.folder)
    say(f"Controller     {learned.seconds:.1f} s")
    evaluation = evaluate_controller(ready, atlas, learned.controller)
    folder = _write(job, runs, data, path, curve, evaluation, learned)
    forwards = {"phase1": passes, "outcomes": asked, "map": path.forwards - asked}
    return DetectionResult(curve, evaluation, path, folder, forwards, reused, seconds)


def train_detector_path(
    job: DetectionJob,
    data: DetectionSet,
    config: DetectorConfig,
    runs: RunFolder,
    *,
    device: str = "cpu",
    report: Report = silent,
) -> tuple[DetectorPath, int, bool]:
    """Trains and freezes a detector, or takes the finished one from the run folder.

    Returns:
        The detector at the arms of the job that made it, the image passes of this call, and
        whether it lay there.

    Raises:
        NotFinite: a loss became NaN or infinite.
        ArtifactError: the finished detector in the folder cannot be used.
    """
    folder = runs.path(_path_fingerprint(job, data, config))
    with runs.locked(folder):
        if (folder / SPEC_FILE).exists():
            return DetectorPath.load(folder), 0, True
        mean, std = channel_statistics(
            np.asarray(data.images[data.rows(PATH_TRAIN)[:_MOST_FOR_STATISTICS]])
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.training.seed)
            detector = ThrottleableDetector(config)
        result = train_detector(
            detector,
            data,
            job.training,
            mean=mean,
            std=std,
            folder=folder / CHECKPOINT_FOLDER,
            device=device,
            report=report,
        )
        calibrate_norms(detector, data, job.arms, mean=mean, std=std, seed=job.training.seed)
        provenance = {
            "data": data.name,
            "data_fingerprint": data.fingerprint,
            "training": {**asdict(job.training), "checkpoint_seconds": None},
            "last_loss": round(float(np.mean(result.losses[-50:])), 6),
        }
        spec = DetectorSpec(
            config, job.arms, data.classes, mean, std, job.score_threshold, provenance
        )
        path = DetectorPath(detector, spec)
        path.save(folder)
        shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)
        return path, result.forwards, False


def _path_fingerprint(job: DetectionJob, data: DetectionSet, config: DetectorConfig) -> str:
    settings = {**asdict(job.training), "checkpoint_seconds": None}
    # batch norm is calibrated for the arms it will be served at
    arms = list(job.arms) if config.body.norm == "batch" else []
    return fingerprint_of("detector", asdict(config), settings, data.fingerprint, arms)


def _write(
    job: DetectionJob,
    runs: RunFolder,
    data: DetectionSet,
    path: DetectorPath,
    curve: MapCurve,
    evaluation: Evaluation,
    learned: ControllerStage,
) -> Path:
    folder = runs.job(job.name, fingerprint_of(learned.folder.name, asdict(job.evaluation)))
    record = {
        "job": json.loads(json.dumps(asdict(job))),
        "images": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "splits": {name: len(data.rows(name)) for name in SPLITS},
            "boxes": len(data.boxes),
            "difficult": int(data.is_difficult.sum()),
            "clipped": data.clipped,
            "unlabelled": data.unlabelled,
            "skipped": list(data.skipped),
        },
        "path": path.fingerprint,
        "provenance": path.spec.provenance,
        "controller": learned.folder.name,
    }
    write_analysis(curve, folder, record)
    draw_ladder(evaluation, folder / "ladder.png")
    with write_atomically(folder / "ladder.txt") as partial:
        partial.write_text(ladder_table(evaluation) + "\n", encoding="utf-8")
    write_json(folder / "evaluation.json", evaluation.to_json())
    write_json(folder / "job.json", record)
    return folder
