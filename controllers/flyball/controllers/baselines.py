"""What the learned controller is compared with: choices without a network, and oracles.

A baseline is a policy, the probability of every arm on every sample, so that its outcomes are
exact expectations; the confidence cascade runs several arms a sample and lives in `cascade`.

Axis letters: N samples, K arms, L labels (true classes).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.envs.reward import Reward, reward_table

__all__ = [
    "METRICS",
    "OutcomeTable",
    "Outcomes",
    "best_arm_of_class",
    "best_fixed_arm",
    "concave_hull",
    "of_choice",
    "oracle_choice",
    "outcome_table",
    "outcomes_of",
    "static_mixture",
    "worst_choice",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METRICS = ("accuracy", "utilization", "gross", "net", "reward")

Outcomes = Floats
"""What a policy gives on every sample, one column a metric (`METRICS`); (N, 5)."""


@dataclass(frozen=True, eq=False)
class OutcomeTable:
    """What every arm would give on every sample of one split.

    Attributes:
        utilization: of every arm, (K,).
        correct: 1 where right, graded in [0, 1]; (N, K).
        gross: throttle ratio of the data path alone, (N, K).
        net: throttle ratio with the controller and its context, (N, K).
        reward: in the account that the reward names, (N, K).
    """

    utilization: Floats
    correct: Floats
    gross: Floats
    net: Floats
    reward: Floats


def outcome_table(
    atlas: OutcomeAtlas, reward: Reward, *, controller_macs: int = 0, uses_context: bool = False
) -> OutcomeTable:
    """Outcomes of every arm, free of a controller unless its cost is given.

    Args:
        atlas: rows of one split.
        reward: what a choice is paid.
        controller_macs: multiply-accumulates of the controller that chooses.
        uses_context: whether it sees the lowest arm's context.

    Raises:
        NotFinite: a reward is NaN or infinite.
    """
    paid = reward_table(atlas, reward, controller_macs=controller_macs, uses_context=uses_context)
    return OutcomeTable(
        utilization=np.asarray(atlas.arms, np.float64),
        correct=np.asarray(atlas.correct, np.float64),
        gross=atlas.throttle_ratio(),
        net=atlas.net_throttle_ratio(controller_macs, uses_context=uses_context),
        reward=np.asarray(paid, np.float64),
    )


def outcomes_of(table: OutcomeTable, policy: Floats) -> Outcomes:
    """Expected outcomes of a policy on every sample; (N, 5).

    Args:
        table: outcomes of every arm.
        policy: probability of every arm, (K,) for all samples alike or (N, K).
    """
    shape = table.correct.shape
    spread = np.broadcast_to(policy, shape)
    tables = (
        table.correct,
        np.broadcast_to(table.utilization, shape),
        table.gross,
        table.net,
        table.reward,
    )
    return np.stack([(values * spread).sum(axis=1) for values in tables], axis=1)


def of_choice(chosen: Ints, arm_count: int) -> Floats:
    """The policy that takes one arm on every sample, (N,) indices to (N, K)."""
    return np.eye(arm_count)[chosen]


def oracle_choice(table: OutcomeTable) -> Ints:
    """The best-paid arm of every sample, the cheapest where several are; (N,).

    It takes luck for skill: with K arms a sample has K chances to be answered right.
    """
    is_best = table.reward == table.reward.max(axis=1, keepdims=True)
    return _as_indices(np.where(is_best, table.gross, np.inf).argmin(axis=1))


def worst_choice(table: OutcomeTable) -> Ints:
    """The worst-paid arm of every sample, the dearest where several are; (N,)."""
    is_worst = table.reward == table.reward.min(axis=1, keepdims=True)
    return _as_indices(np.where(is_worst, table.gross, -np.inf).argmax(axis=1))


def best_fixed_arm(table: OutcomeTable) -> int:
    """The arm with the largest mean reward over the samples, the cheapest where several are.

    It is the best static choice by reward: reward is linear in a mixture, so none beats it.
    """
    means = table.reward.mean(axis=0)
    cost = table.gross.mean(axis=0)
    return int(np.where(means == means.max(), cost, np.inf).argmin())


def best_arm_of_class(table: OutcomeTable, labels: NDArray[np.int32], classes: int) -> Ints:
    """For every true class the arm with the largest mean reward over its samples; (L,).

    A class without samples gets the best arm of all samples.
    """
    chosen = np.full(classes, best_fixed_arm(table), np.int64)
    for label in np.unique(labels):
        rows = np.asarray(labels) == label
        means, cost = table.reward[rows].mean(axis=0), table.gross[rows].mean(axis=0)
        chosen[label] = np.where(means == means.max(), cost, np.inf).argmin()
    return chosen


def concave_hull(cost: Floats, accuracy: Floats) -> tuple[int, ...]:
    """The arms that a mixture of fixed arms would use: the upper concave hull.

    The hull starts at the cheapest arm and ends at the most accurate one: past that, spending
    more buys nothing.

    Args:
        cost: mean throttle ratio of every arm, (K,).
        accuracy: mean accuracy of every arm, (K,).

    Returns:
        Indices of arms, of increasing cost and accuracy, each slope smaller than the one before.
    """
    hull: list[int] = []
    for arm in np.lexsort((-accuracy, cost)):
        if hull and accuracy[arm] <= accuracy[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(cost, accuracy, hull[-2], hull[-1]) <= _slope(
            cost, accuracy, hull[-2], int(arm)
        ):
            hull.pop()
        hull.append(int(arm))
    return tuple(hull)


def static_mixture(hull: tuple[int, ...], cost: Floats, budget: float) -> Floats:
    """Probabilities of the arms, (K,), that spend `budget` on the hull without looking.

    Two neighbouring hull arms share the samples so that mean cost equals the budget. A budget
    below the cheapest arm gets that arm (no mixture costs less), and one above the most accurate
    arm gets that arm (no mixture is better).

    Args:
        hull: from `concave_hull`.
        cost: mean throttle ratio of every arm where the mixture is used, (K,).
        budget: mean throttle ratio to spend.
    """
    policy = np.zeros(len(cost))
    ladder = sorted(hull, key=lambda arm: float(cost[arm]))
    costs = cost[ladder]
    if budget <= costs[0] or budget >= costs[-1]:
        policy[ladder[0] if budget <= costs[0] else ladder[-1]] = 1.0
        return policy
    upper = int(np.searchsorted(costs, budget, side="right"))
    share = (budget - costs[upper - 1]) / (costs[upper] - costs[upper - 1])
    policy[ladder[upper]] = share
    policy[ladder[upper - 1]] = 1.0 - share
    return policy


def _slope(cost: Floats, accuracy: Floats, left: int, right: int) -> float:
    rise = float(accuracy[right] - accuracy[left])
    run = float(cost[right] - cost[left])
    return rise / run if run > 0 else np.inf


def _as_indices(values: NDArray[np.intp]) -> Ints:
    return values.astype(np.int64)
