"""The confidence cascade: run a low arm, stop if it is sure enough, else climb; costs add up.

The classical rival of a learned controller: it needs no training, only thresholds, and it looks at
the answer itself; but every arm that it tries is paid.

Axis letters: N samples, K arms, S steps.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball.controllers.baselines import Outcomes
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.envs.reward import Reward, reward_of

__all__ = ["Cascade", "cascade_outcomes", "tune_cascade"]

Floats = NDArray[np.float64]

LONGEST = 3
"""Arms in the longest cascade that is tried; every arm is paid, so long ones do not pay."""

_ROUNDS = 8


@dataclass(frozen=True)
class Cascade:
    """Arms to climb and how sure each must be to stop.

    Attributes:
        arms: S indices of arms, increasing.
        thresholds: S - 1 confidences; stop at a step whose confidence is at least its threshold.
            0 always stops there; above 1 always climbs.
    """

    arms: tuple[int, ...]
    thresholds: tuple[float, ...]


def cascade_outcomes(atlas: OutcomeAtlas, cascade: Cascade, reward: Reward) -> Outcomes:
    """Outcomes of a cascade on every sample; (N, 5).

    Its utilization is that of the arm that answered; gross and net are both what it executed, the
    sum over the arms it tried: no controller is involved.
    """
    steps = _Steps(atlas, cascade.arms, reward)
    stopped = steps.stop_at(cascade.thresholds)
    rows = np.arange(len(stopped))
    utilization = np.asarray(atlas.arms, np.float64)[list(cascade.arms)]
    columns = (
        steps.correct[rows, stopped],
        utilization[stopped],
        steps.spent[rows, stopped],
        steps.spent[rows, stopped],
        steps.paid[rows, stopped],
    )
    return np.stack(columns, axis=1)


def tune_cascade(atlas: OutcomeAtlas, reward: Reward, *, longest: int = LONGEST) -> Cascade:
    """The cascade with the largest mean reward on an atlas.

    Searched: every increasing choice of up to `longest` arms; for each, the thresholds one at a
    time, over every confidence that occurs, until none improves. One threshold (two arms)
    is exact; two are a coordinate-wise optimum. A single arm that always stops is among them, so
    the result is paid at least what the best fixed arm is.

    Args:
        atlas: rows to tune on, controller_val's.
        reward: what a choice is paid.
        longest: most arms in a cascade, >= 1.
    """
    best, best_paid = Cascade((0,), ()), -np.inf
    for length in range(1, min(longest, len(atlas.arms)) + 1):
        for arms in itertools.combinations(range(len(atlas.arms)), length):
            steps = _Steps(atlas, arms, reward)
            thresholds = steps.best_thresholds()
            paid = steps.mean_paid(thresholds)
            if paid > best_paid + 1e-12:
                best, best_paid = Cascade(arms, thresholds), paid
    return best


class _Steps:
    """What stopping at every step of one chain of arms would give; (N, S) tables."""

    def __init__(self, atlas: OutcomeAtlas, arms: tuple[int, ...], reward: Reward) -> None:
        picked = list(arms)
        self.correct = np.asarray(atlas.correct, np.float64)[:, picked]
        self.confidence = np.asarray(atlas.confidence, np.float64)[:, picked]
        self.spent = atlas.throttle_ratio()[:, picked].cumsum(axis=1)
        paid = reward_of(self.correct, self.confidence, self.spent, reward)
        self.paid = np.asarray(paid, np.float64)

    def stop_at(
        self, thresholds: tuple[float, ...] | list[float], *, after: int = -1
    ) -> NDArray[np.int64]:
        """The first step past `after` at which every sample stops, (N,)."""
        is_sure: NDArray[np.bool_] = np.ones(self.confidence.shape, np.bool_)
        is_sure[:, :-1] = self.confidence[:, :-1] >= np.asarray(thresholds)
        is_sure[:, : after + 1] = False
        stopped: NDArray[np.int64] = is_sure.argmax(axis=1)
        return stopped

    def mean_paid(self, thresholds: tuple[float, ...]) -> float:
        stopped = self.stop_at(thresholds)
        return float(np.take_along_axis(self.paid, stopped[:, None], axis=1).mean())

    def best_thresholds(self) -> tuple[float, ...]:
        """Thresholds by coordinate ascent, from climbing nowhere, the last step first."""
        thresholds = [0.0] * (self.confidence.shape[1] - 1)
        for _ in range(_ROUNDS if len(thresholds) > 1 else 1):
            before = list(thresholds)
            for step in reversed(range(len(thresholds))):
                thresholds[step] = self._best_threshold(step, thresholds)
            if thresholds == before:
                break
        return tuple(thresholds)

    def _best_threshold(self, step: int, thresholds: list[float]) -> float:
        """The best threshold of one step, given those of the others; exact."""
        before = np.asarray(thresholds[:step])
        is_reached = np.flatnonzero((self.confidence[:, :step] < before).all(axis=1))
        if not len(is_reached):
            is_reached = np.arange(len(self.paid))
        later = self.stop_at(thresholds, after=step)
        climbed = np.take_along_axis(self.paid, later[:, None], axis=1)[:, 0]
        worth = (self.paid[:, step] - climbed)[is_reached]
        confidence = self.confidence[is_reached, step]
        order = np.argsort(-confidence, kind="stable")
        confidence, gained = confidence[order], worth[order].cumsum()
        is_boundary = np.append(confidence[1:] < confidence[:-1], True)
        candidates = np.flatnonzero(is_boundary)
        chosen = candidates[gained[candidates].argmax()]
        if gained[chosen] <= 0.0:
            return 2.0
        return 0.0 if chosen == len(gained) - 1 else float(confidence[chosen])
