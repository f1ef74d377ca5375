"""Dense networks to hold a dynamic one against: which ones, and how they are trained alike.

```text
runs/static/<fingerprint>/
|-- weights.safetensors   state of the trained network
|-- result.json           losses, history, seconds, mean and std, network; written last
`-- checkpoint/           of an interrupted training
```

N images.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyball.datapaths.data import ImageSet
from flyball.datapaths.dynconv.config import DynConvConfig
from flyball.datapaths.dynconv.hourglass import HourglassConfig
from flyball.datapaths.dynconv.network import DynConvNetwork
from flyball.datapaths.dynconv.resnet import DynConvResNetConfig
from flyball.datapaths.dynconv.sparsity import SparsityConfig
from flyball.datapaths.dynconv.stage import task_of
from flyball.datapaths.dynconv.training import train_dynconv
from flyball.datapaths.errors import CorruptArtifact, InvalidSetting
from flyball.datapaths.files import (
    fingerprint_of,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from flyball.datapaths.networks import config_to_json, make_network
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.schedules import Phase1Config
from flyball.datapaths.splits import PATH_TRAIN
from flyball.datapaths.weights import load_weights
from flyball.platform.training_images import channel_statistics, training_pixels

__all__ = [
    "FAMILIES",
    "StaticNetwork",
    "static_fingerprint",
    "static_network",
    "static_networks",
]

WEIGHTS_FILE = "weights.safetensors"
RESULT_FILE = "result.json"
CHECKPOINT_FOLDER = "checkpoint"


@dataclass(frozen=True)
class StaticNetwork:
    """A trained dense network.

    Attributes:
        network: in evaluation mode, on the CPU.
        mean, std: of the channels on the [0, 1] scale.
        fingerprint: of structure, training and images.
        folder: where it lies.
        was_reused: True if it lay there already.
    """

    network: DynConvNetwork
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    folder: Path
    was_reused: bool


def _resnets(config: DynConvResNetConfig) -> dict[str, Any]:
    """A third, two thirds and all of the blocks; and all at half width (DynConv Fig. 5)."""
    dense = replace(config, mask_unit="none", is_budgeted=False)
    found = {}
    for part in (1, 2, 3):
        layers = tuple(-(-part * count // 3) for count in config.layers)
        found[_depth_name(dense, layers)] = replace(dense, layers=layers)
    if min(config.widths) > 1:
        half = tuple(width // 2 for width in config.widths)
        found[f"{_depth_name(dense, config.layers)}, half width"] = replace(dense, widths=half)
    return found


def _depth_name(config: DynConvResNetConfig, layers: tuple[int, ...]) -> str:
    return f"ResNet-{(3 if config.bottleneck else 2) * sum(layers) + 2}"


def _hourglasses(config: HourglassConfig) -> dict[str, Any]:
    """All, half and a quarter of the stacks; and narrower ones (DynConv Table 2)."""
    dense = replace(config, mask_unit="none", is_budgeted=False)
    found = {}
    for stacks in sorted({max(1, config.stacks // part) for part in (1, 2, 4)}):
        found[_size_name(stacks, config.channels)] = replace(dense, stacks=stacks)
    for share in (0.75, 0.5):
        features = round(share * config.features)
        channels = round(features * config.width)
        if channels >= 4 and channels % 4 == 0:
            found[_size_name(config.stacks, channels)] = replace(dense, features=features)
    return found


def _size_name(stacks: int, channels: int) -> str:
    return f"hourglass, {stacks} {'stack' if stacks == 1 else 'stacks'} of {channels} channels"


FAMILIES: dict[type, Callable[[Any], dict[str, Any]]] = {
    DynConvResNetConfig: _resnets,
    HourglassConfig: _hourglasses,
}
"""By the network's configuration: its dense relatives, and what people call them."""


def static_networks(network: Any) -> dict[str, Any]:
    """Dense networks of a dynamic network's family: configurations by name.

    Raises:
        InvalidSetting: nobody named dense networks of this family.
    """
    for kind, relatives in FAMILIES.items():
        if isinstance(network, kind):
            return relatives(network)
    known = ", ".join(kind.__name__ for kind in FAMILIES)
    raise InvalidSetting(
        f"There are no dense networks to hold a {type(network).__name__} against; there are of "
        f"{known}. Add a function to FAMILIES."
    )


def static_fingerprint(
    network: Any, config: DynConvConfig, phase1: Phase1Config, images: ImageSet
) -> str:
    """Names a dense network's artifact before it exists.

    Args:
        network: dense configuration.
        config: of the dynamic network; what of it shapes the task counts, its masks do not.
        phase1: optimiser and epochs, the dynamic network's.
        images: of the job.
    """
    task = {**asdict(config), "network": None, "sparsity": None, "calibration_samples": None}
    settings = {**asdict(phase1), "checkpoint_seconds": None}
    return fingerprint_of("static", config_to_json(network), task, settings, images.fingerprint)


def static_network(
    network: Any,
    config: DynConvConfig,
    phase1: Phase1Config,
    images: ImageSet,
    folder: Path,
    *,
    device: str = "cpu",
    report: Report = silent,
) -> StaticNetwork:
    """Trains a dense network as the dynamic one was trained, or takes the one that lies there.

    Same images, order, optimiser, schedule, augmentation and number of steps; no masks and no
    sparsity loss.

    Args:
        network: dense configuration.
        config: of the dynamic network, fitted to the images.
        phase1: optimiser and epochs, the dynamic network's.
        images: their path_train rows are learned from, no other.
        folder: of dense networks; this one's lies in it under its fingerprint.
        device: torch device.
        report: hears of progress.

    Raises:
        InvalidSetting: the dynamic network starts from weights, which a dense one does not have.
        NotFinite: a loss became NaN or infinite.
        CorruptArtifact: what lies there is damaged.
        StorageError: the folder cannot be written.
    """
    if config.weights is not None:
        raise InvalidSetting(
            "Dense networks are trained as the dynamic one was, from drawn weights, and this one "
            f"started from {config.weights}. Compare a network without path.weights."
        )
    print_ = static_fingerprint(network, config, phase1, images)
    place = folder / print_
    with torch.random.fork_rng(devices=[torch.device(device)] if "cuda" in device else []):
        torch.manual_seed(phase1.seed)
        made: Any = make_network(network)
    if (place / RESULT_FILE).exists():
        known = read_json(place / RESULT_FILE)
        load_weights(made, read_tensors(place / WEIGHTS_FILE), where=str(place / WEIGHTS_FILE))
        try:
            mean, std = (tuple(float(v) for v in known[name]) for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifact(
                f"{place / RESULT_FILE} does not say how images are normalised ({error}). "
                "Delete its folder and run the analysis again."
            ) from error
        return StaticNetwork(made.eval(), mean, std, print_, place, True)
    rows = images.rows(PATH_TRAIN)
    pixels = training_pixels(images.images, rows)
    mean, std = channel_statistics(pixels)
    result = train_dynconv(
        made,
        pixels,
        task_of(config, phase1, images, rows),
        phase1,
        SparsityConfig(),
        mean=mean,
        std=std,
        labels=np.asarray(images.labels[rows], np.int64),
        folder=place / CHECKPOINT_FOLDER,
        device=device,
        report=report,
    )
    state = result.network.state_dict()
    write_tensors(place / WEIGHTS_FILE, {k: v.detach().cpu().numpy() for k, v in state.items()})
    write_json(
        place / RESULT_FILE,
        {
            "losses": list(result.losses),
            "history": result.history.tolist(),
            "seconds": result.seconds,
            "mean": list(mean),
            "std": list(std),
            "network": config_to_json(network),
        },
    )
    shutil.rmtree(place / CHECKPOINT_FOLDER, ignore_errors=True)
    return StaticNetwork(result.network.eval(), mean, std, print_, place, False)
