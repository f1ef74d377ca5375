"""A quick measurement gives evaluate's own figures, and needs no more of the atlas than they do."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from flyball.controllers.evaluate import EvaluationConfig, evaluate
from flyball.controllers.protocol import ObservationKind
from flyball.controllers.quick import measure_quick
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import ArmMismatch, InvalidSetting, UnknownName
from flyball.envs.reward import RewardConfig

ARMS = (0.1, 0.3, 0.6, 1.0)


@dataclass(frozen=True)
class Told:
    """Takes the arm that its first feature names."""

    arms: tuple[float, ...] = ARMS
    macs: int = 7
    observation: ObservationKind = "context"

    def choose(
        self, observations: NDArray[np.float32], budget: float | None = None
    ) -> NDArray[np.int64]:
        return observations[:, 0].astype(np.int64)

    def propensities(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.eye(len(self.arms), dtype=np.float32)[self.choose(observations)]


def atlas_of(samples: int, seed: int) -> OutcomeAtlas:
    """A sample is right from its own arm upwards, or never; costs differ by sample."""
    rng = np.random.default_rng(seed)
    correct = np.arange(4) >= rng.choice(5, samples, p=[0.4, 0.25, 0.15, 0.1, 0.1])[:, None]
    costs = np.sort(rng.integers(50, 900, (samples, 4)), axis=1)
    return OutcomeAtlas.from_arrays(
        ARMS,
        correct=correct,
        confidence=rng.uniform(0.3, 1.0, (samples, 4)),
        macs=costs,
        split=np.resize([1, 2, 3], samples),
        full_macs=1000,
        context_macs=40,
    )


def chosen_for(atlas: OutcomeAtlas, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    known = np.asarray(atlas.correct).argmax(axis=1)
    return np.where(rng.random(len(atlas)) < 0.7, known, rng.integers(0, 4, len(atlas)))[
        :, None
    ].astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("split", ["controller_val", "test"])
def test_it_gives_the_figures_of_evaluate_bit_for_bit(split: str, seed: int) -> None:
    atlas = atlas_of(301 + 97 * seed, seed)
    seen = chosen_for(atlas, seed)
    reward = RewardConfig(gamma1=0.2 * seed, account="net" if seed % 2 else "gross")
    config = EvaluationConfig(bootstrap=150 + seed, seed=seed, confidence_level=0.9, budgets=3)
    whole = evaluate(atlas, Told(), seen, reward, config)
    quick = measure_quick(atlas, Told(), seen, reward, config, split)
    assert quick.rung == whole.rung("learned", split)
    assert quick.gain_over_static == whole.gain_over_static[split]
    if split == "controller_val":
        assert (quick.beats_static, quick.dominated) == (whole.beats_static, whole.dominated)


def test_it_asks_for_no_rows_but_those_it_measures() -> None:
    atlas, config = atlas_of(300, 0), EvaluationConfig(bootstrap=50)
    seen = chosen_for(atlas, 0)
    kept = np.flatnonzero(np.asarray(atlas.split) == 2)
    alone = measure_quick(atlas.rows(kept), Told(), seen[kept], None, config)
    assert alone == measure_quick(atlas, Told(), seen, None, config)


def test_a_fixed_arm_that_pays_for_a_controller_is_dominated() -> None:
    atlas = atlas_of(300, 1)
    quick = measure_quick(
        atlas, Told(macs=200), np.ones((300, 1), np.float32), None, EvaluationConfig(bootstrap=50)
    )
    assert quick.dominated
    assert not quick.beats_static
    assert quick.gain_over_static.mean < 0


def test_what_cannot_be_measured_is_refused() -> None:
    atlas = atlas_of(30, 0)
    seen = chosen_for(atlas, 0)
    with pytest.raises(ArmMismatch, match="among 2 arms, the outcome table has 4"):
        measure_quick(atlas, Told(arms=(0.5, 1.0)), seen)
    with pytest.raises(InvalidSetting, match="got 5 for 30 rows"):
        measure_quick(atlas, Told(), seen[:5])
    with pytest.raises(InvalidSetting, match="path_train has none"):
        measure_quick(atlas, Told(), seen, split="path_train")
    with pytest.raises(UnknownName, match="Did you mean 'controller_val'"):
        measure_quick(atlas, Told(), seen, split="controler_val")
