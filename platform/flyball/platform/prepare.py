"""Everything a user can get wrong, checked before a job starts; nothing is written here."""

from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import torch

from flyball.datapaths.data import ImageSet, load_images
from flyball.datapaths.dynconv.config import DynConvConfig
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.family_config import FamilyConfig
from flyball.datapaths.family_weights import check_models
from flyball.datapaths.pose import JOINTS
from flyball.datapaths.progress import Report, silent
from flyball.datapaths.splits import PATH_TRAIN, SPLITS
from flyball.envs.observations import check_size
from flyball.platform.cluster import check_ray_address
from flyball.platform.job import Job
from flyball.platform.run_folder import RunFolder, check_storage
from flyball.platform.tracking import check_tracking, checked_name

__all__ = ["Prepared", "fitted_network", "prepare", "use_threads"]

POSE_SETS = ("figures", "mpii")


@dataclass(frozen=True)
class Prepared:
    """A job that can start: every input was read and checked, and nothing was written.

    Attributes:
        job: with its device resolved.
        images: all four splits.
        network: the data path's structure, fitted to the images.
        runs: the run folder.
        ray_address: of a running cluster that answered; None starts Ray here.
    """

    job: Job
    images: ImageSet
    network: Any
    runs: RunFolder
    ray_address: str | None


def prepare(job: Job, *, report: Report = silent) -> Prepared:
    """Checks storage, tracking, cluster, device, weights, task, images and network, in this order.

    Also sets how many threads torch computes with in this process.

    Decoded images may enter the user's cache; the run folder stays as it is.

    Raises:
        BadInput: whatever cannot be used; the command line ends with exit code 2.
    """
    runs = check_storage(Path(job.storage.root), least_free_mb=job.storage.least_free_mb)
    check_tracking(job.tracking.uri, runs.root)
    address = check_ray_address(job.compute.ray_address)
    device = _device(job.compute.device)
    checked_name(job.model_name)
    _check_weights(job.path)
    _check_dynamic(job)
    images = load_images(
        job.data,
        report=report,
        check_shape=lambda shape: check_shape(job.path, shape, job.data.name),
    )
    network = fitted_network(job.path, images)
    if isinstance(network, FamilyConfig):
        check_models(network)
    for split in SPLITS:
        if not len(images.rows(split)):
            raise DataError(
                f"Every split needs images, and {split} has none. Give it a share with "
                "--set data.fractions=0.5,0.25,0.1,0.15."
            )
    if job.controller.kind != "context_head":
        check_size(len(images) - len(images.rows(PATH_TRAIN)), images.shape)
    use_threads(job.compute.threads)
    ready = replace(job, compute=replace(job.compute, device=device))
    return Prepared(ready, images, network, runs, address)


def use_threads(count: int) -> None:
    """Sets how many threads torch computes with in this process; 0 leaves its own choice."""
    if count:
        torch.set_num_threads(count)


def fitted_network(network: Any, images: ImageSet) -> Any:
    """The network's configuration with as many classes as the images have.

    Raises:
        DataError: the images' size or channels are not the network's.
    """
    check_shape(network, images.shape, images.name)
    if isinstance(network, DynConvConfig):
        return network.fitted(images)
    return replace(network, classes=len(images.classes))


def check_shape(network: Any, shape: tuple[int, ...], name: str) -> None:
    """Refuses images that the network cannot take.

    Args:
        network: the data path's structure.
        shape: (C, H, W) of an image, or (C, T, H, W) of a clip.
        name: of the data set.

    Raises:
        DataError: the shape is not the network's.
    """
    wanted = tuple(network.input_shape)
    if tuple(shape) != wanted:
        axes = "(channels, height, width)" if len(wanted) == 3 else "(channels, frames, h, w)"
        is_nested = isinstance(network, DynConvConfig)
        fields = {item.name for item in fields_of(network.network if is_nested else network)}
        fitting = [
            f"--set path.{'network.' if is_nested else ''}{field}={value}"
            for field, value in (("image_size", shape[-1]), ("in_channels", shape[0]))
            if field in fields
        ]
        raise DataError(
            f"The network takes inputs of shape {wanted} {axes}; those of {name} are "
            f"{tuple(shape)}. Resize them with --set data.image_size={wanted[-1]}"
            + (f", or fit the network with {' '.join(fitting)}." if fitting else ".")
        )


def _check_weights(network: Any) -> None:
    """A file of weights that training starts from is there."""
    # networks of torchvision alone can name one
    file: Path | None = getattr(network, "weights_file", None)
    if file is not None and not file.is_file():
        raise DataError(
            f"Training starts from the weights in {file}, and there is no such "
            "file. Name it with --set path.weights=FILE, or take torchvision's with "
            "--set path.weights=DEFAULT."
        )


def _check_dynamic(job: Job) -> None:
    """What a dynamic convolution network learns and costs is what data and atlas can give."""
    if not isinstance(job.path, DynConvConfig):
        return
    asked = job.outcomes.cost_model
    if asked != "executed":
        raise InvalidSetting(
            "A dynamic convolution network costs what its masks execute, image by image; "
            f"outcomes.cost_model is {asked!r}. Set --set outcomes.cost_model=executed."
        )
    if job.path.task == "pose":
        if job.data.name not in POSE_SETS:
            raise DataError(
                f"A pose network learns key points, and {job.data.name} has none. Set "
                + " or ".join(f"--set data.name={name}" for name in POSE_SETS)
                + "."
            )
        if job.path.network.classes != len(JOINTS):
            raise InvalidSetting(
                f"{job.data.name} has {len(JOINTS)} key points, and the network finds "
                f"{job.path.network.classes}. Set --set path.network.classes={len(JOINTS)}."
            )


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    index = int(asked.partition(":")[2] or 0) if asked != "cpu" else -1
    count = torch.cuda.device_count()
    if index >= count:
        raise InvalidSetting(
            f"compute.device is {asked!r}, and torch sees {count} CUDA devices here. "
            "Leave it out, or set --set compute.device=cpu."
        )
    return asked
