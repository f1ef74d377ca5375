"""Draws digits that move, turn and grow into clips of grey pixels; integers only, so every machine
draws the same bits.

M clips, T frames, S side of a frame in pixels, D digits. x runs right, y runs down.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Drawn", "draw_clips", "enlarged"]

Floats = NDArray[np.float64]

_STEPS = 8  # steps of the bilinear interpolation between two pixels of a digit
_BORDER = 1  # empty pixels around a digit, where everything outside it is looked up
_ONE = 1 << 16  # fixed point of the geometry


@dataclass(frozen=True)
class Drawn:
    """One digit in each of M clips.

    Attributes:
        digit: which one, in every frame; int64 (M, T).
        x, y: where its centre is, in pixels from the frame's centre; (M, T).
        size: side of its 8 x 8 pixels on the frame, in pixels; (M, T).
        angle: how far it is turned clockwise, in radians; (M, T).
        gain: level that full ink adds, in [0, 255]; (M, T).
    """

    digit: NDArray[np.int64]
    x: Floats
    y: Floats
    size: Floats
    angle: Floats
    gain: Floats


def enlarged(digits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Digits at the resolution they are drawn from, bilinear; (D, E, E) of (D, 8, 8) inks."""
    padded = np.pad(digits.astype(np.int32), ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER)))
    centres = np.arange(padded.shape[1] * _STEPS) * 2 + 1 - _STEPS  # in half steps
    first = np.clip(centres // (2 * _STEPS), 0, padded.shape[1] - 2)
    share = np.clip(centres - first * 2 * _STEPS, 0, 2 * _STEPS)
    rest = 2 * _STEPS - share
    rows = padded[:, first] * rest[:, None] + padded[:, first + 1] * share[:, None]
    both = rows[:, :, first] * rest + rows[:, :, first + 1] * share
    half = 2 * _STEPS * _STEPS
    levels = (both + half) // (4 * _STEPS * _STEPS)
    return np.ascontiguousarray(levels, np.uint8)


def draw_clips(
    table: NDArray[np.uint8],
    layers: tuple[Drawn, ...],
    *,
    side: int,
    background: NDArray[np.int64],
    bars: NDArray[np.int64],
    bar_levels: NDArray[np.int64],
    noise: NDArray[np.int32],
) -> NDArray[np.uint8]:
    """Draws M clips: background, the digits' ink added to it, an occluding bar, noise.

    Args:
        table: as `enlarged` gives it.
        layers: the digits of each clip.
        side: S.
        background: grey level; (M,).
        bars: first and last column (inclusive, exclusive) and row of the bar; (M, 4). Empty where
            first and last are equal.
        bar_levels: grey level of the bar; (M,).
        noise: added to every pixel; (M, T, S, S).

    Returns:
        uint8 (M, T, S, S).
    """
    level = noise + background.astype(np.int32)[:, None, None, None]
    shown = np.ones((*level.shape[:1], 1, side, side), np.int32)
    for clip, (left, right, top, bottom) in enumerate(bars.tolist()):
        shown[clip, :, top:bottom, left:right] = 0
        level[clip, :, top:bottom, left:right] += int(bar_levels[clip] - background[clip])
    for layer in layers:
        gain = np.rint(layer.gain).astype(np.int32)[:, :, None, None]
        level += ((_inks(table, layer, side) * gain + 127) // 255) * shown
    pixels: NDArray[np.uint8] = np.clip(level, 0, 255).astype(np.uint8)
    return pixels


def _inks(table: NDArray[np.uint8], drawn: Drawn, side: int) -> NDArray[np.int32]:
    """Ink of one digit on every pixel, in [0, 255]; (M, T, S, S)."""
    edge = table.shape[1]
    # a step of one pixel on the frame, in pixels of the table
    step = (edge // _STEPS - 2 * _BORDER) * _STEPS / drawn.size
    across = np.rint(np.cos(drawn.angle) * step * _ONE).astype(np.int32)
    down = np.rint(np.sin(drawn.angle) * step * _ONE).astype(np.int32)
    offset = np.arange(side, dtype=np.int32) * 2 + 1 - side  # pixel centres, in half pixels
    middle = edge * _ONE // 2
    x = np.rint(drawn.x * 256).astype(np.int64)
    y = np.rint(drawn.y * 256).astype(np.int64)
    u0 = (middle - (x * across + y * down) // 256).astype(np.int32)
    v0 = (middle - (y * across - x * down) // 256).astype(np.int32)
    horizontal = (offset * across[..., None]) >> 1, (offset * down[..., None]) >> 1
    u = (u0[..., None] + horizontal[0])[:, :, None, :] + horizontal[1][:, :, :, None]
    v = (v0[..., None] + horizontal[0])[:, :, :, None] - horizontal[1][:, :, None, :]
    np.clip(u >> 16, 0, edge - 1, out=u)
    np.clip(v >> 16, 0, edge - 1, out=v)
    v *= edge
    v += u
    v += (drawn.digit.astype(np.int32) * (edge * edge))[:, :, None, None]
    inks: NDArray[np.int32] = table.reshape(-1).take(v).astype(np.int32)
    return inks
