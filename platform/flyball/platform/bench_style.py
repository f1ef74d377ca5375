"""How the pictures of the benchmarks look; what they show is in their own files."""

from typing import Any

__all__ = ["COLOURS", "GREY", "INK", "MARKERS", "PALE", "STYLE"]

# Okabe and Ito (2008): colours that stay apart for colour-blind readers.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
MARKERS = ("o", "s", "^", "D")
INK, GREY, PALE = "#222222", "#777777", "#DDDDDD"

STYLE: Any = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
}
"""Settings of matplotlib."""
