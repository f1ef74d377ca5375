"""The third stage of a job: from the atlas to a trained, calibrated, exported controller."""

import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flyball.controllers.budget import calibrate
from flyball.controllers.export import HEADER_FILE, load_controller, save_controller
from flyball.controllers.learn import BanditTable, Learned, learn_plain
from flyball.controllers.networks import ControllerConfig, build_network, network_macs
from flyball.controllers.protocol import NetworkController, ObservationKind
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.files import fingerprint_of, read_json, write_atomically, write_json
from flyball.datapaths.paths import DataPath
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.splits import CONTROLLER_TRAIN, CONTROLLER_VAL, split_code
from flyball.envs.observations import observations
from flyball.envs.reward import reward_table
from flyball.platform.cluster import ray_session
from flyball.platform.job import Job
from flyball.platform.prepare import Prepared

__all__ = ["ControllerStage", "controller_fingerprint", "observation_of", "train_controller"]

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


def observation_of(config: ControllerConfig) -> ObservationKind:
    """What a controller of this kind looks at."""
    return "context" if config.kind == "context_head" else "image"


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
        is_there = (folder / CURVE_FILE).exists() and (folder / HEADER_FILE).exists()
        if not is_there:
            seen = observations(atlas, ready.images, observation_of(job.controller))
            shape = tuple(int(size) for size in seen.shape[1:])
            macs = network_macs(build_network(job.controller, shape, len(atlas.arms)), shape)
            if job.learn.algorithm == "plain":
                learned = _learn_here(job, atlas, seen, macs, report)
            else:
                learned = _learn_with_ray(ready, atlas_folder, folder, macs, report)
            controller = NetworkController(
                learned.network,
                atlas.arms,
                macs,
                observation_of(job.controller),
                shape,
                classes=path.classes,
                path_fingerprint=path.fingerprint,
                atlas_fingerprint=atlas.header.fingerprint,
            )
            _save(_calibrated(controller, atlas, seen), learned, folder)
    curve = read_json(folder / CURVE_FILE)
    return ControllerStage(
        controller=load_controller(folder),
        folder=folder,
        was_reused=is_there,
        curve=[(int(s), float(r), float(e)) for s, r, e in curve["train"]],
        validation=[(int(s), float(r)) for s, r in curve["validation"]],
        seconds=time.monotonic() - start,
    )


def _learn_here(
    job: Job, atlas: OutcomeAtlas, seen: NDArray[np.float32], macs: int, report: Report
) -> Learned:
    uses_context = observation_of(job.controller) == "context"
    rewards = reward_table(atlas, job.reward, controller_macs=macs, uses_context=uses_context)
    train, validation = (
        BanditTable(seen[rows], rewards[rows])
        for rows in (_rows(atlas, CONTROLLER_TRAIN), _rows(atlas, CONTROLLER_VAL))
    )
    generator = torch.Generator().manual_seed(job.learn.seed)
    network = build_network(job.controller, seen.shape[1:], len(atlas.arms), generator=generator)
    return learn_plain(train, network, job.learn, validation=validation, report=report)


def _learn_with_ray(
    ready: Prepared, atlas_folder: Path, folder: Path, macs: int, report: Report
) -> Learned:
    # RLlib takes seconds to import; a job whose controller lies there already does without it.
    from flyball.controllers.rllib.learn import Workers, learn_rllib

    job = ready.job
    kind = observation_of(job.controller)
    with ray_session(ready.ray_address):
        return learn_rllib(
            atlas_folder.resolve(),
            images_file=_images_file(ready) if kind == "image" else None,
            observation=kind,
            split=CONTROLLER_TRAIN,
            validation_split=CONTROLLER_VAL,
            reward=job.reward,
            controller_macs=macs,
            controller=job.controller,
            config=job.learn,
            workers=Workers(env_runners=job.compute.env_runners),
            checkpoint_folder=folder / CHECKPOINT_FOLDER,
            report=report,
        )


def _images_file(ready: Prepared) -> Path:
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


def _rows(atlas: OutcomeAtlas, split: str) -> NDArray[np.int64]:
    return np.flatnonzero(np.asarray(atlas.split) == split_code(split)).astype(np.int64)


def _calibrated(
    controller: NetworkController, atlas: OutcomeAtlas, seen: NDArray[np.float32]
) -> NetworkController:
    rows = _rows(atlas, CONTROLLER_VAL)
    ratios = atlas.rows(rows).net_throttle_ratio(
        controller.macs, uses_context=controller.observation == "context"
    )
    return replace(controller, calibration=calibrate(controller.propensities(seen[rows]), ratios))


def _save(controller: NetworkController, learned: Learned, folder: Path) -> None:
    save_controller(controller, folder)
    curve = {
        "train": [list(point) for point in learned.curve],
        "validation": [list(point) for point in learned.validation],
        "samples": learned.samples,
        "best_update": learned.best_update,
    }
    write_json(folder / CURVE_FILE, curve)
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)
