"""The picture of a dynamic network against dense ones; what it shows is in `static_baseline`."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from flyball.platform.analyses import look
from flyball.platform.house_style import BLUE, GREY, MARKERS, SERIES, styled

if TYPE_CHECKING:
    from flyball.platform.analyses.static_baseline import StaticBaseline

__all__ = ["static_figure"]


def static_figure(analysis: "StaticBaseline") -> Figure:
    """Two panels, 13.5 x 7 inches: accuracy against MACs, and points gained at equal MACs."""
    with styled():
        figure = look.blank_figure(13.5, 7.0, _headline(analysis))
        left, right = figure.subplots(1, 2, width_ratios=(1.75, 1.0))
        _draw_curve(left, analysis)
        _draw_points(right, analysis)
        look.legend_below(figure, _legend(analysis), columns=5)
        figure.draw_without_rendering()
    return figure


def _headline(analysis: "StaticBaseline") -> str:
    known = [row for row in analysis.against if row.difference is not None]
    if not known:
        return (
            "A dynamic network beside dense ones trained alike\n"
            "no dense network spends what two arms hold between them"
        )
    better = sum(row.low is not None and row.low > 0 for row in known)
    worse = sum(row.high is not None and row.high < 0 for row in known)
    gains = "; ".join(
        f"{100 * row.difference:+.1f} over {row.network}"
        for row in known
        if row.difference is not None
    )
    return (
        f"At equal MACs and equal training the dynamic network is better than {better} and worse "
        f"than {worse} of {len(known)} dense ones\npoints of {analysis.measure}: {gains}"
    )


def _draw_curve(axes: Axes, analysis: "StaticBaseline") -> None:
    arms, dense = analysis.arms, analysis.dense
    x = [row.macs / 1e6 for row in arms]
    axes.fill_between(
        x, [r.low for r in arms], [r.high for r in arms], color=BLUE, alpha=0.14, lw=0
    )
    axes.plot(x, [r.accuracy for r in arms], "-o", color=BLUE, ms=5, lw=1.8, zorder=3)
    for number, row in enumerate(dense):
        color, marker = _look_of(number)
        ends = [[row.accuracy - row.low], [row.high - row.accuracy]]
        axes.errorbar(
            [row.macs / 1e6],
            [row.accuracy],
            yerr=ends,
            fmt=marker,
            color=color,
            ms=9,
            lw=1.4,
            capsize=3,
            zorder=4,
        )
    _name_arms(axes, analysis, x)
    lows, highs = [r.low for r in analysis.rows], [r.high for r in analysis.rows]
    look.accuracy_axis(
        axes, lows, highs, f"{analysis.measure} on {analysis.split} ({arms[0].samples:,} images)"
    )
    axes.set_xlim(0, 1.05 * max(row.macs for row in analysis.rows) / 1e6)
    axes.set_xlabel("million MACs an image executes, mean")
    measure = analysis.measure[0].upper() + analysis.measure[1:]
    axes.set_title(f"{measure} against executed MACs, with 95% intervals")


def _name_arms(axes: Axes, analysis: "StaticBaseline", x: list[float]) -> None:
    """Writes u under its point, leaving out those that would touch."""
    end = -np.inf
    for row, across in zip(analysis.arms, x, strict=True):
        words = f"{row.u:.3g}"
        if across < end:
            continue
        end = across + (0.006 + 0.014 * len(words)) * max(x)
        axes.annotate(
            words,
            (across, row.accuracy),
            xytext=(2, -14),
            textcoords="offset points",
            fontsize=8.5,
            color=BLUE,
            path_effects=look.halo(),
            zorder=6,
        )


def _draw_points(axes: Axes, analysis: "StaticBaseline") -> None:
    axes.axvline(0.0, color=GREY, lw=1.2)
    names, reach = [], 1.0
    for number, row in enumerate(analysis.against):
        color, marker = _look_of(number)
        lines = row.network.split(", ")
        names.append("\n".join([*lines, f"{row.macs / 1e6:,.1f} million MACs"]))
        if row.difference is None or row.low is None or row.high is None:
            axes.text(0.0, number, " not within the arms", va="center", fontsize=9, color=GREY)
            continue
        gain = 100 * row.difference
        ends = [[gain - 100 * row.low], [100 * row.high - gain]]
        axes.errorbar([gain], [number], xerr=ends, fmt=marker, color=color, ms=9, lw=1.6, capsize=3)
        reach = max(reach, abs(100 * row.low), abs(100 * row.high))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-1.12 * reach, 1.12 * reach)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.set_xlabel("points of the dynamic network over the dense one")
    axes.set_title("At the MACs of each dense network")
    axes.grid(True, axis="x")


def _look_of(number: int) -> tuple[str, str]:
    """Blue and the circle are the dynamic network's."""
    return SERIES[1 + number % 7], MARKERS[1 + number % 7]


def _legend(analysis: "StaticBaseline") -> list[Any]:
    handles = [Line2D([], [], color=BLUE, marker="o", ms=5, label="dynamic network, labelled u")]
    for number, row in enumerate(analysis.dense):
        color, marker = _look_of(number)
        handles.append(
            Line2D([], [], color=color, marker=marker, ms=8, lw=1.4, label=f"dense {row.network}")
        )
    return handles
