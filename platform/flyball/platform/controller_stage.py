"""The third stage of a job: from the atlas to a trained, calibrated, exported controller."""

import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flyball.controllers.budget import calibrate
from flyball.controllers.export import HEADER_FILE, load_controller, save_controller
from flyball.controllers.learned import Learned
from flyball.controllers.protocol import NetworkController
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.files import fingerprint_of, read_json, write_atomically, write_json
from flyball.datapaths.paths import DataPath
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.splits import CONTROLLER_VAL
from flyball.envs.observations import observations
from flyball.platform.controller_learning import (
    controller_of,
    learn_controller,
    observation_of,
    rows_of,
)
from flyball.platform.job import Job
from flyball.platform.prepare import Prepared

__all__ = [
    "ControllerStage",
    "controller_fingerprint",
    "images_file",
    "observation_of",
    "save_stage",
    "stage_is_there",
    "train_controller",
]

CURVE_FILE = "curve.json"
CHECKPOINT_FOLDER = "checkpoint"
MOST_IMAGE_BYTES = 20 * 10**9  # of the file that environments map images from
_ROWS = 1024  # images written to it at a time


@dataclass(frozen=True)
class ControllerStage:
    """What the stage gave.

    Attributes:
        controller: calibrated; loaded back from its folder.
        folder: where it lies.
        was_reused: True if it lay there already.
        curve: (updates, mean reward, entropy in nats) of the training.
        validation: (updates, mean reward on controller_val) of the greedy policy.
        seconds: wall-clock time of this call.
    """

    controller: NetworkController
    folder: Path
    was_reused: bool
    curve: list[tuple[int, float, float]]
    validation: list[tuple[int, float]]
    seconds: float


def controller_fingerprint(job: Job, atlas: OutcomeAtlas) -> str:
    """Names the stage's artifact before it exists."""
    parts = (asdict(job.reward), asdict(job.controller), asdict(job.learn))
    return fingerprint_of("controller", atlas.header.fingerprint, *parts)


def train_controller(
    ready: Prepared,
    path: DataPath,
    atlas: OutcomeAtlas,
    atlas_folder: Path,
    *,
    report: Report = silent,
) -> ControllerStage:
    """Trains on controller_train, keeps the best on controller_val, calibrates and exports.

    No data-path forward is made: everything comes from the atlas.

    Args:
        ready: job and images; these are read only where the controller looks at images.
        path: the atlas's data path.
        atlas: outcomes; `atlas_folder` is where they lie.
        report: hears of progress.

    Raises:
        NotFinite: a reward or loss is NaN or infinite; names its step.
        InvalidSetting: the learner cannot use these settings.
    """
    start, job = time.monotonic(), ready.job
    folder = ready.runs.controller(controller_fingerprint(job, atlas))
    with ready.runs.locked(folder):
        is_there = stage_is_there(folder)
        if not is_there:
            kind = observation_of(job.controller)
            seen = observations(atlas, ready.images, kind)
            needs_file = kind == "image" and job.learn.algorithm != "plain"
            learned = learn_controller(
                job,
                atlas,
                atlas_folder,
                seen,
                images_file=images_file(ready) if needs_file else None,
                checkpoint_folder=folder / CHECKPOINT_FOLDER,
                ray_address=ready.ray_address,
                report=report,
            )
            controller = replace(
                controller_of(job, atlas, seen, learned.network),
                classes=path.classes,
                path_fingerprint=path.fingerprint,
            )
            save_stage(controller, learned, atlas, seen, folder)
    curve = read_json(folder / CURVE_FILE)
    return ControllerStage(
        controller=load_controller(folder),
        folder=folder,
        was_reused=is_there,
        curve=[(int(s), float(r), float(e)) for s, r, e in curve["train"]],
        validation=[(int(s), float(r)) for s, r in curve["validation"]],
        seconds=time.monotonic() - start,
    )


def stage_is_there(folder: Path) -> bool:
    """Whether a controller was exported there, and its curve written after it."""
    return (folder / CURVE_FILE).exists() and (folder / HEADER_FILE).exists()


def images_file(ready: Prepared) -> Path:
    """A file of the images that other processes can map; written by parts where there is none.

    Raises:
        InvalidSetting: decoded, the images take more than 20 GB.
    """
    images = ready.images
    if images.images_file is not None:
        return images.images_file.resolve()
    file = ready.runs.images(images.fingerprint)
    if not file.exists():
        count = len(images) * math.prod(images.shape)
        if count > MOST_IMAGE_BYTES:
            raise InvalidSetting(
                f"Images are decoded into one file of at most {MOST_IMAGE_BYTES / 1e9:g} GB for "
                f"the environments; these take {count / 1e9:,.1f} GB. Let the controller look at "
                "contexts, --set controller.kind=context_head, or take fewer images with "
                "--set data.limit=COUNT."
            )
        with write_atomically(file) as partial, partial.open("wb") as opened:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), *images.shape)}
            np.lib.format.write_array_header_1_0(opened, header)
            for start in range(0, len(images), _ROWS):
                opened.write(np.ascontiguousarray(images.images[start : start + _ROWS]).data)
    return file.resolve()


def save_stage(
    controller: NetworkController,
    learned: Learned,
    atlas: OutcomeAtlas,
    seen: NDArray[np.float32],
    folder: Path,
) -> None:
    """Calibrates on controller_val and exports; the curve is written last and ends the stage.

    Args:
        controller: not calibrated yet.
        learned: its curves; the checkpoints of its training go.
        atlas: outcomes.
        seen: what the controller sees of every row of the atlas, (N, ...).
        folder: of the controller.

    Raises:
        StorageError: the folder cannot be written.
    """
    save_controller(_calibrated(controller, atlas, seen), folder)
    curve = {
        "train": [list(point) for point in learned.curve],
        "validation": [list(point) for point in learned.validation],
        "samples": learned.samples,
        "best_update": learned.best_update,
    }
    write_json(folder / CURVE_FILE, curve)
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)


def _calibrated(
    controller: NetworkController, atlas: OutcomeAtlas, seen: NDArray[np.float32]
) -> NetworkController:
    rows = rows_of(atlas, CONTROLLER_VAL)
    ratios = atlas.rows(rows).net_throttle_ratio(
        controller.macs, uses_context=controller.observation == "context"
    )
    return replace(controller, calibration=calibrate(controller.propensities(seen[rows]), ratios))
