"""The picture of a controller against fixed utilizations; what it shows is in `controller`."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flyball.platform.analyses import look
from flyball.platform.house_style import GREEN, GREY, INK, RED, styled

if TYPE_CHECKING:
    from flyball.platform.analyses.controller import ControllerAnalysis

__all__ = ["controller_figure"]

_MOST_CLASSES = 16
_ABREAST = 56


def controller_figure(analysis: "ControllerAnalysis") -> Figure:
    """Four panels, 13.5 x 10 inches: two of totals above, histogram and classes below."""
    with styled():
        figure = look.blank_figure(13.5, 10.0, _headline(analysis))
        grid = figure.subplots(2, 2, height_ratios=(1.35, 1.0))
        _draw_totals(grid[0, 0], analysis, "total_correct")
        _draw_totals(grid[0, 1], analysis, "total")
        _draw_histogram(grid[1, 0], analysis)
        _draw_classes(grid[1, 1], analysis)
        look.legend_below(figure, _legend(analysis))
        figure.draw_without_rendering()
    return figure


def _headline(analysis: "ControllerAnalysis") -> str:
    learned, bound = analysis.row("controller"), analysis.row("bound")
    closed = analysis.gap_closed
    reference = "vanilla" if analysis.vanilla is not None else "the best fixed u"
    gap = ""
    if closed is not None and closed >= 0:
        gap = f": it closes {closed:.0%} of the gap from {reference}"
    elif closed is not None:
        gap = f"; {reference} {analysis.reference:.1%}"
    return (
        f"The controller answers {learned.accuracy:.1%} at a mean u of {learned.u:.3f}; "
        f"the bound {bound.accuracy:.1%} at {bound.u:.3f}{gap}\n"
        f"throttle ratio {learned.gross:.3f} gross, {learned.net:.3f} net of the controller"
    )


def _draw_totals(axes: Axes, analysis: "ControllerAnalysis", total: str) -> None:
    fixed, learned, bound = analysis.fixed, analysis.row("controller"), analysis.row("bound")
    x, y = [getattr(row, total) for row in fixed], [row.accuracy for row in fixed]
    axes.plot(x, y, "-o", color=GREY, ms=5, lw=1.3, zorder=2)
    if analysis.vanilla is not None:
        axes.axhline(analysis.vanilla, color=INK, ls="--", lw=1.3, zorder=1)
    for row, look_of in ((learned, _CONTROLLER), (bound, _BOUND)):
        axes.plot([getattr(row, total)], [row.accuracy], zorder=5, **look_of)
    heights = [row.accuracy for row in analysis.rows]
    heights += [] if analysis.vanilla is None else [analysis.vanilla]
    span = max(heights) - min(heights)
    lows = [min(heights) - 0.04 * span]
    look.accuracy_axis(axes, lows, heights, f"accuracy on {analysis.split}")
    of = "the right answers" if total == "total_correct" else "all samples"
    axes.set_xlim(0, 1.08 * max(x))
    axes.set_xlabel(f"total utilization: sum of u over {of}")
    axes.set_title(f"Over all {learned.samples:,} samples" if total == "total" else f"Over {of}")
    _name_arms(axes, analysis, x, y)


def _name_arms(axes: Axes, analysis: "ControllerAnalysis", x: list[float], y: list[float]) -> None:
    """Writes u under the points, leaving out those that would touch."""
    end = -np.inf
    for row, across, up in zip(analysis.fixed, x, y, strict=True):
        words = f"{row.u:.3g}"
        if across < end:
            continue
        end = across + (0.005 + 0.0125 * len(words)) * max(x)
        axes.annotate(
            words,
            (across, up),
            xytext=(3, -13),
            textcoords="offset points",
            fontsize=8.5,
            color=GREY,
            path_effects=look.halo(),
            zorder=6,
        )


def _draw_histogram(axes: Axes, analysis: "ControllerAnalysis") -> None:
    places = np.arange(len(analysis.arms))
    count = sum(analysis.histogram)
    for shift, histogram, colour in (
        (-0.21, analysis.histogram, RED),
        (0.21, analysis.bound_histogram, GREEN),
    ):
        bars = axes.bar(places + shift, histogram, width=0.4, color=colour)
        if len(places) <= 12:
            shares = [look.percent(n / count).removesuffix("%") for n in histogram]
            axes.bar_label(bars, shares, padding=2, fontsize=8, color=INK)
    axes.set_ylim(0, 1.15 * max(*analysis.histogram, *analysis.bound_histogram))
    axes.set_ylabel("samples (above the bars: per cent)")
    axes.set_title("Utilization chosen, controller and bound")
    _name_places(axes, analysis.arms)
    axes.set_xlabel("utilization u")


def _draw_classes(axes: Axes, analysis: "ControllerAnalysis") -> None:
    counts = np.array(analysis.class_histogram, float)
    seen = np.flatnonzero(counts.sum(axis=1) > 0)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    mean = shares @ np.asarray(analysis.arms)
    order = seen[np.argsort(mean[seen], kind="stable")]
    title = "Utilization chosen by class (mean u beside)"
    if len(order) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        title = f"Utilization chosen: {half} lowest, {half} highest of {len(order)} classes"
        order = np.concatenate([order[:half], order[-half:]])
    shown = np.ma.masked_equal(shares[order], 0.0)
    axes.imshow(shown, aspect="auto", cmap="Oranges", vmin=0, vmax=1)
    names = [look.shortened(analysis.classes[label], 16) for label in order]
    axes.set_yticks(
        range(len(order)), [f"{n}  {m:.2f}" for n, m in zip(names, mean[order], strict=True)]
    )
    if len(analysis.arms) <= 12:
        for row, arm in zip(*np.nonzero(shares[order]), strict=True):
            share = shares[order][row, arm]
            colour = "white" if share > 0.6 else INK
            place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
            axes.text(arm, row, look.percent(share), color=colour, **place)
    _name_places(axes, analysis.arms)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("utilization u")
    axes.set_title(title)


def _name_places(axes: Axes, arms: tuple[float, ...]) -> None:
    names = [f"{arm:.3g}" for arm in arms]
    shown = look.tick_places(len(names), max(map(len, names)), _ABREAST)
    axes.set_xticks(list(shown), [names[place] for place in shown])


def _legend(analysis: "ControllerAnalysis") -> list[Any]:
    learned, bound = analysis.row("controller"), analysis.row("bound")
    best = max(analysis.fixed, key=lambda row: row.accuracy)
    handles = [
        Line2D(
            [],
            [],
            color=GREY,
            marker="o",
            ms=5,
            label=f"fixed u, labelled; best {best.accuracy:.1%} at {best.u:g}",
        ),
        Line2D([], [], **_CONTROLLER, label=f"controller: {learned.accuracy:.1%}"),
        Line2D([], [], **_BOUND, label=f"bound, lowest right u: {bound.accuracy:.1%}"),
    ]
    if analysis.vanilla is not None:
        words = f"vanilla at u = 1: {analysis.vanilla:.1%}"
        handles.append(Line2D([], [], color=INK, ls="--", lw=1.3, label=words))
    return handles


_CONTROLLER: dict[str, Any] = {
    "color": RED,
    "marker": "*",
    "ms": 17,
    "mec": "white",
    "ls": "none",
}
_BOUND: dict[str, Any] = {
    "color": GREEN,
    "marker": "h",
    "ms": 11,
    "mec": "white",
    "ls": "none",
}
