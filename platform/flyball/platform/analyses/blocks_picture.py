"""The picture of blocks in training; what it shows is in `blocks`."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flyball.platform.analyses import look
from flyball.platform.house_style import BLUE, INK, ORANGE, RED, SKY, styled

if TYPE_CHECKING:
    from flyball.platform.analyses.blocks import Blocks, Side

__all__ = ["blocks_figure"]

_NAMES = {
    "bounds": "Network loss with annealed bounds (Eq. 17)",
    "network": "Network loss alone (Eq. 13)",
    "per_layer": "Every block has the budget (Eq. 14)",
}
# Early to late: apart in hue and even in lightness, and neither end is pale on white.
_DEPTH = LinearSegmentedColormap.from_list("depth", [BLUE, SKY, "#B9A3C9", ORANGE, RED])


def blocks_figure(analysis: "Blocks") -> Figure:
    """Training above, held-out images below, a column for each criterion; 13.5 x 9 inches."""
    with styled():
        figure = look.blank_figure(13.5, 9.0, _headline(analysis))
        grid = figure.subplots(
            2, len(analysis.sides), sharey="row", height_ratios=(1.35, 1.0), squeeze=False
        )
        count = len(analysis.sides[0].history[0])
        norm = Normalize(1, max(2, count))
        for column, side in enumerate(analysis.sides):
            _draw_training(grid[0, column], side, norm, is_first=not column)
            _draw_rates(grid[1, column], side, is_first=not column)
        bar = figure.colorbar(
            ScalarMappable(norm, _DEPTH), ax=list(grid.flat), aspect=45, pad=0.015
        )
        bar.set_label("block, from the first to the last")
        bar.outline.set_visible(False)
        step = max(1, -(-count // 12))
        bar.set_ticks(list(range(1, count + 1, step)))
        bar.ax.invert_yaxis()
        figure.draw_without_rendering()
    return figure


def _headline(analysis: "Blocks") -> str:
    told = ", ".join(f"{100 * s.dead():.1f}% with {_short(s.criterion)}" for s in analysis.sides)
    asked = ", ".join(f"{u:g}" for u in analysis.sides[0].budgets)
    return (
        f"Blocks that are dead at the end of training: {told}\n"
        f"run on less than 1% or more than 99% of their pixels of {analysis.split} images, "
        f"over u = {asked}"
    )


def _short(criterion: str) -> str:
    return {"bounds": "annealed bounds", "network": "the network loss alone"}.get(
        criterion, f"the {criterion} loss"
    )


def _draw_training(axes: Axes, side: "Side", norm: Normalize, *, is_first: bool) -> None:
    epochs = np.arange(1, len(side.history) + 1)
    marker = "o" if len(epochs) < 25 else None
    for block, shares in enumerate(side.history.T):
        color = _DEPTH(norm(block + 1))
        axes.plot(epochs, shares, color=color, lw=1.7, marker=marker, ms=3.5, zorder=3)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(0.5 if len(epochs) == 1 else 1 - 0.02 * len(epochs), 1.02 * len(epochs))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    if is_first:
        axes.set_ylabel("executed share of a block's MACs in training")
    axes.set_title(_NAMES.get(side.criterion, side.criterion))
    axes.grid(True)


def _draw_rates(axes: Axes, side: "Side", *, is_first: bool) -> None:
    """Every block's rate at every budget; dead ones in a box."""
    rates = np.array([[row.rate for row in side.at(u)] for u in side.budgets])
    axes.imshow(rates, cmap="Greys", vmin=0, vmax=1.15, aspect="auto", interpolation="nearest")
    count = rates.shape[1]
    abreast = 62
    has_numbers = count * 4 <= abreast
    for row, line in enumerate(rates):
        for column, rate in enumerate(line):
            is_dead = side.at(side.budgets[row])[column].state != "alive"
            ink = "white" if rate > 0.55 else INK
            if has_numbers or is_dead:
                words = look.percent(rate) or "0"
                axes.text(
                    column,
                    row,
                    words.rstrip("%") if has_numbers else "x",
                    ha="center",
                    va="center",
                    fontsize=9.5,
                    color=RED if is_dead else ink,
                    fontweight="bold" if is_dead else "normal",
                )
    shown = look.tick_places(count, 2, abreast)
    axes.set_xticks(list(shown), [str(k + 1) for k in shown])
    axes.set_yticks(range(len(side.budgets)), [f"u = {u:g}" for u in side.budgets])
    axes.set_xlabel("block")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    dead = sum(row.state != "alive" for row in side.rows)
    unit = "per cent of its pixels that a block runs on"
    axes.set_title(f"At the end: {unit if is_first else 'the same'} ({dead} dead)", fontsize=10.5)
