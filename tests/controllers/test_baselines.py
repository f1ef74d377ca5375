import numpy as np
import pytest
from numpy.typing import NDArray

from flyball.controllers import baselines as base
from flyball.controllers.cascade import Cascade, cascade_outcomes, tune_cascade
from flyball.controllers.informed import fit_informed_head
from flyball.controllers.ladder import choose_baselines
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.envs.reward import RewardConfig, reward_of

EQ3 = RewardConfig()


def four_samples() -> OutcomeAtlas:
    """Arms cost .25, .5, 1; right: never, only dear, from the middle on, always."""
    return OutcomeAtlas.from_arrays(
        (0.25, 0.5, 1.0),
        correct=[[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]],
        confidence=[[0.5, 0.6, 0.7], [0.4, 0.9, 0.9], [0.3, 0.8, 0.9], [0.9, 0.9, 0.9]],
        macs=[25, 50, 100],
        label=[0, 0, 1, 1],
        classes=("a", "b", "c"),
    )


def random_atlas(samples: int = 600, seed: int = 0, arms: int = 4) -> OutcomeAtlas:
    rng = np.random.default_rng(seed)
    ease = rng.random((samples, 1))
    confidence = rng.uniform(0.2, 1.0, (samples, arms))
    correct = rng.random((samples, arms)) < (ease + confidence) / 2
    label = rng.integers(0, 3, samples)
    wrong = (label[:, None] + rng.integers(1, 3, (samples, arms))) % 3
    return OutcomeAtlas.from_arrays(
        [(k + 1) / arms for k in range(arms)],
        correct=correct,
        confidence=confidence,
        macs=100 * (np.arange(arms) + 1) ** 2,
        answer=np.where(correct, label[:, None], wrong),
        label=label,
        classes=("a", "b", "c"),
    )


def mean_paid(outcomes: NDArray[np.float64]) -> float:
    return float(outcomes[:, base.METRICS.index("reward")].mean())


def test_a_policy_over_arms_has_the_expected_outcomes() -> None:
    table = base.outcome_table(four_samples(), EQ3)
    outcomes = base.outcomes_of(table, np.array([0.5, 0.5, 0.0]))
    # Right a quarter of the time at arm 0 and half at arm 1; costs .25 and .5.
    np.testing.assert_allclose(outcomes.mean(axis=0)[:4], [0.375, 0.375, 0.375, 0.375])
    right, wrong = np.exp(0.75) * 0.75, -(0.5 + 0.5) * (0.25 + 1.5)
    assert table.reward[3, 0] == pytest.approx(right)
    assert table.reward[0, 0] == pytest.approx(wrong)


def test_net_costs_count_the_controller_and_its_context_once() -> None:
    atlas = OutcomeAtlas.from_arrays(
        (0.25, 1.0), correct=[[1, 1]], confidence=[[1, 1]], macs=[25, 100], context_macs=25
    )
    table = base.outcome_table(atlas, EQ3, controller_macs=5, uses_context=True)
    np.testing.assert_allclose(table.net, [[0.30, 1.30]])
    np.testing.assert_allclose(table.gross, [[0.25, 1.0]])


def test_a_net_account_pays_less_for_the_same_answer() -> None:
    atlas = four_samples()
    net = RewardConfig(account="net")
    free = base.outcome_table(atlas, net)
    paying = base.outcome_table(atlas, net, controller_macs=10)
    assert (paying.reward < free.reward).all()
    assert np.array_equal(free.reward, base.outcome_table(atlas, EQ3).reward)


def test_the_oracle_takes_the_cheapest_right_arm_and_the_worst_the_dearest_wrong_one() -> None:
    table = base.outcome_table(four_samples(), EQ3)
    # Sample 0 is never right: the oracle errs as cheaply as it can, -(1.0)(1.75) = -1.75.
    # Sample 1: right at full cost pays exactly 0, more than any wrong answer.
    assert base.oracle_choice(table).tolist() == [0, 2, 1, 0]
    assert base.worst_choice(table).tolist() == [2, 1, 0, 2]


def test_ties_go_to_the_cheapest_arm_for_the_oracle_and_to_the_dearest_for_the_worst() -> None:
    table = base.OutcomeTable(
        utilization=np.array([0.2, 0.6, 1.0]),
        correct=np.ones((1, 3)),
        gross=np.array([[0.5, 0.2, 1.0]]),
        net=np.array([[0.5, 0.2, 1.0]]),
        reward=np.array([[1.0, 1.0, 1.0]]),
    )
    assert base.oracle_choice(table).tolist() == [1]
    assert base.worst_choice(table).tolist() == [2]
    assert base.best_fixed_arm(table) == 1


def test_the_best_fixed_arm_has_the_largest_mean_reward() -> None:
    table = base.outcome_table(four_samples(), EQ3)
    assert base.best_fixed_arm(table) == int(np.argmax(table.reward.mean(axis=0)))


def test_every_class_gets_its_own_best_arm_and_an_unseen_class_the_best_of_all() -> None:
    atlas = four_samples()
    table = base.outcome_table(atlas, EQ3)
    chosen = base.best_arm_of_class(table, atlas.label, 3)
    # Class a: -1.75 - 1.575 at arm 0, -2.2 - 2.8 at arm 1, -3 + 0 at arm 2.
    # Class b: arm 1 is right twice.
    assert chosen.tolist() == [2, 1, base.best_fixed_arm(table)]


@pytest.mark.parametrize(
    ("cost", "accuracy", "hull"),
    [
        ([0.2, 0.6, 1.0], [0.5, 0.8, 0.9], (0, 1, 2)),
        ([0.2, 0.6, 1.0], [0.5, 0.6, 0.9], (0, 2)),  # below the line from 0 to 2
        ([0.2, 0.6, 1.0], [0.5, 0.7, 0.9], (0, 2)),  # on the line: not needed
        ([0.2, 0.6, 1.0], [0.5, 0.9, 0.8], (0, 1)),  # dearer and worse
        ([1.0, 0.6, 0.2], [0.9, 0.8, 0.5], (2, 1, 0)),  # in any order
        ([0.2, 0.2, 1.0], [0.5, 0.6, 0.9], (1, 2)),  # the better of two that cost the same
        ([0.3], [0.5], (0,)),
    ],
)
def test_the_hull_of_a_few_arms(
    cost: list[float], accuracy: list[float], hull: tuple[int, ...]
) -> None:
    assert base.concave_hull(np.array(cost), np.array(accuracy)) == hull


@pytest.mark.parametrize("seed", range(5))
def test_the_hull_is_concave_and_no_arm_lies_above_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost, accuracy = rng.random(12), rng.random(12)
    hull = list(base.concave_hull(cost, accuracy))
    slopes = np.diff(accuracy[hull]) / np.diff(cost[hull])
    assert (np.diff(slopes) < 0).all()
    assert (slopes > 0).all()
    at_arm = np.interp(cost, cost[hull], accuracy[hull])
    assert (accuracy <= at_arm + 1e-12).all()  # rounding of the interpolation


@pytest.mark.parametrize("budget", [0.25, 0.3, 0.5, 0.77, 1.0])
def test_a_static_mixture_costs_what_it_is_asked_to(budget: float) -> None:
    table = base.outcome_table(four_samples(), EQ3)
    policy = base.static_mixture((0, 1, 2), table.gross.mean(axis=0), budget)
    assert policy.sum() == pytest.approx(1.0)
    assert np.count_nonzero(policy) <= 2
    assert base.outcomes_of(table, policy)[:, 3].mean() == pytest.approx(budget)


def test_a_static_mixture_shares_the_samples_between_neighbours() -> None:
    cost = np.array([0.25, 0.5, 1.0])
    np.testing.assert_allclose(base.static_mixture((0, 1, 2), cost, 0.6), [0.0, 0.8, 0.2])
    np.testing.assert_allclose(base.static_mixture((0, 2), cost, 0.55), [0.6, 0.0, 0.4])


def test_a_budget_off_the_hull_gets_the_nearest_end_of_it() -> None:
    cost = np.array([0.25, 0.5, 1.0])
    assert base.static_mixture((0, 1), cost, 0.1).tolist() == [1.0, 0.0, 0.0]
    assert base.static_mixture((0, 1), cost, 0.9).tolist() == [0.0, 1.0, 0.0]


def test_a_cascade_pays_for_every_arm_that_it_tries() -> None:
    atlas = four_samples()
    outcomes = cascade_outcomes(atlas, Cascade((0, 1, 2), (0.5, 0.85)), EQ3)
    # Confidences stop sample 0 at arm 0 (.5 >= .5), 1 at arm 1 (.9), 2 at arm 2, 3 at arm 0.
    np.testing.assert_allclose(outcomes[:, 3], [0.25, 0.75, 1.75, 0.25])
    assert np.array_equal(outcomes[:, 2], outcomes[:, 3])
    np.testing.assert_allclose(outcomes[:, 1], [0.25, 0.5, 1.0, 0.25])
    assert outcomes[:, 0].tolist() == [0, 0, 1, 1]
    spent = np.array([0.25, 0.75, 1.75, 0.25])
    expected = reward_of(outcomes[:, 0], [0.5, 0.9, 0.9, 0.9], spent, EQ3)
    np.testing.assert_allclose(outcomes[:, 4], expected, rtol=1e-6)  # float32 rewards


def test_a_cascade_that_always_stops_is_its_first_arm() -> None:
    atlas = random_atlas()
    table = base.outcome_table(atlas, EQ3)
    expected = base.outcomes_of(table, np.eye(4)[1])
    np.testing.assert_allclose(cascade_outcomes(atlas, Cascade((1, 3), (0.0,)), EQ3), expected)


def test_the_threshold_of_a_pair_is_the_best_there_is() -> None:
    atlas = random_atlas(120)
    tuned = mean_paid(cascade_outcomes(atlas, tune_cascade(atlas, EQ3, longest=2), EQ3))
    tried = [
        mean_paid(cascade_outcomes(atlas, Cascade((low, high), (float(threshold),)), EQ3))
        for low in range(4)
        for high in range(low + 1, 4)
        for threshold in [0.0, *atlas.confidence[:, low], 2.0]
    ]
    assert tuned == pytest.approx(max(tried), rel=1e-12)


def test_a_longer_cascade_is_never_tuned_worse() -> None:
    atlas = random_atlas()
    paid = [
        mean_paid(cascade_outcomes(atlas, tune_cascade(atlas, EQ3, longest=longest), EQ3))
        for longest in (1, 2, 3)
    ]
    table = base.outcome_table(atlas, EQ3)
    assert paid[0] == pytest.approx(table.reward[:, base.best_fixed_arm(table)].mean())
    assert paid == sorted(paid)


def test_a_cascade_that_knows_when_it_is_wrong_climbs_exactly_then() -> None:
    correct = np.array([[1, 1], [0, 1]] * 20)
    confidence = np.where(correct == 1, 0.9, 0.4)
    atlas = OutcomeAtlas.from_arrays(
        (0.1, 0.5), correct=correct, confidence=confidence, macs=[10, 100]
    )
    cascade = tune_cascade(atlas, RewardConfig(gamma1=2.0))
    outcomes = cascade_outcomes(atlas, cascade, RewardConfig(gamma1=2.0))
    assert outcomes[:, 0].mean() == 1.0
    assert outcomes[:, 3].mean() == pytest.approx((0.1 + 1.1) / 2)


def test_no_choice_beats_the_oracle_and_none_is_below_the_worst() -> None:
    atlas = random_atlas()
    table = base.outcome_table(atlas, EQ3)
    highest, lowest = table.reward.max(axis=1), table.reward.min(axis=1)
    oracle = base.outcomes_of(table, base.of_choice(base.oracle_choice(table), 4))
    worst = base.outcomes_of(table, base.of_choice(base.worst_choice(table), 4))
    np.testing.assert_allclose(oracle[:, 4], highest)
    np.testing.assert_allclose(worst[:, 4], lowest)
    cascade = cascade_outcomes(atlas, tune_cascade(atlas, EQ3), EQ3)
    assert (cascade[:, 4] <= highest + 1e-6).all()  # float32 rewards


def test_the_informed_head_finds_the_arm_that_only_agreement_gives_away() -> None:
    # Arm 1 is right exactly where arms 0 and 1 agree; confidence says nothing.
    rng = np.random.default_rng(0)
    agrees = rng.random(1200) < 0.5
    label = rng.integers(0, 4, 1200)
    correct = np.stack([agrees, agrees, np.ones(1200, bool)], axis=1)
    wrong = (label + 1) % 4
    answer = np.stack(
        [np.where(agrees, label, wrong), np.where(agrees, label, (wrong + 1) % 4), label], axis=1
    )
    atlas = OutcomeAtlas.from_arrays(
        (0.1, 0.2, 0.5),
        correct=correct,
        confidence=np.full((1200, 3), 0.7),
        macs=[10, 20, 50],
        answer=answer,
        label=label,
        classes=("a", "b", "c", "d"),
        full_macs=100,
    )
    head = fit_informed_head(
        atlas.rows(np.arange(600)), atlas.rows(np.arange(600, 900)), EQ3, seed=0
    )
    unseen = atlas.rows(np.arange(900, 1200))
    assert np.array_equal(head.choose(unseen), np.where(agrees[900:], 0, 2))


def test_the_informed_head_lies_between_the_best_fixed_arm_and_the_oracle() -> None:
    train, validation = random_atlas(seed=1), random_atlas(seed=2)
    table = base.outcome_table(validation, EQ3)
    head = fit_informed_head(train, validation, EQ3, seed=0)
    informed = table.reward[np.arange(600), head.choose(validation)].mean()
    assert table.reward[:, base.best_fixed_arm(table)].mean() <= informed
    assert informed <= table.reward.max(axis=1).mean()


def test_the_informed_head_depends_on_its_seed_alone() -> None:
    train, validation = random_atlas(seed=1), random_atlas(seed=2)
    chosen = [
        fit_informed_head(train, validation, EQ3, seed=7).choose(validation) for _ in range(2)
    ]
    assert np.array_equal(chosen[0], chosen[1])


def test_an_informed_head_with_nothing_to_know_takes_the_best_fixed_arm() -> None:
    atlas = OutcomeAtlas.from_arrays(
        (0.5, 1.0), correct=np.ones((20, 2)), confidence=np.full((20, 2), 0.9), macs=[5, 10]
    )
    head = fit_informed_head(atlas, atlas, EQ3, seed=0)
    assert head.network is None
    assert head.choose(atlas).tolist() == [0] * 20


def test_the_baselines_choose_from_the_rows_they_are_given() -> None:
    choices = choose_baselines(four_samples(), EQ3)
    table = base.outcome_table(four_samples(), EQ3)
    assert choices.best_fixed == base.best_fixed_arm(table)
    # Accuracies .25, .5, .75 at .25, .5, 1: concave.
    assert choices.hull == (0, 1, 2)
    assert choices.class_arms == (2, 1, choices.best_fixed)
