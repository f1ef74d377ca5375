"""`ThrottleBandit`: how much of a network to run on this input, as a Gymnasium environment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.splits import CONTROLLER_TRAIN
from flyball.envs.observations import Images, ObservationKind
from flyball.envs.reward import Reward, reward_from, reward_table
from flyball.envs.rounds import Rounds
from flyball.envs.sources import AtlasOutcomes, open_source

if TYPE_CHECKING:
    from flyball.datapaths.paths import DataPath

__all__ = ["ThrottleBandit", "open_rounds"]


class ThrottleBandit(gymnasium.Env[NDArray[np.float32], np.int64]):
    """One-step contextual bandit: see an input, choose a utilization, be paid.

    ## Description

    A throttleable network can run a part of itself on each input. The agent sees an input, or
    cheap features of it, and chooses how much to run. It is paid for a right answer what that
    answer left unspent, and charged for a wrong one (TNN section 3.3). Outcomes come from an
    atlas, computed once, or live from the frozen data path; both pay the same to the bit.

    ## Action Space

    `Discrete(K)`: the index of an arm. Arm k runs the data path at utilization `arms[k]`; the
    arms increase, so 0 is the cheapest.

    ## Observation Space

    - `observation="context"`: `Box` of any finite float32, shape (D,): pooled features and answer
      of the lowest arm.
    - `observation="image"`: `Box(0, 1, (C, H, W), float32)`: the input itself.

    The observation after the step is the one before it.

    ## Rewards

    TNN Eq. 3, of the throttle ratio tr and the confidence c: exp(1 - tr)(1 - tr) where the answer
    is right, -(c + gamma1)(tr + gamma2) where it is wrong, less a complexity penalty (Eqs. 5, 6)
    if it has weight; or a function of one's own. At most e. tr counts the data path alone, or
    with `account="net"` also the controller and its context.

    ## Starting State

    A row of the split, drawn uniformly with replacement.

    ## Episode End

    Terminates after every step; it is never truncated.

    ## Arguments

    - `atlas`: outcomes, an `OutcomeAtlas` or its folder. With `path`: the rows and labels only.
    - `path`: a frozen data path or its folder; if given, outcomes are computed live.
    - `images`: the image set, its uint8 or float32 array (samples, C, H, W), or the .npy file
      that holds it. Needed live and for image observations.
    - `labels`: class index of every image; only live, and only if neither the images nor the
      atlas has them.
    - `observation`: "context" (default) or "image".
    - `split`: rows to draw from; default "controller_train", None for every row.
    - `reward`: a `RewardConfig`, a dict of its fields, or a function of (correct, confidence,
      throttle_ratio) that treats every element alone; default Eq. 3 as published.
    - `controller_macs`: multiply-accumulates of the controller, for the net throttle ratio.

    A configuration that crosses processes holds folders, files and plain values only.

    ```python
    gymnasium.make("flyball.envs:flyball/ThrottleBandit-v0", atlas="runs/.../outcomes")
    ```

    ## Info

    After a step: `correct`, `confidence`, `throttle_ratio` (gross), `net_throttle_ratio`, `macs`
    (data path), `utilization` (asked for), `sample` (row of the image set); after a reset,
    `sample` alone.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(
        self,
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
        self.observation_space = self._rounds.source.space
        self.action_space = Discrete(len(self.arms))
        self._rows: NDArray[np.int64] | None = None
        self._seen = np.zeros(0, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draws a row; see "Starting State". There are no options."""
        super().reset(seed=seed)
        self._rows = self._rounds.draw(self.np_random, 1)
        self._seen = self._rounds.source.observe(self._rows)[0]
        return self._seen, {"sample": int(self._rounds.source.sample[self._rows[0]])}

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Pulls an arm and ends the episode; see "Rewards" and "Info".

        Raises:
            InvalidAction: the action is no index of an arm.
            ResetNeeded: the episode is over.
            NotFinite: the reward is NaN or infinite; names the row and the arm.
        """
        if self._rows is None:
            raise ResetNeeded("An episode is one step long and this one is over: call reset().")
        actions = self._rounds.actions([action], 1)
        paid, info = self._rounds.play(self._rows, actions)
        self._rows = None
        return self._seen, float(paid[0]), True, False, {k: v[0].item() for k, v in info.items()}


def open_rounds(
    *,
    atlas: OutcomeAtlas | str | Path | None,
    path: "DataPath | str | Path | None",
    images: Images | None,
    labels: Sequence[int] | NDArray[Any] | None,
    observation: ObservationKind,
    split: str | None,
    reward: Reward | Mapping[str, Any] | None,
    controller_macs: int,
) -> Rounds:
    """The rounds that an environment's arguments describe; see `ThrottleBandit`.

    Raises:
        BadInput: an argument is missing, does not fit, or cannot be read.
        NotFinite: the atlas would pay NaN or infinity somewhere; names the row and arm.
    """
    source = open_source(
        atlas=atlas, path=path, images=images, labels=labels, observation=observation, split=split
    )
    pays = reward_from(reward)
    uses_context = observation == "context"
    rounds = Rounds(source, pays, controller_macs=controller_macs, uses_context=uses_context)
    if isinstance(source, AtlasOutcomes):
        reward_table(source.atlas, pays, controller_macs=controller_macs, uses_context=uses_context)
    return rounds
