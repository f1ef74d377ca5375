"""`ThrottleBanditVector`: many `ThrottleBandit`s played as one batch, in arrays. B environments."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.splits import CONTROLLER_TRAIN
from flyball.envs.bandit import open_rounds
from flyball.envs.observations import Images, ObservationKind
from flyball.envs.reward import Reward
from flyball.envs.rounds import Info

if TYPE_CHECKING:
    from flyball.datapaths.paths import DataPath

__all__ = ["ThrottleBanditVector"]

Batch = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], Info]


class ThrottleBanditVector(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """B environments of `ThrottleBandit`, drawn, seen and paid in one go.

    ## Description

    See `ThrottleBandit`; on the same row and action both pay the same.

    ## Action Space

    `MultiDiscrete([K] * B)`: an arm for each environment.

    ## Observation Space

    `ThrottleBandit`'s, with a first axis of B.

    ## Rewards

    `ThrottleBandit`'s, float32 (B,).

    ## Starting State

    B rows of the split, drawn uniformly with replacement from one generator: one seed gives one
    stream, and with B = 1 that of `ThrottleBandit`.

    ## Episode End

    All environments end with every step. Autoreset is NEXT_STEP: the step after the end ignores
    its actions, draws new rows, and pays 0. A caller that wants no such steps calls `reset()`
    instead: reset draws a batch, step pays it.

    ## Arguments

    - `num_envs`: B, at least 1.
    - All others are those of `ThrottleBandit`.

    ## Info

    `ThrottleBandit`'s, as arrays (B,), each with the mask `_name` of the environments it is of.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": [],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        atlas: OutcomeAtlas | str | Path | None = None,
        path: "DataPath | str | Path | None" = None,
        images: Images | None = None,
        labels: Sequence[int] | NDArray[Any] | None = None,
        observation: ObservationKind = "context",
        split: str | None = CONTROLLER_TRAIN,
        reward: Reward | Mapping[str, Any] | None = None,
        controller_macs: int = 0,
    ) -> None:
        """Opens what it is made from; the arguments are those of the class.

        Raises:
            BadInput: an argument is missing, does not fit, or cannot be read.
            NotFinite: the atlas would pay NaN or infinity somewhere; names the row and arm.
        """
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise InvalidSetting(
                f"num_envs counts environments, an integer of 1 or more; it is {num_envs!r}. "
                "Give for example num_envs=256."
            )
        self._rounds = open_rounds(
            atlas=atlas,
            path=path,
            images=images,
            labels=labels,
            observation=observation,
            split=split,
            reward=reward,
            controller_macs=controller_macs,
        )
        self.arms = self._rounds.source.arms
        self.num_envs = int(num_envs)
        self.single_observation_space = self._rounds.source.space
        self.single_action_space = Discrete(len(self.arms))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rows: NDArray[np.int64] | None = None
        self._seen = np.zeros(0, np.float32)
        self._is_over = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Draws B rows; see "Starting State". There are no options."""
        super().reset(seed=seed)
        return self._draw()

    def step(self, actions: Any) -> Batch:
        """Pulls an arm in each environment, or, if all are over, resets them.

        Args:
            actions: arm indices in [0, K - 1], (B,); ignored by a step that resets.

        Returns:
            Observations, rewards, terminated, truncated and info, each (B, ...).

        Raises:
            InvalidAction: the actions are not B indices of arms.
            ResetNeeded: there was no reset yet.
            NotFinite: a reward is NaN or infinite; names the row and the arm.
        """
        if self._rows is None:
            raise ResetNeeded("There are no environments to step yet: call reset() first.")
        never = np.zeros(self.num_envs, bool)
        if self._is_over:
            seen, info = self._draw()
            return seen, np.zeros(self.num_envs, np.float32), never, never.copy(), info
        paid, info = self._rounds.play(self._rows, self._rounds.actions(actions, self.num_envs))
        self._is_over = True
        return self._seen, paid, ~never, never, self._masked(info)

    def _draw(self) -> tuple[NDArray[np.float32], Info]:
        self._rows = self._rounds.draw(self.np_random, self.num_envs)
        self._seen = self._rounds.source.observe(self._rows)
        self._is_over = False
        return self._seen, self._masked({"sample": self._rounds.source.sample[self._rows]})

    def _masked(self, info: Info) -> Info:
        return info | {f"_{name}": np.ones(self.num_envs, bool) for name in info}
