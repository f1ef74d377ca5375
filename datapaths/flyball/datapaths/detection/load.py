"""From a configuration to a detection set: looks through it, checks every box, decodes once."""

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.data.cache import cache_folder, store
from flyball.datapaths.data.containers import open_container
from flyball.datapaths.data.deal import sizes_of
from flyball.datapaths.data.plan import Part, Pixels, Plan
from flyball.datapaths.detection.annotations import Annotation, Faults
from flyball.datapaths.detection.boxes import Letterbox
from flyball.datapaths.detection.config import DetectionDataConfig
from flyball.datapaths.detection.detection_set import DetectionSet
from flyball.datapaths.detection.drawn import drawn_shapes
from flyball.datapaths.detection.survey import Name, Source, Survey, survey
from flyball.datapaths.detection.voc import is_voc_text, read_voc
from flyball.datapaths.detection.yolo import is_yolo_text, read_yolo
from flyball.datapaths.errors import DataError, unknown_name
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Progress, Report, silent
from flyball.datapaths.splits import SPLITS, TEST, split_code

__all__ = ["load_detection"]

_EVERY = 500
_DRAWN = 1000

_Reader = Callable[[Survey, DetectionDataConfig, Faults], Source]
_FORMATS: dict[str, tuple[Callable[[Name], bool], _Reader]] = {
    "voc": (is_voc_text, read_voc),
    "yolo": (is_yolo_text, read_yolo),
}


def load_detection(config: DetectionDataConfig, *, report: Report = silent) -> DetectionSet:
    """Loads images with boxes and deals them into the four splits.

    Everything is looked through and checked first; then the images are decoded once into the
    cache and mapped from there. Archives are read member by member, nothing is unpacked.

    Args:
        config: what to load.
        report: told of the stages "survey" and "decode", and of what was clipped or left out.

    Raises:
        DataError: the source is missing, corrupt or empty; a box, row, image or annotation has a
            fault (its file and row are named); or there are too few images to deal.
        InvalidSetting: too few or too small images are to be drawn.
        UnknownName: a class to keep does not exist.
        StorageError: the cache cannot be written.
    """
    if config.format == "drawn":
        return drawn_shapes(
            config.limit or _DRAWN,
            image_size=config.image_size,
            seed=config.seed,
            fractions=config.fractions,
        )
    if config.root is None:
        raise DataError(
            "Images with boxes are read from a folder or archive, and none is named. "
            "Name it with --set data.root=FILE."
        )
    container = open_container(config.root)
    is_text, read = _FORMATS[config.format]
    found = survey(container, is_text, decodes=config.skip_corrupt, report=report)
    faults = Faults(skip=config.skip_corrupt)
    source = read(found, config, faults)
    if not source.samples:
        raise DataError(
            f"A data set has at least one sample that can be used; of {container.path} none can "
            f"({len(faults.reasons)} left out; the first: {(faults.reasons or ['none'])[0]})"
        )
    classes, mapping = _kept_classes(source.classes, config)
    split = _dealt(np.array([sample.is_test for sample in source.samples]), config)
    frames = [found.images[sample.image] for sample in source.samples]
    squares = [Letterbox(frame.width, frame.height, config.image_size) for frame in frames]
    truths = [
        _in_square(sample.annotation, square, mapping, config.difficult_below)
        for sample, square in zip(source.samples, squares, strict=True)
    ]
    stored = store(cache_folder(config.shared), _plan(found, source, squares, config), report)
    counts = [len(classes_of) for _, classes_of, _ in truths]
    boxes = np.concatenate([truth[0] for truth in truths]).astype(np.float32)
    box_classes = np.concatenate([truth[1] for truth in truths])
    is_difficult = np.concatenate([truth[2] for truth in truths])
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    clipped = sum(sample.annotation.clipped for sample in source.samples)
    for array in (boxes, box_classes, is_difficult, first, split):
        array.setflags(write=False)
    digest = hashlib.sha256()
    for array in (boxes, box_classes, is_difficult, first, split):
        digest.update(np.ascontiguousarray(array).tobytes())
    note = (
        f"{len(boxes)} boxes, {clipped} clipped, {len(faults.reasons)} samples left out, "
        f"{source.unlabelled} images without a label file"
    )
    report(Progress("boxes", len(split), len(split), note))
    return DetectionSet(
        images=stored.images(),
        first=first,
        boxes=boxes,
        box_classes=box_classes,
        is_difficult=is_difficult,
        classes=classes,
        split=split,
        name=config.format,
        fingerprint=fingerprint_of("detection", classes, stored.pixels, digest.hexdigest()),
        images_file=stored.file,
        clipped=clipped,
        unlabelled=source.unlabelled,
        skipped=tuple(faults.reasons),
    )


def _kept_classes(
    names: tuple[str, ...], config: DetectionDataConfig
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The classes that count, and for each of the source's its index among them, or -1."""
    kept = names if config.keep is None else config.keep
    for name in kept:
        if name not in names:
            raise unknown_name("class to keep", name, names)
    mapping = np.array([kept.index(name) if name in kept else -1 for name in names], np.int64)
    if config.merged is None:
        return tuple(kept), mapping
    return (config.merged,), np.minimum(mapping, 0)


def _in_square(
    annotation: Annotation, square: Letterbox, mapping: NDArray[np.int64], difficult_below: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    is_kept = mapping[annotation.classes] >= 0
    boxes = square.boxes(annotation.boxes[is_kept])
    short = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) < difficult_below
    is_difficult = annotation.is_difficult[is_kept] | short
    return boxes, mapping[annotation.classes[is_kept]], is_difficult


def _dealt(is_test: NDArray[np.bool_], config: DetectionDataConfig) -> NDArray[np.int8]:
    """Split codes; int8 (N,). An image has many classes, so images are dealt as a whole."""
    has_test = bool(is_test.any())
    shares = np.asarray(config.fractions[:3] if has_test else config.fractions, np.float64)
    names = SPLITS[: len(shares)]
    rows = np.flatnonzero(~is_test)
    if len(rows) < len(shares) or (not has_test and shares[3] <= 0.0):
        raise DataError(
            f"Every one of {', '.join(names)} needs an image and a share; there are {len(rows)} "
            f"images{' outside the test part' if has_test else ''} and shares of "
            f"{', '.join(f'{share:g}' for share in shares)}. Add images, or change the shares "
            "with --set data.fractions=0.5,0.25,0.1,0.15."
        )
    split = np.full(len(is_test), split_code(TEST), np.int8)
    shuffled = np.random.default_rng(config.seed).permutation(rows)
    split[shuffled] = np.repeat(np.arange(len(shares), dtype=np.int8), sizes_of(len(rows), shares))
    return split


def _plan(
    found: Survey, source: Source, squares: list[Letterbox], config: DetectionDataConfig
) -> Plan:
    """How the cache is to be filled: one row an image, in the order of the samples."""
    names = [sample.image for sample in source.samples]
    content = hashlib.sha256()
    for name in names:
        content.update(found.images[name].digest)

    def read(report: Report) -> Pixels:
        for done, (row, pixels) in enumerate(found.pixels(names), start=1):
            if done % _EVERY == 0 or done == len(names):
                report(Progress("decode", done, len(names)))
            yield row, squares[row].pixels(pixels)

    return Plan(
        classes=("images",),
        parts=(Part("all", (len(names),)),),
        shape=(3, config.image_size, config.image_size),
        content=fingerprint_of("letterbox", content.hexdigest(), config.image_size),
        read=read,
    )
