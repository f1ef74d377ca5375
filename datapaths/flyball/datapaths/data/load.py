"""From a configuration to an image set: checks first, decodes once and maps, or streams."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.data.cache import (
    Stored,
    cache_folder,
    key_of,
    recall,
    recall_corrupt,
    remember,
    remember_corrupt,
    store,
)
from flyball.datapaths.data.config import STREAMED_SETS, DataConfig
from flyball.datapaths.data.deal import deal
from flyball.datapaths.data.decode import fit
from flyball.datapaths.data.digit_clips import clips_of, plan_digit_clips
from flyball.datapaths.data.image_set import ImageSet
from flyball.datapaths.data.listing import Listing, plan_of
from flyball.datapaths.data.plan import Part, Plan, labels_of, test_mask_of
from flyball.datapaths.data.sources import Source, open_source
from flyball.datapaths.data.streamed import StreamedPixels, corrupt_rows
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Progress, Report, silent

__all__ = ["load_images"]

CheckShape = Callable[[tuple[int, ...]], None]


def load_images(
    config: DataConfig,
    *,
    report: Report | None = None,
    check_shape: CheckShape | None = None,
) -> ImageSet:
    """Loads a data set and deals it into the four splits.

    "digits" is made in memory. The others are looked through first, nothing written, then decoded
    once into the cache and mapped from there; what would take more than `config.cache_limit_mb` is
    streamed. "folder" and "cifar10" are found in the cache by content, the others by names, sizes
    and dates; unchanged files are not even looked through again. Rows run by part, class and name.
    "figures" and "mpii" give a `PoseSet`, an image set with key points.

    The fingerprint of a set that is streamed knows its pixels by names, sizes and dates of the
    files alone: a copy with new dates, or the same files packed otherwise, is a new set.

    Args:
        config: what to load.
        check_shape: called with the shape of one sample, (C, H, W) or (C, T, H, W), before
            anything is written; may raise.
        report: told of the stages "survey", "check" (where corrupt samples are looked for) and
            "decode", which are skipped where the cache knows; and of samples left out.

    Raises:
        DataError: the source is missing, corrupt, empty, or cannot be dealt.
        InvalidSetting: the settings do not fit the source.
        PickleRefused: what the source needs is there as a pickle alone.
        StorageError: the cache cannot be written.
    """
    tell, check = report or silent, check_shape or _take_any
    if config.name == "digits":
        return _digits(config)
    if config.root is not None and config.name in ("digit_clips", "figures"):
        raise _no_root(config)
    cache = cache_folder(config)
    if config.name == "figures":
        return _figures(config, cache, tell, check)
    if config.name == "digit_clips":
        plan = plan_digit_clips(config)
        images = _mapped(config, _stored(config, plan, cache, tell, check))
        return replace(images, difficulty=clips_of(config).difficulty)
    images = _from_files(config, open_source(config), cache, tell, check)
    if images.skipped:
        named = ", ".join(images.skipped[:3])
        note = f"left out {len(images.skipped)} corrupt samples: {named}"
        tell(Progress("survey", len(images), len(images), note))
    return images


def _from_files(
    config: DataConfig, source: Source, cache: Path, report: Report, check: CheckShape
) -> ImageSet:
    """The set of a source of files, by content where it can be read in one go, else by listing."""
    if source.container is not None and config.access != "stream":
        found = recall(cache, source.container, config)
        if found is not None and _fits(config, found.decoded_bytes):
            return _mapped(config, found)
    if source.plan is not None and _fits(config, source.decoded_bytes()):
        plan = source.plan(report)
        if _fits(config, plan.decoded_bytes) or not source.can_list:
            stored = _stored(config, plan, cache, report, check)
            if source.container is not None:
                remember(cache, source.container, config, key_of(plan))
            return _mapped(config, stored)
    listing = source.listing(report)
    check(listing.shape)
    if config.skip_corrupt:
        listing = _without_corrupt(listing, config, cache, report)
    if _fits(config, listing.decoded_bytes):
        stored = _stored(config, plan_of(listing, config.workers), cache, report, check)
        return source.complete(_mapped(config, stored), listing.reader)
    streamed = _image_set(
        config,
        StreamedPixels(listing.reader, listing.shape, config.workers),
        listing.parts,
        listing.classes,
        pixels_digest=fingerprint_of("streamed", listing.token, listing.state),
        skipped=listing.skipped,
    )
    return source.complete(streamed, listing.reader)


def _figures(config: DataConfig, cache: Path, report: Report, check: CheckShape) -> ImageSet:
    # here, because poses are image sets and import this package
    from flyball.datapaths.pose.figures import figures_of, plan_figures
    from flyball.datapaths.pose.pose_set import posed

    images = _mapped(config, _stored(config, plan_figures(config), cache, report, check))
    figures = figures_of(config)
    known = replace(images, difficulty=figures.difficulty)
    return posed(known, figures.key_points, figures.head_sizes)


def _fits(config: DataConfig, decoded_bytes: int) -> bool:
    """Whether a set of that size is cached."""
    if config.access == "auto":
        return decoded_bytes <= config.cache_limit_mb * 10**6
    return config.access == "cache"


def _stored(
    config: DataConfig, plan: Plan, cache: Path, report: Report, check: CheckShape
) -> Stored:
    """What a plan gives, decoded, after all that can be checked before."""
    _deal_parts(plan.parts, plan.classes, config)
    check(plan.shape)
    if not _fits(config, plan.decoded_bytes):
        raise InvalidSetting(
            f"Decoded, {config.name} takes {plan.decoded_bytes / 1e6:,.0f} MB, more than "
            f"data.cache_limit_mb = {config.cache_limit_mb}, and cannot be streamed: of data.name "
            f"{', '.join(STREAMED_SETS)} can be, from a folder, a zip or a tar that is not "
            "compressed. Unpack it, lower --set data.limit, or give --set data.access=cache."
        )
    return store(cache, plan, report)


def _without_corrupt(listing: Listing, config: DataConfig, cache: Path, report: Report) -> Listing:
    """The listing less what does not decode; decodes every sample unless that was done before."""
    _deal_parts(listing.parts, listing.classes, config)
    rows = recall_corrupt(cache, listing)
    if rows is None:
        pixels = StreamedPixels(listing.reader, listing.shape, config.workers)
        rows = sorted(corrupt_rows(pixels, report))
        remember_corrupt(cache, listing, rows)
    return listing.without(rows) if rows else listing


def _take_any(shape: tuple[int, ...]) -> None:
    """Takes any shape."""


def _mapped(config: DataConfig, stored: Stored) -> ImageSet:
    return _image_set(
        config,
        stored.images(),
        stored.parts,
        stored.classes,
        pixels_digest=stored.pixels,
        images_file=stored.file,
        skipped=stored.skipped,
    )


def _digits(config: DataConfig) -> ImageSet:
    """scikit-learn's copy of the UCI optical digits: 1,797 grey 8x8 images of 0 to 16."""
    if config.root is not None:
        raise _no_root(config)
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
    return _of_rows(config, pixels, labels, classes, split, pixels_digest=digest)


def _no_root(config: DataConfig) -> InvalidSetting:
    origin = "is drawn here" if config.name == "figures" else "comes with scikit-learn"
    return InvalidSetting(
        f"{config.name!r} {origin} and has no root; got data.root={config.root}. "
        "Give --set data.name=cifar10 or data.name=folder with it, or leave it out."
    )


def _deal_parts(
    parts: tuple[Part, ...], classes: tuple[str, ...], config: DataConfig
) -> NDArray[np.int8]:
    return deal(labels_of(parts), test_mask_of(parts), classes, config.shares, config.seed)


def _image_set(
    config: DataConfig,
    images: NDArray[np.uint8] | StreamedPixels,
    parts: tuple[Part, ...],
    classes: tuple[str, ...],
    *,
    pixels_digest: str,
    images_file: Path | None = None,
    skipped: tuple[str, ...] = (),
) -> ImageSet:
    split = _deal_parts(parts, classes, config)
    made = _of_rows(config, images, labels_of(parts), classes, split, pixels_digest=pixels_digest)
    return replace(made, images_file=images_file, skipped=skipped)


def _of_rows(
    config: DataConfig,
    images: NDArray[np.uint8] | StreamedPixels,
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    split: NDArray[np.int8],
    *,
    pixels_digest: str,
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
    )
