"""The first stage of a job: Phase 1, from an image set to a frozen data path on disk.

What it trains is the configuration's business: a throttleable network, a family of models, or a
dynamic convolution network.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyball.datapaths.arm_statistics import check_calibrated, recalibrate
from flyball.datapaths.arms import default_arms, validated_arms
from flyball.datapaths.data import ImageSet
from flyball.datapaths.dynconv.config import DynConvConfig
from flyball.datapaths.dynconv.stage import train_dynconv_path
from flyball.datapaths.family_config import FamilyConfig
from flyball.datapaths.family_training import family_to_json, train_family
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.frozen import SPEC_FILE, FrozenDataPath, PathSpec
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.networks import config_to_json, kind_of, make_network
from flyball.datapaths.paths import DataPath, open_path
from flyball.datapaths.phase1 import Phase1Config, batches, train_phase1
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.splits import PATH_TRAIN
from flyball.platform.training_images import (
    NormalisedBatches,
    channel_statistics,
    training_pixels,
)

__all__ = ["PathStage", "path_fingerprint", "train_path"]

CALIBRATION_ROWS = 4096
CHECK_ROWS = 64
CHECKPOINT_FOLDER = "checkpoint"


@dataclass(frozen=True)
class PathStage:
    """What the stage gave.

    Attributes:
        path: frozen data path.
        folder: where it lies.
        was_reused: True if it lay there already.
        forwards: sample passes of Phase 1 in this call; 0 if reused.
        seconds: wall-clock time of this call.
    """

    path: DataPath
    folder: Path
    was_reused: bool
    forwards: int
    seconds: float


def path_fingerprint(
    network: Any, phase1: Phase1Config, images: ImageSet, arms: Sequence[float] = ()
) -> str:
    """Names the stage's artifact before it exists, by everything that shapes it.

    Raises:
        DataError: a family's folder of weights lacks a model's file.
    """
    settings = {**asdict(phase1), "checkpoint_seconds": None}
    if isinstance(network, FamilyConfig):
        return fingerprint_of("path", family_to_json(network), settings, images.fingerprint)
    if isinstance(network, DynConvConfig):
        described = {**asdict(network), "network": config_to_json(network.network)}
        calibrated = [list(arms)]
    else:
        described = config_to_json(network)
        calibrated = [list(arms)] if has_batch_norm(network) else []
    weights = described.get("weights")
    if weights and Path(weights).is_file():
        with Path(weights).open("rb") as opened:
            described["weights"] = hashlib.file_digest(opened, "sha256").hexdigest()
    return fingerprint_of("path", described, settings, images.fingerprint, *calibrated)


def has_batch_norm(network: Any) -> bool:
    """Whether a network keeps batch statistics, which hold for one setting of the gates each."""
    with torch.device("meta"):
        return bool(make_network(network).norms)


def train_path(
    network: Any,
    phase1: Phase1Config,
    images: ImageSet,
    folder: Path,
    *,
    arms: Sequence[float] = (),
    device: str = "cpu",
    report: Report = silent,
) -> PathStage:
    """Trains and freezes a data path, or takes the finished one that `folder` holds.

    Args:
        network: structure, fitted to the images: a network's configuration, a family's, or a
            dynamic convolution network's.
        phase1: schedule and optimiser.
        images: their path_train rows are learned from, no other.
        folder: of this artifact; an interrupted training's checkpoint there is resumed.
        arms: utilizations that batch norm or masks are calibrated for; a family has its own.
        device: torch device.
        report: hears of progress.

    Raises:
        InvalidArms: a family's models are not in order of cost, or `arms` are not theirs.
        NotFinite: a loss became NaN or infinite.
        ArtifactError: the finished data path in the folder cannot be used.
        StorageError: the folder cannot be written.
    """
    if (folder / SPEC_FILE).exists():
        return PathStage(open_path(folder), folder, True, 0, 0.0)
    rows = images.rows(PATH_TRAIN)
    pixels = training_pixels(images.images, rows)
    labels = np.asarray(images.labels[rows], np.int64)
    mean, std = channel_statistics(pixels)
    provenance: dict[str, Any] = {
        "data": images.name,
        "data_fingerprint": images.fingerprint,
        "phase1": {**asdict(phase1), "checkpoint_seconds": None},
    }
    path: DataPath
    if isinstance(network, FamilyConfig):
        trained = train_family(
            network,
            phase1,
            pixels,
            labels,
            classes=images.classes,
            mean=mean,
            std=std,
            arms=tuple(arms) or None,
            folder=folder / CHECKPOINT_FOLDER,
            device=device,
            provenance=provenance,
            report=report,
        )
        path, forwards, seconds = trained.family, trained.forwards, trained.seconds
    elif isinstance(network, DynConvConfig):
        learned = train_dynconv_path(
            network,
            phase1,
            images,
            pixels,
            mean=mean,
            std=std,
            arms=tuple(arms),
            folder=folder / CHECKPOINT_FOLDER,
            device=device,
            provenance=provenance,
            report=report,
        )
        path, forwards, seconds = learned.path, learned.forwards, learned.seconds
    else:
        devices = [torch.device(device)] if device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(phase1.seed)
            model = starting_network(network)
        result = train_phase1(
            model,
            pixels,
            labels,
            phase1,
            mean=mean,
            std=std,
            folder=folder / CHECKPOINT_FOLDER,
            device=device,
            report=report,
        )
        served = validated_arms(arms or default_arms()) if model.norms else ()
        scale = (mean, std)
        spent = calibrate_norms(model, pixels, served, phase1, scale, device, report)
        provenance["losses"] = [round(loss, 6) for loss in result.losses]
        spec = PathSpec(network, served, images.classes, mean, std, phase1.seed, provenance)
        path, forwards = FrozenDataPath(model, spec), result.forwards + spent
        seconds = result.seconds
    path.save(folder)
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)
    return PathStage(path, folder, False, forwards, seconds)


def starting_network(network: Any) -> ThrottleableNetwork:
    """A network as Phase 1 takes it up: its weights drawn, or those its configuration names."""
    if kind_of(network) != "torchvision" or network.weights is None:
        return make_network(network)
    from flyball.datapaths.graph.torchvision_models import pretrained

    return pretrained(network)


def calibrate_norms(
    model: ThrottleableNetwork,
    pixels: Any,
    arms: Sequence[float],
    phase1: Phase1Config,
    scale: tuple[tuple[float, ...], tuple[float, ...]],
    device: str,
    report: Report,
) -> int:
    """Takes batch norm's statistics for every arm, and proves them on images kept aside for it.

    Args:
        model: trained; a network without batch norm stays as it is.
        pixels: uint8 training images; at most `CALIBRATION_ROWS`, evenly spaced, are read.
        arms: utilizations that will be served.
        phase1: gives the size of a batch and the seed of independent gates.
        scale: mean and standard deviation of the channels.
        device: torch device.
        report: hears after every arm.

    Returns:
        Sample passes it took.

    Raises:
        InvalidSetting: the statistics of an arm are not its own.
    """
    if not model.norms:
        return 0
    count = len(pixels)
    rows = np.unique(np.linspace(0, count - 1, min(count, CALIBRATION_ROWS)).round().astype(int))
    # Fewer samples tell too little to judge by, and then all are needed for the statistics.
    aside = rows[::8] if len(rows[::8]) >= CHECK_ROWS else rows[:0]
    # Rows run class by class, and every batch is normalised by itself: it needs all classes.
    kept = np.random.default_rng(phase1.seed).permutation(np.setdiff1d(rows, aside))
    size = max(2, phase1.batch_size)
    model.to(device)
    taken = recalibrate(
        model,
        NormalisedBatches(pixels, batches(kept, size), *scale, device),
        arms,
        gate_seed=phase1.seed,
        report=report,
    )
    spent = taken.forwards
    if len(aside):
        fresh = NormalisedBatches(pixels, batches(aside, size), *scale, device)
        spent += len(aside) * len(check_calibrated(model, fresh, arms, gate_seed=phase1.seed))
    model.to("cpu")
    return spent
