"""The boxes of one image as its file gives them, checked before anything uses them. M boxes."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.detection.boxes import clip_boxes
from flyball.datapaths.errors import DataError

__all__ = ["Annotation", "Faults", "NamedBox", "checked_boxes"]

_ROUNDING = 0.05
"""Pixels by which a box may stand over the edge: what rounding in a text file amounts to."""


class NamedBox(NamedTuple):
    """One box of a file.

    Attributes:
        where: names file and row in an error.
        label: index of the class.
        corners: x1, y1, x2, y2 in pixels.
        is_difficult: as in `ImageTruth`.
    """

    where: str
    label: int
    corners: tuple[float, float, float, float]
    is_difficult: bool = False


class Annotation(NamedTuple):
    """All boxes of one image, within it.

    Attributes:
        boxes: x1, y1, x2, y2 in the image's own pixels; float64 (M, 4).
        classes: int64 (M,).
        is_difficult: bool (M,).
        clipped: how many boxes were cut at the edge.
    """

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    is_difficult: NDArray[np.bool_]
    clipped: int = 0


class Faults:
    """Samples with a fault: the first one stops, or all are left out, counted and named.

    Attributes:
        reasons: what was wrong with each sample that was left out.
    """

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self.reasons: list[str] = []

    @contextlib.contextmanager
    def sample(self) -> Iterator[None]:
        """Around the reading of one sample; a fault ends the block.

        Raises:
            DataError: the sample has one, and faults are not skipped.
        """
        try:
            yield
        except DataError as error:
            if not self._skip:
                advice = "Or leave such samples out with --set data.skip_corrupt=true."
                raise DataError(f"{error} {advice}") from error
            self.reasons.append(str(error))


def checked_boxes(
    rows: Sequence[NamedBox], width: int, height: int, *, clip: bool = False
) -> Annotation:
    """The boxes of an image, if all of them have an area and lie within it.

    A box over the edge by no more than the rounding of a text file is moved to the edge.

    Args:
        rows: boxes as read.
        width, height: of the image, in pixels.
        clip: cut boxes at the edge and count them. One that lies wholly outside stays an error.

    Raises:
        DataError: a box is not finite, has no area, or reaches over the edge; names file and row.
    """
    clipped = 0
    for row in rows:
        x1, y1, x2, y2 = row.corners
        if not all(map(math.isfinite, row.corners)):
            raise DataError(f"Box corners are finite numbers; {row.where} has {row.corners}.")
        if x2 <= x1 or y2 <= y1:
            raise DataError(
                f"A box has an area; {row.where} is {x2 - x1:g} x {y2 - y1:g} pixels "
                f"({_text(row)}). Correct or remove that row."
            )
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            raise DataError(
                f"A box lies on its image; {row.where} ({_text(row)}) is wholly outside the "
                f"{width}x{height} pixels of it. Correct or remove that row."
            )
        over = max(-x1, -y1, x2 - width, y2 - height)
        if over > _ROUNDING:
            if not clip:
                raise DataError(
                    f"A box lies within its image; {row.where} ({_text(row)}) reaches {over:.4g} "
                    f"pixels outside the {width}x{height} pixels of it. Correct that row, or cut "
                    "such boxes at the edge with --set data.clip_boxes=true."
                )
            clipped += 1
    corners = np.array([row.corners for row in rows], np.float64).reshape(-1, 4)
    return Annotation(
        clip_boxes(corners, width, height),
        np.array([row.label for row in rows], np.int64),
        np.array([row.is_difficult for row in rows], np.bool_),
        clipped,
    )


def _text(row: NamedBox) -> str:
    x1, y1, x2, y2 = row.corners
    return f"x {x1:.6g} to {x2:.6g}, y {y1:.6g} to {y2:.6g}"
