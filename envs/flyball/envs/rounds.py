"""The bandit itself, without Gymnasium's interface: draw a sample, see it, pull an arm, be paid.

The single and the vector environment both play these rounds, so they cannot pay differently.
K arms, B batch.
"""

from typing import Any

import numpy as np
from gymnasium.error import InvalidAction
from numpy.typing import NDArray

from flyball.datapaths.errors import InvalidSetting
from flyball.envs.reward import Reward, account_of, check_finite, reward_of
from flyball.envs.sources import Outcomes, OutcomeSource

__all__ = ["Info", "Rounds"]

Info = dict[str, NDArray[Any]]


class Rounds:
    """One-step rounds on a source of outcomes, paid by one reward.

    Attributes:
        source: samples, observations and outcomes.
        reward: what pays.
        controller_macs: multiply-accumulates of the controller, for the net account.
        uses_context: whether what is seen is the lowest arm's context, for the net account.
    """

    def __init__(
        self,
        source: OutcomeSource,
        reward: Reward,
        *,
        controller_macs: int = 0,
        uses_context: bool = False,
    ) -> None:
        self.source = source
        self.reward = reward
        self.controller_macs = checked_macs(controller_macs)
        self.uses_context = uses_context
        self._is_net = account_of(reward) == "net"
        self._utilization = np.asarray(source.arms, np.float64)

    def draw(self, generator: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Rows (count,), uniform, with replacement."""
        return generator.integers(len(self.source.sample), size=count)

    def actions(self, actions: Any, count: int) -> NDArray[np.int64]:
        """Actions as arm indices (count,).

        Raises:
            InvalidAction: not one integer in [0, K - 1] for each round.
        """
        given = np.asarray(actions)
        arms = len(self.source.arms)
        is_shaped = given.shape == (count,) and given.dtype.kind in "iu"
        if not is_shaped or bool(((given < 0) | (given >= arms)).any()):
            raise InvalidAction(
                f"An action is the index of one of the {arms} arms, an integer in "
                f"[0, {arms - 1}], one for each of {count} environment(s); {actions!r} came. "
                "Give indices of arms, not utilizations."
            )
        return given.astype(np.int64)

    def play(
        self, rows: NDArray[np.int64], actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], Info]:
        """Pulls one arm for each row.

        Args:
            rows: in [0, N), (B,).
            actions: arm indices in [0, K - 1], (B,).

        Returns:
            Rewards, float32 (B,), and what the environments report under "Info", each (B,).

        Raises:
            NotFinite: a reward is NaN or infinite; names the row and the arm.
        """
        outcomes = self.source.outcomes(rows, actions)
        gross = outcomes.macs / float(self.source.full_macs)
        net = self._net_macs(outcomes, actions) / float(self.source.full_macs)
        paid = reward_of(
            outcomes.correct, outcomes.confidence, net if self._is_net else gross, self.reward
        )
        sample = self.source.sample[rows]
        check_finite(paid, rows=rows, sample=sample, arm=actions, arms=self.source.arms)
        return paid, {
            "correct": outcomes.correct,
            "confidence": outcomes.confidence,
            "throttle_ratio": gross,
            "net_throttle_ratio": net,
            "macs": outcomes.macs,
            "utilization": self._utilization[actions],
            "sample": sample,
        }

    def _net_macs(self, outcomes: Outcomes, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """`OutcomeAtlas.net_macs` for the chosen arms: the lowest is not paid twice."""
        if not self.uses_context:
            return outcomes.macs + self.controller_macs
        macs, context = outcomes.macs, outcomes.context_macs
        after_context = np.where(actions == 0, np.maximum(context, macs), macs + context)
        return after_context + self.controller_macs


def checked_macs(macs: Any) -> int:
    """A count of multiply-accumulates.

    Raises:
        InvalidSetting: it is not an integer, 0 or more.
    """
    if isinstance(macs, bool) or not isinstance(macs, int | np.integer) or macs < 0:
        raise InvalidSetting(
            f"controller_macs counts multiply-accumulates, an integer of 0 or more; it is "
            f"{macs!r}. Give what `network_macs` counts for the controller, or 0."
        )
    return int(macs)
