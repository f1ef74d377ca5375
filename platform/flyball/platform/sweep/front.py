"""The trade-off that a sweep found: its front of accuracy against cost, and who serves which name.

Everything is measured on controller_val. Values alone; the text of it is in `front_table`, the
picture in `front_picture`.

Axis letters: N samples, K arms.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flyball.controllers import baselines as base
from flyball.controllers.evaluate import EvaluationConfig
from flyball.controllers.evaluation import Rung
from flyball.controllers.rung_samples import RungSamples
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.splits import CONTROLLER_VAL, split_code
from flyball.envs.reward import RewardConfig
from flyball.platform.sweep.result import PointResult

__all__ = [
    "BUDGETS",
    "Front",
    "References",
    "choose",
    "find_front",
    "hypervolume",
    "measure_references",
    "on_the_front",
]

FORMAT = 1
BUDGETS = (10, 20, 30, 50)
"""Net throttle ratios, in per cent, that get a `budget-NN` alias where none are asked for."""


@dataclass(frozen=True)
class References:
    """What the front is compared with; none of it pays for a controller.

    Attributes:
        fixed: every arm on every sample, in order of utilization.
        hull: indices of the arms that static mixtures use, in order of cost: mixtures reach every
            point of the line through them.
        oracle: takes the cheapest right arm of every sample, and the cheapest of all where none is
            right: no choice of arms is more accurate, or as accurate and cheaper. It takes luck
            for skill, so nothing reaches it.
        level: confidence level of the intervals.
        samples: rows of controller_val.
    """

    fixed: tuple[Rung, ...]
    hull: tuple[int, ...]
    oracle: Rung
    level: float
    samples: int

    def static_accuracy(self, net: float) -> float:
        """Accuracy of the static mixture that spends `net`, or as near to it as one can."""
        arms = [self.fixed[arm] for arm in self.hull]
        cost, accuracy = [arm.net.mean for arm in arms], [arm.accuracy.mean for arm in arms]
        return float(np.interp(net, cost, accuracy))

    def static_hypervolume(self) -> float:
        """`hypervolume` of all static mixtures together."""
        arms = [self.fixed[arm] for arm in self.hull]
        cost = np.array([*(min(1.0, arm.net.mean) for arm in arms), 1.0])
        accuracy = np.array([arm.accuracy.mean for arm in arms])
        accuracy = np.append(accuracy, accuracy[-1])
        return float((np.diff(cost) * (accuracy[1:] + accuracy[:-1]) / 2).sum())


@dataclass(frozen=True)
class Front:
    """The points of a sweep, and which of them are worth a choice.

    Attributes:
        points: all that were trained, in order of their keys.
        front: those that no other point beats, in order of cost and so of accuracy; some may
            still be beaten by a static mixture (`PointResult.dominated`).
        aliases: the point that serves each name, see `choose`.
        references: static mixtures and oracle.
    """

    points: tuple[PointResult, ...]
    front: tuple[PointResult, ...]
    aliases: dict[str, PointResult]
    references: References

    @property
    def hypervolume(self) -> float:
        """Area between the front and the reference point, in [0, 1]; see `hypervolume`."""
        return hypervolume(self.front)

    def names_of(self, point: PointResult) -> tuple[str, ...]:
        """The aliases that a point serves."""
        return tuple(name for name, held in self.aliases.items() if held.key == point.key)

    @property
    def added_hypervolume(self) -> float:
        """Area that the front beats and no static mixture does: what was gained by looking."""
        known = self.references
        arms = [known.fixed[arm].net.mean for arm in known.hull]
        costs = [point.net.mean for point in self.front]
        ends = sorted({min(1.0, cost) for cost in (*arms, *costs, 1.0)})
        added = 0.0
        for left, right in itertools.pairwise(ends):
            reached = [p.accuracy.mean for p in self.front if p.net.mean <= left]
            first = known.static_accuracy(left) if left >= min(arms) else 0.0
            last = known.static_accuracy(right) if left >= min(arms) else 0.0
            over = max(reached, default=0.0) - np.array([first, last])
            if over.max() > 0:  # the mixture's line may cross the front within the piece
                share = 1.0 if over.min() >= 0 else over.max() / (over.max() - over.min())
                added += (right - left) * share * (over.max() + max(0.0, over.min())) / 2
        return float(added)

    def summary(self) -> dict[str, float]:
        """The figures that sweeps are compared by, flat."""
        figures = {
            "points": float(len(self.points)),
            "front_points": float(len(self.front)),
            "points_beating_static": float(sum(p.beats_static for p in self.points)),
            "hypervolume": self.hypervolume,
            "hypervolume_static": self.references.static_hypervolume(),
            "hypervolume_over_static": self.added_hypervolume,
            "best_gain_over_static": max(p.gain_over_static.mean for p in self.points),
        }
        for name, point in self.aliases.items():
            figures[f"{name}/accuracy"] = point.accuracy.mean
            figures[f"{name}/net"] = point.net.mean
        return figures

    def to_json(self) -> dict[str, Any]:
        """Plain values: points with their runs, keys of the front, aliases, references."""
        known = self.references
        return {
            "format": FORMAT,
            "split": CONTROLLER_VAL,
            "level": known.level,
            "samples": known.samples,
            "summary": self.summary(),
            "points": [_plain(point) for point in self.points],
            "front": [point.key for point in self.front],
            "aliases": {name: point.key for name, point in self.aliases.items()},
            "fixed": [rung.to_json() for rung in known.fixed],
            "static_mixture": [known.fixed[arm].name for arm in known.hull],
            "per_sample_oracle": known.oracle.to_json(),
        }


def find_front(
    results: Iterable[PointResult],
    atlas: OutcomeAtlas,
    config: EvaluationConfig | None = None,
    *,
    budgets: Sequence[int] = BUDGETS,
) -> Front:
    """The front of a sweep's points, with static mixture and oracle of its atlas beside it.

    Args:
        results: finished points of one atlas; at least one.
        atlas: what they learned from.
        config: how sure the references are made.
        budgets: per cents that get an alias `budget-NN`.

    Raises:
        InvalidSetting: there are no points, or a budget is no whole per cent from 1 to 100.
    """
    points = tuple(sorted(results, key=lambda point: point.key))
    if not points:
        raise InvalidSetting(
            "A front is made of finished points; none came. Look why the sweep's points failed, "
            "then run the same command with --resume."
        )
    front = on_the_front(points)
    references = measure_references(atlas, config)
    return Front(points, front, choose(front, budgets), references)


def on_the_front(points: Iterable[PointResult]) -> tuple[PointResult, ...]:
    """The points that no other is as good as in both accuracy and cost; in order of cost.

    Of points with equal figures the one with the first key stays.
    """
    kept: list[PointResult] = []
    for point in sorted(points, key=lambda p: (p.net.mean, -p.accuracy.mean, p.key)):
        if not kept or point.accuracy.mean > kept[-1].accuracy.mean:
            kept.append(point)
    return tuple(kept)


def hypervolume(front: Iterable[PointResult]) -> float:
    """Area of (net throttle ratio, accuracy) that some point of the front beats, in [0, 1].

    The reference point is accuracy 0 at net throttle ratio 1, worse than any useful choice and
    the same for every data path; what lies beyond it counts nothing.
    """
    area, best = 0.0, 0.0
    for point in sorted(front, key=lambda p: p.net.mean):
        if point.accuracy.mean > best:
            area += (point.accuracy.mean - best) * max(0.0, 1.0 - point.net.mean)
            best = point.accuracy.mean
    return area


def choose(
    front: Sequence[PointResult], budgets: Sequence[int] = BUDGETS
) -> dict[str, PointResult]:
    """Which point serves which alias.

    "champion" gains most over the static mixture; there is none where that gain may be chance.
    The others are chosen among the points of the front that the static mixture does not beat, or
    among all where it beats them all: "eco" is the cheapest, "peak" the most accurate, "balanced"
    the knee, the point farthest above the line from eco to peak with both axes in units of that
    span (the cheapest of equals): unlike a point's share of the hypervolume it neither needs a
    reference point nor rewards a point for standing alone. "budget-NN" is the most accurate whose
    net throttle ratio is NN % or less; there is none where all cost more.

    Raises:
        InvalidSetting: a budget is no whole per cent from 1 to 100.
    """
    for budget in budgets:
        if isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= 100:
            raise InvalidSetting(
                f"A budget is a whole per cent of the full data path, 1 to 100; {budget!r} came. "
                "Give one such as 30."
            )
    chosen: dict[str, PointResult] = {}
    sure = [point for point in front if point.beats_static]
    if sure:
        chosen["champion"] = max(sure, key=lambda p: (p.gain_over_static.mean, -p.net.mean))
    worth = [point for point in front if not point.dominated] or list(front)
    if worth:
        eco, peak = worth[0], worth[-1]
        chosen |= {"eco": eco, "balanced": _knee(worth), "peak": peak}
    for budget in sorted(set(budgets)):
        within = [point for point in worth if point.net.mean <= budget / 100]
        if within:
            chosen[f"budget-{budget}"] = within[-1]
    return chosen


def measure_references(atlas: OutcomeAtlas, config: EvaluationConfig | None = None) -> References:
    """Fixed arms, static mixtures and oracle on controller_val, from the atlas alone.

    Raises:
        InvalidSetting: the atlas has no rows of controller_val.
    """
    config = EvaluationConfig() if config is None else config
    part = atlas.take(CONTROLLER_VAL)
    if not len(part):
        raise InvalidSetting(
            "A front is measured on controller_val, of which the atlas has no rows. Build the "
            "outcomes with other data.fractions."
        )
    table = base.outcome_table(part, RewardConfig())
    count = len(part.arms)
    named = {
        f"fixed_{arm:g}": (base.outcomes_of(table, np.eye(count)[k]), f"u = {arm:g}")
        for k, arm in enumerate(part.arms)
    }
    right = base.OutcomeTable(
        table.utilization, table.correct, table.gross, table.net, reward=table.correct
    )
    cheapest = base.of_choice(base.oracle_choice(right), count)
    named["per_sample_oracle"] = (base.outcomes_of(table, cheapest), "the cheapest right arm")
    samples = RungSamples(
        named,
        resamples=config.bootstrap,
        level=config.confidence_level,
        seed=(config.seed, split_code(CONTROLLER_VAL)),
    )
    rungs = {name: samples.rung(name, detail) for name, (_, detail) in named.items()}
    oracle = rungs.pop("per_sample_oracle")
    hull = base.concave_hull(table.gross.mean(axis=0), table.correct.mean(axis=0))
    return References(tuple(rungs.values()), hull, oracle, config.confidence_level, len(part))


def _knee(front: Sequence[PointResult]) -> PointResult:
    eco, peak = front[0], front[-1]
    span = peak.net.mean - eco.net.mean or 1.0
    rise = peak.accuracy.mean - eco.accuracy.mean or 1.0

    def above(point: PointResult) -> float:
        gained = (point.accuracy.mean - eco.accuracy.mean) / rise
        return gained - (point.net.mean - eco.net.mean) / span

    return max(front, key=above)


def _plain(point: PointResult) -> Mapping[str, Any]:
    """A point's figures without its curve and its times, so that a repeated sweep's are equal."""
    left_out = ("format", "curve", "seconds", "starts")
    return {name: value for name, value in point.to_json().items() if name not in left_out}
