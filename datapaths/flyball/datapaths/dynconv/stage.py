"""From images to a frozen dynamic convolution network: training, calibration, freezing.

M images of path_train, C images to calibrate on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flyball.datapaths.arms import default_arms, validated_arms
from flyball.datapaths.dynconv.calibration import calibrate
from flyball.datapaths.dynconv.config import DynConvConfig
from flyball.datapaths.dynconv.network import DynConvNetwork
from flyball.datapaths.dynconv.path import DynConvPath, DynConvSpec
from flyball.datapaths.dynconv.resnet import DynConvResNet, load_torchvision_resnet
from flyball.datapaths.dynconv.training import Classification, TrainingTask, train_dynconv
from flyball.datapaths.freezing import rows_in_a_chunk
from flyball.datapaths.graph.torchvision_models import (
    TorchvisionConfig,
    fetched_state,
    read_state,
)
from flyball.datapaths.networks import make_network
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.schedules import Phase1Config
from flyball.datapaths.splits import CONTROLLER_TRAIN, PATH_TRAIN

__all__ = ["TrainedDynConv", "freeze_dynconv", "starting_dynconv", "task_of", "train_dynconv_path"]

BUDGETS = default_arms(10)


@dataclass(frozen=True)
class TrainedDynConv:
    """What the stage gave.

    Attributes:
        path: frozen and calibrated.
        forwards: sample passes of training and calibration in this call.
        seconds: wall-clock time of training.
    """

    path: DynConvPath
    forwards: int
    seconds: float


def train_dynconv_path(
    config: DynConvConfig,
    phase1: Phase1Config,
    images: Any,
    pixels: Any,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    arms: Sequence[float] = (),
    folder: Path | None = None,
    device: str = "cpu",
    provenance: dict[str, Any] | None = None,
    report: Report = silent,
) -> TrainedDynConv:
    """Trains, calibrates and freezes.

    Args:
        config: fitted to the images.
        phase1: optimiser and epochs.
        images: all splits; path_train is learned from, controller_train calibrates.
        pixels: uint8 of path_train, (M, C, H, W).
        mean, std: of the channels of `pixels` on the [0, 1] scale.
        arms: utilizations it will be served at; every one below 1 is calibrated.
        folder: of the checkpoint.
        device: torch device.
        provenance: of the data and the settings.
        report: hears of progress.

    Raises:
        NotFinite: a loss became NaN or infinite.
        InvalidArms: the arms are out of order, repeated, or outside (0, 1].
    """
    served = validated_arms(arms or default_arms())
    network = starting_dynconv(config, phase1.seed, device)
    rows = images.rows(PATH_TRAIN)
    result = train_dynconv(
        network,
        pixels,
        task_of(config, phase1, images, rows),
        phase1,
        config.sparsity,
        mean=mean,
        std=std,
        labels=np.asarray(images.labels[rows], np.int64),
        folder=folder,
        device=device,
        report=report,
    )
    noted = {
        **(provenance or {}),
        "losses": [round(loss, 6) for loss in result.losses],
        "executed_shares": [[round(v, 4) for v in row] for row in result.history.tolist()],
    }
    path, spent = freeze_dynconv(
        config,
        network,
        images,
        mean=mean,
        std=std,
        arms=served,
        device=device,
        provenance=noted,
        report=report,
    )
    return TrainedDynConv(path, result.forwards + spent, result.seconds)


def starting_dynconv(config: DynConvConfig, seed: int, device: str = "cpu") -> DynConvNetwork:
    """A network as training takes it up: drawn from the seed, or from the weights it names."""
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        network: Any = make_network(config.network)
    if config.weights is not None and isinstance(network, DynConvResNet):
        load_torchvision_resnet(network, _torchvision_weights(config))
    made: DynConvNetwork = network
    return made


def task_of(
    config: DynConvConfig, phase1: Phase1Config, images: Any, rows: NDArray[np.int64]
) -> TrainingTask:
    """What a network learns about some rows of images."""
    if config.task == "pose":
        from flyball.datapaths.dynconv.pose_task import PoseEstimation

        size = (config.input_shape[1], config.input_shape[2])
        return PoseEstimation(images.key_points[rows], size, sigma=config.sigma)
    return Classification(
        np.asarray(images.labels[rows], np.int64),
        phase1.label_smoothing,
        resized_crops=config.resized_crops,
    )


def freeze_dynconv(
    config: DynConvConfig,
    network: DynConvNetwork,
    images: Any,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    arms: Sequence[float],
    device: str = "cpu",
    provenance: dict[str, Any] | None = None,
    report: Report = silent,
) -> tuple[DynConvPath, int]:
    """Calibrates a trained network on controller_train and freezes it.

    Returns:
        The path, and the sample passes that calibration took.
    """
    network.to(device).eval()
    rows = images.rows(CONTROLLER_TRAIN)
    count = min(len(rows), config.calibration_samples)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]
    scale = [torch.tensor(v, device=device).reshape(1, -1, 1, 1) for v in (mean, std)]
    size, parts = rows_in_a_chunk(config.input_shape), []
    for start in range(0, len(rows), size):
        x = torch.from_numpy(np.asarray(images.images[rows[start : start + size]]))
        x = (x.to(device).float() / 255.0 - scale[0]) / scale[1]
        parts.append(x.contiguous(memory_format=torch.channels_last))

    budgets = sorted({*BUDGETS, *arms})
    prepared = network.prepared()
    calibration = calibrate(prepared, network.costs(), parts, budgets, report=report)
    spec = DynConvSpec(
        network=config.network,
        arms=tuple(arms),
        classes=images.classes,
        mean=mean,
        std=std,
        calibration=calibration,
        task=config.task,
        provenance=provenance or {},
    )
    network.to("cpu")
    return DynConvPath(network, spec), calibration.passes


def _torchvision_weights(config: DynConvConfig) -> Mapping[str, Tensor]:
    file = config.weights_file
    if file is not None:
        return read_state(file)
    return fetched_state(TorchvisionConfig("resnet101", weights="DEFAULT"))
