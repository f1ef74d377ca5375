"""Boxes and their geometry: overlap, clipping, and fitting an image with its boxes into a square.

A box is x1, y1, x2, y2 in pixels, measured from the image's top left corner: the pixel in column
c covers c to c + 1. N and M boxes, C channels, H, W.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Letterbox", "clip_boxes", "overlaps"]

Floats = NDArray[np.float64]

_GREY = 114
"""What fills the square beside the image: about the mean of natural images."""


def overlaps(first: Floats, second: Floats) -> Floats:
    """Intersection over union of every pair.

    Args:
        first: (N, 4).
        second: (M, 4).

    Returns:
        (N, M), in [0, 1]; 0 where both boxes are empty.
    """
    a, b = first[:, None, :], second[None, :, :]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.prod(np.maximum(sides, 0.0), axis=-1)
    union = _area(first)[:, None] + _area(second)[None, :] - shared
    ratio: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def clip_boxes(boxes: Floats, width: float, height: float) -> Floats:
    """Cuts (N, 4) boxes at the edges of an image."""
    return np.clip(boxes, 0.0, np.array([width, height, width, height], np.float64))


@dataclass(frozen=True)
class Letterbox:
    """Fits an image into the middle of a square without changing its proportions.

    Attributes:
        width, height: of the image, in pixels.
        side: of the square.
    """

    width: int
    height: int
    side: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image within the square: its long side is the square's."""
        scale = self.side / max(self.width, self.height)
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    @property
    def corner(self) -> tuple[int, int]:
        """Column and row of the square at which the image begins."""
        width, height = self.size
        return (self.side - width) // 2, (self.side - height) // 2

    def boxes(self, boxes: Floats) -> Floats:
        """The same boxes in the square; (N, 4)."""
        placed: Floats = boxes * self._scale() + np.tile(self.corner, 2)
        return placed

    def boxes_back(self, boxes: Floats) -> Floats:
        """Boxes of the square in the image's own pixels; (N, 4)."""
        placed: Floats = (boxes - np.tile(self.corner, 2)) / self._scale()
        return placed

    def pixels(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 (3, height, width) to (3, side, side), grey beside the image (bilinear)."""
        square = np.full((3, self.side, self.side), _GREY, np.uint8)
        (width, height), (left, top) = self.size, self.corner
        resized = image
        if (width, height) != (self.width, self.height):
            picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            smooth = picture.resize((width, height), Image.Resampling.BILINEAR)
            resized = np.asarray(smooth).transpose(2, 0, 1)
        square[:, top : top + height, left : left + width] = resized
        return square

    def _scale(self) -> Floats:
        width, height = self.size
        return np.tile(np.array([width / self.width, height / self.height]), 2)


def _area(boxes: Floats) -> Floats:
    area: Floats = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=-1)
    return area
