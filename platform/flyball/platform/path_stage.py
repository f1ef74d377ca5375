"""The first stage of a job: Phase 1, from an image set to a frozen data path on disk."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyball.datapaths.data import ImageSet
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.frozen import SPEC_FILE, FrozenDataPath, PathSpec
from flyball.datapaths.networks import config_to_json, make_network
from flyball.datapaths.phase1 import Phase1Config, train_phase1
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.splits import PATH_TRAIN

__all__ = ["PathStage", "path_fingerprint", "train_path"]

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

    path: FrozenDataPath
    folder: Path
    was_reused: bool
    forwards: int
    seconds: float


def path_fingerprint(network: Any, phase1: Phase1Config, images: ImageSet) -> str:
    """Names the stage's artifact before it exists, by everything that shapes it."""
    settings = {**asdict(phase1), "checkpoint_seconds": None}
    return fingerprint_of("path", config_to_json(network), settings, images.fingerprint)


def train_path(
    network: Any,
    phase1: Phase1Config,
    images: ImageSet,
    folder: Path,
    *,
    device: str = "cpu",
    report: Report = silent,
) -> PathStage:
    """Trains and freezes a data path, or takes the finished one that `folder` holds.

    Args:
        network: structure, fitted to the images.
        phase1: schedule and optimiser.
        images: their path_train rows are learned from, no other.
        folder: of this artifact; an interrupted training's checkpoint there is resumed.
        device: torch device.
        report: hears of progress.

    Raises:
        NotFinite: a loss became NaN or infinite.
        ArtifactError: the finished data path in the folder cannot be used.
        StorageError: the folder cannot be written.
    """
    if (folder / SPEC_FILE).exists():
        return PathStage(FrozenDataPath.load(folder), folder, True, 0, 0.0)
    rows = images.rows(PATH_TRAIN)
    pixels = np.ascontiguousarray(images.images[rows])
    mean, std = channel_statistics(pixels)
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(phase1.seed)
        model = make_network(network)
    result = train_phase1(
        model,
        pixels,
        np.asarray(images.labels[rows], np.int64),
        phase1,
        mean=mean,
        std=std,
        folder=folder / CHECKPOINT_FOLDER,
        device=device,
        report=report,
    )
    provenance = {
        "data": images.name,
        "data_fingerprint": images.fingerprint,
        "phase1": {**asdict(phase1), "checkpoint_seconds": None},
        "losses": [round(loss, 6) for loss in result.losses],
    }
    spec = PathSpec(network, (), images.classes, mean, std, phase1.seed, provenance)
    path = FrozenDataPath(model, spec)
    path.save(folder)
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)
    return PathStage(path, folder, False, result.forwards, result.seconds)


def channel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on [0, 1]; pixels are uint8 (N, C, H, W)."""
    histogram = [np.bincount(pixels[:, c].ravel(), minlength=256) for c in range(pixels.shape[1])]
    levels = np.arange(256) / 255.0
    means, stds = [], []
    for counts in histogram:
        mean = float((counts * levels).sum() / counts.sum())
        variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        means.append(round(mean, 6))
        stds.append(round(max(variance**0.5, 1e-3), 6))
    return tuple(means), tuple(stds)
