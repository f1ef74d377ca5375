"""The picture of `flyball bench scaling`: seconds against workers, part by part."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from flyball.platform.house_style import (
    BLUE,
    GREY,
    INK,
    PALE,
    SERIES,
    new_figure,
    save_figure,
    styled,
)
from flyball.platform.scaling import estimate_atlas, estimate_sweep
from flyball.platform.scaling_cases import (
    SHARD_SIZES,
    atlas_rates,
    imagenet,
    sweep_rates,
    thousand_points,
)
from flyball.platform.scaling_measure import Measured

__all__ = ["draw_scaling"]

COUNTS = tuple(sorted({round(10 ** (k / 16)) for k in range(49)}))  # 1 ... 1,000
LEAST_S = 0.1


def draw_scaling(measured: Measured, file: Path | str) -> Path:
    """Writes a PNG: the atlas, the sweep, and how the model met what was measured.

    Raises:
        StorageError: it cannot be written.
    """
    file = Path(file)
    work, rates = imagenet(SHARD_SIZES[-1]), atlas_rates(measured)
    coarse, sweep, places = imagenet(), thousand_points(measured, work), sweep_rates(measured)
    with styled():
        figure = new_figure(15.0, 5.4, dpi=130)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 0.8))

        def atlas(count: int) -> tuple[float, Mapping[str, float]]:
            one = estimate_atlas(work, rates, count)
            return one.seconds, {**one.parts, "start": one.start_s, "assembly": one.assembly_s}

        def trials(count: int) -> tuple[float, Mapping[str, float]]:
            one = estimate_sweep(sweep, places, count)
            return one.seconds, one.parts

        _draw_parts(left, atlas)
        totals = [estimate_atlas(coarse, rates, count).seconds for count in COUNTS]
        left.plot(COUNTS, totals, color=INK, lw=1.2, ls=":", label=f"all, shards of {1024:,}")
        left.set_title(f"ImageNet atlas, ten arms, shards of {work.shard_size} (modelled)")
        left.set_xlabel("GPUs")
        _draw_parts(middle, trials)
        middle.set_title("Sweep of 1,000 points (modelled)")
        middle.set_xlabel("points trained at a time")
        for axes in (left, middle):
            axes.legend(frameon=False, fontsize=8.5, loc="lower left")
        _draw_checks(right, measured)
    return save_figure(figure, file)


def _draw_parts(axes: Axes, at: Callable[[int], tuple[float, Mapping[str, float]]]) -> None:
    found = [at(count) for count in COUNTS]
    axes.plot(COUNTS, [total for total, _ in found], color=INK, lw=2.4, label="all")
    styles = [(colour, dashes) for dashes in ("-", "--") for colour in SERIES[:5]]
    for name, (colour, dashes) in zip(found[0][1], styles, strict=False):
        seconds = [parts[name] for _, parts in found]
        if max(seconds) >= LEAST_S:
            axes.plot(COUNTS, seconds, color=colour, ls=dashes, lw=1.3, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=LEAST_S)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(color=PALE, lw=0.6)
    axes.set_ylabel("seconds")


def _draw_checks(axes: Axes, measured: Measured) -> None:
    checks: Sequence[tuple[str, float, float]] = [
        (check.what, check.modelled, check.measured) for check in measured.checks
    ]
    for place, (_, modelled, seconds) in enumerate(checks):
        axes.barh(place - 0.18, modelled, height=0.34, color=GREY, label="modelled" * (not place))
        axes.barh(place + 0.18, seconds, height=0.34, color=BLUE, label="measured" * (not place))
    axes.set_yticks(range(len(checks)), [what.replace(", ", ",\n") for what, _, _ in checks])
    axes.tick_params(axis="y", labelsize=8.5)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_title(f"The model here (load {measured.load:.1f})")
    axes.legend(frameon=False, fontsize=8.5)
