"""scikit-learn's real digits in motion: ten classes of clips, the gestures of Jester in miniature.

A clip's class says how its digit moves, not which digit it is. Every clip has a difficulty: with it
the motion shrinks, contrast falls, and noise, a second digit and an occluding bar come in.
N clips, L clips a class, T frames, S side of a frame.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.data.clip_motions import CLASSES, DIFFICULTY, Motion, blend, motion_of
from flyball.datapaths.data.clip_render import Drawn, draw_clips, enlarged
from flyball.datapaths.data.config import DataConfig
from flyball.datapaths.data.deal import deal
from flyball.datapaths.data.plan import Part, Pixels, Plan
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Progress, Report
from flyball.datapaths.splits import SPLITS

__all__ = ["CLASSES", "Clips", "clips_of", "plan_digit_clips"]

Floats = NDArray[np.float64]

VERSION = 1  # of what is drawn: a change of any pixel must raise it
_FRAMES, _SIDE, _LIMIT = 16, 32, 600
_LEAST_FRAMES, _LEAST_SIDE = 4, 16
_MOST_BYTES = 1 << 21  # drawn at once, so that it stays in the processor's cache
_CHUNK_PIXELS = _MOST_BYTES // 8

# Uniform numbers of a clip, in this order.
_DRAWS = (
    *("difficulty", "digit", "size", "tilt", "x", "y", "onset", "kind", "way", "background"),
    *("amount", "duration", "contrast", "noise", "clutter", "occlusion"),
    *("second_digit", "second_x", "second_y", "second_dx", "second_dy", "second_size"),
    *("bar_place", "bar_side", "bar_level"),
)
# What gets harder, each about the clip's difficulty.
_HARDER = ("amount", "duration", "contrast", "noise", "clutter", "occlusion")
_CONTRAST = (190.0, 75.0)
_NOISE = (5.0, 60.0)  # largest deviation of a pixel; triangular
_CLUTTER = (0.0, 0.5)  # of the digit's own contrast
_OCCLUSION = (0.0, 0.3)  # of the side


@dataclass(frozen=True)
class Clips:
    """What is drawn in every clip, before it is drawn.

    Attributes:
        label: index into `CLASSES`; int64 (N,).
        split: code of its split; int8 (N,).
        difficulty: in [0, 1]; float32 (N,).
        digit, second: rows of scikit-learn's digits: the one whose motion is the class, and the
            faint one that drifts behind it; int64 (N,).
        seconds: the faint one's motion.
        motion: of the digit.
        contrast, noise, clutter: levels; (N,).
        background, bar_level: grey levels; int64 (N,).
        bar: columns and rows of the occluding bar, (N, 4), as `draw_clips` takes it.
    """

    label: NDArray[np.int64]
    split: NDArray[np.int8]
    difficulty: NDArray[np.float32]
    digit: NDArray[np.int64]
    second: NDArray[np.int64]
    motion: Motion
    seconds: Motion
    contrast: Floats
    noise: Floats
    clutter: Floats
    background: NDArray[np.int64]
    bar: NDArray[np.int64]
    bar_level: NDArray[np.int64]


def plan_digit_clips(config: DataConfig) -> Plan:
    """How the clips are made: grey, (1, T, S, S), class by class.

    Raises:
        InvalidSetting: frames or side are too few to show a motion.
    """
    limit, frames, side = _settings(config)

    def read(report: Report) -> Pixels:
        clips, table = clips_of(config), enlarged(_digits()[0])
        total = len(clips.label)
        chunk = max(1, _CHUNK_PIXELS // (frames * side * side))
        for start in range(0, total, chunk):
            rows = slice(start, min(start + chunk, total))
            for row, pixels in enumerate(_drawn(clips, table, rows, config.seed, side), rows.start):
                yield row, pixels[None]
            report(Progress("decode", rows.stop, total))

    return Plan(
        classes=CLASSES,
        parts=(Part("all", (limit,) * len(CLASSES)),),
        shape=(1, frames, side, side),
        content=fingerprint_of(
            "digit clips", VERSION, config.seed, config.shares, limit, frames, side
        ),
        read=read,
    )


def clips_of(config: DataConfig) -> Clips:
    """Draws what every clip shows. The digits of one split never appear in another."""
    limit, frames, side = _settings(config)
    label = np.repeat(np.arange(len(CLASSES), dtype=np.int64), limit)
    split = deal(label, np.zeros(len(label), np.bool_), CLASSES, config.shares, config.seed)
    _, written = _digits()
    digits = tuple(str(digit) for digit in range(10))
    dealt = deal(written, np.zeros(len(written), np.bool_), digits, config.shares, config.seed)
    draw = {name: np.empty(len(label)) for name in _DRAWS}
    difficulty, hard = np.empty(len(label)), {name: np.empty(len(label)) for name in _HARDER}
    motions: list[Motion] = []
    for number, name in enumerate(CLASSES):
        own = slice(number * limit, (number + 1) * limit)
        generator = np.random.default_rng([config.seed, number, 0])
        for column, values in zip(_DRAWS, generator.random((limit, len(_DRAWS))).T, strict=True):
            draw[column][own] = values
        difficulty[own] = blend(DIFFICULTY[name], draw["difficulty"][own])
        for column in _HARDER:
            each = difficulty[own] + 0.3 * (draw[column][own] - 0.5)
            hard[column][own] = np.clip(each, 0.0, 1.0)
        loose = np.random.default_rng([config.seed, number, 1]).random((limit, frames, 3))
        here = {column: values[own] for column, values in draw.items()}
        motions.append(motion_of(name, {c: v[own] for c, v in hard.items()}, here, loose))
    background = np.rint(60.0 * draw["background"]).astype(np.int64)
    return Clips(
        label=label,
        split=split,
        difficulty=difficulty.astype(np.float32),
        digit=_pick(draw["digit"], split, dealt),
        second=_pick(draw["second_digit"], split, dealt),
        motion=Motion(
            *(
                np.concatenate([getattr(motion, part) for motion in motions])
                for part in ("x", "y", "size", "angle", "strength")
            )
        ),
        seconds=_drift(draw, frames),
        contrast=blend(_CONTRAST, hard["contrast"]),
        noise=blend(_NOISE, hard["noise"]),
        clutter=blend(_CLUTTER, hard["clutter"]),
        background=background,
        bar=_bars(blend(_OCCLUSION, hard["occlusion"]), draw, side),
        bar_level=np.rint(background + 80.0 * draw["bar_level"]).astype(np.int64),
    )


def _settings(config: DataConfig) -> tuple[int, int, int]:
    """Clips a class, frames, side."""
    frames = _FRAMES if config.frames is None else config.frames
    side = _SIDE if config.image_size is None else config.image_size
    for field, value, least in (
        ("frames", frames, _LEAST_FRAMES),
        ("image_size", side, _LEAST_SIDE),
    ):
        if value < least:
            raise InvalidSetting(
                f"The motions of 'digit_clips' need data.{field} of at least {least}; got {value}. "
                f"Give --set data.{field}={least} or more."
            )
    return _LIMIT if config.limit is None else config.limit, frames, side


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Inks (1797, 8, 8) in [0, 255] and which digit each is."""
    from sklearn.datasets import load_digits

    values, target = load_digits(return_X_y=True)
    inks = np.rint(values.reshape(-1, 8, 8) * (255.0 / 16.0)).astype(np.uint8)
    return inks, target.astype(np.int64)


def _pick(draw: Floats, split: NDArray[np.int8], dealt: NDArray[np.int8]) -> NDArray[np.int64]:
    """A digit of the clip's own split for every clip."""
    picked = np.empty(len(draw), np.int64)
    for code in range(len(SPLITS)):
        own, digits = split == code, np.flatnonzero(dealt == code)
        picked[own] = digits[(draw[own] * len(digits)).astype(np.int64)]
    return picked


def _drift(draw: dict[str, Floats], frames: int) -> Motion:
    """The second digit glides straight across, whatever the class."""
    time = np.linspace(-0.5, 0.5, frames)
    centred = {name: 2.0 * values[:, None] - 1.0 for name, values in draw.items()}
    zero = np.zeros((len(draw["second_x"]), frames))
    return Motion(
        x=0.4 * centred["second_x"] + 0.4 * centred["second_dx"] * time,
        y=0.4 * centred["second_y"] + 0.4 * centred["second_dy"] * time,
        size=blend((0.3, 0.45), draw["second_size"])[:, None] + zero,
        angle=zero,
        strength=zero + 1.0,
    )


def _bars(width: Floats, draw: dict[str, Floats], side: int) -> NDArray[np.int64]:
    """Half of the bars stand, half lie; (N, 4) of left, right, top, bottom."""
    pixels = np.rint(width * side).astype(np.int64)
    first = (draw["bar_place"] * (side - pixels + 1)).astype(np.int64)
    whole = np.stack([np.zeros_like(first), np.full_like(first, side)], 1)
    part = np.stack([first, first + pixels], 1)
    stands = (draw["bar_side"] < 0.5)[:, None]
    return np.concatenate([np.where(stands, part, whole), np.where(stands, whole, part)], axis=1)


def _drawn(
    clips: Clips, table: NDArray[np.uint8], rows: slice, seed: int, side: int
) -> NDArray[np.uint8]:
    contrast = clips.contrast[rows, None]
    frames = clips.motion.x.shape[1]
    return draw_clips(
        table,
        (
            _layer(clips.seconds, clips.second, contrast * clips.clutter[rows, None], rows, side),
            _layer(clips.motion, clips.digit, contrast, rows, side),
        ),
        side=side,
        background=clips.background[rows],
        bars=clips.bar[rows],
        bar_levels=clips.bar_level[rows],
        noise=np.stack(
            [
                _noise(seed, row, float(clips.noise[row]), (frames, side, side))
                for row in range(rows.start, rows.stop)
            ]
        ),
    )


def _layer(
    motion: Motion, digit: NDArray[np.int64], contrast: Floats, rows: slice, side: int
) -> Drawn:
    return Drawn(
        digit=np.repeat(digit[rows, None], motion.x.shape[1], axis=1),
        x=motion.x[rows] * side,
        y=motion.y[rows] * side,
        size=motion.size[rows] * side,
        angle=motion.angle[rows],
        gain=motion.strength[rows] * contrast,
    )


def _noise(seed: int, row: int, most: float, shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """Triangular noise in [-most, most], in whole levels."""
    bytes_ = np.random.default_rng([seed, row, 2]).integers(0, 256, (2, *shape), np.uint8)
    step = round(most * 65536 / 255)
    summed = bytes_[0].astype(np.int32) - bytes_[1]
    noise: NDArray[np.int32] = (summed * step + 32768) >> 16
    return noise
