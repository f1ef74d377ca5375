import numpy as np
import pytest

from flyball.controllers.bootstrap import Interval, interval_of, resampled_means


def means(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    return resampled_means(values, resamples, np.random.default_rng(seed))


def test_a_resample_of_one_value_is_that_value() -> None:
    assert np.array_equal(means(np.full((7, 1), 2.5), 50), np.full((50, 1), 2.5))


def test_a_mean_of_two_rows_takes_three_values_with_the_odds_of_two_coins() -> None:
    drawn = means(np.array([[0.0], [1.0]]), 4000)[:, 0]
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    # 4000 draws at probability 1/4 and 1/2: four standard errors are 0.032.
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.032)


def test_columns_share_their_resamples() -> None:
    values = np.random.default_rng(1).normal(size=(40, 1))
    drawn = means(np.concatenate([values, 3.0 - values], axis=1), 200)
    np.testing.assert_allclose(drawn.sum(axis=1), 3.0, rtol=1e-12)  # float64 rounding


def test_the_same_seed_gives_the_same_means_and_another_seed_others() -> None:
    values = np.random.default_rng(1).normal(size=(40, 2))
    assert np.array_equal(means(values, seed=3), means(values, seed=3))
    assert not np.array_equal(means(values, seed=3), means(values, seed=4))


def test_resamples_spread_like_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=(500, 1))
    expected = values.std() / np.sqrt(500)
    # The spread of 4000 draws is known to 1 / sqrt(8000) of itself; four of those.
    assert means(values, 4000).std() == pytest.approx(expected, rel=4 / np.sqrt(8000))


def test_an_interval_leaves_half_of_the_rest_on_each_side() -> None:
    interval = interval_of(0.4, np.arange(101) / 100, 0.9)
    assert interval.to_json() == pytest.approx([0.4, 0.05, 0.95])


def test_intervals_of_ninety_five_percent_hold_the_truth_as_often() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        sample = (rng.random((150, 1)) < 0.7).astype(np.float64)
        interval = interval_of(0.0, resampled_means(sample, 300, rng)[:, 0], 0.95)
        held += interval.low <= 0.7 <= interval.high
    # 200 trials at 0.95: four standard errors are 0.062.
    assert held / 200 >= 0.95 - 0.062


def test_many_rows_are_resampled_in_parts_that_agree_with_the_whole() -> None:
    values = np.random.default_rng(1).normal(size=(30_000, 1))
    drawn = means(values, 200)  # 6 million indices: several parts
    assert drawn.shape == (200, 1)
    assert len(np.unique(drawn)) == 200
    assert drawn.mean() == pytest.approx(values.mean(), abs=4 / np.sqrt(30_000 * 200))


def test_an_interval_survives_json() -> None:
    assert Interval.from_json(Interval(0.1, -0.2, 0.3).to_json()) == Interval(0.1, -0.2, 0.3)
