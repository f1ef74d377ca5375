"""How all pictures look: colours, markers, matplotlib's settings, and the file they end in."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    "new_figure",
    "save_figure",
    "styled",
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


def new_figure(width: float, height: float, *, dpi: int = 140) -> Figure:
    """A figure of inches that lays itself out, drawn without a display."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, file: Path) -> Path:
    """Writes a PNG; the same figure gives the same bytes.

    Raises:
        StorageError: it cannot be written.
    """
    with write_atomically(file) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
    return file
