"""Rendered people with known joints: a set for pose that needs no download.

The class of an image is what makes it hard. Joint angles stay within anatomical limits; clothes,
limbs of nobody, shapes in front and the picture's edge do what they do in photographs. N images,
L of a kind, P points of a body, S side of an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.data.clip_motions import blend
from flyball.datapaths.data.config import DataConfig
from flyball.datapaths.data.plan import Part, Pixels, Plan
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.pose.joints import HEAD_SHARE, JOINTS
from flyball.datapaths.pose.painting import Scene, paint
from flyball.datapaths.pose.skeleton import DRAWS, bodies_of
from flyball.datapaths.progress import Progress, Report

__all__ = ["KINDS", "Figures", "figures_of", "plan_figures"]

Floats = NDArray[np.float64]

VERSION = 1  # of what is drawn: a change of any pixel must raise it
_SIDE, _LEAST_SIDE, _LIMIT = 128, 32, 1500
_GRID = 64.0  # points lie on it, so that no processor's sine moves a pixel
_EVERY = 200


@dataclass(frozen=True)
class _Kind:
    """What makes images of a kind hard; ranges of the easiest and the hardest.

    Attributes:
        difficulty: in [0, 1].
        extent: of the person's larger side, in shares of the image's.
        shift: at most so far out of the image, in shares of its side.
        texture: of the ground, in levels.
        clutter: things behind the person.
        occluders: things before the person.
    """

    difficulty: tuple[float, float]
    extent: tuple[float, float]
    shift: float
    texture: tuple[float, float]
    clutter: tuple[int, int]
    occluders: tuple[int, int]


KINDS: Mapping[str, _Kind] = {
    "plain": _Kind((0.0, 0.5), (0.84, 1.02), 0.0, (10.0, 45.0), (0, 0), (0, 0)),
    "cluttered": _Kind((0.3, 1.0), (0.82, 1.02), 0.0, (60.0, 170.0), (6, 14), (0, 0)),
    "small": _Kind((0.3, 0.9), (0.45, 0.62), 0.0, (20.0, 100.0), (1, 5), (0, 0)),
    "occluded": _Kind((0.4, 1.0), (0.9, 1.2), 0.14, (20.0, 110.0), (1, 6), (1, 2)),
}
"""The classes, in their order."""

_DRAWS = (*DRAWS, "difficulty", "extent", "x", "y", "shift_x", "shift_y", "texture", "noise")


@dataclass(frozen=True)
class Figures:
    """What is on every image, before it is painted.

    Attributes:
        label: index into `KINDS`; int64 (N,).
        difficulty: in [0, 1]; float32 (N,).
        key_points: x, y in pixels, and whether the joint is seen: within the image and behind no
            occluder; float32 (N, 16, 3). Joints behind the person's own body count as seen.
        head_sizes: in pixels; float32 (N,).
        scenes: what `paint` takes; N of them.
    """

    label: NDArray[np.int64]
    difficulty: NDArray[np.float32]
    key_points: NDArray[np.float32]
    head_sizes: NDArray[np.float32]
    scenes: tuple[Scene, ...]


def plan_figures(config: DataConfig) -> Plan:
    """How the images are made: colour, (3, S, S), kind by kind.

    Raises:
        InvalidSetting: the side is too small to show a joint.
    """
    limit, side = _settings(config)

    def read(report: Report) -> Pixels:
        scenes = figures_of(config).scenes
        for row, scene in enumerate(scenes):
            yield row, paint(scene).pixels
            if (row + 1) % _EVERY == 0 or row + 1 == len(scenes):
                report(Progress("decode", row + 1, len(scenes)))

    return Plan(
        classes=tuple(KINDS),
        parts=(Part("all", (limit,) * len(KINDS)),),
        shape=(3, side, side),
        content=fingerprint_of("figures", VERSION, config.seed, limit, side),
        read=read,
    )


def figures_of(config: DataConfig) -> Figures:
    """Poses everybody and dresses the scenes. A larger limit adds images and changes none.

    Raises:
        InvalidSetting: the side is too small to show a joint.
    """
    limit, side = _settings(config)
    parts = [_of_kind(number, config.seed, limit, side) for number in range(len(KINDS))]
    return Figures(
        label=np.repeat(np.arange(len(KINDS), dtype=np.int64), limit),
        difficulty=np.concatenate([part.difficulty for part in parts]),
        key_points=np.concatenate([part.key_points for part in parts]),
        head_sizes=np.concatenate([part.head_sizes for part in parts]),
        scenes=tuple(scene for part in parts for scene in part.scenes),
    )


def _of_kind(number: int, seed: int, limit: int, side: int) -> Figures:
    kind = list(KINDS.values())[number]
    uniform = np.random.default_rng([seed, number, 0]).random((limit, len(_DRAWS)))
    draw = dict(zip(_DRAWS, uniform.T, strict=True))
    difficulty = blend(kind.difficulty, draw["difficulty"])
    body = bodies_of(draw, difficulty)
    flat = body.points[..., :2]
    low, high = flat.min(axis=1) - 0.05, flat.max(axis=1) + 0.05
    extent = (high - low).max(axis=1)
    # who sits or crouches is no giant
    height = side * blend(kind.extent, draw["extent"]) / np.maximum(extent, 0.8)
    free = side - (high - low) * height[:, None]
    place = np.stack([draw["x"], draw["y"]], axis=1)
    shift = np.stack([draw["shift_x"], draw["shift_y"]], axis=1)
    corner = free * place + side * kind.shift * (2.0 * shift - 1.0)
    points = body.points * height[:, None, None]
    points[..., :2] += (corner - low * height[:, None])[:, None]
    points = np.rint(points * _GRID) / _GRID
    height = np.rint(height * _GRID) / _GRID
    scenes = tuple(
        Scene(
            side=side,
            seed=(seed, number, row, 1),
            points=points[row],
            height=float(height[row]),
            difficulty=float(difficulty[row]),
            texture=float(blend(kind.texture, draw["texture"][row : row + 1])[0]),
            noise=float(3.0 + 11.0 * draw["noise"][row] * difficulty[row]),
            clutter=kind.clutter,
            occluders=kind.occluders,
        )
        for row in range(limit)
    )
    joints = points[:, : len(JOINTS), :2]
    is_seen = ((joints >= 0.0) & (joints < side)).all(axis=2)
    hidden = np.stack([scene.hides(where) for scene, where in zip(scenes, joints, strict=True)])
    is_seen &= ~hidden
    return Figures(
        label=np.full(limit, number, np.int64),
        difficulty=difficulty.astype(np.float32),
        key_points=np.concatenate([joints, is_seen[..., None]], axis=2).astype(np.float32),
        head_sizes=(HEAD_SHARE * body.head * height).astype(np.float32),
        scenes=scenes,
    )


def _settings(config: DataConfig) -> tuple[int, int]:
    """Images of a kind, side."""
    side = _SIDE if config.image_size is None else config.image_size
    if side < _LEAST_SIDE:
        raise InvalidSetting(
            f"The joints of 'figures' need data.image_size of at least {_LEAST_SIDE}; got {side}. "
            f"Give --set data.image_size={_LEAST_SIDE} or more, e.g. {_SIDE}."
        )
    return _LIMIT if config.limit is None else config.limit, side
