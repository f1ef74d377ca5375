"""What Phase 1 learns from: training images in memory, or rows of images that stay on disk.

N images, M rows of them, C channels, T frames, H, W pixels, B batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["NormalisedBatches", "RowsOf", "channel_statistics", "training_pixels"]

IN_MEMORY = 2 * 10**9
"""Training images of more bytes stay where they are, and are read batch by batch."""
STATISTICS_ROWS = 50_000
BYTES_AT_ONCE = 2**26


def training_pixels(images: Any, rows: NDArray[np.int64]) -> Any:
    """Rows of images, copied into memory if they fit there and are not streamed.

    Args:
        images: uint8 (N, ...): an array, a memory map, or anything that gives rows for indices.
        rows: (M,).
    """
    size = len(rows) * int(np.prod(images.shape[1:], dtype=np.int64))
    if isinstance(images, np.ndarray) and size <= IN_MEMORY:
        return np.ascontiguousarray(images[rows])
    return RowsOf(images, rows)


def channel_statistics(pixels: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on [0, 1], of at most 50,000 evenly spaced rows.

    Args:
        pixels: uint8 (N, C, H, W) or (N, C, T, H, W); anything that gives rows for indices.
    """
    count = len(pixels)
    rows = np.arange(count)
    if count > STATISTICS_ROWS:
        rows = np.linspace(0, count - 1, STATISTICS_ROWS).round().astype(np.int64)
    histogram = np.zeros((pixels.shape[1], 256), np.int64)
    most = max(1, BYTES_AT_ONCE // int(np.prod(pixels.shape[1:], dtype=np.int64)))
    for start in range(0, len(rows), most):
        chunk = np.asarray(pixels[rows[start : start + most]])
        for channel, counts in enumerate(histogram):
            counts += np.bincount(chunk[:, channel].ravel(), minlength=256)
    levels = np.arange(256) / 255.0
    means, stds = [], []
    for counts in histogram:
        mean = float((counts * levels).sum() / counts.sum())
        variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        means.append(round(mean, 6))
        stds.append(round(max(variance**0.5, 1e-3), 6))
    return tuple(means), tuple(stds)


class RowsOf:
    """Some rows of images that stay on disk: read when they are asked for.

    Attributes:
        shape: (M, *shape of a sample).
        dtype: of the pixels.
    """

    def __init__(self, images: Any, rows: NDArray[np.int64]) -> None:
        self._images, self._rows = images, rows
        self.shape = (len(rows), *images.shape[1:])
        self.dtype = images.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def prefetch(self, index: Any) -> None:
        """Tells a streamed set what will be asked for next."""
        ahead = getattr(self._images, "prefetch", None)
        if ahead is not None:
            ahead(self._rows[index])

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        return np.asarray(self._images[self._rows[index]])


@dataclass(frozen=True)
class NormalisedBatches:
    """Batches of images as a network takes them, as often as they are gone through.

    Attributes:
        pixels: uint8 (N, ...); anything that gives rows for indices.
        rows: of every batch.
        mean, std: of the channels on the [0, 1] scale.
        device: torch device.
    """

    pixels: Any
    rows: list[NDArray[np.int64]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str

    def __iter__(self) -> Iterator[torch.Tensor]:
        shape = (1, -1, *(1,) * (len(self.pixels.shape) - 2))
        mean, std = (
            torch.tensor(v, device=self.device).reshape(shape) for v in (self.mean, self.std)
        )
        for rows in self.rows:
            x = torch.from_numpy(np.asarray(self.pixels[rows])).to(self.device).float() / 255.0
            yield (x - mean) / std
