"""Ways of gating compared: accuracy against what was really spent, in components and in MACs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.learned_gates.comparison import Comparison
from flyball.datapaths.learned_gates.curves import accuracy_at
from flyball.platform.analyses import look
from flyball.platform.analyses.tables import aligned
from flyball.platform.house_style import BLUE, GREEN, GREY, INK, ORANGE, PINK, RED, styled

__all__ = ["METHOD_NAMES", "GatePoint", "GatesCompared", "compare_methods"]

METHOD_NAMES = {
    "nested": "nested",
    "independent": "independent, random",
    "reinforce": "independent + REINFORCE",
    "concrete": "independent + Concrete",
    "contextual": "contextual",
    "contextual_fine": "contextual + fine",
}
"""Methods as `learned_gates.comparison` names them, and as a picture does."""

_LOOKS = {
    "nested": (BLUE, "o"),
    "independent": (GREY, "X"),
    "reinforce": (RED, "s"),
    "concrete": (ORANGE, "^"),
    "contextual": (GREEN, "D"),
    "contextual_fine": (PINK, "v"),
}
_COMPLEXITIES = (0.25, 0.5, 0.75, 1.0)
_POINTS = 41


@dataclass(frozen=True)
class GatePoint:
    """One way of gating at one request.

    Attributes:
        network: name of the network.
        method: way of gating.
        u: requested utilization.
        complexity: share of all components that was on, mean over samples.
        mac_share: MACs that the data path executed over those of the whole network.
        net_share: likewise, the gate's own MACs added.
        accuracy: share of right answers.
        samples: how many were measured.
    """

    network: str
    method: str
    u: float
    complexity: float
    mac_share: float
    net_share: float
    accuracy: float
    samples: int


@dataclass(frozen=True)
class GatesCompared:
    """TNN Fig. 3: accuracy of gate control methods, one column of panels for each network.

    Attributes:
        rows: by network, method and request.
        at_equal_complexity: accuracy at the complexities .25, .5, .75 and 1, by network and
            method; None where a method never spends so much or so little.
        over_nested: mean accuracy of a method less that of nested gates, at equal complexity over
            the range that both cover; by network and method.
        over_random: the same less that of independent random gates.
        chance: accuracy of always giving the most frequent class, by network.
    """

    rows: tuple[GatePoint, ...]
    at_equal_complexity: dict[str, dict[str, tuple[float | None, ...]]]
    over_nested: dict[str, dict[str, float]]
    over_random: dict[str, dict[str, float]]
    chance: dict[str, float]
    name: ClassVar[str] = "gates"

    def table(self) -> str:
        """Every network and method at equal complexity, and whether the paper's finding holds."""
        rows = []
        for network, methods in self.at_equal_complexity.items():
            for method, heights in methods.items():
                spent = [r.complexity for r in self._part(network, method)]
                over = [gaps[network].get(method) for gaps in (self.over_nested, self.over_random)]
                rows.append(
                    [
                        network,
                        METHOD_NAMES.get(method, method),
                        *("-" if h is None else f"{100 * h:.1f}%" for h in heights),
                        f"{min(spent):.2f} to {max(spent):.2f}",
                        *("" if gap is None else f"{100 * gap:+.1f}" for gap in over),
                    ]
                )
        titles = ["network", "gates", *(f"at c={c:g}" for c in _COMPLEXITIES)]
        lines = aligned([*titles, "c covered", "over nested", "over random"], rows, left=2)
        points = [
            [
                r.network,
                METHOD_NAMES.get(r.method, r.method),
                f"{r.u:g}",
                *(f"{value:.3f}" for value in (r.complexity, r.mac_share, r.net_share)),
                f"{100 * r.accuracy:.1f}%",
            ]
            for r in self.rows
        ]
        titles = ["network", "gates", "u", "complexity", "MAC share", "with the gate", "accuracy"]
        lines += ["", *aligned(titles, points, left=2), ""]
        lines.append(
            "c: complexity, the share of all components that was on; -: not covered. Over nested, "
            "over random: points of accuracy at equal c, mean over the range that both cover."
        )
        return "\n".join([*lines, *self.reading()])

    def reading(self) -> list[str]:
        """What the paper found, and whether it holds here, network by network."""
        lines = []
        for network, over in self.over_nested.items():
            random = self.over_random[network]
            learned = {m: v for m, v in random.items() if m in ("reinforce", "concrete")}
            if over:
                best = max(over, key=lambda method: over[method])
                verb = "beats" if over[best] < 0 else "does not beat"
                lines.append(
                    f"{network}: nested {verb} every other way at equal complexity (closest: "
                    f"{METHOD_NAMES.get(best, best)}, {100 * over[best]:+.1f} points)."
                )
            if learned:
                worst = min(learned, key=lambda method: learned[method])
                verb = "beat" if learned[worst] > 0 else "do not all beat"
                lines.append(
                    f"{network}: learned gates {verb} random ones (least gain: "
                    f"{METHOD_NAMES[worst]}, {100 * learned[worst]:+.1f} points)."
                )
        return lines

    def figure(self) -> Figure:
        """A column of two panels for each network: against complexity, and against MACs."""
        networks = list(self.at_equal_complexity)
        with styled():
            width = max(8.5, 1.5 + 5.0 * len(networks))
            figure = look.blank_figure(width, 9.6, self._headline())
            grid = figure.subplots(2, len(networks), sharey="col", squeeze=False)
            for column, network in enumerate(networks):
                above, below = grid[0, column], grid[1, column]
                heights = [r.accuracy for r in self.rows if r.network == network]
                for axes, spent in ((above, "complexity"), (below, "net_share")):
                    self._draw(axes, network, spent)
                    label = "accuracy on test" if column == 0 else ""
                    look.accuracy_axis(axes, heights, heights, label)
                above.set_title(network)
                look.unit_axis(above, "complexity: share of components on")
                furthest = max(r.net_share for r in self.rows if r.network == network)
                words = "executed MACs, the gate's own too / whole network"
                look.unit_axis(below, words, highest=furthest)
            look.legend_below(figure, self._legend(), columns=3)
            figure.draw_without_rendering()
        return figure

    def summary(self) -> dict[str, float]:
        """Accuracy over nested and over random gates, at equal complexity."""
        gaps = {"over_nested": self.over_nested, "over_random": self.over_random}
        return {
            f"{network}/{method}/{name}": value
            for name, by_network in gaps.items()
            for network, by_method in by_network.items()
            for method, value in by_method.items()
        }

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Accuracy and complexity by per cent of requested utilization."""
        return [
            (
                round(100 * r.u),
                {
                    f"gates/{r.network}/{r.method}/accuracy": r.accuracy,
                    f"gates/{r.network}/{r.method}/complexity": r.complexity,
                },
            )
            for r in self.rows
        ]

    def extras(self) -> dict[str, Any]:
        """What was compared at equal complexity, and the reading."""
        return {
            "complexities": list(_COMPLEXITIES),
            "at_equal_complexity": self.at_equal_complexity,
            "over_nested": self.over_nested,
            "over_random": self.over_random,
            "chance": self.chance,
            "reading": self.reading(),
        }

    def _part(self, network: str, method: str) -> list[GatePoint]:
        return [r for r in self.rows if (r.network, r.method) == (network, method)]

    def _draw(self, axes: Axes, network: str, spent: str) -> None:
        for method in self.at_equal_complexity[network]:
            part = sorted(self._part(network, method), key=lambda r: float(getattr(r, spent)))
            x, y = [getattr(r, spent) for r in part], [r.accuracy for r in part]
            axes.plot(x, y, zorder=4 if method == "nested" else 3, **_drawn(method))

    def _legend(self) -> list[Any]:
        methods = dict.fromkeys(row.method for row in self.rows)
        return [
            Line2D([], [], **_drawn(method), label=METHOD_NAMES.get(method, method))
            for method in methods
        ]

    def _headline(self) -> str:
        """On how many networks the paper's two findings hold."""
        nested = [max(over.values()) < 0 for over in self.over_nested.values() if over]
        learned = [
            min(known) > 0
            for over in self.over_random.values()
            if (known := [over[m] for m in ("reinforce", "concrete") if m in over])
        ]
        findings = (
            ("nested gates beat every other way", nested),
            ("learned gates beat random ones", learned),
        )
        told = [
            f"{what} on {sum(holds)} of {len(holds)} networks" for what, holds in findings if holds
        ]
        lines = ["Gate control: accuracy against what was spent"]
        return "\n".join(lines + (["at equal complexity " + ", ".join(told)] if told else []))


def compare_methods(comparisons: Mapping[str, Comparison]) -> GatesCompared:
    """Lays comparisons of gates side by side (TNN Fig. 3, section 4.2).

    Args:
        comparisons: by name of the network.

    Raises:
        InvalidSetting: there is none, or one has no method.
    """
    empty = [name for name, comparison in comparisons.items() if not comparison.results]
    if not comparisons or empty:
        raise InvalidSetting(
            "A comparison of gates has at least one network, each with at least one method; "
            f"{empty or 'nothing'} came without. Run `flyball analyse gates PRESET`."
        )
    rows = tuple(
        GatePoint(network, *row, samples=result.curve.samples)
        for network, comparison in comparisons.items()
        for result in comparison.results
        for row in comparison.rows()
        if row.method == result.method
    )
    return GatesCompared(
        rows=rows,
        at_equal_complexity={
            network: {
                result.method: tuple(_known(accuracy_at(result.curve, c)) for c in _COMPLEXITIES)
                for result in comparison.results
            }
            for network, comparison in comparisons.items()
        },
        over_nested={name: _gaps(one, "nested") for name, one in comparisons.items()},
        over_random={name: _gaps(one, "independent") for name, one in comparisons.items()},
        chance={network: comparison.chance for network, comparison in comparisons.items()},
    )


def _gaps(comparison: Comparison, reference: str) -> dict[str, float]:
    """Mean accuracy over the reference at equal complexity, of every method that overlaps it."""
    curves = {result.method: result.curve for result in comparison.results}
    other = curves.pop(reference, None)
    gaps: dict[str, float] = {}
    if other is None:
        return gaps
    for method, curve in curves.items():
        low = max(min(curve.complexity), min(other.complexity))
        high = min(max(curve.complexity), max(other.complexity))
        if low < high:
            at = np.linspace(low, high, _POINTS)
            gaps[method] = float(
                np.mean([accuracy_at(curve, c) - accuracy_at(other, c) for c in at])
            )
    return gaps


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _drawn(method: str) -> dict[str, Any]:
    colour, marker = _LOOKS.get(method, (INK, "P"))
    is_nested = method == "nested"
    return {"color": colour, "marker": marker, "ms": 6, "lw": 2.4 if is_nested else 1.4}
