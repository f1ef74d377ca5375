"""What a sweep needs to know of one controller: its rung, and its gain over the static mixture.

The figures are those of `evaluate` bit for bit, without what a sweep does not compare: ceilings,
oracles, cascade, budgets and the test split.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball.controllers.baselines import outcome_table
from flyball.controllers.bootstrap import Interval
from flyball.controllers.evaluate import EvaluationConfig
from flyball.controllers.evaluation import Rung, is_beaten_by_static, is_beyond_chance
from flyball.controllers.ladder import (
    Subject,
    check_rows,
    fixed_rungs,
    learned_rung,
    mixed_arms,
    seen_in,
)
from flyball.controllers.protocol import Controller, check_arms
from flyball.controllers.rung_samples import RungSamples
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.splits import CONTROLLER_VAL, split_code
from flyball.envs.reward import Reward, RewardConfig

__all__ = ["Quick", "measure_quick"]


@dataclass(frozen=True)
class Quick:
    """How a controller did on one split.

    Attributes:
        rung: the learned controller's figures.
        gain_over_static: its accuracy less that of the static mixture at the same net cost; 0.01
            is one point. A paired interval.
    """

    rung: Rung
    gain_over_static: Interval

    @property
    def beats_static(self) -> bool:
        """The gain over the static mixture is positive beyond chance."""
        return is_beyond_chance(self.gain_over_static)

    @property
    def dominated(self) -> bool:
        """A static mixture of the same net cost does as well or better."""
        return is_beaten_by_static(self.gain_over_static)


def measure_quick(
    atlas: OutcomeAtlas,
    controller: Controller,
    observations: NDArray[np.float32],
    reward: Reward | None = None,
    config: EvaluationConfig | None = None,
    split: str = CONTROLLER_VAL,
) -> Quick:
    """Measures a learned controller on one split, from the atlas alone.

    The arms of the static mixture are chosen on controller_val, whatever the split.

    Args:
        atlas: outcomes of N samples; needs rows in controller_val and in `split`.
        controller: what was learned.
        observations: what the controller sees of every row of the atlas, (N, ...).
        reward: what a choice is paid; TNN Eq. 3 by default.
        config: how many resamples, which level, which seed.
        split: where to measure.

    Raises:
        ArmMismatch: the controller has other arms than the atlas.
        UnknownName: there is no such split.
        InvalidSetting: a split has no rows, the observations are not those of the atlas, or the
            controller chose an arm that does not exist.
        NotFinite: a reward is NaN or infinite.
    """
    reward = RewardConfig() if reward is None else reward
    config = EvaluationConfig() if config is None else config
    check_arms(controller, atlas.arms, "the outcome table")
    code = split_code(split)
    check_rows(atlas, observations, tuple(dict.fromkeys((CONTROLLER_VAL, split))))
    seen = seen_in(atlas, observations, split)
    subject = Subject(atlas.take(split), controller, seen, reward, split)
    is_val = split == CONTROLLER_VAL
    chosen_on = subject.free if is_val else outcome_table(atlas.take(CONTROLLER_VAL), reward)
    hull = mixed_arms(chosen_on)
    learned, fixed = learned_rung(subject), fixed_rungs(subject)
    mixed = [f"fixed_{atlas.arms[arm]:g}" for arm in hull]
    samples = RungSamples(
        {"learned": learned, **{name: fixed[name] for name in mixed}},
        resamples=config.bootstrap,
        level=config.confidence_level,
        seed=(config.seed, code),
    )
    return Quick(samples.rung("learned", learned[1]), samples.gain(atlas.arms, hull, "net"))
