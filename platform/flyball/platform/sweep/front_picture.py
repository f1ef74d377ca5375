"""The picture of a front: accuracy against net throttle ratio, with what it is compared with."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from flyball.platform.house_style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PINK,
    RED,
    new_figure,
    save_figure,
    styled,
)
from flyball.platform.sweep.front import Front
from flyball.platform.sweep.result import PointResult

__all__ = ["draw_front", "front_figure"]

_TICKS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5)


def draw_front(front: Front, file: Path) -> Path:
    """Writes the picture as a PNG; gives the file.

    Raises:
        StorageError: it cannot be written.
    """
    return save_figure(front_figure(front), file)


def front_figure(front: Front) -> Figure:
    """The picture as a figure, 11 x 7 inches, drawn without a display."""
    with styled():
        figure = new_figure(11, 7)
        axes = figure.add_subplot()
        _draw_references(axes, front)
        _draw_points(axes, front)
        _name_aliases(axes, front)
        _frame(axes, front)
        figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9.5)
        figure.canvas.draw()
    return figure


def _draw_references(axes: Axes, front: Front) -> None:
    known = front.references
    arms = [known.fixed[arm] for arm in known.hull]
    at = np.geomspace(min(arm.net.mean for arm in arms), max(arm.net.mean for arm in arms), 200)
    hull = [known.static_accuracy(float(net)) for net in at]
    axes.plot(at, hull, "--", color=INK, lw=1.4, zorder=3, label="static mixtures")
    costs = [rung.net.mean for rung in known.fixed]
    heights = [rung.accuracy.mean for rung in known.fixed]
    axes.plot(costs, heights, "o", color=GREY, ms=5, zorder=3, label="fixed arms, labelled u")
    for rung in known.fixed:
        axes.annotate(
            f"{rung.utilization.mean:g}",
            (rung.net.mean, rung.accuracy.mean),
            xytext=(4, -12),
            textcoords="offset points",
            fontsize=8.5,
            color=GREY,
            annotation_clip=True,
        )
    oracle = known.oracle
    axes.plot(
        [oracle.net.mean],
        [oracle.accuracy.mean],
        "h",
        color=PINK,
        ms=10,
        label="per-sample oracle (takes luck for skill)",
        zorder=4,
    )


def _draw_points(axes: Axes, front: Front) -> None:
    kept = {point.key for point in front.front}
    groups = (
        (
            "beats the static mixture beyond chance",
            GREEN,
            [p for p in front.points if p.beats_static],
        ),
        (
            "gain may be chance",
            ORANGE,
            [p for p in front.points if not p.beats_static and not p.dominated],
        ),
        ("no better than the static mixture", BLUE, [p for p in front.points if p.dominated]),
    )
    for label, colour, points in groups:
        others = [point for point in points if point.key not in kept]
        chosen = [point for point in points if point.key in kept]
        axes.scatter(*_places(others), s=26, color=colour, alpha=0.45, lw=0, zorder=5)
        axes.scatter(
            *_places(chosen),
            s=70,
            color=colour,
            edgecolors="white",
            lw=0.9,
            zorder=7,
            label=f"{label}: {len(points)} points",
        )
    costs, heights = _places(front.front)
    axes.step(
        [*costs, max(1.0, *costs)],
        [*heights, heights[-1]],
        where="post",
        color=RED,
        lw=1.4,
        alpha=0.8,
        zorder=4,
        label=f"front, with {front.references.level:.0%} intervals",
    )
    axes.errorbar(
        costs,
        heights,
        xerr=_bars(front.front, "net"),
        yerr=_bars(front.front, "accuracy"),
        fmt="none",
        ecolor=RED,
        elinewidth=0.9,
        alpha=0.45,
        zorder=4,
    )


def _name_aliases(axes: Axes, front: Front) -> None:
    named: dict[str, list[str]] = {}
    for name, point in front.aliases.items():
        named.setdefault(point.key, []).append(name)
    places = {point.key: point for point in front.front}
    for place, (key, names) in enumerate(
        sorted(named.items(), key=lambda item: places[item[0]].net.mean)
    ):
        point = places[key]
        axes.annotate(
            ", ".join(names),
            (point.net.mean, point.accuracy.mean),
            xytext=(-10, 16 + 15 * (place % 3)),
            textcoords="offset points",
            ha="right",
            fontsize=9.5,
            fontweight="bold",
            color=INK,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.8},
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=9,
        )


def _frame(axes: Axes, front: Front) -> None:
    known = front.references
    costs = [point.net.mean for point in front.points] + [rung.net.mean for rung in known.fixed]
    left, right = min([*costs, known.oracle.net.mean]), max(costs)
    axes.set_xscale("log")
    axes.set_xlim(left / 1.35, right * 1.12)
    axes.xaxis.set_major_locator(
        FixedLocator([t for t in _TICKS if left / 1.35 <= t <= right * 1.12])
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    shown = [point.accuracy.low for point in front.front]
    shown += [known.fixed[arm].accuracy.mean for arm in known.hull]
    highest = max([known.oracle.accuracy.mean, *(p.accuracy.high for p in front.points)])
    lowest = min(shown)
    margin = 0.06 * max(highest - lowest, 0.01)
    axes.set_ylim(lowest - margin, highest + margin)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    axes.set_xlabel("net throttle ratio: data path, controller and context over the full data path")
    axes.set_ylabel(f"accuracy on controller_val ({known.samples:,} samples)")
    axes.grid(color=PALE, lw=0.6)
    axes.set_title(
        f"{len(front.front)} of {len(front.points)} points on the front; they add a hypervolume of "
        f"{front.added_hypervolume:.4f} to the static mixtures'"
    )


def _places(points: Any) -> tuple[list[float], list[float]]:
    return [p.net.mean for p in points], [p.accuracy.mean for p in points]


def _bars(points: tuple[PointResult, ...], figure: str) -> list[list[float]]:
    intervals = [getattr(point, figure) for point in points]
    return [
        [max(0.0, interval.mean - interval.low) for interval in intervals],
        [max(0.0, interval.high - interval.mean) for interval in intervals],
    ]
