"""Drawn shapes with their boxes: a detection set that needs no download, for trials and tests.

How hard an image is varies: shapes are large or small, bright or faint, on quiet or noisy ground.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flyball.datapaths.data.config import Fractions
from flyball.datapaths.data.deal import sizes_of
from flyball.datapaths.detection.boxes import overlaps
from flyball.datapaths.detection.detection_set import DetectionSet
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.files import fingerprint_of

__all__ = ["SHAPES", "drawn_shapes"]

SHAPES = ("square", "disc", "triangle")

_MOST = 3
_SHARES = (0.5, 0.25, 0.1, 0.15)


def drawn_shapes(
    count: int = 1000,
    *,
    image_size: int = 96,
    seed: int = 0,
    fractions: Fractions = _SHARES,
) -> DetectionSet:
    """Draws images of one to three shapes that hardly overlap, a tenth of them of none.

    Args:
        count: images, at least 4.
        image_size: of their side, at least 32 pixels.
        seed: of the drawing and of the deal into splits; >= 0.
        fractions: shares of the splits, in their order.

    Raises:
        InvalidSetting: there are too few images, or they are too small.
    """
    if count < len(fractions) or image_size < 32:
        raise InvalidSetting(
            "Drawn shapes need an image for every split and 32 pixels a side; asked were "
            f"{count} images of {image_size} pixels. Give more, or larger ones."
        )
    draws = np.random.default_rng(seed)
    images = np.empty((count, 3, image_size, image_size), np.uint8)
    boxes, classes, first = [], [], [0]
    for row in range(count):
        images[row], own, kinds = _image(draws, image_size)
        boxes.append(own)
        classes.append(kinds)
        first.append(first[-1] + len(kinds))
    order = draws.permutation(count)
    split = np.empty(count, np.int8)
    split[order] = np.repeat(np.arange(4, dtype=np.int8), sizes_of(count, np.asarray(fractions)))
    every = np.concatenate(boxes).astype(np.float32)
    digest = hashlib.sha256(images.tobytes() + every.tobytes() + split.tobytes()).hexdigest()
    images.setflags(write=False)
    return DetectionSet(
        images=images,
        first=np.array(first, np.int64),
        boxes=every,
        box_classes=np.concatenate(classes).astype(np.int64),
        is_difficult=np.zeros(len(every), np.bool_),
        classes=SHAPES,
        split=split,
        name="drawn",
        fingerprint=fingerprint_of("drawn", SHAPES, digest),
    )


def _image(
    draws: np.random.Generator, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64], list[int]]:
    ground = draws.integers(30, 90, 3)
    picture = Image.new("RGB", (size, size), tuple(int(value) for value in ground))
    pen = ImageDraw.Draw(picture)
    boxes: NDArray[np.float64] = np.empty((0, 4))
    kinds: list[int] = []
    wanted = 0 if draws.random() < 0.1 else int(draws.integers(1, _MOST + 1))
    for _ in range(wanted):
        side = int(draws.integers(size // 6, size // 2))
        x, y = (int(value) for value in draws.integers(0, size - side, 2))
        box = np.array([[x, y, x + side, y + side]], np.float64)
        if len(boxes) and overlaps(box, boxes).max() > 0.05:
            continue
        kind = int(draws.integers(len(SHAPES)))
        contrast = draws.uniform(25, 160)
        _draw(pen, kind, x, y, side, tuple(int(value + contrast) for value in ground))
        boxes, kinds = np.concatenate([boxes, box]), [*kinds, kind]
    noise = draws.normal(0.0, draws.uniform(0.0, 25.0), (3, size, size))
    pixels = np.asarray(picture, np.float64).transpose(2, 0, 1) + noise
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), boxes, kinds


def _draw(
    pen: ImageDraw.ImageDraw, kind: int, x: int, y: int, side: int, colour: tuple[int, ...]
) -> None:
    """Draws a shape that touches all four sides of its box."""
    right, low = x + side - 1, y + side - 1
    if SHAPES[kind] == "square":
        pen.rectangle((x, y, right, low), fill=colour)
    elif SHAPES[kind] == "disc":
        pen.ellipse((x, y, right, low), fill=colour)
    else:
        pen.polygon(((x, low), (right, low), (x + side // 2, y)), fill=colour)
