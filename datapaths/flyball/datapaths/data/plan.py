"""A source of images or clips that was looked through: what it holds, and how to read its pixels.

Rows run through the source's parts, within a part through the classes, within a class through
the samples in their order; so counts alone tell every row's label. C channels, T frames, H, W.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.progress import Report

__all__ = ["Part", "Pixels", "Plan", "labels_of", "test_mask_of"]

Pixels = Iterator[tuple[int, NDArray[np.uint8]]]


@dataclass(frozen=True)
class Part:
    """One part of a source, such as its folder "train".

    Attributes:
        name: of the part; "all" where the source has no parts.
        counts: samples of each class.
        is_test: the part is the source's own test set.
    """

    name: str
    counts: tuple[int, ...]
    is_test: bool = False


@dataclass(frozen=True)
class Plan:
    """What a source holds and how to read it.

    Attributes:
        classes: class names.
        parts: in the order of the rows.
        shape: (C, H, W) of every image, or (C, T, H, W) of every clip, as read.
        content: digest of the samples' bytes in the order of the rows and of what decodes them.
        read: gives every row once with its pixels, uint8 of `shape`, in whatever order the source
            has them; raises DataError at the first sample that cannot be read.
        skipped: samples that were left out because they cannot be decoded, by name and reason.
    """

    classes: tuple[str, ...]
    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    content: str
    read: Callable[[Report], Pixels]
    skipped: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Samples in all."""
        return sum(sum(part.counts) for part in self.parts)

    @property
    def decoded_bytes(self) -> int:
        """Of all samples."""
        return self.count * int(np.prod(self.shape, dtype=np.int64))


def labels_of(parts: tuple[Part, ...]) -> NDArray[np.int64]:
    """The class index of every row; int64 (N,)."""
    return np.concatenate(
        [np.repeat(np.arange(len(p.counts), dtype=np.int64), p.counts) for p in parts]
    )


def test_mask_of(parts: tuple[Part, ...]) -> NDArray[np.bool_]:
    """Which rows lie in the source's own test part; bool (N,)."""
    return np.concatenate([np.full(sum(part.counts), part.is_test) for part in parts])
