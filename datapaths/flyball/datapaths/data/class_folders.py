"""Class folders: `<class>/*`, or `train/<class>/*` beside `test/<class>/*` and `val/<class>/*`.

Folders that all images share are skipped. `test` is the test part; without one `val` is, and
beside one `val` is dealt with `train`.
"""

import bisect
import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from flyball.datapaths.data.class_layout import choose, is_image, where
from flyball.datapaths.data.containers import Container
from flyball.datapaths.data.decode import Header, Sizing, decode, header_of, quiet_pillow
from flyball.datapaths.data.listing import Listing
from flyball.datapaths.data.plan import Part, Pixels, Plan
from flyball.datapaths.data.random_files import Entries, Files, open_files, opened
from flyball.datapaths.data.samples import ImageReader, name_table
from flyball.datapaths.errors import DataError
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Progress, Report

__all__ = ["decoded_bytes", "list_class_folders", "plan_class_folders"]

_EVERY = 500  # images between two reports
_KEPT_BYTES = 64 << 20  # files that are kept from the survey, so that small sets are read once

Name = tuple[str, ...]


class _Image(NamedTuple):
    header: Header | None
    digest: bytes
    size: int


def plan_class_folders(
    container: Container,
    *,
    sizing: Sizing,
    limit: int | None,
    report: Report,
    skip_corrupt: bool = False,
) -> Plan:
    """Looks through a container of class folders, whose images the cache is to hold.

    Decodes nothing, unless corrupt images are to be skipped.

    Args:
        container: the folder or archive.
        sizing: how an image comes to its size.
        limit: at most so many images, the first by name, of each class in each part.
        report: told of the stage "survey", in bytes of the container.
        skip_corrupt: an image that does not decode is left out. It still counts to the limit.

    Raises:
        DataError: the container is corrupt, the folders are no class folders, a class has no
            image, parts differ in their classes, a file is no image, or (without a size) two
            images differ in size.
    """
    images, folders, kept = _survey(container, limit, report, skip_corrupt)
    classes, chosen, parts = choose(container, images, folders, limit)
    names, parts, skipped = _decodable(container, chosen, images, parts)
    channels, shape = _shape_of(container, names, images, sizing)
    content = hashlib.sha256()
    for name in names:
        content.update(images[name].digest)
    rows = {name: row for row, name in enumerate(names)}
    digests = {name: images[name].digest for name in names}

    def read(report: Report) -> Pixels:
        files = ((name, kept[name]) for name in names) if kept else _files(container, digests)
        with quiet_pillow():
            for done, (name, data) in enumerate(files, start=1):
                here = where(container, name)
                pixels = decode(data, here, channels=channels, image_size=sizing)
                if done % _EVERY == 0 or done == len(rows):
                    report(Progress("decode", done, len(rows)))
                yield rows[name], pixels

    return Plan(
        classes=classes,
        parts=parts,
        shape=shape,
        content=fingerprint_of("class folders", content.hexdigest(), channels, sizing.token),
        read=read,
        skipped=tuple("/".join(name) for name in skipped),
    )


def decoded_bytes(
    container: Container, entries: Entries, *, sizing: Sizing, limit: int | None
) -> int:
    """How much all images take once decoded, if all are as grey or coloured as the first.

    Raises:
        DataError: the folders are no class folders.
    """
    names = choose(container, entries.sizes, entries.folders, limit).names
    try:
        header = _header(open_files(container, entries), names[0])
    except DataError:
        return 0
    shape = sizing.shape(1 if header.is_grey else 3, header.height, header.width)
    return len(names) * int(np.prod(shape, dtype=np.int64))


def list_class_folders(
    container: Container,
    entries: Entries,
    *,
    sizing: Sizing,
    limit: int | None,
    report: Report,
    skip_corrupt: bool = False,
) -> Listing:
    """Looks through a container of class folders, whose images are to be streamed.

    Opens every file to read its header.

    Args:
        container: the folder or archive; no compressed tar.
        entries: its images.
        sizing, limit, report, skip_corrupt: as in `plan_class_folders`; the survey is told in
            images, and of those that are corrupt finds only what the header shows.

    Raises:
        DataError: as from `plan_class_folders`.
    """
    classes, chosen, parts = choose(container, entries.sizes, entries.folders, limit)
    files = open_files(container, entries)
    images: dict[Name, _Image] = {}
    with quiet_pillow():
        for done, name in enumerate(chosen, start=1):
            header: Header | None = None
            try:
                header = _header(files, name)
            except DataError:
                if not skip_corrupt:
                    raise
            images[name] = _Image(header, b"", entries.sizes[name])
            if done % _EVERY == 0 or done == len(chosen):
                report(Progress("survey", done, len(chosen)))
    names, _, skipped = _decodable(container, chosen, images, parts)
    channels, shape = _shape_of(container, names, images, sizing)
    table = name_table(["/".join(name) for name in chosen])
    content = hashlib.sha256()
    for name in chosen:
        content.update(repr(("/".join(name), images[name].size, images[name].header)).encode())
    listing = Listing(
        classes=classes,
        parts=parts,
        shape=shape,
        reader=ImageReader(files, table, channels, sizing),
        token=fingerprint_of("streamed class folders", content.hexdigest(), channels, sizing.token),
        state=fingerprint_of(container.state),
        where=container.path,
    )
    place = {name: row for row, name in enumerate(chosen)}
    return listing.without([place[name] for name in skipped]) if skipped else listing


def _header(files: Files, name: Name) -> Header:
    path = "/".join(name)
    data = opened(files, path)
    if isinstance(data, bytes):
        return header_of(data, files.where(path))
    with data:
        return header_of(data, files.where(path))


def _shape_of(
    container: Container, names: list[Name], images: dict[Name, _Image], sizing: Sizing
) -> tuple[int, tuple[int, int, int]]:
    """Channels, and the shape of every image once it is sized."""
    headers = [header for name in names if (header := images[name].header) is not None]
    if sizing.height is None:
        _check_one_size(container, names, headers)
    channels = 1 if all(header.is_grey for header in headers) else 3
    return channels, sizing.shape(channels, headers[0].height, headers[0].width)


def _decodable(
    container: Container,
    chosen: list[Name],
    images: dict[Name, _Image],
    parts: tuple[Part, ...],
) -> tuple[list[Name], tuple[Part, ...], list[Name]]:
    """The images that decode, what each part has of them, and the others."""
    names: list[Name] = []
    counted: list[Part] = []
    left = iter(chosen)
    for part in parts:
        counts: list[int] = []
        for count in part.counts:
            own = [next(left) for _ in range(count)]
            good = [name for name in own if images[name].header is not None]
            names += good
            counts.append(len(good))
        counted.append(replace(part, counts=tuple(counts)))
    if not names:
        raise DataError(
            f"A data set holds images that decode; of the {len(chosen)} of {container.path} none "
            "does. Fetch it again."
        )
    return names, tuple(counted), [name for name in chosen if images[name].header is None]


def _files(container: Container, digests: dict[Name, bytes]) -> Iterator[tuple[Name, bytes]]:
    """Reads the files of those names in the container's order, if they are as they were."""
    left = set(digests)
    for member in container.members(left.__contains__):
        if member.data is not None:
            if hashlib.sha256(member.data).digest() != digests[member.name]:
                raise DataError(
                    "A data set must stay as it is while it is read; "
                    f"{where(container, member.name)} changed. Start again."
                )
            left.discard(member.name)
            yield member.name, member.data
        if not left:
            return


def _survey(
    container: Container, limit: int | None, report: Report, skip_corrupt: bool
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
        return is_image(name) and (limit is None or len(first) < limit or name <= first[-1])

    with quiet_pillow():
        for member in container.members(is_wanted):
            above = member.name if member.is_folder else member.name[:-1]
            folders.update(above[:depth] for depth in range(1, len(above) + 1))
            if member.data is None:
                continue
            here = where(container, member.name)
            if member.name in images:
                raise DataError(
                    f"Every file of an archive has its own name; {here} is there twice. "
                    "Pack it again."
                )
            header = _header_if_whole(member.data, here, skip_corrupt)
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
    return images, folders, kept


def _header_if_whole(data: bytes, here: str, skip_corrupt: bool) -> Header | None:
    """The header; where corrupt images are skipped, None of one that does not decode."""
    if not skip_corrupt:
        return header_of(data, here)
    try:
        header = header_of(data, here)
        decode(data, here, channels=3, image_size=None)
    except DataError:
        return None
    return header


def _check_one_size(container: Container, names: list[Name], headers: list[Header]) -> None:
    first = headers[0]
    for name, header in zip(names, headers, strict=True):
        if header[:2] != first[:2]:
            raise DataError(
                f"All images must have one size; {where(container, names[0])} is "
                f"{first.width}x{first.height} and {where(container, name)} is "
                f"{header.width}x{header.height}. Resize them with --set data.image_size=N."
            )
