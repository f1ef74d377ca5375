"""Confidence intervals by resampling samples; what is measured on them lives in `evaluate`.

Axis letters: N samples, M columns, R resamples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "interval_of", "resampled_means"]

Floats = NDArray[np.float64]

_INDICES_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that holds it.

    Attributes:
        mean: the estimate on the samples as they are.
        low: lower end of the percentile interval.
        high: upper end.
    """

    mean: float
    low: float
    high: float

    def to_json(self) -> list[float]:
        """[mean, low, high]."""
        return [self.mean, self.low, self.high]

    @classmethod
    def from_json(cls, value: Any) -> "Interval":
        """The inverse of `to_json`."""
        mean, low, high = (float(number) for number in value)
        return cls(mean, low, high)


def resampled_means(
    values: Floats, resamples: int, rng: np.random.Generator, *, block: int | None = None
) -> Floats:
    """Means of M columns over R resamples of the N rows, drawn with replacement.

    Every column sees the same resamples, so differences between columns are paired (Efron and
    Tibshirani 1993, section 8).

    Args:
        values: (N, M), N >= 1.
        resamples: R, >= 1.
        rng: draws the rows; the same state gives the same means.
        block: columns that are multiplied at once, >= 1. The last bits of a column then depend on
            nothing outside its block; None: on how many columns there are.

    Returns:
        float64 (R, M).
    """
    count = len(values)
    width = values.shape[1] if block is None else block
    blocks = [
        np.ascontiguousarray(values[:, left : left + width], np.float64)
        for left in range(0, values.shape[1], width)
    ]
    means = np.empty((resamples, values.shape[1]))
    at_once = max(1, _INDICES_AT_ONCE // count)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(0, count, size=(rows, count))
        drawn += (np.arange(rows) * count)[:, None]
        times_drawn = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        weights = times_drawn.astype(np.float64)
        means[start : start + rows] = np.concatenate([weights @ part for part in blocks], axis=1)
    return means / count


def interval_of(estimate: float, resampled: Floats, level: float) -> Interval:
    """The percentile interval of an estimate.

    Args:
        estimate: on the samples as they are.
        resampled: the same figure on every resample, (R,).
        level: share of resamples inside the interval, in (0, 1).
    """
    tail = (1.0 - level) / 2
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Interval(float(estimate), float(low), float(high))
