"""The picture of ponder-cost maps; what it shows is in `ponder`."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from flyball.datapaths.pose import BONES
from flyball.platform.analyses import look
from flyball.platform.house_style import INK, RED, styled

if TYPE_CHECKING:
    from flyball.platform.analyses.ponder import Ponder

__all__ = ["ponder_figure"]

_COLOURS = "magma"
_HALVES = 2
_SEEN, _KNOWN = "#7FE3C4", "#FFD24A"
_RIM = [withStroke(linewidth=2.0, foreground=INK, alpha=0.7)]


def ponder_figure(analysis: "Ponder") -> Figure:
    """Images in two halves beside each other, each with its maps to the right; 13.5 inches wide."""
    count, columns = len(analysis.images), 1 + len(analysis.budgets)
    halves = _HALVES if count > 1 else 1
    lines = math.ceil(count / halves)
    norm = Normalize(0, max(1.0, float(analysis.maps.max())))
    side = 12.2 / (halves * columns)
    height, width = analysis.maps.shape[2:]
    with styled():
        figure = look.blank_figure(
            13.5, 1.75 + lines * (side * height / width + 0.24), _headline(analysis)
        )
        engine = figure.get_layout_engine()
        assert isinstance(engine, ConstrainedLayoutEngine)
        engine.set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
        widths = [*([1.0] * columns), *(([0.12] + [1.0] * columns) * (halves - 1))]
        grid = figure.add_gridspec(lines, len(widths), width_ratios=widths)
        shown = []
        for image in range(count):
            half, line = divmod(image, lines)
            for column in range(columns):
                axes = figure.add_subplot(grid[line, half * (columns + 1) + column])
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
                shown.append(axes)
                if column:
                    _draw_map(axes, analysis, image, column - 1, norm)
                else:
                    _draw_image(axes, analysis, image)
                if not line:
                    words = f"u = {analysis.budgets[column - 1]:g}" if column else "image"
                    axes.set_title(words, fontsize=10.5, loc="center")
        bar = figure.colorbar(
            ScalarMappable(norm, _COLOURS), ax=shown, aspect=40, pad=0.01, fraction=0.03
        )
        bar.set_label(f"blocks that ran, of {analysis.block_count}")
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(integer=True)
        look.legend_below(figure, _legend(analysis))
        figure.draw_without_rendering()
    return figure


def _headline(analysis: "Ponder") -> str:
    last = analysis.budgets[len(analysis.budgets) // 2]
    shares = [row.share for row in analysis.rows if row.u == last]
    return (
        "Where the network looks twice: how many of its "
        f"{analysis.block_count} conditional blocks run at each pixel\n"
        f"asked for {last:.0%} of the conditional MACs, these images get "
        f"{min(shares):.0%} to {max(shares):.0%}"
    )


def _draw_image(axes: Axes, analysis: "Ponder", image: int) -> None:
    pixels = analysis.images[image]
    if len(pixels) == 1:
        axes.imshow(pixels[0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    else:
        axes.imshow(np.moveaxis(pixels[:3], 0, -1), interpolation="nearest")
    if analysis.known is not None:
        points = analysis.known[image]
        _draw_skeleton(axes, points[:, :2], _KNOWN, points[:, 2] > 0)
        _keep(axes, pixels.shape)
    axes.set_xlabel(look.shortened(analysis.of(image)[0].label, 14), fontsize=9, labelpad=2)


def _draw_map(axes: Axes, analysis: "Ponder", image: int, column: int, norm: Normalize) -> None:
    row = analysis.of(image)[column]
    axes.imshow(analysis.maps[image, column], cmap=_COLOURS, norm=norm, interpolation="nearest")
    if analysis.seen is not None:
        points = analysis.seen[image, column]
        _draw_skeleton(axes, points, _SEEN, np.ones(len(points), bool))
        _keep(axes, analysis.images[image].shape)
        words, color = f"{row.share:.0%}, PCKh {row.correct:.0%}", INK
    else:
        mark = "" if row.correct else f", {look.shortened(row.answer, 9)}"
        words, color = f"{row.share:.0%}{mark}", INK if row.correct else RED
    axes.set_xlabel(words, fontsize=9, labelpad=2, color=color)


def _draw_skeleton(
    axes: Axes, points: NDArray[np.float32], color: str, is_there: NDArray[np.bool_]
) -> None:
    # An image's first pixel is drawn around 0, and spans 0 to 1 in key points.
    places = points - 0.5
    for first, second in BONES:
        if is_there[first] and is_there[second]:
            axes.plot(*places[[first, second]].T, "-", color=color, lw=1.0, path_effects=_RIM)
    axes.plot(*places[is_there].T, "o", color=color, ms=1.8, mec="none")


def _keep(axes: Axes, shape: tuple[int, ...]) -> None:
    """Points outside the image do not widen it."""
    axes.set_xlim(-0.5, shape[-1] - 0.5)
    axes.set_ylim(shape[-2] - 0.5, -0.5)


def _legend(analysis: "Ponder") -> list[Any]:
    share: dict[str, Any] = {"color": INK, "ls": "", "marker": "$\\%$", "ms": 9}
    if analysis.seen is None:
        wrong: dict[str, Any] = {"color": RED, "ls": "", "marker": "$a$", "ms": 7}
        return [
            Line2D([], [], label="executed share of the conditional MACs", **share),
            Line2D([], [], label="the answer, where it is wrong", **wrong),
        ]
    return [
        Line2D([], [], label="executed share, and PCKh@0.5", **share),
        Line2D([], [], color=_KNOWN, marker="o", ms=3, label="key points as they are"),
        Line2D([], [], color=_SEEN, marker="o", ms=3, label="as they were seen at this u"),
    ]
