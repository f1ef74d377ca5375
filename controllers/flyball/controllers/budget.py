"""Steering a trained controller to a budget by one price; nothing here learns or evaluates.

A price is charged for each unit of throttle ratio: the arm chosen is the one with the largest
log propensity - price x throttle ratio. Raising the price can only move a choice to a cheaper arm,
so mean spending falls monotonically and every budget between the cheapest and the dearest arm
has its price.

Axis letters: N samples, K arms.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flyball.datapaths.errors import CorruptArtifact, InvalidSetting

__all__ = ["Calibration", "calibrate", "price_for_budget", "priced_choice"]

Floats = NDArray[np.float64]

_SMALLEST = float(np.finfo(np.float32).tiny)
"""A propensity that underflowed counts as this, so that its logarithm is finite."""

_ENOUGH = 1.0 - math.log(_SMALLEST)
"""No two log propensities differ by as much; a larger price changes no choice further."""


@dataclass(frozen=True)
class Calibration:
    """Which price spends which budget, measured on held-out samples.

    Attributes:
        ratios: net throttle ratio that each of the K arms costs on average, > 0.
        budgets: mean net throttle ratios that were measured, increasing.
        prices: the price that spent each budget, per unit of throttle ratio, decreasing; one
            may be negative, where the budget is more than the controller spends by itself.
    """

    ratios: tuple[float, ...]
    budgets: tuple[float, ...]
    prices: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = (*self.ratios, *self.budgets, *self.prices)
        is_table = len(self.budgets) == len(self.prices) > 0 and len(self.ratios) > 0
        is_increasing = all(a < b for a, b in itertools.pairwise(self.budgets))
        if not is_table or not is_increasing or not all(math.isfinite(n) for n in numbers):
            raise CorruptArtifact(
                "A calibration pairs increasing budgets with finite prices; got "
                f"{len(self.budgets)} budgets and {len(self.prices)} prices for "
                f"{len(self.ratios)} arms. Calibrate the controller again."
            )

    def price(self, budget: float) -> float:
        """The price that spends `budget`, interpolated between the measured ones.

        Args:
            budget: mean net throttle ratio asked for.

        Raises:
            InvalidSetting: it is NaN, below the cheapest arm or above the dearest.
        """
        _check_budget(budget, self.budgets[0], self.budgets[-1])
        return float(np.interp(budget, self.budgets, self.prices))


def priced_choice(
    propensities: NDArray[np.float32], ratios: ArrayLike, price: float
) -> NDArray[np.int64]:
    """The arm with the largest log propensity - price x throttle ratio; int64 (N,).

    Args:
        propensities: probability of each arm, (N, K).
        ratios: net throttle ratio of each arm, (K,).
        price: per unit of throttle ratio; 0 gives the most probable arm.
    """
    scores = np.log(np.maximum(np.asarray(propensities, np.float64), _SMALLEST))
    chosen: NDArray[np.int64] = np.argmax(scores - price * np.asarray(ratios, np.float64), axis=1)
    return chosen


def price_for_budget(
    propensities: NDArray[np.float32], throttle_ratio: Floats, budget: float
) -> float:
    """The smallest price, by bisection, whose mean throttle ratio does not exceed the budget.

    Args:
        propensities: what the controller gives each arm on held-out samples, (N, K).
        throttle_ratio: net throttle ratio of every arm on the same samples, (N, K).
        budget: mean net throttle ratio asked for.

    Raises:
        InvalidSetting: the budget is NaN, below the cheapest arm or above the dearest; or there
            are no samples.
    """
    spending = _Spending(propensities, throttle_ratio)
    high, low = spending.highest_price, -spending.highest_price
    _check_budget(budget, spending(high), spending(low))
    if spending(low) <= budget:
        return low
    while high - low > 1e-9 * max(1.0, abs(high)):
        middle = (low + high) / 2
        if spending(middle) <= budget:
            high = middle
        else:
            low = middle
    return high


def calibrate(
    propensities: NDArray[np.float32], throttle_ratio: Floats, *, tolerance: float = 0.005
) -> Calibration:
    """Measures spending at enough prices that any budget is met within `tolerance`.

    The exception is a budget inside a step that many identical samples make together.

    Args:
        propensities: what the controller gives each arm on held-out samples, (N, K).
        throttle_ratio: net throttle ratio of every arm on the same samples, (N, K).
        tolerance: largest step of spending between two neighbouring prices, > 0.

    Raises:
        InvalidSetting: there are no samples.
    """
    spending = _Spending(propensities, throttle_ratio)
    measured = {p: spending(p) for p in (-spending.highest_price, 0.0, spending.highest_price)}
    prices = sorted(measured)
    pending = list(itertools.pairwise(prices))
    while pending:
        low, high = pending.pop()
        is_close = measured[low] - measured[high] <= tolerance
        if is_close or high - low <= 1e-6 * max(1.0, abs(low), abs(high)):
            continue
        middle = (low + high) / 2
        measured[middle] = spending(middle)
        pending += [(low, middle), (middle, high)]
    cheapest_first = sorted(measured.items(), key=lambda pair: (pair[1], abs(pair[0])))
    knots = {budget: price for price, budget in reversed(cheapest_first)}
    budgets = sorted(knots)
    return Calibration(
        ratios=tuple(float(ratio) for ratio in spending.ratios),
        budgets=tuple(budgets),
        prices=tuple(knots[budget] for budget in budgets),
    )


class _Spending:
    """Mean net throttle ratio as a function of the price."""

    def __init__(self, propensities: NDArray[np.float32], throttle_ratio: Floats) -> None:
        self.table = np.asarray(throttle_ratio, np.float64)
        if not self.table.size or self.table.shape != np.shape(propensities):
            raise InvalidSetting(
                "A budget is calibrated on held-out samples, with one propensity and one cost for "
                f"every arm; got propensities of shape {np.shape(propensities)} and throttle "
                f"ratios of shape {self.table.shape}. Give the rows of controller_val."
            )
        self.ratios = self.table.mean(axis=0)
        self.logs = np.log(np.maximum(np.asarray(propensities, np.float64), _SMALLEST))
        gaps = np.diff(np.unique(self.ratios))
        self.highest_price = _ENOUGH / float(gaps.min()) if len(gaps) else 1.0

    def __call__(self, price: float) -> float:
        chosen = np.argmax(self.logs - price * self.ratios, axis=1)
        return float(np.take_along_axis(self.table, chosen[:, None], axis=1).mean())


def _check_budget(budget: float, lowest: float, highest: float) -> None:
    advice = f"Ask for a budget from {lowest:.4g} to {highest:.4g}."
    if math.isnan(budget):
        raise InvalidSetting(f"A budget is a mean net throttle ratio; NaN came. {advice}")
    slack = 1e-9
    if budget < lowest - slack:
        raise InvalidSetting(
            f"A budget cannot be below the cheapest arm, which costs {lowest:.4g} of the full data "
            f"path, controller included; {budget:.4g} came. {advice}"
        )
    if budget > highest + slack:
        raise InvalidSetting(
            f"A budget cannot be above the dearest arm, which costs {highest:.4g} of the full data "
            f"path, controller included; {budget:.4g} came. {advice}"
        )
