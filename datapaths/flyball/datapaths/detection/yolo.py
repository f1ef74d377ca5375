"""YOLO folders: images/ beside labels/, one text file an image, `class cx cy w h` a row.

Centre and size are shares of the image's width and height. Parts (train, val, test) may stand
above or below images/ and labels/.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from flyball.datapaths.detection.annotations import Annotation, Faults, NamedBox, checked_boxes
from flyball.datapaths.detection.config import DetectionDataConfig
from flyball.datapaths.detection.survey import FoundImage, Name, Sample, Source, Survey
from flyball.datapaths.errors import DataError

__all__ = ["is_yolo_text", "read_yolo"]

_NAME_FILES = ("classes.txt", "obj.names")
_PART = re.compile(r"(train|val|valid|validation|test)(?:ing)?(?:[-_]?\d+)?", re.IGNORECASE)
_ITEM = re.compile(r"\s*(?:-|(\d+)\s*:)\s*(.+?)\s*")


def is_yolo_text(name: Name) -> bool:
    """Whether a file is a label file or says what the classes are called."""
    is_label = name[-1].endswith(".txt") and "labels" in name[:-1]
    return is_label or name[-1] in _NAME_FILES or name[-1].endswith((".yaml", ".yml"))


def read_yolo(found: Survey, config: DetectionDataConfig, faults: Faults) -> Source:
    """All images by part and name, with the boxes of their label files.

    Args:
        found: what the folder or archive holds.
        config: class names, limit, test part, and what to do with faults of boxes and labels.
        faults: takes the samples that cannot be used, or stops at the first.

    Raises:
        DataError: there are no labels or class names, or a sample has a fault.
    """
    classes = config.classes or _classes_of(found)
    labels = {name: _without_suffix(name) for name in found.texts if _is_label(name)}
    if not labels:
        raise DataError(
            "A YOLO data set has label files, labels/**/NAME.txt beside images/**/NAME.jpg; "
            f"{found.container.path} has none. Name another folder with --set data.root=FOLDER, "
            "or give --set data.format=voc."
        )
    images = sorted((*found.images, *found.broken), key=lambda name: (_rank(_part(name)), name))
    parts = {_part(name) for name in images}
    held_out = next((part for part in ("test", "val") if part in parts), None)
    has_test = config.use_test_part and held_out is not None and parts != {held_out}
    by_key = {key: name for name, key in labels.items()}
    samples: list[Sample] = []
    used: dict[str, int] = {}
    unlabelled = 0
    for image in images:
        part = _part(image)
        used[part] = used.get(part, 0) + 1
        file = by_key.pop(_label_key(image), None)
        if config.limit is not None and used[part] > config.limit:
            continue
        with faults.sample():
            header = found.image(image)
            if file is None and config.require_labels:
                raise DataError(
                    f"Every image has a label file; {found.where(image)} has none. Add an empty "
                    "one, or take such images for empty with --set data.require_labels=false."
                )
            rows = [] if file is None else _rows(found, file, header, classes)
            boxes: Annotation = checked_boxes(
                rows, header.width, header.height, clip=config.clip_boxes
            )
            samples.append(Sample(image, boxes, has_test and part == held_out))
            unlabelled += file is None
    for file in sorted(by_key.values()):
        with faults.sample():
            raise DataError(
                f"Every label file has its image; {found.where(file)} has none. "
                "Fetch the image, or remove that file."
            )
    return Source(tuple(classes), tuple(samples), unlabelled)


def _rows(found: Survey, file: Name, image: FoundImage, classes: Sequence[str]) -> list[NamedBox]:
    rows: list[NamedBox] = []
    for number, line in enumerate(found.lines(file), start=1):
        if not line.strip():
            continue
        where = f"row {number} of {found.where(file)}"
        cells = line.split()
        try:
            if len(cells) != 5:
                raise ValueError(f"{len(cells)} columns")
            label, (x, y, w, h) = int(cells[0]), map(float, cells[1:])
        except ValueError as error:
            raise DataError(
                f"A row is a class index and four numbers, `class cx cy w h`; {where} is "
                f"{line.strip()[:60]!r} ({error}). Correct or remove it."
            ) from error
        if not 0 <= label < len(classes):
            raise DataError(
                f"A class index lies in 0 ... {len(classes) - 1}, for {len(classes)} names; "
                f"{where} has {label}. Correct it, or name all classes with --set data.classes=A,B."
            )
        corners = (
            (x - w / 2) * image.width,
            (y - h / 2) * image.height,
            (x + w / 2) * image.width,
            (y + h / 2) * image.height,
        )
        rows.append(NamedBox(where, label, corners))
    return rows


def _classes_of(found: Survey) -> tuple[str, ...]:
    """From the shallowest file that names classes: a list a line, or `names:` of a .yaml."""
    for file in sorted(found.texts, key=lambda name: (len(name), name)):
        if file[-1] in _NAME_FILES:
            return tuple(line.strip() for line in found.lines(file) if line.strip())
        if not _is_label(file) and (names := _yaml_names(found, file)):
            return names
    raise DataError(
        "A YOLO data set says what its classes are called in a .yaml under `names:`, or in "
        f"classes.txt; {found.container.path} does not. Name them with --set data.classes=A,B."
    )


def _yaml_names(found: Survey, file: Name) -> tuple[str, ...]:
    """`names:` as a block of `- name` or `0: name` lines, or as [a, b] or {0: a, 1: b} in one."""
    lines = [line.split(" #")[0].rstrip() for line in found.lines(file)]
    starts = [place for place, line in enumerate(lines) if line.startswith("names:")]
    if not starts:
        return ()
    inline = lines[starts[0]].removeprefix("names:").strip()
    if inline:
        listed = [cell.strip() for cell in inline.strip("[]{}").split(",") if cell.strip()]
        items = [f"- {cell}" if inline.startswith("[") else cell for cell in listed]
    else:
        block = lines[starts[0] + 1 :]
        stop = next((i for i, line in enumerate(block) if line[:1] not in ("", " ", "-")), None)
        items = [line for line in block[:stop] if line.strip() and line.strip()[0] != "#"]
    names: dict[int, str] = {}
    for place, item in enumerate(items):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise DataError(
                f"`names:` lists classes as `- name` or `0: name`; {found.where(file)} has "
                f"{item.strip()!r}. Name them with --set data.classes=A,B."
            )
        names[int(match[1]) if match[1] else place] = match[2].strip("\"'")
    if sorted(names) != list(range(len(names))):
        raise DataError(
            f"Class indices run from 0 without a gap; those of {found.where(file)} are "
            f"{sorted(names)}. Name the classes with --set data.classes=A,B."
        )
    return tuple(names[index] for index in range(len(names)))


def _is_label(name: Name) -> bool:
    return name[-1].endswith(".txt") and "labels" in name[:-1] and name[-1] not in _NAME_FILES


def _without_suffix(name: Name) -> Name:
    return (*name[:-1], PurePosixPath(name[-1]).stem)


def _label_key(image: Name) -> Name:
    """The name of an image's label file, without its suffix: the last images/ is labels/."""
    key = list(_without_suffix(image))
    for place in range(len(key) - 2, -1, -1):
        if key[place] == "images":
            key[place] = "labels"
            break
    return tuple(key)


def _part(name: Name) -> str:
    """train, val or test, "" where no folder of the name says."""
    for folder in name[:-1]:
        match = _PART.fullmatch(folder)
        if match is not None:
            part = match[1].lower()
            return "val" if part.startswith("val") else part
    return ""


def _rank(part: str) -> int:
    return ("", "train", "val", "test").index(part)
