"""An image set in memory or mapped from disk; a value, which `load` makes.

N samples, C channels, H, W.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.splits import SPLITS, split_code

__all__ = ["ImageSet", "describe"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, their classes and their splits.

    Attributes:
        images: pixels in [0, 255]; read-only uint8 (N, C, H, W), C = 1 if all are grey, else 3;
            memory-mapped from `images_file` where there is one.
        labels: index into `classes`; int64 (N,).
        classes: class names.
        split: code of the row's split (`splits.SPLITS`); int8 (N,).
        name: of the data set.
        fingerprint: of pixels, labels, classes and splits; paths and dates do not enter.
        images_file: the .npy file that holds `images`, or None.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    split: NDArray[np.int8]
    name: str
    fingerprint: str
    images_file: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def rows(self, split: str) -> NDArray[np.int64]:
        """Indices of the split's rows, increasing; int64 (M,).

        Raises:
            UnknownName: there is no such split.
        """
        return np.flatnonzero(self.split == split_code(split)).astype(np.int64)


def describe(image_set: ImageSet) -> dict[str, Any]:
    """What a run records of an image set, as JSON-able values."""
    by_split = {
        name: np.bincount(image_set.labels[image_set.rows(name)], minlength=len(image_set.classes))
        for name in SPLITS
    }
    return {
        "name": image_set.name,
        "fingerprint": image_set.fingerprint,
        "images": len(image_set),
        "shape": list(image_set.shape),
        "classes": list(image_set.classes),
        "splits": {
            name: {
                "images": int(counts.sum()),
                "by_class": {
                    label: int(count)
                    for label, count in zip(image_set.classes, counts, strict=True)
                },
            }
            for name, counts in by_split.items()
        },
    }
