"""RLlib's door: the only package of the controllers that imports Ray.

`ThrottleBanditConfig` is for users of RLlib; `learn_rllib` hides it behind plain values.
"""

from flyball.controllers.rllib.algorithm import ThrottleBandit, ThrottleBanditConfig
from flyball.controllers.rllib.learn import Workers, learn_rllib
from flyball.controllers.rllib.stock import dqn_config, ppo_config

__all__ = [
    "ThrottleBandit",
    "ThrottleBanditConfig",
    "Workers",
    "dqn_config",
    "learn_rllib",
    "ppo_config",
]
