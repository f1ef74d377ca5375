"""The picture of an evaluation: accuracy against net throttle ratio, and what was chosen."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

from flyball.controllers.evaluation import Evaluation, Rung
from flyball.datapaths.splits import CONTROLLER_VAL, TEST
from flyball.platform.house_style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PINK,
    RED,
    SKY,
    new_figure,
    save_figure,
    styled,
)

__all__ = ["RUNG_NAMES", "draw_ladder", "ladder_figure"]

RUNG_NAMES = {
    "worst": "worst",
    "random": "random",
    "best_fixed": "best fixed arm",
    "static_mixture": "static mixture",
    "confidence_cascade": "confidence cascade",
    "learned": "learned controller",
    "per_class_oracle": "per-class oracle",
    "informed_ceiling": "informed ceiling",
    "per_sample_oracle": "per-sample oracle",
}
"""Rungs in the order of the ladder and what they are called."""

_LOOKS = {
    "worst": ("v", GREY, 60),
    "random": ("x", GREY, 55),
    "best_fixed": ("o", BLUE, 120),
    "static_mixture": ("D", INK, 48),
    "confidence_cascade": ("s", ORANGE, 62),
    "learned": ("*", RED, 260),
    "per_class_oracle": ("^", SKY, 70),
    "informed_ceiling": ("p", GREEN, 95),
    "per_sample_oracle": ("h", PINK, 95),
}

_MOST_CLASSES = 16
_CHARACTERS_ABREAST = 48
"""Characters of tick labels that fit under a panel on the right."""


def draw_ladder(evaluation: Evaluation, file: Path | str) -> Path:
    """Writes a PNG: the ladder on the left, the utilizations chosen on the right.

    Args:
        evaluation: what was measured.
        file: where to; its folder is made where it does not exist.

    Returns:
        The file.

    Raises:
        StorageError: it cannot be written.
    """
    file = Path(file)
    return save_figure(ladder_figure(evaluation), file)


def ladder_figure(evaluation: Evaluation) -> Figure:
    """The picture as a figure, 13.5 x 8.2 inches, drawn without a display."""
    with styled():
        figure = new_figure(13.5, 8.2)
        grid = figure.add_gridspec(2, 2, width_ratios=(1.75, 1.0), height_ratios=(1.0, 1.7))
        handles = _draw_rungs(figure.add_subplot(grid[:, 0]), evaluation)
        figure.legend(
            handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=10
        )
        _draw_histogram(figure.add_subplot(grid[0, 1]), evaluation)
        _draw_classes(figure, figure.add_subplot(grid[1, 1]), evaluation)
        figure.suptitle(_headline(evaluation), x=0.01, ha="left", fontsize=13.5)
        figure.canvas.draw()
    return figure


def _draw_rungs(axes: Axes, evaluation: Evaluation) -> list[Any]:
    """Draws the left panel and returns what its legend explains."""
    curve = evaluation.curve(TEST)
    ordered = sorted(curve, key=lambda rung: rung.net.mean)
    at = _between(ordered)
    low = np.interp(at, _costs(ordered), [rung.accuracy.low for rung in ordered])
    high = np.interp(at, _costs(ordered), [rung.accuracy.high for rung in ordered])
    axes.fill_between(at, low, high, color=PALE, lw=0, zorder=1)
    axes.plot(at, _at(ordered, at), "-", color=GREY, lw=1.2, zorder=2)
    axes.plot(_costs(curve), _accuracies(curve), "o", color=GREY, ms=4.5, zorder=2)
    _name_arms(axes, curve, evaluation)
    hull = [curve[arm] for arm in evaluation.choices.hull]
    hull.sort(key=lambda rung: rung.net.mean)
    axes.plot(_between(hull), _at(hull, _between(hull)), "--", color=INK, lw=1.5, zorder=3)
    steered = sorted(
        (*evaluation.budget_curve, evaluation.rung("learned")), key=lambda rung: rung.net.mean
    )
    axes.plot(_costs(steered), _accuracies(steered), "-", color=RED, lw=1.4, alpha=0.75, zorder=3)
    lowest = _lowest_shown(evaluation)
    handles = [
        Line2D([], [], color=GREY, marker="o", ms=4.5, label="fixed arms, labelled u"),
        Line2D([], [], color=INK, ls="--", label="static mixtures (hull)"),
        Line2D([], [], color=RED, lw=1.3, alpha=0.75, label="learned, at other budgets"),
    ]
    for name, label in RUNG_NAMES.items():
        handles.append(_draw_rung(axes, evaluation.rung(name), label, lowest))
    _scale(axes, min(rung.net.low for rung in evaluation.rungs))
    highest = max(rung.accuracy.high for rung in evaluation.rungs)
    axes.set_ylim(lowest, highest + 0.03 * max(highest - lowest, 0.01))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    axes.set_ylabel(f"accuracy on test ({evaluation.samples[TEST]:,} samples)")
    axes.set_title(f"Accuracy against cost, with {evaluation.level:.0%} intervals")
    axes.grid(color=PALE, lw=0.6)
    axes.set_axisbelow(True)
    return handles


def _draw_rung(axes: Axes, rung: Rung, label: str, lowest: float) -> Any:
    """Draws one rung with its bars, or a mark on the lower edge where it lies below."""
    marker, colour, size = _LOOKS[rung.name]
    is_below = rung.accuracy.mean < lowest
    net, height = rung.net.mean, lowest if is_below else rung.accuracy.mean
    figures = f"{rung.accuracy.mean:.1%} at {net:.3f}" + (", off the axis" if is_below else "")
    if not is_below:
        axes.errorbar(
            net,
            height,
            xerr=_bars(rung.net.low, net, rung.net.high),
            yerr=_bars(rung.accuracy.low, height, rung.accuracy.high),
            fmt="none",
            ecolor=colour,
            elinewidth=1.4,
            zorder=4,
        )
    look: dict[str, Any] = {"marker": marker, "s": size, "label": f"{label}: {figures}"}
    if marker == "x":
        look |= {"c": colour, "linewidths": 2.0}
    elif rung.name == "best_fixed":
        look |= {"facecolors": "none", "edgecolors": colour, "linewidths": 2.2}
    else:
        look |= {"c": colour, "edgecolors": "white", "linewidths": 0.9}
    zorder = 7 if rung.name == "learned" else 5
    return axes.scatter([net], [height], clip_on=not is_below, zorder=zorder, **look)


def _name_arms(axes: Axes, curve: tuple[Rung, ...], evaluation: Evaluation) -> None:
    """Writes u under the points of the curve, leaving out those that would touch."""
    last = -np.inf
    for rung, arm in zip(curve, evaluation.arms, strict=True):
        place = np.sqrt(rung.net.mean)
        if abs(place - last) < 0.03:
            continue
        last = place
        axes.annotate(
            f"{arm:g}",
            (rung.net.mean, rung.accuracy.mean),
            xytext=(4, -12),
            textcoords="offset points",
            fontsize=8.5,
            color=GREY,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=6,
        )


def _draw_histogram(axes: Axes, evaluation: Evaluation) -> None:
    places = np.arange(len(evaluation.arms))
    bars = axes.bar(places, evaluation.histogram, color=RED, width=0.78)
    if len(places) <= 16:
        shares = [_percent(share) for share in evaluation.histogram]
        axes.bar_label(bars, shares, padding=2, fontsize=9, color=INK)
    axes.set_ylim(0, 1.15 * max(evaluation.histogram))
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    _name_places(axes, evaluation.arms)
    axes.set_xlabel("")
    mean = evaluation.rung("learned").utilization.mean
    axes.set_title(f"Utilization chosen on test (mean u {mean:.3f})")


def _draw_classes(figure: Figure, axes: Axes, evaluation: Evaluation) -> None:
    table = np.array(evaluation.class_histogram)
    seen = np.flatnonzero(table.sum(axis=1) > 0)
    mean = table @ np.asarray(evaluation.arms)
    order = seen[np.argsort(mean[seen], kind="stable")]
    label = "utilization u (beside each class: its mean u)"
    if len(order) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        order = np.concatenate([order[:half], order[-half:]])
        label += f"\nthe {half} lowest and the {half} highest of {len(seen)} classes"
    shown = np.ma.masked_equal(table[order], 0.0)
    image = axes.imshow(shown, aspect="auto", cmap="Oranges", vmin=0, vmax=1)
    names = [_shortened(evaluation.classes[label]) for label in order]
    axes.set_yticks(
        range(len(order)), [f"{n}  {m:.2f}" for n, m in zip(names, mean[order], strict=True)]
    )
    _name_places(axes, evaluation.arms)
    axes.set_xlabel(label)
    if shown.size > 180:
        bar = figure.colorbar(image, ax=axes, fraction=0.035, pad=0.02)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        for row, arm in zip(*np.nonzero(table[order]), strict=True):
            share = table[order][row, arm]
            colour = "white" if share > 0.6 else INK
            place: dict[str, Any] = {"ha": "center", "va": "center"}
            axes.text(arm, row, _percent(share), color=colour, fontsize=8, **place)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("Utilization chosen by class")


def _headline(evaluation: Evaluation) -> str:
    if evaluation.beats_static:
        what = "beats"
    elif evaluation.dominated:
        what = "is dominated by"
    else:
        what = "is not proven better than"
    gains = []
    for split in (TEST, CONTROLLER_VAL):
        gain = evaluation.gain_over_static[split]
        low, mean, high = (100 * value for value in (gain.low, gain.mean, gain.high))
        gains.append(f"{mean:+.2f} points on {split} [{low:+.2f}, {high:+.2f}]")
    return (
        f"The learned controller {what} the static mixture at equal net cost\n"
        f"{', '.join(gains)}, {evaluation.level:.0%} intervals"
    )


def _lowest_shown(evaluation: Evaluation) -> float:
    """Lower edge: below every rung but the worst and the random one, which may be far away."""
    kept = [r for r in evaluation.rungs if r.name not in ("worst", "random")]
    kept += evaluation.budget_curve
    lowest = min(rung.accuracy.low for rung in kept)
    span = max(rung.accuracy.high for rung in evaluation.rungs) - lowest
    near = [r.accuracy.low for r in evaluation.rungs if r.accuracy.low > lowest - 0.25 * span]
    return max(0.0, min([lowest, *near]) - 0.06 * max(span, 0.01))


def _scale(axes: Axes, cheapest: float) -> None:
    """A square-root axis: costs grow about as the square of u, so the arms lie evenly."""
    axes.set_xscale("function", functions=(_root, np.square))
    axes.set_xlim(left=max(0.0, float(_root(cheapest)) - 0.04) ** 2)
    axes.xaxis.set_major_locator(
        FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.2])
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("net throttle ratio: MACs with the controller / full data path (root scale)")


def _root(values: Any) -> Any:
    return np.sqrt(np.maximum(values, 0.0))


def _costs(rungs: Sequence[Rung]) -> list[float]:
    return [rung.net.mean for rung in rungs]


def _accuracies(rungs: Sequence[Rung]) -> list[float]:
    return [rung.accuracy.mean for rung in rungs]


def _between(rungs: Sequence[Rung]) -> Any:
    """Costs from the first to the last, dense enough to draw straight lines on a bent axis."""
    return np.linspace(rungs[0].net.mean, rungs[-1].net.mean, 600)


def _at(rungs: Sequence[Rung], costs: Any) -> Any:
    return np.interp(costs, _costs(rungs), _accuracies(rungs))


def _bars(low: float, middle: float, high: float) -> list[list[float]]:
    return [[max(0.0, middle - low)], [max(0.0, high - middle)]]


def _name_places(axes: Axes, arms: tuple[float, ...]) -> None:
    """Writes u under every place, or under as many as there is room for."""
    names = [f"{arm:.3g}" for arm in arms]
    step = math.ceil(len(names) * max(map(len, names)) / _CHARACTERS_ABREAST)
    axes.set_xticks(range(0, len(arms), step), names[::step])


def _percent(share: float) -> str:
    return "" if share == 0 else "<1%" if share < 0.005 else f"{share:.0%}"


def _shortened(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"
