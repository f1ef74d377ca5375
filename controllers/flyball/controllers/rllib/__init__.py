"""RLlib's door: the only package of the controllers that imports Ray.

`ThrottleBanditConfig` is for users of RLlib; `learn_rllib` hides it behind plain values.
"""

from flyball.controllers.rllib.algorithm import ThrottleBandit, ThrottleBanditConfig

__all__ = ["ThrottleBandit", "ThrottleBanditConfig"]
