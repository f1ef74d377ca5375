"""Anti-aliased shapes on a picture of floats: limbs that taper, groups of them, boxes.

Only the operations that every processor rounds alike are used (no sine, no matrix product), so the
same figures give the same pixels everywhere. S side of the picture, h, w of a shape's window.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "Limb", "Picture", "limb_distance"]

Floats = NDArray[np.float32]
Colour = Sequence[float] | NDArray[np.float64]

_EDGE = 0.42  # how much darker a limb is at its edge
_LIGHT = 0.16  # how much lighter towards the light, which comes from above left


class Limb(NamedTuple):
    """Two discs and what a band around them would cover; in pixels, plain floats.

    Attributes:
        ax, ay, bx, by: the two ends.
        ar, br: radii at the ends.
    """

    ax: float
    ay: float
    bx: float
    by: float
    ar: float
    br: float


class Box(NamedTuple):
    """A turned rectangle with round corners; in pixels, plain floats.

    Attributes:
        x, y: of its centre.
        half_width, half_height: without the corners' radius.
        cosine, sine: of its turn.
        radius: of its corners.
    """

    x: float
    y: float
    half_width: float
    half_height: float
    cosine: float
    sine: float
    radius: float


class Picture:
    """A picture that shapes are painted on.

    Args:
        ground: float32 (3, S, S), in [0, 255]; painted over.

    Attributes:
        covered: share of each pixel that something painted with `covers` hides; float32 (S, S).
    """

    def __init__(self, ground: Floats) -> None:
        self.pixels = ground
        self.side = ground.shape[-1]
        self.covered = np.zeros(ground.shape[1:], np.float32)
        self._offset = np.arange(self.side, dtype=np.float32) + np.float32(0.5)

    def limb(self, limb: Limb, colour: Colour, *, covers: bool = True) -> None:
        """Paints one limb, shaded like a cylinder."""
        self.limbs((limb,), colour, covers=covers)

    def limbs(self, limbs: Sequence[Limb], colour: Colour, *, covers: bool = True) -> None:
        """Paints limbs of one colour as one body, without edges between them."""
        window = self._window(
            min(min(one.ax - one.ar, one.bx - one.br) for one in limbs),
            min(min(one.ay - one.ar, one.by - one.br) for one in limbs),
            max(max(one.ax + one.ar, one.bx + one.br) for one in limbs),
            max(max(one.ay + one.ar, one.by + one.br) for one in limbs),
        )
        if window is None:
            return
        rows, columns = window
        x, y = self._offset[columns], self._offset[rows][:, None]
        inside, across = limb_distance(limbs[0], x, y)
        for one in limbs[1:]:
            inside = np.maximum(inside, limb_distance(one, x, y)[0])
        edge = _EDGE if len(limbs) == 1 else 0.5 * _EDGE
        rim = _between(1.0 - inside / max(max(one.ar, one.br) for one in limbs), 0.0, 1.0)
        gain = (1.0 + 0.3 * edge) - edge * rim * rim
        if len(limbs) == 1:
            gain += _LIGHT * _between(across, -1.0, 1.0)
        self._paint(rows, columns, inside, colour, gain, covers=covers)

    def box(self, box: Box, colour: Colour, *, covers: bool = True) -> None:
        """Paints a box of one colour, a little darker towards its bottom."""
        reach = abs(box.half_width) + abs(box.half_height) + box.radius
        window = self._window(box.x - reach, box.y - reach, box.x + reach, box.y + reach)
        if window is None:
            return
        rows, columns = window
        x, y = self._offset[columns] - box.x, self._offset[rows][:, None] - box.y
        along = np.abs(x * box.cosine + y * box.sine) - box.half_width
        down = np.abs(y * box.cosine - x * box.sine) - box.half_height
        outside = np.sqrt(np.square(np.maximum(along, 0.0)) + np.square(np.maximum(down, 0.0)))
        inside = box.radius - outside - np.minimum(np.maximum(along, down), 0.0)
        gain = 1.0 - _between(y / (4.0 * reach), -0.25, 0.25)
        self._paint(rows, columns, inside, colour, gain, covers=covers)

    def hide(self, box: Box, colour: Colour) -> None:
        """Paints a box over everything: what it hides is covered no more."""
        before = self.covered
        self.covered = np.zeros_like(before)
        self.box(box, colour)
        self.covered = before * (1.0 - self.covered)

    def _window(
        self, left: float, top: float, right: float, bottom: float
    ) -> tuple[slice, slice] | None:
        """Rows and columns that a shape can touch; None outside the picture."""
        first_x, first_y = max(int(left) - 1, 0), max(int(top) - 1, 0)
        last_x, last_y = min(int(right) + 2, self.side), min(int(bottom) + 2, self.side)
        if first_x >= last_x or first_y >= last_y:
            return None
        return slice(first_y, last_y), slice(first_x, last_x)

    def _paint(
        self,
        rows: slice,
        columns: slice,
        inside: Floats,
        colour: Colour,
        gain: Floats,
        *,
        covers: bool,
    ) -> None:
        alpha = _between(inside + 0.5, 0.0, 1.0)
        for plane, level in zip(self.pixels[:, rows, columns], colour, strict=True):
            plane += alpha * (float(level) * gain - plane)
        if covers:
            own = self.covered[rows, columns]
            np.maximum(own, alpha, out=own)


def limb_distance(limb: Limb, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """How far inside a limb places are, in pixels, negative outside; and on which side of it.

    Args:
        limb: as painted.
        x, y: places that broadcast to (h, w).

    Returns:
        Depth below the limb's edge, and offset towards the light in radii; (h, w) each.
    """
    along_x, along_y = limb.bx - limb.ax, limb.by - limb.ay
    length = max(along_x * along_x + along_y * along_y, 1e-6)
    px, py = x - limb.ax, y - limb.ay
    share = _between(px * (along_x / length) + py * (along_y / length), 0.0, 1.0)
    dx, dy = px - share * along_x, py - share * along_y
    radius = limb.ar + share * (limb.br - limb.ar)
    inside: Floats = radius - np.sqrt(dx * dx + dy * dy)
    across = (dx + dy) * np.float32(-1.4 / (limb.ar + limb.br))
    return inside, across


def _between(values: Floats, least: float, most: float) -> Floats:
    """What `clip` does, at a third of its price on small arrays."""
    held: Floats = np.minimum(np.maximum(values, least), most)
    return held
