"""The picture of `flyball bench tnn`: speed-up against utilization, and the shares of the ideal."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from flyball.platform.bench_tnn import TnnRow
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

__all__ = ["draw_bench_tnn"]


def draw_bench_tnn(rows: Sequence[TnnRow], file: Path | str) -> Path:
    """Writes a PNG.

    Args:
        rows: what was measured.
        file: where to; its folder is made where it does not exist.

    Returns:
        The file.

    Raises:
        StorageError: it cannot be written.
    """
    file = Path(file)
    with styled():
        figure = new_figure(13.0, 5.6)
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
        _draw_speed_ups(left, rows)
        _draw_shares(right, rows)
    return save_figure(figure, file)


def _draw_speed_ups(axes: Axes, rows: Sequence[TnnRow]) -> None:
    throttled = [row for row in rows if row.kind == "throttled"]
    by_case: dict[str, list[TnnRow]] = {}
    for row in sorted(throttled, key=lambda row: row.u):
        by_case.setdefault(_case(row), []).append(row)
    ideal = sorted({(row.u, row.ideal) for row in throttled})
    axes.plot(*zip(*ideal, strict=True), color=INK, ls="--", lw=1.2, label="ideal: MACs saved")
    for (name, case), colour, marker in zip(by_case.items(), SERIES, MARKERS, strict=False):
        us, speed_ups = [row.u for row in case], [row.speed_up for row in case]
        axes.plot(us, speed_ups, color=colour, marker=marker, lw=1.6, label=name)
    promised = [row for row in throttled if row.promise is not None]
    if promised:
        axes.scatter(
            [row.u for row in promised],
            [row.promise or 0.0 for row in promised],
            marker="_",
            s=420,
            color=GREY,
            linewidths=2.2,
            label="promised of batch 64, no norm",
        )
    axes.axhline(1.0, color=PALE, lw=1.0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis, form in ((axes.xaxis, "{:g}"), (axes.yaxis, "{:g}x")):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _, form=form: form.format(value)))
    axes.set_xticks([u for u, _ in ideal])
    axes.grid(color=PALE, lw=0.6)
    axes.set_xlabel("utilization u")
    axes.set_ylabel("speed-up over the fastest dense network")
    axes.set_title("CPU time, one thread")
    axes.legend(frameon=False, loc="upper right")


def _draw_shares(axes: Axes, rows: Sequence[TnnRow]) -> None:
    """One bar a row from above: 100 % is as fast as the MACs promise of the best dense network."""
    places = range(len(rows))
    kinds = {"dense": GREY, "throttled": BLUE}
    colours = [kinds.get(row.kind, RED) for row in rows]
    axes.barh(places, [row.share for row in rows], color=colours, height=0.72)
    for place, row in zip(places, rows, strict=True):
        axes.text(row.share + 0.01, place, f"{row.milliseconds:,.1f} ms", va="center", fontsize=8)
        if row.kind == "mixed" and row.promise is not None:
            axes.plot([row.promise] * 2, [place - 0.45, place + 0.45], color=INK, lw=2)
    axes.set_yticks(places, [f"{_case(row)}: {row.what}" for row in rows], fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(row.share for row in rows))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_title("Share of the ideal, and CPU time of a call")


def _case(row: TnnRow) -> str:
    norm = "" if row.norm == "none" else f", {row.norm} norm"
    return f"batch {row.batch}{norm}"
