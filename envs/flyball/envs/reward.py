"""What a choice of utilization is paid; what an environment does with it lives in `bandit`.

One function, `reward_table`'s and the environments' alike: every element is computed alone, in
float64, and rounded to float32 once, so a live step and a row of a table agree to the bit.

Axis letters: N samples, K arms.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting, NotFinite, unknown_name

__all__ = [
    "Reward",
    "RewardConfig",
    "RewardFunction",
    "complexity_penalty",
    "reward_from",
    "reward_of",
    "reward_table",
    "throttle_reward",
]

Floats = NDArray[np.float64]
Account = Literal["gross", "net"]
Complexity = Literal["distance", "hinge"]

RewardFunction = Callable[[Floats, Floats, Floats], ArrayLike]
"""A user's own reward: (correct, confidence, throttle_ratio) to rewards, all float64 (M,).

It must treat every element alone, or a live step and a table will not agree. It is given the
gross throttle ratio, and the net one if it carries an attribute `account = "net"`.
"""


@dataclass(frozen=True)
class RewardConfig:
    """TNN Eq. 3, less a weighted complexity penalty (TNN Eqs. 5 and 6).

    Attributes:
        gamma1: added to the confidence of a wrong answer, >= 0 (the paper: 0.5).
        gamma2: added to the throttle ratio of a wrong answer, >= 0 (the paper: 1.5).
        complexity_weight: weight of the complexity penalty, >= 0; 0 leaves Eq. 3 as published.
        complexity: "distance" (Eq. 6) charges both sides of the target, "hinge" (Eq. 5) only
            what is spent above it.
        power: exponent p of the penalty, 1 or 2.
        target_utilization: what the penalty measures from, in [0, 1].
        account: "gross" charges the data path alone, as published; "net" also charges the
            controller and its context.

    Raises:
        InvalidSetting: a value breaks its rule.
    """

    gamma1: float = 0.5
    gamma2: float = 1.5
    complexity_weight: float = 0.0
    complexity: Complexity = "distance"
    power: Literal[1, 2] = 2
    target_utilization: float = 0.0
    account: Account = "gross"

    def __post_init__(self) -> None:
        _check_offset("gamma1", self.gamma1, example="0.5")
        _check_offset("gamma2", self.gamma2, example="1.5")
        _check_offset("complexity_weight", self.complexity_weight, example="10")
        _check_choice("complexity", self.complexity, get_args(Complexity))
        _check_choice("power", self.power, (1, 2))
        _check_choice("account", self.account, get_args(Account))
        if not _is_number(self.target_utilization) or not 0.0 <= self.target_utilization <= 1.0:
            raise InvalidSetting(
                "target_utilization is a share of the full data path in [0, 1]; it is "
                f"{self.target_utilization!r}. Set it with --set reward.target_utilization=0.3."
            )


Reward = RewardConfig | RewardFunction


def throttle_reward(
    correct: ArrayLike,
    confidence: ArrayLike,
    throttle_ratio: ArrayLike,
    *,
    gamma1: float = 0.5,
    gamma2: float = 1.5,
) -> Floats:
    """Pays for a right answer what it left unspent; charges a wrong one for cost and certainty.

    TNN Eq. (3): exp(1 - tr)(1 - tr) where right, -(c + gamma1)(tr + gamma2) where wrong. An
    answer that is right in part is paid in proportion: correct * right + (1 - correct) * wrong.

    Args:
        correct: 1 where the data path answered right, graded in [0, 1]; shape (N, K).
        confidence: the data path's own probability of its answer, in [0, 1]; shape (N, K).
        throttle_ratio: MACs spent / MACs of the full data path, > 0; (N, K) or (K,). Gross it
            is at most 1; net it may exceed 1, and a right answer then pays less than nothing.
        gamma1: offset of the confidence, >= 0, without unit.
        gamma2: offset of the throttle ratio, >= 0, without unit.

    Returns:
        Reward of every arm on every sample; shape (N, K), at most e.

    Raises:
        InvalidSetting: a gamma is negative or not finite: a wrong answer would then be paid.
    """
    _check_offset("gamma1", gamma1, example="0.5")
    _check_offset("gamma2", gamma2, example="1.5")
    (right_share, certainty, ratio), shape = _elements(correct, confidence, throttle_ratio)
    unspent = 1.0 - ratio
    right = np.exp(unspent) * unspent
    wrong = -(certainty + gamma1) * (ratio + gamma2)
    return (right_share * right + (1.0 - right_share) * wrong).reshape(shape)


def complexity_penalty(
    throttle_ratio: ArrayLike,
    target_utilization: float = 0.0,
    *,
    complexity: Complexity = "distance",
    power: Literal[1, 2] = 2,
) -> Floats:
    """How far the spending is from its target: TNN Eqs. (5) and (6).

    Args:
        throttle_ratio: MACs spent / MACs of the full data path, > 0; any shape.
        target_utilization: u of the equations, in [0, 1].
        complexity: "hinge" is max(0, tr - u)^p (Eq. 5), "distance" is |tr - u|^p (Eq. 6).
        power: p, 1 or 2.

    Returns:
        The penalty, >= 0, in the shape of `throttle_ratio`.
    """
    _check_choice("complexity", complexity, get_args(Complexity))
    _check_choice("power", power, (1, 2))
    excess = np.asarray(throttle_ratio, np.float64) - target_utilization
    distance = np.maximum(excess, 0.0) if complexity == "hinge" else np.abs(excess)
    return distance if power == 1 else distance * distance


def reward_of(
    correct: ArrayLike, confidence: ArrayLike, throttle_ratio: ArrayLike, reward: Reward
) -> NDArray[np.float32]:
    """The reward of outcomes, each computed alone.

    Args:
        correct: 1 where the data path answered right, graded in [0, 1]; shape (N, K).
        confidence: the data path's probability of its own answer, in [0, 1]; shape (N, K).
        throttle_ratio: of the account that the reward asks for, > 0; shape (N, K) or (K,).
        reward: Eq. 3's settings, or a function of one's own.

    Returns:
        Rewards, float32, in the broadcast shape. NaN where the inputs or the function made it.

    Raises:
        InvalidSetting: the user's function returned another shape.
    """
    elements, shape = _elements(correct, confidence, throttle_ratio)
    # What overflows is reported once, by row and arm, where it is paid: see `check_finite`.
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(reward, RewardConfig):
            paid = _paid_by_config(reward, elements)
        else:
            paid = _paid_by_user(reward, elements)
        return paid.astype(np.float32).reshape(shape)


def reward_table(
    atlas: OutcomeAtlas,
    reward: Reward,
    *,
    controller_macs: int = 0,
    uses_context: bool = False,
) -> NDArray[np.float32]:
    """What every arm would be paid on every row of an atlas; float32 (N, K).

    Args:
        atlas: outcomes of N samples under K arms.
        reward: Eq. 3's settings, or a function of one's own.
        controller_macs: multiply-accumulates of the controller, for the net account.
        uses_context: whether the controller sees the lowest arm's context, for the net account.

    Raises:
        NotFinite: a reward is NaN or infinite; the message names the first such row and arm.
    """
    if account_of(reward) == "net":
        ratio = atlas.net_throttle_ratio(controller_macs, uses_context=uses_context)
    else:
        ratio = atlas.throttle_ratio()
    paid = reward_of(atlas.correct, atlas.confidence, ratio, reward)
    check_finite(
        paid,
        rows=np.arange(len(atlas))[:, None],
        sample=np.asarray(atlas.sample)[:, None],
        arm=np.arange(len(atlas.arms)),
        arms=atlas.arms,
    )
    return paid


def reward_from(value: Reward | Mapping[str, Any] | None) -> Reward:
    """The reward that a setting describes: itself, a dict of `RewardConfig`'s fields, or None.

    Raises:
        UnknownName: a key is no field of `RewardConfig`.
        InvalidSetting: a value breaks its rule, or the setting is nothing that can pay.
    """
    if value is None:
        return RewardConfig()
    if isinstance(value, RewardConfig):
        return value
    if isinstance(value, Mapping):
        known = [field.name for field in fields(RewardConfig)]
        for name in value:
            if name not in known:
                raise unknown_name("reward field", str(name), known)
        return RewardConfig(**value)
    if callable(value):
        return value
    raise InvalidSetting(
        "A reward is a RewardConfig, a dict of its fields, or a function of correct, confidence "
        f"and throttle ratio; a {type(value).__name__} came. Give one of them."
    )


def account_of(reward: Reward) -> str:
    """Which throttle ratio a reward charges: "gross" or "net"."""
    account = getattr(reward, "account", "gross")
    _check_choice("account", account, get_args(Account))
    return str(account)


def check_finite(
    paid: NDArray[np.float32],
    *,
    rows: NDArray[np.int64],
    sample: NDArray[np.int64],
    arm: NDArray[np.int64],
    arms: tuple[float, ...],
) -> None:
    """Refuses rewards that are NaN or infinite.

    Args:
        paid: rewards, of any shape.
        rows: row of every reward, in a shape that broadcasts to that of `paid`.
        sample: row of the image set, likewise.
        arm: index of the arm, likewise.
        arms: the utilizations that `arm` indexes.

    Raises:
        NotFinite: one is; the message names the first such row and arm.
    """
    is_broken = ~np.isfinite(paid)
    if not is_broken.any():
        return
    place = tuple(np.argwhere(is_broken)[0])
    row, name, index = (int(np.broadcast_to(a, paid.shape)[place]) for a in (rows, sample, arm))
    raise NotFinite(
        f"Every reward must be finite; that of row {row} (sample {name}), arm {index} "
        f"(u = {arms[index]:g}) is {paid[place]}, and {int(is_broken.sum())} in all are not. "
        "Look at that row's confidence and throttle ratio, or at the reward function."
    )


def _elements(*arrays: ArrayLike) -> tuple[tuple[Floats, Floats, Floats], tuple[int, ...]]:
    """Three arrays as contiguous float64 vectors of one length, and their broadcast shape.

    numpy's vectorised `exp` and its strided one may differ in the last bit: only the first runs.
    """
    first, second, third = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in arrays))
    vectors = (_vector(first), _vector(second), _vector(third))
    return vectors, first.shape


def _vector(array: Floats) -> Floats:
    return np.ascontiguousarray(array).reshape(-1)


def _paid_by_config(config: RewardConfig, elements: tuple[Floats, Floats, Floats]) -> Floats:
    paid = throttle_reward(*elements, gamma1=config.gamma1, gamma2=config.gamma2)
    if config.complexity_weight:
        penalty = complexity_penalty(
            elements[2],
            config.target_utilization,
            complexity=config.complexity,
            power=config.power,
        )
        paid = paid - config.complexity_weight * penalty
    return paid


def _paid_by_user(reward: RewardFunction, elements: tuple[Floats, Floats, Floats]) -> Floats:
    paid = np.asarray(reward(*elements), np.float64)
    if paid.shape != elements[0].shape:
        raise InvalidSetting(
            f"A reward function returns one reward for each element, shape {elements[0].shape}; "
            f"{reward!r} returned shape {paid.shape}. Write it with numpy functions that treat "
            "every element alone."
        )
    return paid


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float | np.integer | np.floating)
    return is_real and not isinstance(value, bool) and math.isfinite(value)


def _check_offset(name: str, value: Any, *, example: str) -> None:
    if not _is_number(value) or value < 0:
        raise InvalidSetting(
            f"{name} must be a finite number, 0 or more; it is {value!r}. A negative one would "
            f"pay for wrong or costly answers. Set it with --set reward.{name}={example}."
        )


def _check_choice(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if isinstance(value, bool) or value not in known:
        choices = " or ".join(repr(choice) for choice in known)
        raise InvalidSetting(
            f"{name} must be {choices}; it is {value!r}. "
            f"Set it with --set reward.{name}={known[0]}."
        )
