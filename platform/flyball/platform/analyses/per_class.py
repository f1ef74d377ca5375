"""Accuracy against utilization class by class: which classes are easy at any throttle."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.splits import TEST
from flyball.platform.analyses import look
from flyball.platform.analyses.means import rows_of
from flyball.platform.analyses.tables import aligned, figure_of
from flyball.platform.house_style import BLUE, INK, PALE, RED, styled

__all__ = ["MEAN", "PerClass", "PerClassRow", "class_curves"]

MEAN = "mean of all samples"
_MOST_FACETS = 23
_MOST_COLUMNS = 12


@dataclass(frozen=True)
class PerClassRow:
    """One class at one arm; also the mean of all samples.

    Attributes:
        label: name of the class, or `MEAN`.
        u: utilization.
        accuracy: mean over the samples of the class.
        samples: how many these are.
    """

    label: str
    u: float
    accuracy: float
    samples: int


@dataclass(frozen=True)
class PerClass:
    """TNN Fig. 8: one facet a class, and first the mean with the vanilla network's accuracy.

    Attributes:
        rows: the mean, then class by class in the order of the classes, by increasing u; classes
            without samples are left out.
        vanilla: accuracy at u = 1 of the same network trained at u = 1 only; None: not trained.
        split: of the samples.
    """

    rows: tuple[PerClassRow, ...]
    vanilla: float | None
    split: str = TEST
    name: ClassVar[str] = "per_class"

    def gain(self, label: str) -> float:
        """What full utilization brings a class over the lowest arm, in accuracy."""
        part = self._facets()[label]
        return part[-1].accuracy - part[0].accuracy

    def table(self) -> str:
        """A row for each class, steepest first, and what its utilization buys."""
        facets = self._facets()
        step = math.ceil(len(facets[MEAN]) / _MOST_COLUMNS)
        shown = range(len(facets[MEAN]) - 1, -1, -step)[::-1]
        rows = [
            [
                label,
                str(part[0].samples),
                *(f"{100 * part[k].accuracy:.1f}" for k in shown),
                f"{100 * self.gain(label):+.1f}",
            ]
            for label, part in [(MEAN, facets[MEAN])]
            + [(label, facets[label]) for label in self._by_gain()]
        ]
        titles = ["class", "n", *(f"u={facets[MEAN][k].u:g}" for k in shown), "gain"]
        vanilla = figure_of(None if self.vanilla is None else 100 * self.vanilla, ".1f")
        return "\n".join(
            [
                *aligned(titles, rows),
                "",
                f"Accuracy in per cent on {facets[MEAN][0].samples:,} {self.split} samples; gain: "
                "points from the lowest arm to the highest, steepest class first.",
                f"Vanilla network (trained at u = 1 only, run at u = 1): {vanilla}.",
            ]
        )

    def figure(self) -> Figure:
        """The mean top left, then the classes; of many, the steepest and the flattest."""
        facets = self._facets()
        labels = [label for label in facets if label != MEAN]
        note = ""
        if len(labels) > _MOST_FACETS:
            ordered, half = self._by_gain(), _MOST_FACETS // 2
            labels = ordered[: half + 1] + ordered[-half:]
            note = f" ({half + 1} steepest and {half} flattest of {len(ordered)} classes)"
        count = 1 + len(labels)
        columns = _columns(count)
        height = 1.8 + 2.1 * math.ceil(count / columns)
        with styled():
            figure = look.blank_figure(13.5, max(5.0, height), self._headline() + note)
            grid = figure.subplots(
                math.ceil(count / columns), columns, sharex=True, sharey=True, squeeze=False
            )
            for axes, label in zip(grid.flat, [MEAN, *labels], strict=False):
                self._draw_facet(axes, label)
            for place, axes in enumerate(grid.flat):
                if place >= count:
                    axes.set_visible(False)
                elif place + columns >= count:
                    axes.tick_params(labelbottom=True)
                    axes.set_xlabel("utilization u")
                if place % columns == 0:
                    axes.set_ylabel("accuracy")
            look.legend_below(figure, self._legend())
            figure.draw_without_rendering()
        return figure

    def summary(self) -> dict[str, float]:
        """The steepest and the flattest gain, and the vanilla accuracy where it is known."""
        gains = [self.gain(label) for label in self._by_gain()]
        figures = {"largest_gain": gains[0], "smallest_gain": gains[-1]}
        return figures if self.vanilla is None else {**figures, "vanilla_accuracy": self.vanilla}

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Accuracy of every class by per cent of utilization."""
        return [
            (round(100 * r.u), {f"per_class/{r.label}/accuracy": r.accuracy}) for r in self.rows
        ]

    def extras(self) -> dict[str, Any]:
        """The vanilla accuracy and the split."""
        return {"vanilla_accuracy": self.vanilla, "split": self.split}

    def _facets(self) -> dict[str, list[PerClassRow]]:
        facets: dict[str, list[PerClassRow]] = {}
        for row in self.rows:
            facets.setdefault(row.label, []).append(row)
        return facets

    def _by_gain(self) -> list[str]:
        return sorted((n for n in self._facets() if n != MEAN), key=self.gain, reverse=True)

    def _headline(self) -> str:
        ordered = self._by_gain()
        steep, flat = ordered[0], ordered[-1]
        return (
            "What utilization buys differs by class\n"
            f"from the lowest arm to the highest {look.shortened(steep)!r} gains "
            f"{100 * self.gain(steep):+.1f} points, {look.shortened(flat)!r} "
            f"{100 * self.gain(flat):+.1f}"
        )

    def _draw_facet(self, axes: Axes, label: str) -> None:
        facets = self._facets()
        mean, part = facets[MEAN], facets[label]
        x = [row.u for row in part]
        is_mean = label == MEAN
        if is_mean:
            axes.plot(x, [r.accuracy for r in part], "-o", color=BLUE, ms=4, lw=1.8)
            if self.vanilla is not None:
                axes.axhline(self.vanilla, color=INK, lw=1.4, ls="--")
        else:
            axes.plot(x, [r.accuracy for r in mean], "-", color=PALE, lw=2.2)
            axes.plot(x, [r.accuracy for r in part], "-o", color=RED, ms=3.5, lw=1.5)
        words = "all classes" if is_mean else look.shortened(label, 16)
        axes.set_title(f"{words} (n = {part[0].samples:,})", fontsize=10, color=INK)
        axes.set_xlim(0.0, 1.05)
        axes.set_xticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
        lowest = min(row.accuracy for row in self.rows)
        axes.set_ylim(max(-0.03, lowest - 0.06), 1.04)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
        axes.grid(True)

    def _legend(self) -> list[Any]:
        handles = [
            Line2D([], [], color=BLUE, marker="o", ms=4, label="mean of all samples"),
            Line2D([], [], color=RED, marker="o", ms=3.5, label="class"),
            Line2D([], [], color=PALE, lw=2.2, label="the mean again, to compare"),
        ]
        if self.vanilla is not None:
            words = f"vanilla network at u = 1: {100 * self.vanilla:.1f}%"
            handles.append(Line2D([], [], color=INK, ls="--", lw=1.4, label=words))
        return handles


def class_curves(
    atlas: OutcomeAtlas, vanilla: OutcomeAtlas | None = None, *, split: str = TEST
) -> PerClass:
    """Measures every class at every arm (TNN Fig. 8, section 4.4).

    Args:
        atlas: outcomes of the throttleable data path.
        vanilla: of the same network trained at u = 1 only; its highest arm is the line.
        split: whose samples.

    Raises:
        DataError: an atlas has no rows of that split.
    """
    taken = rows_of(atlas, split)
    correct, labels = np.asarray(taken.correct, np.float64), np.asarray(taken.label)
    parts = [(MEAN, np.ones(len(taken), bool))]
    parts += [(name, labels == code) for code, name in enumerate(taken.header.classes)]
    rows = [
        PerClassRow(name, u, float(correct[is_in, k].mean()), int(is_in.sum()))
        for name, is_in in parts
        if is_in.any()
        for k, u in enumerate(taken.arms)
    ]
    line = None
    if vanilla is not None:
        line = float(np.asarray(rows_of(vanilla, split).correct, np.float64)[:, -1].mean())
    return PerClass(tuple(rows), line, split)


def _columns(count: int) -> int:
    """How many facets abreast: few empty places, then a shape near the page's."""
    wanted = math.sqrt(1.6 * count)
    options = range(min(3, count), min(6, count) + 1)
    return min(options, key=lambda n: (-count % n, abs(n - wanted)))
