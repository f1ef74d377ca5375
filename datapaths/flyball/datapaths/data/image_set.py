"""A set of images or clips in memory, mapped from disk or streamed; a value, which `load` makes.

N samples, C channels, T frames, H, W.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.data.streamed import StreamedPixels
from flyball.datapaths.splits import SPLITS, split_code

__all__ = ["ImageSet", "describe"]

_NAMED = 20  # skipped samples that a description names


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images or clips, their classes and their splits.

    Attributes:
        images: pixels in [0, 255]; read-only uint8 (N, C, H, W), or (N, C, T, H, W) of clips;
            C = 1 if all are grey, else 3. Memory-mapped from `images_file` where there is one. Of
            a set that is streamed a `StreamedPixels`: index it with rows and nothing else.
        labels: index into `classes`; int64 (N,).
        classes: class names.
        split: code of the row's split (`splits.SPLITS`); int8 (N,).
        name: of the data set.
        fingerprint: of pixels, labels, classes and splits; paths and dates do not enter. Of a set
            that is streamed the names, sizes and dates of the files stand for the pixels.
        images_file: the .npy file that holds `images`, or None.
        difficulty: of each sample in [0, 1], float32 (N,), where the set knows it, else None.
        skipped: names of samples that were left out because they do not decode.
    """

    images: NDArray[np.uint8] | StreamedPixels
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    split: NDArray[np.int8]
    name: str
    fingerprint: str
    images_file: Path | None = None
    difficulty: NDArray[np.float32] | None = None
    skipped: tuple[str, ...] = ()

    @property
    def is_streamed(self) -> bool:
        """Whether samples are decoded each time they are asked for."""
        return isinstance(self.images, StreamedPixels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W) of an image, (C, T, H, W) of a clip."""
        return tuple(self.images.shape[1:])

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
        "streamed": image_set.is_streamed,
        "skipped": {
            "count": len(image_set.skipped),
            "first": list(image_set.skipped[:_NAMED]),
        },
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
