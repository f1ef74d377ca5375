"""The picture of `flyball bench dynconv`: speed-ups of blocks and networks, and the time split."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from flyball.platform.bench_dynconv import BenchDynconv, DynconvRow, SplitRow
from flyball.platform.bench_dynconv_measurement import STEPS
from flyball.platform.house_style import (
    BLUE,
    GREY,
    INK,
    MARKERS,
    PALE,
    RED,
    SERIES,
    new_figure,
    save_figure,
    styled,
)

__all__ = ["draw_bench_dynconv"]


def draw_bench_dynconv(found: BenchDynconv, file: Path | str) -> Path:
    """Writes a PNG.

    Args:
        found: what was measured.
        file: where to; its folder is made where it does not exist.

    Returns:
        The file.

    Raises:
        StorageError: it cannot be written.
    """
    file = Path(file)
    with styled():
        figure = new_figure(14.5, 5.4)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1.0, 1.0))
        _draw_blocks(left, [row for row in found.rows if row.part == "block"])
        _draw_networks(middle, [row for row in found.rows if row.part != "block"])
        _draw_splits(right, found.splits)
    return save_figure(figure, file)


def _draw_blocks(axes: Axes, rows: Sequence[DynconvRow]) -> None:
    sparse = [row for row in rows if row.kind == "sparse"]
    sides = sorted({row.side for row in sparse}, reverse=True)
    batches = sorted({row.batch for row in sparse})
    for side, colour, marker in zip(sides, SERIES, MARKERS, strict=False):
        for batch, style in zip(batches, ("-", ":"), strict=False):
            case = [row for row in sparse if (row.side, row.batch) == (side, batch)]
            axes.plot(
                [row.asked for row in case],
                [row.speed_up for row in case],
                color=colour,
                marker=marker,
                ls=style,
                lw=1.6,
                label=f"{side} x {side} pixels, batch {batch}",
            )
    most = [row for row in sparse if (row.side, row.batch) == (sides[0], batches[0])]
    axes.plot(
        [row.asked for row in most],
        [1 / row.macs for row in most],
        color=INK,
        ls="--",
        lw=1.2,
        label=f"MACs saved, {sides[0]} x {sides[0]} pixels",
    )
    promised = sorted({(row.asked, row.promise) for row in sparse if row.promise is not None})
    if promised:
        axes.scatter(
            [asked for asked, _ in promised],
            [least for _, least in promised],
            marker="_",
            s=320,
            color=GREY,
            linewidths=2.2,
            label="promised",
        )
    axes.axhline(1.0, color=PALE, lw=1.0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis, form in ((axes.xaxis, "{:g}"), (axes.yaxis, "{:g}x")):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _, form=form: form.format(value)))
    axes.set_xticks(sorted({row.asked for row in sparse}))
    axes.set_ylim(top=1.3 * max(row.speed_up for row in sparse))
    axes.grid(color=PALE, lw=0.6)
    axes.set_xlabel("active ratio r")
    axes.set_ylabel("speed-up over the fastest dense block")
    axes.set_title("Inverted residual, CPU time, one thread")
    axes.legend(frameon=False, loc="upper right", fontsize=8.5)


def _draw_networks(axes: Axes, rows: Sequence[DynconvRow]) -> None:
    """One bar a row: speed-up over the fastest dense network."""
    places = range(len(rows))
    kinds = {"dense": GREY, "own": BLUE, "sparse": RED}
    axes.barh(
        places, [row.speed_up for row in rows], color=[kinds[r.kind] for r in rows], height=0.72
    )
    for place, row in zip(places, rows, strict=True):
        text = f" {row.speed_up:.1f}x, {row.milliseconds:,.0f} ms"
        axes.text(row.speed_up, place, text, va="center", fontsize=8.5)
        if row.promise is not None:
            axes.plot([row.promise] * 2, [place - 0.45, place + 0.45], color=INK, lw=2)
    names = [f"{'own masks: ' * (r.part == 'trained')}{r.what}\nbatch {r.batch}" for r in rows]
    axes.set_yticks(places, names, fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(row.speed_up for row in rows))
    axes.set_xlabel("speed-up over the fastest dense network; line: promised")
    axes.set_title("Whole networks")


def _draw_splits(axes: Axes, splits: Sequence[SplitRow]) -> None:
    """Stacked steps of the largest block at each ratio, the fused block beside them."""
    most = max(row.side for row in splits)
    rows = [row for row in splits if row.side == most]
    below = [0.0] * len(rows)
    places = [float(place) for place in range(len(rows))]
    for step, colour in zip(STEPS, SERIES, strict=False):
        values = [row.steps[step] for row in rows]
        at = [place - 0.2 for place in places]
        axes.bar(at, values, 0.38, bottom=below, color=colour, label=step)
        below = [low + value for low, value in zip(below, values, strict=True)]
    at = [place + 0.2 for place in places]
    axes.bar(at, [row.fused for row in rows], 0.34, color=INK, label="fused, as it runs")
    axes.set_xticks(places, [f"{row.ratio:g}" for row in rows])
    axes.set_xlabel("active ratio r")
    axes.set_ylabel("CPU time of a call, ms")
    axes.set_title(f"Time split, {most} x {most} pixels, batch 1")
    axes.legend(frameon=False, fontsize=8.5)
