"""Class folders: `<class>/*`, or `train/<class>/*` beside `test/<class>/*` and `val/<class>/*`.

Folders that all images share are skipped. `test` is the test part; without one `val` is, and
beside one `val` is dealt with `train`.
"""

import bisect
import hashlib
import math
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from flyball.datapaths.data.containers import Container
from flyball.datapaths.data.decode import (
    SUFFIXES,
    Header,
    decode,
    header_of,
    quiet_pillow,
    resized_shape,
)
from flyball.datapaths.data.plan import Part, Pixels, Plan
from flyball.datapaths.errors import DataError
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Progress, Report

__all__ = ["plan_class_folders"]

_TRAIN, _VAL, _TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
_PART_NAMES = (*_TRAIN, *_VAL, *_TEST)
_EVERY = 500  # images between two reports
_KEPT_BYTES = 64 << 20  # files that are kept from the survey, so that small sets are read once

Name = tuple[str, ...]


class _Image(NamedTuple):
    header: Header
    digest: bytes
    size: int


class _Layout(NamedTuple):
    """Where the classes are: `base` is skipped, then comes a part (if there are any), then a class.

    `parts` holds the folder names of the parts; ("",) where there are none.
    """

    base: Name
    parts: tuple[str, ...]
    test_part: str | None
    classes: tuple[str, ...]


def plan_class_folders(
    container: Container, *, image_size: int | None, limit: int | None, report: Report
) -> Plan:
    """Looks through a container of class folders; decodes nothing.

    Args:
        container: the folder or archive.
        image_size: as in `decode.fit`.
        limit: at most so many images, the first by name, of each class in each part.
        report: told of the stage "survey", in bytes of the container.

    Raises:
        DataError: the container is corrupt, the folders are no class folders, a class has no
            image, parts differ in their classes, a file is no image, or (without `image_size`)
            two images differ in size.
    """
    images, folders, kept = _survey(container, limit, report)
    layout = _layout_of(container, images, folders)
    chosen, parts = _choose(container, layout, images, folders, limit)
    if image_size is None:
        _check_one_size(container, chosen, images)
    channels = 1 if all(images[name].header.is_grey for name in chosen) else 3
    first = images[chosen[0]].header
    content = hashlib.sha256()
    for name in chosen:
        content.update(images[name].digest)
    rows = {name: row for row, name in enumerate(chosen)}
    digests = {name: images[name].digest for name in chosen}

    def read(report: Report) -> Pixels:
        files = ((name, kept[name]) for name in chosen) if kept else _files(container, digests)
        with quiet_pillow():
            for done, (name, data) in enumerate(files, start=1):
                where = _where(container, name)
                pixels = decode(data, where, channels=channels, image_size=image_size)
                if done % _EVERY == 0 or done == len(rows):
                    report(Progress("decode", done, len(rows)))
                yield rows[name], pixels

    return Plan(
        classes=layout.classes,
        parts=parts,
        shape=resized_shape(channels, first.height, first.width, image_size),
        content=fingerprint_of("class folders", content.hexdigest(), channels, image_size),
        read=read,
    )


def _files(container: Container, digests: dict[Name, bytes]) -> Iterator[tuple[Name, bytes]]:
    """Reads the files of those names in the container's order, if they are as they were."""
    left = set(digests)
    for member in container.members(left.__contains__):
        if member.data is not None:
            if hashlib.sha256(member.data).digest() != digests[member.name]:
                raise DataError(
                    "A data set must stay as it is while it is read; "
                    f"{_where(container, member.name)} changed. Start again."
                )
            left.discard(member.name)
            yield member.name, member.data
        if not left:
            return


def _survey(
    container: Container, limit: int | None, report: Report
) -> tuple[dict[Name, _Image], set[Name], dict[Name, bytes]]:
    """All images, or with a limit the first by name of each folder; all folders; files kept.

    The files of all images are kept, or, where they are too large together, none.
    """
    kept: dict[Name, bytes] = {}
    kept_bytes: float = 0
    images: dict[Name, _Image] = {}
    folders: set[Name] = set()
    by_folder: dict[Name, list[Name]] = {}

    def is_wanted(name: Name) -> bool:
        first = by_folder.get(name[:-1], [])
        return _is_image(name) and (limit is None or len(first) < limit or name <= first[-1])

    with quiet_pillow():
        for member in container.members(is_wanted):
            above = member.name if member.is_folder else member.name[:-1]
            folders.update(above[:depth] for depth in range(1, len(above) + 1))
            if member.data is None:
                continue
            where = _where(container, member.name)
            if member.name in images:
                raise DataError(
                    f"Every file of an archive has its own name; {where} is there twice. "
                    "Pack it again."
                )
            header = header_of(member.data, where)
            size = len(member.data)
            images[member.name] = _Image(header, hashlib.sha256(member.data).digest(), size)
            kept_bytes += size
            kept[member.name] = member.data
            if limit is not None:
                first = by_folder.setdefault(member.name[:-1], [])
                bisect.insort(first, member.name)
                if len(first) > limit:
                    kept_bytes -= images.pop(first[-1]).size
                    kept.pop(first.pop(), None)
            if kept_bytes > _KEPT_BYTES:
                kept_bytes = math.inf
                kept.clear()
            if len(images) % _EVERY == 0:
                report(Progress("survey", min(member.position, container.size), container.size))
    report(Progress("survey", container.size, container.size, f"{len(images)} images"))
    if not images:
        raise DataError(
            f"A data set holds images ({', '.join(SUFFIXES)}); {container.path} has none. "
            "Name another folder or archive with --set data.root=FILE."
        )
    return images, folders, kept


def _layout_of(container: Container, images: Iterable[Name], folders: Iterable[Name]) -> _Layout:
    images, folders = list(images), list(folders)
    base: Name = ()
    while min(len(name) for name in images) > len(base) + 2:
        below = {name[len(base)] for name in (*images, *folders) if len(name) > len(base)}
        if len(below) > 1:
            break
        base = (*base, *below)
    tops = {folder[len(base)] for folder in folders if len(folder) > len(base)}
    parts: tuple[str, ...] = ("",)
    if tops & set(_TRAIN) and tops & {*_VAL, *_TEST}:
        order = {name: place for place, name in enumerate(_PART_NAMES)}
        parts = tuple(sorted(tops & set(_PART_NAMES), key=order.__getitem__))
    depth = len(base) + (parts != ("",))
    for name in images:
        if len(name) <= depth + 1:
            raise DataError(
                "Every image lies in the folder of its class, as in <class>/1.png or "
                f"train/<class>/1.png; {_where(container, name)} lies in none. Move or remove it."
            )
        if parts != ("",) and name[len(base)] not in parts:
            raise DataError(
                f"Beside {' and '.join(parts)} no other folder may hold images; "
                f"{_where(container, name)} is in one. Move it into a part, or remove it."
            )
    held_out = [part for part in parts if part in _TEST] or [p for p in parts if p in _VAL]
    if len(held_out) > 1:
        raise DataError(
            f"A data set has one test part; {container.path} has {' and '.join(held_out)}. "
            "Keep one of them."
        )
    in_parts = [f for f in folders if len(f) == depth + 1 and (parts == ("",) or f[-2] in parts)]
    return _Layout(
        base, parts, held_out[0] if held_out else None, tuple(sorted({f[depth] for f in in_parts}))
    )


def _choose(
    container: Container,
    layout: _Layout,
    images: Iterable[Name],
    folders: set[Name],
    limit: int | None,
) -> tuple[list[Name], tuple[Part, ...]]:
    """The images to read in the order of the rows, and what each part has of each class."""
    if len(layout.classes) < 2:
        raise DataError(
            f"A data set has at least two class folders; {container.path} has "
            f"{len(layout.classes)}: {', '.join(layout.classes)}. Add another class."
        )
    depth = len(layout.base) + (layout.parts != ("",))
    by_folder: dict[Name, list[Name]] = {}
    for name in sorted(images):
        by_folder.setdefault(name[: depth + 1], []).append(name)
    chosen: list[Name] = []
    parts: list[Part] = []
    for part in layout.parts:
        above = (*layout.base, part) if part else layout.base
        counts: list[int] = []
        for label in layout.classes:
            folder = (*above, label)
            if folder not in by_folder:
                raise _missing_class(container, layout, folder, is_there=folder in folders)
            chosen += by_folder[folder][:limit]
            counts.append(len(by_folder[folder][:limit]))
        parts.append(Part(part or "all", tuple(counts), part == layout.test_part and part != ""))
    return chosen, tuple(parts)


def _missing_class(
    container: Container, layout: _Layout, folder: Name, *, is_there: bool
) -> DataError:
    where = _where(container, folder)
    if is_there:
        return DataError(
            f"Every class folder holds images ({', '.join(SUFFIXES)}); {where} has none. "
            "Fill or remove it."
        )
    return DataError(
        f"{' and '.join(layout.parts)} must have the same class folders; there is no {where}. "
        "Add it, or remove that class from the other parts."
    )


def _check_one_size(container: Container, chosen: list[Name], images: dict[Name, _Image]) -> None:
    first = images[chosen[0]].header
    for name in chosen:
        header = images[name].header
        if header[:2] != first[:2]:
            raise DataError(
                f"All images must have one size; {_where(container, chosen[0])} is "
                f"{first.width}x{first.height} and {_where(container, name)} is "
                f"{header.width}x{header.height}. Resize them with --set data.image_size=N."
            )


def _is_image(name: Name) -> bool:
    return PurePosixPath(name[-1]).suffix.lower() in SUFFIXES


def _where(container: Container, name: Name) -> str:
    return f"{'/'.join(name)} in {container.path}"
