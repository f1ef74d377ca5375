"""The files a data set is read from, and the ways it can be read; by the configuration's name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flyball.datapaths.data.cifar_batches import (
    CIFAR10_CLASSES,
    CIFAR10_SHAPE,
    holds_batches,
    plan_batches,
)
from flyball.datapaths.data.class_folders import (
    decoded_bytes,
    list_class_folders,
    plan_class_folders,
)
from flyball.datapaths.data.class_layout import is_image
from flyball.datapaths.data.config import DataConfig
from flyball.datapaths.data.containers import Container, open_container
from flyball.datapaths.data.decode import Sizing
from flyball.datapaths.data.image_set import ImageSet
from flyball.datapaths.data.imagenet import is_imagenet_file, list_imagenet
from flyball.datapaths.data.jester import list_jester
from flyball.datapaths.data.listing import Listing
from flyball.datapaths.data.plan import Plan
from flyball.datapaths.data.random_files import Entries
from flyball.datapaths.data.samples import Reader
from flyball.datapaths.errors import DataError
from flyball.datapaths.progress import Report

__all__ = ["Source", "open_source"]

_IMAGENET_SIDE = 224
_JESTER_FRAMES = 16
_MPII_SIDE = 256


def _as_it_is(images: ImageSet, reader: Reader) -> ImageSet:
    """Adds nothing."""
    return images


@dataclass(frozen=True)
class Source:
    """How a data set can be read.

    Attributes:
        container: what the cache remembers by path and dates; None: it is known by its listing.
        plan: looks it through to be decoded in one go; None: it is only listed.
        listing: looks it through to be read sample by sample.
        decoded_bytes: at most what a plan would take, found cheaply; 0 where that cannot be.
        can_list: `listing` works.
        complete: adds to a set that was listed what its reader knows beside pixels and labels.
    """

    container: Container | None
    plan: Callable[[Report], Plan] | None
    listing: Callable[[Report], Listing]
    decoded_bytes: Callable[[], int] = lambda: 0
    can_list: bool = True
    complete: Callable[[ImageSet, Reader], ImageSet] = _as_it_is


def open_source(config: DataConfig) -> Source:
    """Finds the files of a configuration; goes through none of them yet.

    Raises:
        DataError: the root is missing, or is nothing that can be read.
    """
    if config.name == "jester":
        return Source(None, None, partial(_jester, config))
    container = _container_of(config)
    if config.name == "imagenet":
        return Source(None, None, partial(_imagenet, config, container))
    if config.name == "mpii":
        return Source(None, None, partial(_mpii, config, container), complete=_with_key_points)
    can_list = config.name == "folder" and not container.is_compressed
    return Source(
        container,
        partial(_plan_of, container, config),
        partial(_class_folders, config, container),
        partial(_decoded_bytes, config, container) if can_list else lambda: 0,
        can_list,
    )


def _jester(config: DataConfig, report: Report) -> Listing:
    return list_jester(
        _root_of(config),
        frames=_JESTER_FRAMES if config.frames is None else config.frames,
        image_size=config.image_size,
        width=config.width,
        limit=config.limit,
        report=report,
        skip_corrupt=config.skip_corrupt,
    )


def _imagenet(config: DataConfig, container: Container, report: Report) -> Listing:
    side = _IMAGENET_SIDE if config.image_size is None else config.image_size
    short_side = round(side * 8 / 7) if config.short_side is None else config.short_side
    return list_imagenet(
        container,
        Entries(container, is_imagenet_file),
        sizing=Sizing(side, short_side=short_side),
        limit=config.limit,
        names=None if config.names is None else Path(config.names),
        report=report,
    )


def _mpii(config: DataConfig, container: Container, report: Report) -> Listing:
    from flyball.datapaths.pose.mpii import is_mpii_file, list_mpii

    return list_mpii(
        container,
        Entries(container, is_mpii_file),
        image_size=_MPII_SIDE if config.image_size is None else config.image_size,
        limit=config.limit,
        skip_corrupt=config.skip_corrupt,
        report=report,
    )


def _with_key_points(images: ImageSet, reader: Reader) -> ImageSet:
    from flyball.datapaths.pose.mpii import PersonReader
    from flyball.datapaths.pose.pose_set import posed

    assert isinstance(reader, PersonReader)
    return posed(images, reader.key_points, reader.head_sizes)


def _class_folders(config: DataConfig, container: Container, report: Report) -> Listing:
    return list_class_folders(
        container,
        Entries(container, is_image),
        sizing=_sizing(config),
        limit=config.limit,
        report=report,
        skip_corrupt=config.skip_corrupt,
    )


def _decoded_bytes(config: DataConfig, container: Container) -> int:
    if config.access == "cache":
        return 0
    entries = Entries(container, is_image)
    return decoded_bytes(container, entries, sizing=_sizing(config), limit=config.limit)


def _sizing(config: DataConfig) -> Sizing:
    return Sizing(config.image_size, short_side=config.short_side)


def _root_of(config: DataConfig) -> Path:
    if config.root is None:
        raise DataError(
            f"The data set {config.name!r} is read from a folder or archive, and none is named. "
            "Name it with --set data.root=FILE."
        )
    return Path(config.root).expanduser()


def _container_of(config: DataConfig) -> Container:
    root = _root_of(config)
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
        container,
        sizing=_sizing(config),
        limit=config.limit,
        report=report,
        skip_corrupt=config.skip_corrupt,
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
