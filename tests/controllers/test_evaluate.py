import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from flyball.controllers.evaluate import EvaluationConfig, evaluate
from flyball.controllers.evaluation import Evaluation
from flyball.controllers.protocol import ObservationKind
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import ArmMismatch, CorruptArtifact, InvalidSetting, UnknownName
from flyball.datapaths.progress import Progress
from flyball.envs.reward import RewardConfig

QUICK = EvaluationConfig(bootstrap=200, budgets=5)
ARMS = (0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Told:
    """Reads the arm to choose from its only feature; sure of it up to `doubt`."""

    arms: tuple[float, ...] = ARMS
    macs: int = 0
    observation: ObservationKind = "image"
    doubt: float = 0.1

    def choose(
        self, observations: NDArray[np.float32], budget: float | None = None
    ) -> NDArray[np.int64]:
        return observations[:, 0].astype(np.int64)

    def propensities(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        sure = np.eye(len(self.arms), dtype=np.float32)[self.choose(observations)]
        return sure * np.float32(1 - self.doubt) + np.float32(self.doubt / len(self.arms))


def atlas_of(samples: int = 900, seed: int = 0, context_macs: int = 0) -> OutcomeAtlas:
    """Three arms of costs .1, .4, 1; a sample is right from its own arm upwards, or never."""
    rng = np.random.default_rng(seed)
    needed = rng.choice(4, samples, p=[0.5, 0.25, 0.15, 0.1])
    correct = np.arange(3) >= needed[:, None]
    label = rng.integers(0, 2, samples)
    return OutcomeAtlas.from_arrays(
        ARMS,
        correct=correct,
        confidence=np.where(correct, 0.9, 0.6) + rng.uniform(-0.1, 0.1, (samples, 3)),
        macs=[100, 400, 1000],
        answer=np.where(correct, label[:, None], 1 - label[:, None]),
        split=np.resize([1, 2, 3], samples),
        label=label,
        classes=("cat", "dog", "unicorn"),
        context_macs=context_macs,
    )


def told(arms: NDArray[np.int64]) -> NDArray[np.float32]:
    return arms[:, None].astype(np.float32)


def first_right(atlas: OutcomeAtlas) -> NDArray[np.int64]:
    """The cheapest right arm, or the cheapest of all where none is."""
    chosen: NDArray[np.int64] = np.asarray(atlas.correct).argmax(axis=1)
    return chosen


def always(atlas: OutcomeAtlas, arm: int) -> NDArray[np.float32]:
    return told(np.full(len(atlas), arm))


def test_a_controller_that_knows_is_as_right_as_full_cost_and_beats_every_static_choice() -> None:
    atlas = atlas_of()
    found = evaluate(atlas, Told(), told(first_right(atlas)), config=QUICK)
    for split in ("controller_val", "test"):
        learned, oracle = found.rung("learned", split), found.rung("per_sample_oracle", split)
        # Where nothing is right or only the dearest arm is, the cheapest wrong one may pay more
        # than the dearest; accuracy is compared, and reward bounded.
        assert learned.accuracy == found.rung("fixed_1", split).accuracy
        assert learned.reward.mean <= oracle.reward.mean + 1e-9
    assert found.beats_static
    assert not found.dominated


def test_on_an_identity_table_a_controller_that_solves_it_equals_the_oracle() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 3, 600)
    atlas = OutcomeAtlas.from_arrays(
        ARMS,
        correct=np.eye(3)[right],
        confidence=np.full((600, 3), 0.8),
        macs=[100, 400, 1000],
        split=np.resize([1, 2, 3], 600),
    )
    found = evaluate(atlas, Told(), told(right), config=QUICK)
    learned, oracle = found.rung("learned"), found.rung("per_sample_oracle")
    # At full cost a right answer pays 0, more than any wrong one: the oracle is the right arm.
    for metric in ("accuracy", "utilization", "gross", "net", "reward"):
        assert getattr(learned, metric) == getattr(oracle, metric)
    assert learned.accuracy.mean == 1.0


@pytest.mark.parametrize("account", ["gross", "net"])
def test_the_rungs_are_in_order_of_reward_where_the_law_says_so(account: str) -> None:
    atlas = atlas_of()
    chosen = np.random.default_rng(1).integers(0, 3, len(atlas))
    reward = RewardConfig(account=account)  # type: ignore[arg-type]
    found = evaluate(atlas, Told(macs=20), told(chosen), reward, QUICK)
    for split, rungs in (("test", found.rungs), ("controller_val", found.validation_rungs)):
        oracle, worst = found.rung("per_sample_oracle", split), found.rung("worst", split)
        for rung in rungs:
            assert rung.reward.mean <= oracle.reward.mean + 1e-9, rung.name
            if rung.name not in ("learned", "confidence_cascade"):  # these pay for more
                assert rung.reward.mean >= worst.reward.mean - 1e-9, rung.name
    on_val = {rung.name: rung.reward.mean for rung in found.validation_rungs}
    for better in ("per_class_oracle", "confidence_cascade", "informed_ceiling"):
        assert on_val[better] >= on_val["best_fixed"] - 1e-9
    assert on_val["best_fixed"] == max(on_val[f"fixed_{arm:g}"] for arm in ARMS)


def test_random_is_the_mean_of_the_fixed_arms() -> None:
    atlas = atlas_of()
    found = evaluate(atlas, Told(), always(atlas, 1), config=QUICK)
    for metric in ("accuracy", "net", "reward"):
        fixed = [getattr(rung, metric).mean for rung in found.curve()]
        assert getattr(found.rung("random"), metric).mean == pytest.approx(np.mean(fixed))


def test_a_fixed_arm_gains_exactly_nothing_over_the_mixture_in_every_resample() -> None:
    atlas = atlas_of()
    found = evaluate(atlas, Told(), always(atlas, 1), config=QUICK)
    for gain in found.gain_over_static.values():
        assert gain.to_json() == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)  # float64 rounding
    assert found.dominated
    assert not found.beats_static


def test_a_fixed_arm_that_pays_for_a_controller_is_dominated() -> None:
    atlas = atlas_of()
    found = evaluate(atlas, Told(macs=300), always(atlas, 1), config=QUICK)
    assert found.dominated
    assert not found.beats_static
    # Costs .4 and 1 at arms 1 and 2: net .7 is half of each.
    middle, top = found.rung("fixed_0.5").accuracy.mean, found.rung("fixed_1").accuracy.mean
    assert found.rung("learned").net.mean == pytest.approx(0.7)
    assert found.gain_over_static["test"].mean == pytest.approx((middle - top) / 2)
    assert found.rung("static_mixture").net.mean == pytest.approx(0.7)
    assert found.gain_at_gross["test"].mean == pytest.approx(0.0, abs=1e-12)
    assert any("it is a fixed arm" in note for note in found.notes)


def test_the_gain_is_the_learned_accuracy_less_the_mixtures() -> None:
    atlas = atlas_of()
    chosen = np.where(np.random.default_rng(2).random(len(atlas)) < 0.8, first_right(atlas), 2)
    found = evaluate(atlas, Told(macs=10), told(chosen), config=QUICK)
    for split in ("controller_val", "test"):
        learned, mixture = found.rung("learned", split), found.rung("static_mixture", split)
        assert mixture.net.mean == pytest.approx(learned.net.mean)
        assert found.gain_over_static[split].mean == pytest.approx(
            learned.accuracy.mean - mixture.accuracy.mean
        )


def test_net_costs_hold_the_controller_and_its_context() -> None:
    atlas = atlas_of(context_macs=100)
    found = evaluate(atlas, Told(macs=20, observation="context"), always(atlas, 1), config=QUICK)
    learned = found.rung("learned")
    assert learned.gross.mean == pytest.approx(0.4)
    assert learned.net.mean == pytest.approx(0.4 + 0.02 + 0.1)
    assert found.context_macs == 100
    for rung in found.rungs:
        if rung.name != "learned":
            assert rung.net == rung.gross


def test_a_controller_dearer_than_every_arm_is_compared_with_the_best_and_said_so() -> None:
    atlas = atlas_of()
    found = evaluate(atlas, Told(macs=500), always(atlas, 2), config=QUICK)
    assert found.gain_over_static["test"].mean == pytest.approx(0.0, abs=1e-12)
    assert any("more than the most accurate fixed arm (1.000)" in note for note in found.notes)


def test_a_controller_cheaper_than_every_arm_is_compared_with_the_cheapest_and_said_so() -> None:
    # The cheapest arm costs each sample 100 or 300, and the others 250: a choice can cost less
    # than every arm.
    samples = 300
    macs = np.where(np.arange(samples)[:, None] // 3 % 2 == 0, [100, 250], [300, 250])
    atlas = OutcomeAtlas.from_arrays(
        (0.5, 1.0),
        correct=np.ones((samples, 2)),
        confidence=np.full((samples, 2), 0.9),
        macs=macs,
        split=np.resize([1, 2, 3], samples),
        full_macs=500,
    )
    controller = Told(arms=(0.5, 1.0))
    found = evaluate(atlas, controller, told(macs.argmin(axis=1)), config=QUICK)
    assert found.rung("learned").net.mean == pytest.approx(175 / 500)
    assert any("less than the cheapest arm (0.400)" in note for note in found.notes)


def test_the_share_of_the_ceiling_is_the_part_of_its_reward_that_was_reached() -> None:
    atlas = atlas_of(2700)
    doubtful = np.where(np.random.default_rng(7).random(2700) < 0.9, first_right(atlas), 2)
    first = evaluate(atlas, Told(), told(doubtful), config=QUICK)
    assert first.share_of_informed_ceiling["test"] is not None
    fixed, informed = first.rung("best_fixed"), first.rung("informed_ceiling")
    learned = first.rung("learned")
    expected = (learned.reward.mean - fixed.reward.mean) / (
        informed.reward.mean - fixed.reward.mean
    )
    assert first.share_of_informed_ceiling["test"] == pytest.approx(expected)
    assert expected > 0.5


def test_no_share_is_stated_where_nothing_is_to_be_known() -> None:
    atlas = OutcomeAtlas.from_arrays(
        ARMS,
        correct=np.ones((90, 3)),
        confidence=np.full((90, 3), 0.9),
        macs=[100, 400, 1000],
        split=np.resize([1, 2, 3], 90),
    )
    found = evaluate(atlas, Told(), always(atlas, 0), config=QUICK)
    assert found.share_of_informed_ceiling == {"controller_val": None, "test": None}
    assert any("not above the best fixed arm beyond chance" in note for note in found.notes)


def test_nothing_is_chosen_on_test() -> None:
    atlas = atlas_of()
    chosen = np.random.default_rng(3).integers(0, 3, len(atlas))
    before = evaluate(atlas, Told(macs=20), told(chosen), config=QUICK)
    on_test = np.asarray(atlas.split) == 3
    shuffled = np.random.default_rng(4).permutation(np.flatnonzero(on_test))
    altered = replace(
        atlas,
        correct=np.where(on_test[:, None], 1 - atlas.correct, atlas.correct),
        label=np.where(on_test, 1 - atlas.label, atlas.label).astype(np.int32),
    )
    confidence = np.array(atlas.confidence)
    confidence[on_test] = confidence[shuffled]
    altered = replace(altered, confidence=confidence)
    after = evaluate(altered, Told(macs=20), told(chosen), config=QUICK)
    assert after.choices == before.choices
    assert after.validation_rungs == before.validation_rungs
    assert after.gain_over_static["controller_val"] == before.gain_over_static["controller_val"]
    assert [r.detail for r in after.rungs] == [r.detail for r in before.rungs]
    assert [r.net for r in after.budget_curve] == [r.net for r in before.budget_curve]
    assert after.rung("best_fixed").accuracy != before.rung("best_fixed").accuracy


def test_histograms_count_the_choices_of_the_test_rows() -> None:
    atlas = atlas_of()
    chosen = np.where(np.asarray(atlas.label) == 0, 0, 2)
    found = evaluate(atlas, Told(), told(chosen), config=QUICK)
    dogs = float(np.asarray(atlas.take("test").label).mean())
    assert found.histogram == pytest.approx((1 - dogs, 0.0, dogs))
    assert found.class_histogram == ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))


def test_a_budget_curve_spends_more_and_more_and_about_what_is_asked() -> None:
    atlas = atlas_of()
    rng = np.random.default_rng(5)

    class Doubting(Told):
        def propensities(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.asarray(
                np.random.default_rng(6).dirichlet([1, 1, 1], len(observations)), "f4"
            )

    found = evaluate(atlas, Doubting(), told(rng.integers(0, 3, 900)), config=QUICK)
    asked = np.array([float(rung.name.removeprefix("budget_")) for rung in found.budget_curve])
    spent = np.array([rung.net.mean for rung in found.budget_curve])
    evenly = np.linspace(np.sqrt(0.1), 1.0, 5) ** 2
    np.testing.assert_allclose(asked, evenly, rtol=1e-3)  # names are rounded
    # The same draws on both splits of equal size: one sample's step, and the tolerance.
    np.testing.assert_allclose(spent, asked, atol=0.005 + 0.9 / 300)


def test_an_interval_holds_its_mean_and_narrows_with_samples() -> None:
    few, many = atlas_of(300), atlas_of(4800)
    widths = []
    for atlas in (few, many):
        found = evaluate(atlas, Told(), always(atlas, 0), config=QUICK)
        accuracy = found.rung("learned").accuracy
        assert accuracy.low <= accuracy.mean <= accuracy.high
        widths.append(accuracy.high - accuracy.low)
    # Sixteen times the samples: a quarter of the width, each width known to about a tenth.
    assert widths[1] / widths[0] == pytest.approx(0.25, rel=0.4)


def test_the_same_seed_gives_the_same_evaluation() -> None:
    atlas = atlas_of(300)
    first, again = (evaluate(atlas, Told(), always(atlas, 0), config=QUICK) for _ in range(2))
    assert first == again


def test_an_evaluation_survives_json() -> None:
    atlas = atlas_of(300)
    found = evaluate(atlas, Told(), told(first_right(atlas)), config=QUICK)
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert Evaluation.from_json(plain) == found
    assert plain["dominated"] is found.dominated
    assert plain["summary"]["test/learned/accuracy"] == found.rung("learned").accuracy.mean


def test_json_that_lacks_a_field_is_refused() -> None:
    atlas = atlas_of(300)
    plain = evaluate(atlas, Told(), always(atlas, 0), config=QUICK).to_json()
    del plain["rungs"]
    with pytest.raises(CorruptArtifact, match="no evaluation of format"):
        Evaluation.from_json(plain)


def test_an_unknown_rung_is_named() -> None:
    atlas = atlas_of(300)
    found = evaluate(atlas, Told(), always(atlas, 0), config=QUICK)
    with pytest.raises(UnknownName, match="Did you mean 'best_fixed'"):
        found.rung("best_fix")


def test_progress_is_reported_to_the_end() -> None:
    atlas = atlas_of(300)
    seen: list[Progress] = []
    evaluate(atlas, Told(), always(atlas, 0), config=QUICK, report=seen.append)
    assert [p.done for p in seen] == list(range(5))
    assert {p.total for p in seen} == {4}


def test_a_controller_of_other_arms_is_refused() -> None:
    atlas = atlas_of(300)
    with pytest.raises(ArmMismatch, match="among 2 arms, the outcome table has 3"):
        evaluate(atlas, Told(arms=(0.5, 1.0)), always(atlas, 0), config=QUICK)


def test_an_arm_that_does_not_exist_is_refused() -> None:
    atlas = atlas_of(300)

    class Lost(Told):
        def choose(
            self, observations: NDArray[np.float32], budget: float | None = None
        ) -> NDArray[np.int64]:
            return np.full(len(observations), 3)

        def propensities(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.full((len(observations), 3), 1 / 3, np.float32)

    with pytest.raises(InvalidSetting, match="one of 3 arms for each of 100 samples"):
        evaluate(atlas, Lost(), always(atlas, 0), config=QUICK)


def test_observations_of_other_rows_are_refused() -> None:
    atlas = atlas_of(300)
    with pytest.raises(InvalidSetting, match="got 10 for 300 rows"):
        evaluate(atlas, Told(), np.zeros((10, 1), np.float32), config=QUICK)


def test_an_empty_split_is_named() -> None:
    atlas = atlas_of(300)
    untested = atlas.rows(np.flatnonzero(np.asarray(atlas.split) != 3))
    with pytest.raises(InvalidSetting, match="test has none"):
        evaluate(untested, Told(), always(untested, 0), config=QUICK)


@pytest.mark.parametrize("fields", [{"bootstrap": 0}, {"budgets": -1}, {"confidence_level": 1.0}])
def test_a_setting_that_breaks_its_rule_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(InvalidSetting):
        EvaluationConfig(**fields)  # type: ignore[arg-type]
