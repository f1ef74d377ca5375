"""One scene of a person to pixels: ground, things behind, the body by depth, things before.

What the body wears and where things stand is drawn from the scene's own seed. P points of a body,
S side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.pose.drawing import Box, Limb, Picture
from flyball.datapaths.pose.joints import JOINTS
from flyball.datapaths.pose.skeleton import POINTS

__all__ = ["Painted", "Scene", "paint"]

Floats = NDArray[np.float64]

_INDEX = {name: place for place, name in enumerate(POINTS)}
_SKIN = ((241, 203, 178), (224, 176, 140), (198, 146, 108), (158, 108, 74), (112, 76, 52))
_HAIR = ((34, 26, 22), (74, 48, 30), (120, 82, 46), (196, 158, 96), (150, 148, 146), (126, 52, 30))
_TURNS = (
    (1.0, 0.0),
    (0.96, 0.28),
    (0.8, 0.6),
    (0.6, 0.8),
    (0.28, 0.96),
    (0.8, -0.6),
    (0.96, -0.28),
)


class Painted(NamedTuple):
    """An image and where its person is.

    Attributes:
        pixels: uint8 (3, S, S).
        covered: share of each pixel that shows the person; float32 (S, S).
    """

    pixels: NDArray[np.uint8]
    covered: NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """What is on one image.

    Attributes:
        side: of the image, in pixels.
        seed: of clothes, ground and things.
        points: x, y and depth of `skeleton.POINTS`, in pixels; (P, 3).
        height: of the body, upright, in pixels.
        difficulty: in [0, 1]: clothes come close to the ground's colour.
        texture, noise: of the ground and of every pixel, in levels.
        clutter, occluders: least and most things behind and before the person.
    """

    side: int
    seed: tuple[int, ...]
    points: Floats
    height: float
    difficulty: float
    texture: float
    noise: float
    clutter: tuple[int, int]
    occluders: tuple[int, int]

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """What stands before the person, each over one of the joints."""
        low, high = self.occluders
        if not high:
            return ()
        generator = np.random.default_rng([*self.seed, 0])
        made = []
        for _ in range(int(generator.integers(low, high + 1))):
            draw = generator.random(6)
            x, y = self.points[int(draw[0] * len(JOINTS)), :2].tolist()
            width, height = (self.height * (0.05 + 0.12 * part) for part in draw[1:3].tolist())
            cosine, sine = _TURNS[int(draw[3] * len(_TURNS))]
            reach = self.height * 0.08
            dx, dy = (reach * (2.0 * draw[4:] - 1.0)).tolist()
            made.append(Box(x + dx, y + dy, width, height, cosine, sine, 0.02 * self.height))
        return tuple(made)

    def hides(self, places: Floats) -> NDArray[np.bool_]:
        """Which places something stands before; places (J, 2), bool (J,)."""
        hidden = np.zeros(len(places), np.bool_)
        for box in self.boxes:
            x, y = (places - (box.x, box.y)).T
            along = np.abs(x * box.cosine + y * box.sine) - box.half_width
            down = np.abs(y * box.cosine - x * box.sine) - box.half_height
            hidden |= np.maximum(along, down) < box.radius
        return hidden


class _Part(NamedTuple):
    """Limbs that are painted as one."""

    depth: float
    limbs: Sequence[Limb]
    colour: Floats


def paint(scene: Scene) -> Painted:
    """Paints a scene; the same one gives the same pixels."""
    generator = np.random.default_rng([*scene.seed, 1])
    side, unit = scene.side, scene.height
    base = 55.0 + 145.0 * generator.random() + 70.0 * (generator.random(3) - 0.5)
    cells = int(generator.integers(3, 9))
    grey, hue = generator.random((cells, cells, 1)), generator.random((cells, cells, 3))
    grid = base + scene.texture * (0.7 * grey + 0.5 * hue - 0.6)
    small = Image.fromarray(np.clip(np.rint(grid), 0, 255).astype(np.uint8))
    ground = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    picture = Picture(ground.astype(np.float32, order="C"))
    for _ in range(int(generator.integers(scene.clutter[0], scene.clutter[1] + 1))):
        _clutter(picture, generator, unit)
    for part in sorted(_parts(scene, base, generator), key=lambda part: part.depth):
        picture.limbs(part.limbs, part.colour)
    for box in scene.boxes:
        picture.hide(box, 30.0 + 200.0 * generator.random(3))
    grain = generator.integers(0, 256, (2, 3, side, side), np.uint8).astype(np.float32)
    picture.pixels += (grain[0] - grain[1]) * np.float32(scene.noise / 255.0)
    pixels = np.clip(np.rint(picture.pixels), 0, 255).astype(np.uint8)
    return Painted(pixels, picture.covered)


def _parts(scene: Scene, base: Floats, generator: np.random.Generator) -> Iterator[_Part]:
    """What the body is made of, with its clothes."""
    unit = scene.height
    draw = generator.random(16)
    skin = np.array(_SKIN[int(draw[0] * len(_SKIN))]) * (0.92 + 0.16 * draw[1])
    hair = np.array(_HAIR[int(draw[2] * len(_HAIR))])
    shirt = _apart(25.0 + 215.0 * draw[3:6], base, scene.difficulty)
    trousers = _apart(20.0 + 200.0 * draw[6:9], base, scene.difficulty)
    shoes = np.full(3, 25.0 + 200.0 * draw[9]) * (1.0, 0.95, 0.9)
    long_sleeves, shorts = draw[10] < 0.5, draw[11] < 0.3
    thick = 1.0 + 0.32 * float(draw[12])

    points: list[list[float]] = scene.points.tolist()

    def at(name: str) -> list[float]:
        return points[_INDEX[name]]

    def limb(first: str, second: str, start: float, end: float) -> Limb:
        a, b = at(first), at(second)
        return Limb(a[0], a[1], b[0], b[1], start * unit * thick, end * unit * thick)

    def between(*names: str) -> float:
        return sum(at(name)[2] for name in names) / len(names)

    trunk = between("pelvis", "thorax")
    for side in ("right", "left"):
        hip, knee, ankle, toe = (f"{side} {name}" for name in ("hip", "knee", "ankle", "toe"))
        shoulder, elbow, wrist, hand = (
            f"{side} {name}" for name in ("shoulder", "elbow", "wrist", "hand")
        )
        shin = limb(knee, ankle, 0.042, 0.03)
        yield _Part(between(hip, knee) - 0.01 * unit, [limb(hip, knee, 0.064, 0.046)], trousers)
        yield _Part(between(knee, ankle), [shin], skin if shorts else trousers)
        yield _Part(between(ankle, toe), [limb(ankle, toe, 0.03, 0.024)], shoes)
        yield _Part(
            between(shoulder, elbow) + 0.02 * unit, [limb(shoulder, elbow, 0.043, 0.034)], shirt
        )
        forearm = [limb(elbow, wrist, 0.032, 0.024)]
        lower = between(elbow, wrist) + 0.03 * unit
        yield _Part(lower, forearm, shirt if long_sleeves else skin)
        yield _Part(between(wrist, hand) + 0.035 * unit, [limb(wrist, hand, 0.026, 0.026)], skin)
    yield _Part(trunk - 0.002 * unit, [limb("right hip", "left hip", 0.062, 0.062)], trousers)
    yield _Part(
        trunk,
        [
            limb("pelvis", "thorax", 0.066, 0.06),
            limb("right hip", "right shoulder", 0.05, 0.046),
            limb("left hip", "left shoulder", 0.05, 0.046),
            limb("right shoulder", "left shoulder", 0.044, 0.044),
        ],
        shirt,
    )
    head = between("face")
    yield _Part(trunk + 0.001 * unit, [limb("thorax", "upper neck", 0.032, 0.03)], skin * 0.9)
    yield _Part(head, [limb("crown", "crown", 0.066, 0.066)], hair)
    yield _Part(head + 0.002 * unit, [limb("upper neck", "face", 0.03, 0.054)], skin)
    for side in ("right", "left"):
        eye = f"{side} eye"
        if at(eye)[2] > head:
            yield _Part(at(eye)[2], [limb(eye, eye, 0.009, 0.009)], np.array([24.0, 22.0, 26.0]))


def _apart(colour: Floats, base: Floats, difficulty: float) -> Floats:
    """The colour, or where the ground is too close to it another one."""
    least = 80.0 - 45.0 * difficulty
    if np.abs(colour - base).mean() >= least:
        return colour
    away: Floats = np.where(base < 128.0, base + least + 25.0, base - least - 25.0)
    return np.clip(away, 8.0, 247.0)


def _clutter(picture: Picture, generator: np.random.Generator, unit: float) -> None:
    """A box, a limb of nobody with its bend, or a ball."""
    draw = generator.random(13)
    side = picture.side
    x, y = (side * (1.2 * draw[:2] - 0.1)).tolist()
    colour = 30.0 + 205.0 * draw[2:5]
    if draw[5] < 0.35:
        width, height = (0.02 * side + 0.12 * side * draw[6:8]).tolist()
        cosine, sine = _TURNS[int(draw[8] * len(_TURNS))]
        picture.box(Box(x, y, width, height, cosine, sine, 0.015 * side), colour, covers=False)
        return
    if draw[5] < 0.5:
        radius = side * (0.02 + 0.06 * float(draw[6]))
        picture.limb(Limb(x, y, x, y, radius, radius), colour, covers=False)
        return
    if draw[5] < 0.75:
        colour = np.array(_SKIN[int(draw[6] * len(_SKIN))])
    reach = 0.28 * max(unit, 0.45 * side)
    bend = (reach * (2.0 * draw[7:11] - 1.0)).tolist()
    thick = 0.04 * max(unit, 0.45 * side) * (0.6 + 0.6 * float(draw[11]))
    middle = x + bend[0], y + bend[1]
    end = middle[0] + bend[2], middle[1] + bend[3]
    picture.limb(Limb(x, y, *middle, 1.2 * thick, thick), colour, covers=False)
    lower = colour if draw[12] < 0.5 else np.array(_SKIN[int(draw[12] * len(_SKIN))])
    picture.limb(Limb(*middle, *end, 0.9 * thick, 0.7 * thick), lower, covers=False)
