"""The last stage of a job: its run in MLflow, and its governor in the registry."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyball.controllers.evaluate import Evaluation
from flyball.datapaths.splits import CONTROLLER_VAL
from flyball.platform.controller_stage import ControllerStage
from flyball.platform.job import Job
from flyball.platform.tracking import (
    RegisteredVersion,
    RunHandle,
    Tracking,
    figures_of,
    register_governor,
)

__all__ = ["REPORT_FILES", "Published", "publish"]

REPORT_FILES = ("ladder.png", "ladder.txt", "evaluation.json", "job.json")


@dataclass(frozen=True)
class Published:
    """Where a job can be seen: run id, its link, the registered version, and whether all this
    was there already."""

    run_id: str
    link: str
    version: RegisteredVersion
    was_there: bool


def publish(
    tracking: Tracking,
    job: Job,
    folder: Path,
    path_folder: Path,
    learned: ControllerStage,
    evaluation: Evaluation,
    record: dict[str, Any],
) -> Published:
    """Records the job's run, or finds the finished one, and registers its governor.

    The alias is "champion" if the controller beats the static mixture at equal net cost on
    controller_val, the whole of the 95 % interval above zero; else "challenger".

    Args:
        tracking: where.
        job: what ran.
        folder: of the job's report; its name is the key by which a repeated job finds its run.
        path_folder: of the frozen data path.
        learned: controller and its curves.
        evaluation: the ladder.
        record: everything about the job, JSON-able.

    Raises:
        StorageError, TrackingUnreachable: it cannot be recorded.
    """
    known = tracking.find_run(folder.name)
    was_there = known is not None and known.is_finished
    if known is not None and was_there:
        run = known
    else:
        run = _record_run(tracking, job, folder, learned, evaluation, record)
    rung = evaluation.rung("learned", CONTROLLER_VAL)
    gain = evaluation.gain_over_static[CONTROLLER_VAL]
    version = register_governor(
        tracking,
        run,
        path_folder,
        learned.folder,
        name=job.model_name,
        alias="champion" if evaluation.beats_static else "challenger",
        tags={"flyball.preset": job.name},
        figures=figures_of(rung.accuracy, rung.net, gain),
    )
    if not was_there:
        run.finish()
    return Published(run.run_id, run.link, version, was_there)


def _record_run(
    tracking: Tracking,
    job: Job,
    folder: Path,
    learned: ControllerStage,
    evaluation: Evaluation,
    record: dict[str, Any],
) -> RunHandle:
    run = tracking.start_run(
        f"{job.name}-{learned.folder.name[:6]}",
        key=folder.name,
        tags={"flyball.preset": job.name, "flyball.controller": learned.folder.name},
        params=record["job"],
    )
    run.log_curve(
        (step, {"train/reward": reward, "train/entropy": entropy})
        for step, reward, entropy in learned.curve
    )
    run.log_curve((step, {"val/reward": reward}) for step, reward in learned.validation)
    run.log_ladder(evaluation.to_json())
    for name in REPORT_FILES:
        run.log_file(folder / name, "evaluation")
    return run
