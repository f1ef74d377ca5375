"""A set of images with boxes, in four splits; a value, which `load` makes.

N images, C channels, H, W, T boxes of all images, M boxes of one image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.splits import split_code

__all__ = ["NOTHING", "DetectionSet", "ImageTruth", "Truth"]

NOTHING = "(nothing)"
"""Name of the class that stands after the last one, for images and answers without a box."""


class ImageTruth(NamedTuple):
    """The boxes of one image.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels of the square; float32 (M, 4).
        classes: index into the set's classes; int64 (M,).
        is_difficult: the box need not be found, and finding it is no mistake; bool (M,).
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    is_difficult: NDArray[np.bool_]


Truth = tuple[ImageTruth, ...]


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """Images of one size, their boxes and their splits.

    Attributes:
        images: pixels in [0, 255]; read-only uint8 (N, 3, H, W), memory-mapped from `images_file`
            where there is one.
        first: boxes first[i] to first[i + 1] are those of image i; int64 (N + 1,).
        boxes: x1, y1, x2, y2 in pixels of the square images; float32 (T, 4).
        box_classes: index into `classes`; int64 (T,).
        is_difficult: as in `ImageTruth`; bool (T,).
        classes: names of what boxes hold.
        split: code of the row's split (`splits.SPLITS`); int8 (N,).
        name: of the data set.
        fingerprint: of pixels, boxes, classes and splits; paths and dates do not enter.
        images_file: the .npy file that holds `images`, or None.
        clipped: boxes that were cut at the image's edge on request.
        unlabelled: images without a label file, taken for images without objects.
        skipped: what was wrong with each sample that was left out on request.
    """

    images: NDArray[np.uint8]
    first: NDArray[np.int64]
    boxes: NDArray[np.float32]
    box_classes: NDArray[np.int64]
    is_difficult: NDArray[np.bool_]
    classes: tuple[str, ...]
    split: NDArray[np.int8]
    name: str
    fingerprint: str
    images_file: Path | None = None
    clipped: int = 0
    unlabelled: int = 0
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.split)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def labels(self) -> NDArray[np.int64]:
        """The most frequent class of every image's boxes, the first of equals; int64 (N,).

        Difficult boxes count only where there are no others; without a box it is `len(classes)`,
        the place of `NOTHING`.
        """
        return np.array([self._label(self.truth_of(row)) for row in range(len(self))], np.int64)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Indices of the split's rows, increasing; int64 (M,).

        Raises:
            UnknownName: there is no such split.
        """
        return np.flatnonzero(self.split == split_code(split)).astype(np.int64)

    def truth_of(self, row: int) -> ImageTruth:
        """The boxes of one image."""
        own = slice(int(self.first[row]), int(self.first[row + 1]))
        return ImageTruth(self.boxes[own], self.box_classes[own], self.is_difficult[own])

    def truth_rows(self, rows: NDArray[np.int64]) -> Truth:
        """The boxes of some images, in the order of `rows`; what a detector is judged by."""
        return tuple(self.truth_of(int(row)) for row in rows)

    def _label(self, truth: ImageTruth) -> int:
        easy = truth.classes[~truth.is_difficult]
        counted = easy if len(easy) else truth.classes
        if not len(counted):
            return len(self.classes)
        return int(np.bincount(counted, minlength=len(self.classes)).argmax())
