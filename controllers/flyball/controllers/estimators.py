"""Losses whose gradient teaches a policy which arm pays; every learner shares them.

All minimise minus the expected reward of the policy. TNN Alg. 1, line 16 as printed descends the
reward; here, as its text means, the reward is ascended.

Axis letters: B batch, K arms.
"""

from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "all_arm_loss",
    "behaviour",
    "entropy_of",
    "epsilon_at",
    "paper_loss",
    "ratio_loss",
    "sample_arms",
]

Estimator = Literal["all_arm", "ratio", "paper"]
ESTIMATORS: tuple[Estimator, ...] = ("all_arm", "ratio", "paper")


def epsilon_at(done: float, total: float, start: float, end: float) -> float:
    """Exploration share after `done` of `total` units: a straight line from start to end."""
    return start + (end - start) * min(1.0, done / total) if total > 0 else end


def behaviour(policy: Tensor, epsilon: float | Tensor) -> Tensor:
    """What really chooses under epsilon-greedy sampling: b = (1 - epsilon) pi + epsilon / K.

    Args:
        policy: probabilities pi, (B, K).
        epsilon: share of uniform choices, in [0, 1]; a tensor broadcasts.

    Returns:
        Probabilities (B, K), all at least epsilon / K.
    """
    return policy * (1.0 - epsilon) + epsilon / policy.shape[-1]


def sample_arms(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """One arm of each row, by inverse distribution; int64 (B, 1).

    Args:
        probabilities: (B, K), rows sum to 1 up to rounding.
        generator: on the device of `probabilities`.
    """
    cumulated = probabilities.cumsum(-1)
    drawn = torch.rand(len(probabilities), 1, generator=generator, device=probabilities.device)
    reached = torch.searchsorted(cumulated, drawn * cumulated[:, -1:], right=True)
    return reached.clamp_(max=probabilities.shape[-1] - 1)


def ratio_loss(
    log_policy: Tensor, arm: Tensor, behaved: Tensor, reward: Tensor, *, epsilon: float
) -> Tensor:
    """Policy gradient corrected for exploration: -w log pi(a) (r - mean r), averaged.

    w = pi(a) / b(a) carries no gradient. Where b is `behaviour` of the same policy, w never
    exceeds 1 / (1 - epsilon) and the expected gradient is that of the expected reward, up to a
    factor 1 - 1 / B for the batch-mean baseline. Where b is of an older policy, w is cut there,
    so that no sample can dominate.

    Args:
        log_policy: log pi, with gradient; (B, K).
        arm: chosen arms; int64 (B, 1).
        behaved: probability b under which each arm was chosen, > 0; (B, 1), without gradient.
        reward: what was paid; (B, 1).
        epsilon: share of uniform choices in b, in [0, 1).
    """
    chosen = log_policy.gather(1, arm)
    weight = (chosen.detach().exp() / behaved).clamp_(max=1.0 / (1.0 - epsilon))
    return -(chosen * (weight * (reward - reward.mean()))).mean()


def all_arm_loss(policy: Tensor, rewards: Tensor) -> Tensor:
    """Exact gradient: -sum_k pi_k R_k, averaged; no action is sampled, so none adds variance.

    Args:
        policy: pi, with gradient; (B, K).
        rewards: what every arm would pay; (B, K).
    """
    return -(policy * rewards).sum(-1).mean()


def paper_loss(log_policy: Tensor, arm: Tensor, reward: Tensor) -> Tensor:
    """TNN Alg. 1, line 16 as published: -log pi(a | s) r, averaged.

    The arms come from epsilon-greedy sampling, and neither a baseline nor a correction for it is
    published. Each uniform choice of an unlikely arm then pushes with the full weight of its
    reward, so the policy can collapse to one arm; it is kept to show that.

    Args:
        log_policy: log pi, with gradient; (B, K).
        arm: chosen arms; int64 (B, 1).
        reward: what was paid; (B, 1).
    """
    return -(log_policy.gather(1, arm) * reward).mean()


def entropy_of(policy: Tensor, log_policy: Tensor) -> Tensor:
    """Mean entropy of the policy, in nats, in [0, log K]; from pi and log pi, each (B, K)."""
    return -(policy * log_policy).sum(-1).mean()
