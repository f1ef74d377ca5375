"""How a digit moves in each class of the digit clips; where it is at every frame, nothing is drawn.

L clips, T frames. Lengths are in shares of the frame's side; x runs right, y runs down.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASSES", "DIFFICULTY", "Motion", "blend", "motion_of"]

Floats = NDArray[np.float64]
Draws = Mapping[str, Floats]

CLASSES = (
    "left",
    "right",
    "up",
    "down",
    "growing",
    "shrinking",
    "clockwise",
    "counter-clockwise",
    "still",
    "other",
)

# The easiest and the hardest clip of a class, in [0, 1]: the last two are easy throughout, as
# "Doing other things" is in TNN Fig. 8, and turning needs the finest look.
DIFFICULTY: Mapping[str, tuple[float, float]] = {
    "left": (0.0, 0.8),
    "right": (0.0, 0.6),
    "up": (0.1, 0.9),
    "down": (0.0, 0.7),
    "growing": (0.0, 0.9),
    "shrinking": (0.1, 1.0),
    "clockwise": (0.1, 0.9),
    "counter-clockwise": (0.2, 1.0),
    "still": (0.0, 0.35),
    "other": (0.0, 0.35),
}

_DIRECTION = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_TRAVEL = (0.42, 0.10)  # of the easiest and the hardest clip, in shares of the side
_GROWTH = (2.0, 1.22)  # largest size over smallest
_TURN = (np.pi, np.pi / 6)  # radians
_KINDS = 4  # of "other": jitter, jumps, flicker, there and back


@dataclass(frozen=True)
class Motion:
    """Where a digit is in L clips.

    Attributes:
        x, y: of its centre from the frame's centre, in shares of the side; (L, T).
        size: of its 8 x 8 pixels, in shares of the side; (L, T).
        angle: turned clockwise, in radians; (L, T).
        strength: of its ink, in [0, 1]; (L, T).
    """

    x: Floats
    y: Floats
    size: Floats
    angle: Floats
    strength: Floats


def blend(ends: tuple[float, float], share: Floats) -> Floats:
    """From the easy end (share 0) to the hard end (share 1)."""
    return ends[0] + (ends[1] - ends[0]) * share


def motion_of(label: str, hardness: Draws, draw: Draws, loose: Floats) -> Motion:
    """The motion of every clip of a class.

    Args:
        label: one of `CLASSES`.
        hardness: shares in [0, 1] by which the motion's "amount" and "duration" are hard; (L,).
        draw: uniform numbers in [0, 1) by name; (L,).
        loose: uniform numbers in [0, 1) for what has no path; (L, T, 3).
    """
    frames = loose.shape[1]
    still = np.zeros((len(loose), frames))
    size = blend((0.38, 0.52), draw["size"])[:, None] + still
    tilt = blend((-0.2, 0.2), draw["tilt"])[:, None] + still
    amount, path = hardness["amount"], _path(hardness["duration"], draw["onset"], frames)
    dx = dy = turn = still
    strength = still + 1.0
    if label in _DIRECTION:
        travel = blend(_TRAVEL, amount)[:, None] * path
        dx, dy = (travel * sign for sign in _DIRECTION[label])
    elif label in ("growing", "shrinking"):
        sign = 1 if label == "growing" else -1
        growth = blend(_GROWTH, amount)[:, None]
        # from the smaller to the larger or back, about the clip's own middle size
        size = size * 2.0 / (1.0 + growth) * (1.0 + (growth - 1.0) * (0.5 + sign * path))
    elif label in ("clockwise", "counter-clockwise"):
        sign = 1 if label == "clockwise" else -1
        turn = blend(_TURN, amount)[:, None] * path * sign
    elif label == "other":
        dx, dy, size, turn, strength = _other(size, draw, loose)
    x = _placed(draw["x"], dx, size) + dx
    y = _placed(draw["y"], dy, size) + dy
    return Motion(x, y, size, tilt + turn, strength)


def _path(hardness: Floats, onset: Floats, frames: int) -> Floats:
    """How far along its way a digit is, from -1/2 to 1/2: it rests, moves evenly, rests; (L, T)."""
    duration = blend((1.0, 0.6), hardness)[:, None]
    start = (1.0 - duration) * onset[:, None]
    time = np.arange(frames) / max(frames - 1, 1)
    path: Floats = np.clip((time - start) / duration, 0.0, 1.0) - 0.5
    return path


def _placed(draw: Floats, way: Floats, size: Floats) -> Floats:
    """Where the middle of the way is, so that the digit stays inside; (L, 1)."""
    reach = np.abs(way).max(axis=1) + size.max(axis=1) * 0.4
    middle: Floats = np.maximum(0.5 - reach, 0.0) * (2.0 * draw - 1.0)
    return middle[:, None]


def _other(
    size: Floats, draw: Draws, loose: Floats
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Motions without a direction, the miniature of "Doing other things"; dx, dy, size, turn, ink.

    A quarter each: jitter from frame to frame, two or three jumps, flicker and change of size, and
    a way there and back (along x, along y, in size or in angle).
    """
    frames = loose.shape[1]
    zero = np.zeros_like(size)
    kind = (draw["kind"] * _KINDS).astype(np.int64)[:, None]
    wild = 2.0 * loose - 1.0
    held = np.arange(frames) * 3 // frames  # a jump at each third
    there = np.sin(np.linspace(0.0, 2.0 * np.pi, frames)) * 0.5
    way = (draw["way"] * 4).astype(np.int64)[:, None]

    def back(which: int, reach: float) -> Floats:
        return np.where((kind == 3) & (way == which), there * reach, zero)

    shift = [
        np.select([kind == 0, kind == 1], [wild[:, :, a] * 0.16, wild[:, held, a] * 0.24], zero)
        for a in (0, 1)
    ]
    flicker = np.where(kind == 2, loose[:, :, 0], 1.0)
    pulse = np.where(kind == 2, 1.0 + wild[:, :, 1] * 0.25, 1.0 + back(2, 0.6))
    turn = np.where(kind == 0, wild[:, :, 2] * 0.4, back(3, np.pi / 2))
    return shift[0] + back(0, 0.5), shift[1] + back(1, 0.5), size * pulse, turn, flicker
