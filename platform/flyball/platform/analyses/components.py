"""Where learned gates spend: the share of components that every T-module has on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.learned_gates.comparison import Comparison
from flyball.platform.analyses import look
from flyball.platform.analyses.gates import METHOD_NAMES
from flyball.platform.analyses.tables import aligned
from flyball.platform.house_style import INK, SERIES, styled

__all__ = ["STATIC", "ComponentRow", "ComponentUse", "component_use"]

STATIC = ("nested", "independent")
"""Methods that spread what they spend evenly over T-modules, by construction."""

_MOST_CELLS, _MOST_NAMES, _MOST_LINES = 220, 26, 6
_GAP = 0.35


@dataclass(frozen=True)
class ComponentRow:
    """One T-module under one gate at one request.

    Attributes:
        source: network and method.
        module: name of the T-module.
        position: of the T-module from the input on, from 0.
        u: requested utilization.
        complexity: share of all components that was on: what each T-module would have on if the
            same were spent evenly.
        use: share of its own components that the T-module had on.
    """

    source: str
    module: str
    position: int
    u: float
    complexity: float
    use: float


@dataclass(frozen=True)
class ComponentUse:
    """TNN Fig. 4: the pattern of component utilization beside the even one."""

    rows: tuple[ComponentRow, ...]
    name: ClassVar[str] = "components"

    def sources(self) -> tuple[str, ...]:
        """Networks and methods."""
        return tuple(dict.fromkeys(row.source for row in self.rows))

    def matrix(self, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Use (T-modules, U), complexity (U,), requests (U,), and names of the T-modules."""
        part = [row for row in self.rows if row.source == source]
        modules = {row.position: row.module for row in part}
        asked = sorted({row.u for row in part})
        by_place = {(row.position, row.u): row for row in part}
        use = np.array([[by_place[m, u].use for u in asked] for m in sorted(modules)])
        complexity = np.array([by_place[min(modules), u].complexity for u in asked])
        return use, complexity, np.array(asked), [modules[m] for m in sorted(modules)]

    def tilt(self, source: str) -> float:
        """How much more the later half of the T-modules has on than the earlier; mean over u."""
        use = self.matrix(source)[0]
        half = len(use) // 2
        return float(use[len(use) - half :].mean() - use[:half].mean()) if half else 0.0

    def table(self) -> str:
        """For each gate a row for every T-module, and what an even spread would be."""
        lines: list[str] = []
        for source in self.sources():
            use, complexity, asked, modules = self.matrix(source)
            rows = [[n, *(f"{v:.2f}" for v in row)] for n, row in zip(modules, use, strict=True)]
            rows.append(["spread evenly", *(f"{value:.2f}" for value in complexity)])
            lines += [source, *aligned(["T-module", *(f"u={u:g}" for u in asked)], rows), ""]
        lines.append(
            "Share of its components that a T-module had on, mean over samples; spread evenly: "
            "the same spending, alike in every T-module (complexity)."
        )
        return "\n".join([*lines, *self._words()])

    def figure(self) -> Figure:
        """For each gate the heat map, and its T-modules as lines beside the even one."""
        sources = self.sources()
        with styled():
            tall = [min(8.0, 1.9 + 0.3 * len(self.matrix(source)[3])) for source in sources]
            figure = look.blank_figure(13.5, 1.3 + sum(max(3.6, t) for t in tall), self._headline())
            grid = figure.subplots(len(sources), 2, width_ratios=(1.3, 1.0), squeeze=False)
            for (left, right), source in zip(grid, sources, strict=True):
                self._draw_map(left, source)
                self._draw_lines(figure, right, source)
            shades = matplotlib.cm.ScalarMappable(cmap="Blues")
            shades.set_clim(0, 1)
            bar = figure.colorbar(shades, ax=list(grid[:, 0]), fraction=0.03, pad=0.02, aspect=40)
            bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            bar.outline.set_visible(False)
            figure.draw_without_rendering()
        return figure

    def summary(self) -> dict[str, float]:
        """The tilt towards later T-modules of every gate."""
        return {f"{source}/tilt": self.tilt(source) for source in self.sources()}

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Use of every T-module by per cent of requested utilization."""
        return [
            (round(100 * r.u), {f"components/{r.source}/{r.position:02d}": r.use})
            for r in self.rows
        ]

    def extras(self) -> dict[str, Any]:
        """The tilt of every gate."""
        return {"tilt": {source: self.tilt(source) for source in self.sources()}}

    def _draw_map(self, axes: Axes, source: str) -> None:
        use, complexity, asked, modules = self.matrix(source)
        count, width = use.shape
        even = count + _GAP
        for shares, top in ((use, -0.5), (complexity[None, :], even - 0.5)):
            extent = (-0.5, width - 0.5, top + len(shares), top)
            axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1, extent=extent)
            if use.size <= _MOST_CELLS:
                for (row, column), value in np.ndenumerate(shares):
                    colour = "white" if value > 0.6 else INK
                    place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8.5}
                    words = f"{value:.2f}".removeprefix("0")
                    axes.text(column, top + 0.5 + row, words, color=colour, **place)
        axes.set_ylim(even + 0.5, -0.5)
        step = max(1, -(-count // _MOST_NAMES))
        names = [look.shortened(modules[m]) for m in range(0, count, step)]
        axes.set_yticks([*range(0, count, step), even], [*names, "spread evenly"])
        asked_names = [f"{u:.3g}" for u in asked]
        across = look.tick_places(width, max(map(len, asked_names)), 60)
        axes.set_xticks(list(across), [asked_names[k] for k in across])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("requested utilization u")
        axes.set_title(f"{source}: share of components on")

    def _draw_lines(self, figure: Figure, axes: Axes, source: str) -> None:
        use, complexity, _, modules = self.matrix(source)
        order = np.argsort(complexity, kind="stable")
        is_few = len(modules) <= _MOST_LINES
        shades = matplotlib.colormaps["viridis_r"](np.linspace(0.08, 1.0, len(modules)))
        colours: list[Any] = list(SERIES[: len(modules)] if is_few else shades)
        for name, row, colour in zip(modules, use, colours, strict=True):
            label = look.shortened(name) if is_few else None
            axes.plot(
                complexity[order], row[order], "-o", color=colour, ms=3.5, lw=1.5, label=label
            )
        axes.plot([0, 1], [0, 1], ":", color=INK, lw=1.8, label="spread evenly")
        axes.legend(loc="upper left", frameon=False, fontsize=9)
        look.unit_axis(axes, "complexity: share of all components on")
        axes.set_ylim(-0.02, 1.03)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
        axes.set_ylabel("components of the T-module on")
        axes.grid(True)
        axes.set_title("Each T-module, beside an even spread")
        if not is_few:
            last = len(modules) - 1
            scale = matplotlib.cm.ScalarMappable(cmap="viridis_r")
            scale.set_clim(-0.087 * last, last)
            bar = figure.colorbar(scale, ax=axes, fraction=0.04, pad=0.02, ticks=[0, last])
            bar.ax.set_yticklabels(["first", "last"])
            bar.outline.set_visible(False)

    def _words(self) -> list[str]:
        return [
            f"{source}: later T-modules have {100 * self.tilt(source):+.1f} points more on than "
            "earlier ones (mean over the requests)."
            for source in self.sources()
        ]

    def _headline(self) -> str:
        told = []
        for source in self.sources():
            points = 100 * self.tilt(source)
            where = f"{'later' if points > 0 else 'earlier'} T-modules by {abs(points):.0f} points"
            told.append(f"{source}: {where if abs(points) >= 0.5 else 'evenly'}")
        return (
            "Where learned gates spend more\n" + "; ".join(told[:2]) + ("; ..." if told[2:] else "")
        )


def component_use(
    comparisons: Mapping[str, Comparison], *, methods: tuple[str, ...] | None = None
) -> ComponentUse:
    """The share of components that learned gates have on in every T-module (TNN Fig. 4).

    Args:
        comparisons: by name of the network.
        methods: which to show; None: every learned one.

    Raises:
        InvalidSetting: no such method was run.
    """
    rows = [
        ComponentRow(
            f"{network}, {METHOD_NAMES.get(result.method, result.method)}",
            module,
            place,
            u,
            result.curve.complexity[column],
            result.curve.module_use[place][column],
        )
        for network, comparison in comparisons.items()
        for result in comparison.results
        if (result.method in methods if methods else result.method not in STATIC)
        for place, module in enumerate(result.curve.modules)
        for column, u in enumerate(result.curve.utilizations)
    ]
    if not rows:
        known = [one.method for c in comparisons.values() for one in c.results]
        raise InvalidSetting(
            "Where learned gates spend is shown for at least one learned gate; the comparison has "
            f"{', '.join(known) or 'no method'}. Run it with reinforce or concrete among its "
            "methods."
        )
    return ComponentUse(tuple(rows))
