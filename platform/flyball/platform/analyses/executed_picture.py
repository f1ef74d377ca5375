"""The picture of what budgets executed; what it shows is in `executed`."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flyball.platform.analyses import look
from flyball.platform.house_style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    PALE,
    RED,
    SERIES,
    SKY,
    styled,
)

if TYPE_CHECKING:
    from flyball.platform.analyses.executed import Executed

__all__ = ["executed_figure"]

_MOST_CLASSES = 20
_TOLERANCE = 1.0


def executed_figure(analysis: "Executed") -> Figure:
    """Three panels, 13.5 x 9 inches: budgets and classes above, blocks below."""
    with styled():
        figure = look.blank_figure(13.5, 9.2, _headline(analysis))
        grid = figure.add_gridspec(2, 2, height_ratios=(1.15, 1.0), width_ratios=(1.0, 1.25))
        handles = _draw_budgets(figure.add_subplot(grid[0, 0]), analysis)
        _draw_classes(figure.add_subplot(grid[0, 1]), analysis)
        handles += _draw_blocks(figure.add_subplot(grid[1, :]), analysis)
        look.legend_below(figure, handles, columns=6)
        figure.draw_without_rendering()
    return figure


def _headline(analysis: "Executed") -> str:
    worst, most, least = analysis.worst, analysis.classes[0], analysis.classes[-1]
    kept = "Every budget is kept within 1 point" if analysis.is_kept else "Not every budget is kept"
    return (
        f"{kept}: at most {100 * worst.difference:+.2f} points, at {worst.asked:.0%} on "
        f"{worst.split}\n"
        f"at u = {analysis.u:g} {look.shortened(most.label)!r} spends most, "
        f"{look.shortened(least.label)!r} least ({most.mean / least.mean - 1:+.1%})"
    )


def _draw_budgets(axes: Axes, analysis: "Executed") -> list[Line2D | Patch]:
    splits = list(dict.fromkeys(row.split for row in analysis.rows))
    handles: list[Line2D | Patch] = []
    axes.axhspan(-_TOLERANCE, _TOLERANCE, color=GREEN, alpha=0.12, lw=0)
    axes.axhline(0.0, color=GREY, lw=1.0)
    for number, split in enumerate(splits):
        part = [row for row in analysis.rows if row.split == split]
        x = np.array([100 * row.asked for row in part]) + 1.2 * (number - (len(splits) - 1) / 2)
        y = np.array([100 * row.difference for row in part])
        below = [100 * (row.executed - row.low) for row in part]
        above = [100 * (row.high - row.executed) for row in part]
        color, marker = SERIES[number], MARKERS[number]
        axes.errorbar(
            x, y, yerr=[below, above], fmt=marker, color=color, ms=6, lw=1.5, capsize=2.5, zorder=3
        )
        words = f"{split}, {part[0].samples:,} images, 95% interval"
        handles.append(Line2D([], [], color=color, marker=marker, ms=6, lw=1.5, label=words))
    reach = max(
        1.4, *(100 * max(abs(r.low - r.asked), abs(r.high - r.asked)) for r in analysis.rows)
    )
    axes.set_ylim(-1.1 * reach, 1.1 * reach)
    axes.set_xticks([100 * row.asked for row in analysis.rows if row.split == splits[0]])
    axes.set_xlabel("asked: per cent of the conditional MACs")
    axes.set_ylabel("executed less asked, in points")
    axes.set_title("Budgets that are kept")
    axes.grid(True, axis="y")
    handles.append(Patch(color=GREEN, alpha=0.2, lw=0, label="within 1 point"))
    return handles


def _draw_classes(axes: Axes, analysis: "Executed") -> None:
    shown, title = list(analysis.classes), f"MACs of every class at u = {analysis.u:g}"
    if len(shown) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        title = f"MACs at u = {analysis.u:g}: {half} dearest and {half} cheapest classes"
        shown = shown[:half] + shown[-half:]
    boxes = [
        {
            "whislo": r.quantiles[0] / 1e6,
            "q1": r.quantiles[1] / 1e6,
            "med": r.quantiles[2] / 1e6,
            "q3": r.quantiles[3] / 1e6,
            "whishi": r.quantiles[4] / 1e6,
            "mean": r.mean / 1e6,
        }
        for r in shown
    ]
    drawn = axes.bxp(
        boxes,
        positions=np.arange(len(shown)),
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        medianprops={"color": INK, "lw": 1.6},
        meanprops={"marker": "D", "mfc": "white", "mec": INK, "ms": 4.5},
        whiskerprops={"color": GREY},
        capprops={"color": GREY},
    )
    for number, box in enumerate(drawn["boxes"]):
        is_end = number in (0, len(shown) - 1)
        box.set(facecolor=RED if number == 0 else BLUE if is_end else PALE)
        box.set(alpha=0.75 if is_end else 1.0, edgecolor=GREY)
    axes.set_yticks(np.arange(len(shown)), [look.shortened(r.label) for r in shown])
    axes.invert_yaxis()
    axes.set_xlabel("million MACs an image: 5, 25, 50, 75, 95 % of the images, and the mean")
    axes.set_title(title)
    axes.grid(True, axis="x")


def _draw_blocks(axes: Axes, analysis: "Executed") -> list[Line2D | Patch]:
    blocks = analysis.blocks
    place = np.arange(len(blocks))
    means, spreads = (
        np.array([getattr(block, name) for block in blocks]) for name in ("mean", "spread")
    )
    colors = [ORANGE if block.stride > 1 else SKY for block in blocks]
    ends = [np.minimum(spreads, means), np.minimum(spreads, 1 - means)]
    axes.bar(place, means, color=colors, width=0.72, zorder=2)
    axes.errorbar(place, means, yerr=ends, fmt="none", ecolor=INK, capsize=3, lw=1.2, zorder=3)
    axes.axhline(analysis.u, color=GREY, ls="--", lw=1.2, zorder=2.5)
    axes.set_xlim(-0.6, len(blocks) - 0.4)
    shown = look.tick_places(len(blocks), 2, 110)
    axes.set_xticks(list(shown), [str(k + 1) for k in shown])
    axes.set_ylim(0, 1.04)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_xlabel("conditional block, from the first to the last")
    axes.set_ylabel("share of its pixels")
    axes.set_title(
        f"Execution rate of every block at u = {analysis.u:g}, and its spread over images"
    )
    axes.grid(True, axis="y")
    handles: list[Line2D | Patch] = [
        Patch(color=SKY, label="block of stride 1"),
        Line2D([], [], color=GREY, ls="--", lw=1.2, label="asked for"),
    ]
    if any(block.stride > 1 for block in blocks):
        handles.insert(1, Patch(color=ORANGE, label="block of stride 2"))
    return handles
