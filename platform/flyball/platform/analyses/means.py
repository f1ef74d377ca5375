"""Means of outcomes over samples with their intervals, arm by arm. N samples, K arms."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball.controllers.bootstrap import Interval, interval_of, resampled_means
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import DataError

__all__ = ["ArmMean", "area_under", "arm_means", "rows_of"]

RESAMPLES, LEVEL, SEED = 1000, 0.95, 0


@dataclass(frozen=True)
class ArmMean:
    """What one arm does on some samples.

    Attributes:
        u: utilization.
        accuracy: mean of `correct`, with a 95 % bootstrap interval.
        throttle_ratio: mean share of the full data path's MACs.
    """

    u: float
    accuracy: Interval
    throttle_ratio: float


def arm_means(atlas: OutcomeAtlas) -> tuple[ArmMean, ...]:
    """Every arm on all rows of an atlas; the means are the atlas's own, only ends are resampled."""
    correct = np.asarray(atlas.correct, np.float64)
    means = correct.mean(axis=0)
    resampled = resampled_means(correct, RESAMPLES, np.random.default_rng(SEED))
    ratios = atlas.throttle_ratio().mean(axis=0)
    return tuple(
        ArmMean(u, interval_of(float(means[k]), resampled[:, k], LEVEL), float(ratios[k]))
        for k, u in enumerate(atlas.arms)
    )


def area_under(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Mean height of the line through the points: its area over the width it covers."""
    if len(x) < 2:
        return float(y[0])
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def rows_of(atlas: OutcomeAtlas, split: str) -> OutcomeAtlas:
    """The rows of a split that an analysis measures on.

    Raises:
        DataError: there are none.
    """
    rows = atlas.take(split)
    if not len(rows):
        raise DataError(
            f"An analysis measures on the {split} rows of the atlas, and it has none. "
            "Give the split a share with --set data.fractions=0.5,0.25,0.1,0.15."
        )
    return rows
