"""Accuracy against utilization and against cost of several data paths in one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.splits import TEST
from flyball.platform.analyses import look
from flyball.platform.analyses.means import area_under, arm_means, rows_of
from flyball.platform.analyses.tables import aligned, figure_of, interval_text
from flyball.platform.house_style import MARKERS, SERIES, styled

__all__ = ["CurveRow", "Curves", "Source", "throttling_curves"]


@dataclass(frozen=True)
class Source:
    """A data path to draw.

    Attributes:
        name: what people call it; two sources have two names.
        atlas: its outcomes.
        vanilla: outcomes of the same network trained at u = 1 only and then throttled; None where
            nobody trained it.
    """

    name: str
    atlas: OutcomeAtlas
    vanilla: OutcomeAtlas | None = None


@dataclass(frozen=True)
class CurveRow:
    """One arm of one data path.

    Attributes:
        source: name of the data path.
        training: "throttleable", or "vanilla": trained at u = 1 only.
        u: utilization.
        accuracy, low, high: mean over the samples, and its 95 % interval.
        throttle_ratio: executed MACs over those at u = 1.
        macs: executed by one sample, mean.
        samples: how many were measured.
    """

    source: str
    training: str
    u: float
    accuracy: float
    low: float
    high: float
    throttle_ratio: float
    macs: float
    samples: int


@dataclass(frozen=True)
class Curves:
    """TNN Fig. 5: how gracefully data paths degrade, beside the same networks untrained for it.

    Attributes:
        rows: by source, throttleable before vanilla, by increasing u.
        split: of the samples.
    """

    rows: tuple[CurveRow, ...]
    split: str = TEST
    name: ClassVar[str] = "curves"

    def table(self) -> str:
        """Every arm of every data path, then what is compared."""
        rows = [
            [
                r.source,
                r.training,
                f"{r.u:g}",
                interval_text(r.accuracy, r.low, r.high),
                figure_of(r.throttle_ratio),
                f"{r.macs:,.0f}",
            ]
            for r in self.rows
        ]
        titles = ["data path", "training", "u", "accuracy [95%]", "throttle ratio", "MACs"]
        lines = aligned(titles, rows, left=2)
        compared = [
            [source, training, *(f"{100 * value:.1f}%" for value in _compared(part).values())]
            for (source, training), part in self._series().items()
        ]
        titles = ["data path", "training", "peak", "lowest arm", "area under the curve"]
        lines += ["", *aligned(titles, compared, left=2), ""]
        footer = f"Measured on {self.rows[0].samples:,} {self.split} samples."
        if len({training for _, training in self._series()}) > 1:
            footer += (
                " A vanilla network was trained at u = 1 only, with the same settings, and then "
                "throttled."
            )
        lines.append(footer)
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Accuracy against u on the left, against executed MACs on the right."""
        series = self._series()
        with styled():
            figure = look.blank_figure(13.5, 6.2, self._headline())
            left, right = figure.subplots(1, 2, sharey=True)
            handles: list[Any] = []
            names = list(dict.fromkeys(source for source, _ in series))
            for (source, training), part in series.items():
                colour = SERIES[names.index(source) % len(SERIES)]
                marker = MARKERS[names.index(source) % len(MARKERS)]
                drawn: dict[str, Any] = {"color": colour, "marker": marker, "ms": 5.5, "lw": 1.8}
                if training == "vanilla":
                    drawn |= {"ls": "--", "mfc": "white", "lw": 1.4}
                _draw(left, part, [r.u for r in part], drawn)
                _draw(right, part, [r.throttle_ratio for r in part], drawn)
                said = source if training != "vanilla" else f"{source}, trained at u = 1 only"
                handles.append(Line2D([], [], **drawn, label=said))
            label = f"accuracy on {self.split} ({self.rows[0].samples:,} samples)"
            ends = [r.low for r in self.rows], [r.high for r in self.rows]
            look.accuracy_axis(left, *ends, label)
            look.accuracy_axis(right, *ends, "")
            look.unit_axis(left, "utilization u: share of the components asked for")
            look.unit_axis(right, "throttle ratio: executed MACs / those at u = 1")
            left.set_title("Against utilization, with 95% intervals")
            right.set_title("Against cost")
            look.legend_below(figure, handles)
            figure.draw_without_rendering()
        return figure

    def summary(self) -> dict[str, float]:
        """Peak, accuracy of the lowest arm and area under the curve of every data path."""
        return {
            f"{source}/{training}/{figure}": value
            for (source, training), part in self._series().items()
            for figure, value in _compared(part).items()
        }

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Accuracy by per cent of utilization."""
        return [
            (round(100 * r.u), {f"curves/{r.source}/{r.training}/accuracy": r.accuracy})
            for r in self.rows
        ]

    def extras(self) -> dict[str, Any]:
        """The split."""
        return {"split": self.split}

    def _series(self) -> dict[tuple[str, str], list[CurveRow]]:
        series: dict[tuple[str, str], list[CurveRow]] = {}
        for row in self.rows:
            series.setdefault((row.source, row.training), []).append(row)
        return series

    def _headline(self) -> str:
        series = self._series()
        lost: dict[str, list[str]] = {}
        for (source, training), part in series.items():
            drop = 100 * (part[-1].accuracy - part[0].accuracy)
            words = f"{drop:.1f}"
            if training == "vanilla":
                words = f"({words} if trained at u = 1 only)"
            lost.setdefault(source, []).append(words)
        told = [f"{source} {' '.join(drops)}" for source, drops in lost.items()]
        shown = "; ".join(told[:2]) + ("; ..." if told[2:] else "")
        return f"What throttling costs, from the highest arm to the lowest\npoints lost: {shown}"


def throttling_curves(sources: Sequence[Source], *, split: str = TEST) -> Curves:
    """Measures data paths at every arm of theirs (TNN Fig. 5, sections 4.2 and 4.3).

    Args:
        sources: data paths, with the network that was not trained for gating where there is one.
        split: whose samples.

    Raises:
        InvalidSetting: there is no source, or two of one name.
        DataError: an atlas has no rows of that split.
    """
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise InvalidSetting(
            "Curves are told apart by name: at least one data path, each with a name of its own; "
            f"{names or 'none'} came. Name them apart."
        )
    rows: list[CurveRow] = []
    for source in sources:
        for training, atlas in (("throttleable", source.atlas), ("vanilla", source.vanilla)):
            if atlas is not None:
                rows += _rows(source.name, training, rows_of(atlas, split))
    return Curves(tuple(rows), split)


def _rows(name: str, training: str, atlas: OutcomeAtlas) -> list[CurveRow]:
    return [
        CurveRow(
            source=name,
            training=training,
            u=arm.u,
            accuracy=arm.accuracy.mean,
            low=arm.accuracy.low,
            high=arm.accuracy.high,
            throttle_ratio=arm.throttle_ratio,
            macs=arm.throttle_ratio * atlas.header.full_macs,
            samples=len(atlas),
        )
        for arm in arm_means(atlas)
    ]


def _compared(part: Sequence[CurveRow]) -> dict[str, float]:
    heights = np.array([row.accuracy for row in part])
    return {
        "peak": float(heights.max()),
        "lowest_arm": float(heights[0]),
        "area": area_under(np.array([row.u for row in part]), heights),
    }


def _draw(axes: Axes, part: Sequence[CurveRow], x: Sequence[float], drawn: dict[str, Any]) -> None:
    axes.plot(x, [row.accuracy for row in part], zorder=3, **drawn)
    if drawn.get("ls") != "--":
        lows, highs = [row.low for row in part], [row.high for row in part]
        axes.fill_between(x, lows, highs, color=drawn["color"], alpha=0.13, lw=0, zorder=2)
