"""Environments in which a controller learns how much of a network to run, and what pays it.

Importing this package registers the ids with Gymnasium.
"""

from flyball.envs.bandit import ThrottleBandit
from flyball.envs.observations import ObservationKind, observations
from flyball.envs.registration import ENVIRONMENT_IDS, register
from flyball.envs.reward import (
    Reward,
    RewardConfig,
    RewardFunction,
    complexity_penalty,
    reward_from,
    reward_of,
    reward_table,
    throttle_reward,
)
from flyball.envs.vector import ThrottleBanditVector

__all__ = [
    "ENVIRONMENT_IDS",
    "ObservationKind",
    "Reward",
    "RewardConfig",
    "RewardFunction",
    "ThrottleBandit",
    "ThrottleBanditVector",
    "complexity_penalty",
    "observations",
    "register",
    "reward_from",
    "reward_of",
    "reward_table",
    "throttle_reward",
]

register()
