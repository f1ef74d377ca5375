"""How the pictures of analyses look: headlines, axes and legends; colours are in `house_style`."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from flyball.platform.house_style import new_figure

__all__ = [
    "accuracy_axis",
    "blank_figure",
    "halo",
    "legend_below",
    "percent",
    "shortened",
    "tick_places",
    "unit_axis",
]

_CHARACTERS_AN_INCH = 9.3
"""Of a headline."""


def blank_figure(width: float, height: float, headline: str) -> Figure:
    """A figure of inches that lays itself out, drawn without a display, with a headline."""
    figure = new_figure(width, height)
    wide = int(_CHARACTERS_AN_INCH * width)
    lines = [part for line in headline.splitlines() for part in textwrap.wrap(line, wide)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=13.5)
    return figure


def accuracy_axis(axes: Axes, lows: Sequence[float], highs: Sequence[float], label: str) -> None:
    """The y axis in per cent, reaching a little past what is drawn, with grid lines."""
    low, high = min(lows), max(highs)
    room = 0.05 * max(high - low, 0.02)
    axes.set_ylim(max(-0.01, low - room), min(1.01, high + room))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    axes.set_ylabel(label)
    axes.grid(True)


def unit_axis(axes: Axes, label: str, *, highest: float = 1.0) -> None:
    """The x axis from 0 to 1, or to a larger share."""
    axes.set_xlim(0.0, 1.03 * max(1.0, highest))
    axes.set_xticks(np.arange(0.0, max(1.0, highest) + 0.01, 0.2 if highest < 2 else 0.5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(label)


def legend_below(figure: Figure, handles: Sequence[Any], *, columns: int = 4) -> None:
    """One legend under all panels, where it covers nothing."""
    figure.legend(
        handles=list(handles),
        loc="outside lower left",
        ncols=max(1, min(columns, len(handles))),
        frameon=False,
        fontsize=10,
    )


def halo(width: float = 2.5) -> list[Any]:
    """A white rim that keeps words legible on lines."""
    return [withStroke(linewidth=width, foreground="white")]


def percent(share: float) -> str:
    """A share in whole per cent; nothing for 0, "<1%" where it would round to 0."""
    return "" if share == 0 else "<1%" if share < 0.005 else f"{share:.0%}"


def shortened(name: str, most: int = 18) -> str:
    """A name that fits, its end replaced by an ellipsis where it does not."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def tick_places(count: int, widest: int, abreast: int) -> range:
    """Which of `count` equal places get a label, if `abreast` characters fit side by side."""
    step = max(1, -(-count * (widest + 1) // abreast))
    return range(0, count, step)
