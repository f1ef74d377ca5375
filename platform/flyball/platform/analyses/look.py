"""How the pictures of analyses look: colours, figures, axes and legends; none of their figures."""

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from flyball.datapaths.files import write_atomically

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "MARKERS",
    "ORANGE",
    "PALE",
    "PINK",
    "RED",
    "SERIES",
    "SKY",
    "accuracy_axis",
    "blank_figure",
    "halo",
    "legend_below",
    "percent",
    "save_figure",
    "shortened",
    "styled",
    "tick_places",
    "unit_axis",
]

# Okabe and Ito (2008): eight colours that stay apart for colour-blind readers.
BLUE, SKY, GREEN, ORANGE, RED, PINK = (
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#CC79A7",
)
INK, GREY, PALE = "#222222", "#777777", "#DDDDDD"
SERIES = (BLUE, RED, GREEN, ORANGE, PINK, SKY, INK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_CHARACTERS_AN_INCH = 9.3
"""Of a headline."""

_STYLE: Any = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": False,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draws in the house style within the block."""
    with matplotlib.rc_context(_STYLE):
        yield


def blank_figure(width: float, height: float, headline: str) -> Figure:
    """A figure of inches that lays itself out, drawn without a display, with a headline."""
    figure = Figure(figsize=(width, height), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    wide = int(_CHARACTERS_AN_INCH * width)
    lines = [part for line in headline.splitlines() for part in textwrap.wrap(line, wide)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=13.5)
    return figure


def save_figure(figure: Figure, file: Path) -> Path:
    """Writes a PNG; the same figure gives the same bytes.

    Raises:
        StorageError: it cannot be written.
    """
    with write_atomically(file) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
    return file


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
