"""Means and intervals of rungs over the samples of one split; which rungs there are is elsewhere.

Axis letters: N samples, R resamples, H hull arms.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flyball.controllers.baselines import METRICS, Outcomes
from flyball.controllers.bootstrap import Interval, interval_of, resampled_means
from flyball.controllers.evaluation import Rung

__all__ = ["RungSamples"]

Floats = NDArray[np.float64]


class RungSamples:
    """Means and resampled means of every rung of one split; all rungs share the resamples.

    A rung's figures are the same bit for bit whatever rungs stand beside it.

    Args:
        named: outcomes (N, 5) and description of every rung.
        resamples: R, >= 1.
        level: confidence level of every interval, in (0, 1).
        seed: of the resamples.
    """

    def __init__(
        self,
        named: Mapping[str, tuple[Outcomes, str]],
        *,
        resamples: int,
        level: float,
        seed: Sequence[int],
    ) -> None:
        parts = [outcomes for outcomes, _ in named.values()]
        width = len(METRICS)
        self._level = level
        self._start = {name: width * i for i, name in enumerate(named)}
        self._mean = np.concatenate([part.mean(axis=0) for part in parts])[None, :]
        self._resampled = resampled_means(
            np.concatenate(parts, axis=1),
            resamples,
            np.random.default_rng(list(seed)),
            block=width,
        )

    def rung(self, name: str, detail: str) -> Rung:
        """One rung with an interval around every figure."""
        figures = {metric: self._interval(*self._column(name, metric)) for metric in METRICS}
        return Rung(name=name, detail=detail, **figures)

    def gain(self, arms: tuple[float, ...], hull: tuple[int, ...], account: str) -> Interval:
        """Accuracy over the static mixture that spends as much as the learned controller.

        In every resample the mixture is moved to that resample's cost.
        """
        names = [f"fixed_{arms[arm]:g}" for arm in hull]
        learned = self._column("learned", "accuracy")
        budget = self._column("learned", account)
        gains = []
        for which in (0, 1):
            cost = np.stack([self._column(name, "gross")[which] for name in names], axis=1)
            accuracy = np.stack([self._column(name, "accuracy")[which] for name in names], axis=1)
            gains.append(learned[which] - _mixture_accuracy(cost, accuracy, budget[which]))
        return self._interval(*gains)

    def advantage(self, name: str) -> tuple[float, Interval]:
        """Reward over the best fixed arm, paired."""
        pairs = zip(self._column(name, "reward"), self._column("best_fixed", "reward"), strict=True)
        gains = [theirs - fixed for theirs, fixed in pairs]
        return float(gains[0][0]), self._interval(*gains)

    def _column(self, name: str, metric: str) -> tuple[Floats, Floats]:
        """A figure on the samples as they are, (1,), and on every resample, (R,)."""
        index = self._start[name] + METRICS.index(metric)
        return self._mean[:, index], self._resampled[:, index]

    def _interval(self, estimate: Floats, resampled: Floats) -> Interval:
        return interval_of(float(estimate[0]), resampled, self._level)


def _mixture_accuracy(cost: Floats, accuracy: Floats, budget: Floats) -> Floats:
    """Accuracy of the hull (R, H) at one budget a resample, (R,)."""
    order = np.argsort(cost, axis=1, kind="stable")
    cost, accuracy = np.take_along_axis(cost, order, 1), np.take_along_axis(accuracy, order, 1)
    rows = zip(budget, cost, accuracy, strict=True)
    return np.array([np.interp(b, c, a) for b, c, a in rows], np.float64)
