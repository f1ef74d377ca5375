"""Looks through a folder or archive of images and annotations once; `voc` and `yolo` interpret it.

Annotations are small and are kept; images are not, unless they are small together.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.data.containers import Container
from flyball.datapaths.data.decode import SUFFIXES, decode, header_of, quiet_pillow
from flyball.datapaths.detection.annotations import Annotation
from flyball.datapaths.errors import DataError
from flyball.datapaths.progress import Progress, Report

__all__ = ["FoundImage", "Name", "Sample", "Source", "Survey", "survey"]

Name = tuple[str, ...]

_EVERY = 500  # images between two reports
_KEPT_BYTES = 64 << 20


class FoundImage(NamedTuple):
    """An image file as its header describes it; `digest` is the SHA-256 of its bytes."""

    width: int
    height: int
    digest: bytes


class Sample(NamedTuple):
    """One image with its boxes; `is_test` where the source says so."""

    image: Name
    annotation: Annotation
    is_test: bool


@dataclass(frozen=True)
class Source:
    """What a survey amounts to in one format.

    Attributes:
        classes: class names that the boxes' labels index.
        samples: in the order of the rows.
        unlabelled: images that had no label file.
    """

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    unlabelled: int = 0


@dataclass(frozen=True)
class Survey:
    """What a folder or archive holds.

    Attributes:
        container: it.
        images: every image file by name.
        texts: bytes of every annotation file by name.
        broken: what is wrong with image files that cannot be read, by name.
        kept: bytes of all images, or nothing where they are too large together.
    """

    container: Container
    images: dict[Name, FoundImage]
    texts: dict[Name, bytes]
    broken: dict[Name, str]
    kept: dict[Name, bytes]

    def where(self, name: Name) -> str:
        """The file in words, for an error."""
        return f"{'/'.join(name)} in {self.container.path}"

    def image(self, name: Name) -> FoundImage:
        """The image of that name.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        if name in self.broken:
            raise DataError(self.broken[name])
        if name not in self.images:
            raise DataError(
                f"Every annotation has its image; there is no {self.where(name)}. "
                "Fetch it, or remove what refers to it."
            )
        return self.images[name]

    def lines(self, name: Name) -> list[str]:
        """The lines of a text file.

        Raises:
            DataError: it is not UTF-8.
        """
        try:
            return self.texts[name].decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(
                f"Annotations are UTF-8 text; {self.where(name)} is not ({error.reason}). "
                "Correct or remove that file."
            ) from error

    def pixels(self, names: list[Name]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Decodes images, in whatever order they come; their place in `names`, uint8 (3, H, W).

        Raises:
            DataError: an image does not decode, or is no longer what it was.
        """
        places = {name: place for place, name in enumerate(names)}
        with quiet_pillow():
            for name, data in self._files(places):
                yield (
                    places[name],
                    decode(data, self.where(name), channels=3, image_size=None),
                )

    def _files(self, wanted: dict[Name, int]) -> Iterator[tuple[Name, bytes]]:
        if self.kept:
            yield from ((name, self.kept[name]) for name in wanted)
            return
        for member in self.container.members(wanted.__contains__):
            if member.data is None:
                continue
            if hashlib.sha256(member.data).digest() != self.images[member.name].digest:
                raise DataError(
                    "A data set must stay as it is while it is read; "
                    f"{self.where(member.name)} changed. Start again."
                )
            yield member.name, member.data


def survey(
    container: Container, is_text: Callable[[Name], bool], *, decodes: bool, report: Report
) -> Survey:
    """Goes through a container.

    Args:
        container: the folder or archive.
        is_text: which files are annotations.
        decodes: also decode every image, to find those that are broken behind their header.
        report: told of the stage "survey", in bytes of the container.

    Raises:
        DataError: the container is corrupt, holds a file twice, or has no image.
    """
    images: dict[Name, FoundImage] = {}
    texts: dict[Name, bytes] = {}
    broken: dict[Name, str] = {}
    kept: dict[Name, bytes] = {}
    kept_bytes, keeps = 0, True
    with quiet_pillow():
        for member in container.members(lambda name: is_text(name) or _is_image(name)):
            if member.data is None:
                continue
            name, where = member.name, f"{'/'.join(member.name)} in {container.path}"
            if name in images or name in texts or name in broken:
                raise DataError(
                    f"Every file of an archive has its own name; {where} is there twice. "
                    "Pack it again."
                )
            if is_text(name):
                texts[name] = member.data
                continue
            try:
                header = header_of(member.data, where)
                if decodes:
                    decode(member.data, where, channels=3, image_size=None)
            except DataError as error:
                broken[name] = str(error)
                continue
            digest = hashlib.sha256(member.data).digest()
            images[name] = FoundImage(header.width, header.height, digest)
            kept_bytes += len(member.data)
            keeps = keeps and kept_bytes <= _KEPT_BYTES
            if keeps:
                kept[name] = member.data
            else:
                kept.clear()
            if len(images) % _EVERY == 0:
                report(Progress("survey", min(member.position, container.size), container.size))
    report(Progress("survey", container.size, container.size, f"{len(images)} images"))
    if not images and not broken:
        raise DataError(
            f"A data set holds images ({', '.join(SUFFIXES)}); {container.path} has none. "
            "Name another folder or archive with --set data.root=FILE."
        )
    return Survey(container, images, texts, broken, kept)


def _is_image(name: Name) -> bool:
    return PurePosixPath(name[-1]).suffix.lower() in SUFFIXES
