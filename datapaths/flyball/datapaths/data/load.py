"""From a configuration to an image set: checks first, decodes once, then maps what is there."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.data.cache import cache_folder, key_of, recall, remember, store
from flyball.datapaths.data.cifar_batches import (
    CIFAR10_CLASSES,
    CIFAR10_SHAPE,
    holds_batches,
    plan_batches,
)
from flyball.datapaths.data.class_folders import plan_class_folders
from flyball.datapaths.data.config import DataConfig
from flyball.datapaths.data.containers import Container, open_container
from flyball.datapaths.data.deal import deal
from flyball.datapaths.data.decode import fit
from flyball.datapaths.data.image_set import ImageSet
from flyball.datapaths.data.plan import Part, Plan, labels_of, test_mask_of
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Report, silent

__all__ = ["load_images"]


def load_images(
    config: DataConfig,
    *,
    report: Report | None = None,
    check_shape: Callable[[tuple[int, int, int]], None] | None = None,
) -> ImageSet:
    """Loads a data set and deals it into the four splits.

    "digits" is made in memory. The others are looked through first (headers only, nothing
    written), then decoded once into the cache and mapped from there; unchanged files are not
    even looked through again. Rows run by part, class and name.

    Args:
        config: what to load.
        check_shape: called with (C, H, W) of an image before anything is written; may raise.
        report: told of the stages "survey" and "decode", which are skipped where the cache knows.

    Raises:
        DataError: the source is missing, corrupt, empty, or cannot be dealt.
        InvalidSetting: the settings do not fit the source.
        StorageError: the cache cannot be written.
    """
    if config.name == "digits":
        return _digits(config)
    tell = report or silent
    container = _container_of(config)
    cache = cache_folder(config)
    stored = recall(cache, container, config)
    if stored is None:
        plan = _plan_of(container, config, tell)
        _deal_parts(plan.parts, plan.classes, config)
        if check_shape is not None:
            check_shape(plan.shape)
        stored = store(cache, plan, tell)
        remember(cache, container, config, key_of(plan))
    return _image_set(
        config,
        stored.images(),
        labels_of(stored.parts),
        stored.classes,
        _deal_parts(stored.parts, stored.classes, config),
        pixels_digest=stored.pixels,
        images_file=stored.file,
    )


def _digits(config: DataConfig) -> ImageSet:
    """scikit-learn's copy of the UCI optical digits: 1,797 grey 8x8 images of 0 to 16."""
    if config.root is not None:
        raise InvalidSetting(
            f"'digits' comes with scikit-learn and has no root; got data.root={config.root}. "
            "Give --set data.name=cifar10 or data.name=folder with it, or leave it out."
        )
    from sklearn.datasets import load_digits

    values, target = load_digits(return_X_y=True)
    pixels = np.rint(values.reshape(-1, 1, 8, 8) * (255.0 / 16.0)).astype(np.uint8)
    labels = target.astype(np.int64)
    kept = np.sort(
        np.concatenate([np.flatnonzero(labels == digit)[: config.limit] for digit in range(10)])
    )
    pixels, labels = pixels[kept], labels[kept]
    if config.image_size is not None:
        pixels = np.stack([fit(Image.fromarray(image[0]), config.image_size) for image in pixels])
    pixels.setflags(write=False)
    classes = tuple(str(digit) for digit in range(10))
    split = deal(labels, np.zeros(len(labels), np.bool_), classes, config.shares, config.seed)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return _image_set(config, pixels, labels, classes, split, pixels_digest=digest)


def _container_of(config: DataConfig) -> Container:
    if config.root is None:
        raise DataError(
            f"The data set {config.name!r} is read from a folder or archive, and none is named. "
            "Name it with --set data.root=FILE."
        )
    root = Path(config.root).expanduser()
    if config.name == "cifar10":
        # torchvision's root may hold other data sets beside this one
        for inside in (root / "cifar-10-batches-py", root / "cifar-10-python.tar.gz"):
            if inside.exists():
                return open_container(str(inside))
    return open_container(str(root))


def _plan_of(container: Container, config: DataConfig, report: Report) -> Plan:
    if config.name == "cifar10" and holds_batches(container):
        return plan_batches(
            container, image_size=config.image_size, limit=config.limit, report=report
        )
    plan = plan_class_folders(
        container, image_size=config.image_size, limit=config.limit, report=report
    )
    if config.name == "cifar10":
        _check_cifar10(plan, container, config)
    return plan


def _check_cifar10(plan: Plan, container: Container, config: DataConfig) -> None:
    if plan.classes != CIFAR10_CLASSES:
        raise DataError(
            f"CIFAR-10's classes are {', '.join(CIFAR10_CLASSES)}; {container.path} has "
            f"{', '.join(plan.classes)}. Give --set data.name=folder for a data set of your own."
        )
    if config.image_size is None and plan.shape != CIFAR10_SHAPE:
        sizes = ["x".join(str(side) for side in shape) for shape in (CIFAR10_SHAPE, plan.shape)]
        raise DataError(
            f"CIFAR-10's images are {sizes[0]}; those of {container.path} are {sizes[1]}. "
            "Resize them with --set data.image_size=32, or give --set data.name=folder."
        )


def _deal_parts(
    parts: tuple[Part, ...], classes: tuple[str, ...], config: DataConfig
) -> NDArray[np.int8]:
    return deal(labels_of(parts), test_mask_of(parts), classes, config.shares, config.seed)


def _image_set(
    config: DataConfig,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    split: NDArray[np.int8],
    *,
    pixels_digest: str,
    images_file: Path | None = None,
) -> ImageSet:
    labels.setflags(write=False)
    split.setflags(write=False)
    rows = hashlib.sha256(labels.tobytes() + split.tobytes()).hexdigest()
    return ImageSet(
        images=images,
        labels=labels,
        classes=classes,
        split=split,
        name=config.name,
        fingerprint=fingerprint_of(
            "images", config.name, classes, images.shape, pixels_digest, rows
        ),
        images_file=images_file,
    )
