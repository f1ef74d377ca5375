import numpy as np
import pytest
from numpy.typing import NDArray

from flyball.controllers.budget import Calibration, calibrate, price_for_budget, priced_choice
from flyball.datapaths.errors import CorruptArtifact, InvalidSetting

RATIOS = np.array([0.1, 0.4, 1.0])


def preferences(samples: int = 2000, seed: int = 0) -> NDArray[np.float32]:
    logits = np.random.default_rng(seed).normal(size=(samples, 3)) * 2
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def spent(propensities: NDArray[np.float32], price: float) -> float:
    return float(RATIOS[priced_choice(propensities, RATIOS, price)].mean())


def table(propensities: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.broadcast_to(RATIOS, propensities.shape)


def test_no_price_takes_the_most_probable_arm() -> None:
    propensities = preferences()
    expected = propensities.argmax(axis=1)
    assert np.array_equal(priced_choice(propensities, RATIOS, 0.0), expected)


def test_spending_falls_as_the_price_rises() -> None:
    propensities = preferences()
    costs = [spent(propensities, price) for price in np.linspace(-60, 60, 81)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == pytest.approx(1.0)
    assert costs[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("budget", [0.1, 0.101, 0.25, 0.4, 0.6, 0.99, 1.0])
def test_a_budget_is_met_but_for_one_sample_and_never_exceeded(budget: float) -> None:
    propensities = preferences()
    price = price_for_budget(propensities, table(propensities), budget)
    cost = spent(propensities, price)
    dearest_step = 0.9 / len(propensities)  # one sample moving from the cheapest to the dearest
    assert budget - dearest_step <= cost <= budget + 1e-9


def test_the_price_of_one_sample_is_where_its_two_arms_balance() -> None:
    # log(0.8 / 0.2) more for an arm that costs 0.5 more: the price is log(4) / 0.5.
    propensities = np.array([[0.2, 0.8]], np.float32)
    price = price_for_budget(propensities, np.array([[0.5, 1.0]]), 0.5)
    assert price == pytest.approx(np.log(4.0) / 0.5, rel=1e-6)  # 0.8 in float32


def test_a_calibration_spends_any_budget_within_its_tolerance() -> None:
    propensities = preferences()
    calibration = calibrate(propensities, table(propensities), tolerance=0.005)
    for budget in np.linspace(0.1, 1.0, 37):
        cost = spent(propensities, calibration.price(float(budget)))
        assert abs(cost - budget) <= 0.005
    assert list(calibration.prices) == sorted(calibration.prices, reverse=True)


def test_a_calibration_holds_on_samples_it_did_not_see() -> None:
    calibration = calibrate(preferences(), table(preferences()))
    unseen = preferences(seed=1)
    # Two means of 2000 costs between 0.1 and 1: a standard error of at most 0.45 / sqrt(1000).
    assert abs(spent(unseen, calibration.price(0.3)) - 0.3) <= 0.005 + 3 * 0.45 / np.sqrt(1000)


def test_costs_may_depend_on_the_sample() -> None:
    propensities = preferences()
    uneven = table(propensities) * np.random.default_rng(1).uniform(0.5, 1.5, propensities.shape)
    price = price_for_budget(propensities, uneven, 0.5)
    chosen = priced_choice(propensities, uneven.mean(axis=0), price)
    cost = uneven[np.arange(len(chosen)), chosen].mean()
    assert cost == pytest.approx(0.5, abs=1.5 / len(propensities))  # one sample's step


def test_a_certain_controller_can_still_be_moved() -> None:
    propensities = np.array([[0.0, 0.0, 1.0]] * 4, np.float32)
    assert spent(propensities, price_for_budget(propensities, table(propensities), 0.1)) == 0.1


def test_a_single_arm_has_one_budget() -> None:
    propensities = np.ones((5, 1), np.float32)
    calibration = calibrate(propensities, np.full((5, 1), 0.3))
    assert calibration.budgets == pytest.approx((0.3,))
    assert calibration.price(0.3) == calibration.prices[0]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0.05, "below the cheapest arm, which costs 0.1 .* 0.05 came. Ask for .* 0.1 to 1"),
        (1.2, "above the dearest arm, which costs 1 .* 1.2 came"),
        (float("nan"), "NaN came"),
    ],
)
def test_a_budget_outside_what_the_arms_cost_is_refused(budget: float, message: str) -> None:
    propensities = preferences()
    with pytest.raises(InvalidSetting, match=message):
        price_for_budget(propensities, table(propensities), budget)
    with pytest.raises(InvalidSetting, match=message):
        calibrate(propensities, table(propensities)).price(budget)


def test_no_samples_cannot_calibrate() -> None:
    with pytest.raises(InvalidSetting, match="rows of controller_val"):
        calibrate(np.zeros((0, 3), np.float32), np.zeros((0, 3)))


@pytest.mark.parametrize(
    ("budgets", "prices"),
    [((), ()), ((0.1, 0.2), (1.0,)), ((0.2, 0.1), (1.0, 2.0)), ((0.1,), (float("nan"),))],
)
def test_a_calibration_pairs_increasing_budgets_with_prices(
    budgets: tuple[float, ...], prices: tuple[float, ...]
) -> None:
    with pytest.raises(CorruptArtifact, match="increasing budgets with finite prices"):
        Calibration((0.1, 1.0), budgets, prices)
