"""Laws and hand-computed values of the reward: TNN Eq. 3, and Eqs. 5 and 6 as a penalty."""

import dataclasses
import math
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting, NotFinite, UnknownName
from flyball.envs.reward import (
    RewardConfig,
    complexity_penalty,
    reward_from,
    reward_of,
    reward_table,
    throttle_reward,
)

TENTHS = np.arange(1, 11) / 10.0
# exp(1 - tr)(1 - tr) for tr = .1 ... 1, rounded to three places.
RIGHT = [2.214, 1.780, 1.410, 1.093, 0.824, 0.597, 0.405, 0.244, 0.111, 0.0]


def test_a_right_answer_is_paid_what_equation_3_says() -> None:
    paid = throttle_reward(np.ones(10), np.full(10, 0.9), TENTHS)
    np.testing.assert_array_equal(np.round(paid, 3), RIGHT)
    assert paid[9] == 0.0  # right at full throttle earns exactly nothing


def test_a_wrong_answer_is_charged_what_equation_3_says() -> None:
    paid = throttle_reward(np.zeros(10), np.full(10, 0.9), TENTHS)
    by_hand = [-(0.9 + 0.5) * (tr + 1.5) for tr in TENTHS]
    np.testing.assert_allclose(paid, by_hand, rtol=1e-15)  # two roundings of float64
    assert round(float(paid[0]), 2) == -2.24
    assert round(float(paid[9]), 2) == -3.50


def test_gammas_shift_the_charge_of_a_wrong_answer() -> None:
    # -(0.25 + 0.75) * (0.5 + 2) and, without offsets, -(0.25 * 0.5): exact in binary.
    assert float(throttle_reward(0.0, 0.25, 0.5, gamma1=0.75, gamma2=2.0)) == -2.5
    assert float(throttle_reward(0.0, 0.25, 0.5, gamma1=0.0, gamma2=0.0)) == -0.125


def test_an_answer_right_in_part_is_paid_in_proportion() -> None:
    right, wrong = throttle_reward([1.0, 0.0], 0.5, 0.5)
    assert float(throttle_reward(0.25, 0.5, 0.5)) == 0.25 * right + 0.75 * wrong


def test_spending_more_never_pays_more() -> None:
    ratio = np.linspace(0.001, 2.0, 2000)
    confidence = np.linspace(0.0, 1.0, 11)[:, None]
    for correct in (0.0, 0.5, 1.0):
        paid = throttle_reward(correct, confidence, ratio)
        assert (np.diff(paid, axis=1) < 0).all()


def test_wrong_is_negative_surer_is_worse_and_right_is_at_most_e() -> None:
    ratio, confidence = np.meshgrid(np.linspace(0.001, 1, 200), np.linspace(0, 1, 50))
    right = throttle_reward(1.0, confidence, ratio)
    wrong = throttle_reward(0.0, confidence, ratio)
    assert (wrong < 0).all()
    assert (np.diff(wrong, axis=0) < 0).all()
    assert (right >= 0).all()
    assert (right < math.e).all()
    np.testing.assert_array_equal(right, np.broadcast_to(right[0], right.shape))


def test_penalty_is_equations_5_and_6() -> None:
    ratio = [0.25, 0.5, 1.0]
    assert complexity_penalty(ratio, 0.5, complexity="hinge", power=1).tolist() == [0, 0, 0.5]
    assert complexity_penalty(ratio, 0.5, complexity="hinge", power=2).tolist() == [0, 0, 0.25]
    assert complexity_penalty(ratio, 0.5, complexity="distance", power=1).tolist() == [0.25, 0, 0.5]
    assert complexity_penalty(ratio, 0.5, complexity="distance").tolist() == [0.0625, 0, 0.25]


def test_the_penalty_is_taken_off_with_its_weight() -> None:
    config = RewardConfig(
        complexity_weight=8.0, complexity="hinge", power=2, target_utilization=0.5
    )
    # right at full throttle earns 0; the hinge takes 8 * (1 - .5)^2 off
    assert float(reward_of(1.0, 0.5, 1.0, config)) == -2.0
    assert reward_of(1.0, 0.5, 0.25, config) == reward_of(1.0, 0.5, 0.25, RewardConfig())


def test_a_table_pays_every_arm_of_every_row(hand_atlas: OutcomeAtlas) -> None:
    table = reward_table(hand_atlas, RewardConfig())
    assert table.dtype == np.float32
    right = np.exp(1 - np.array([0.2, 0.6, 1.0])) * (1 - np.array([0.2, 0.6, 1.0]))
    assert table.shape == (4, 3)
    np.testing.assert_allclose(table[0], right, rtol=1e-6)  # float32 keeps 7 digits
    # row 1, arm 0: -(0.4 + 0.5)(0.2 + 1.5); row 2, arm 1: -(0.5 + 0.5)(0.6 + 1.5)
    assert table[1, 0] == pytest.approx(-1.53, rel=1e-6)
    assert table[2, 1] == pytest.approx(-2.1, rel=1e-6)


def test_the_net_account_also_charges_controller_and_context(hand_atlas: OutcomeAtlas) -> None:
    # 100 MACs in all; the controller costs 10, the context 20, and the lowest arm is the context.
    net = [0.3, 0.9, 1.3]
    table = reward_table(
        hand_atlas, RewardConfig(account="net"), controller_macs=10, uses_context=True
    )
    expected = throttle_reward(hand_atlas.correct, hand_atlas.confidence, net)
    np.testing.assert_allclose(table, expected, rtol=1e-6)  # float32 keeps 7 digits
    assert table[0, 2] < 0  # right, yet more was spent than the full data path
    gross = reward_table(hand_atlas, RewardConfig(), controller_macs=10, uses_context=True)
    np.testing.assert_array_equal(gross, reward_table(hand_atlas, RewardConfig()))


def test_a_function_of_ones_own_pays(hand_atlas: OutcomeAtlas) -> None:
    def accuracy_less_cost(
        correct: NDArray[np.float64], confidence: NDArray[np.float64], ratio: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return correct - ratio

    table = reward_table(hand_atlas, accuracy_less_cost)
    expected = hand_atlas.correct - np.array([0.2, 0.6, 1.0])
    np.testing.assert_array_equal(table, expected.astype(np.float32))

    class NetCost:
        account = "net"

        def __call__(self, correct: Any, confidence: Any, ratio: Any) -> Any:
            return -ratio

    net = reward_table(hand_atlas, NetCost(), controller_macs=10)
    np.testing.assert_array_equal(net[0], np.array([-0.3, -0.7, -1.1], np.float32))


def test_a_function_that_loses_rows_is_refused(hand_atlas: OutcomeAtlas) -> None:
    with pytest.raises(InvalidSetting, match=r"one reward for each element, shape \(12,\)"):
        reward_table(hand_atlas, lambda correct, confidence, ratio: correct.mean())


def test_a_reward_that_is_not_finite_names_its_row_and_arm(hand_atlas: OutcomeAtlas) -> None:
    hand_atlas.confidence[2, 1] = np.nan
    with pytest.raises(NotFinite, match=r"row 2 \(sample 2\), arm 1 \(u = 0.6\) is nan"):
        reward_table(hand_atlas, RewardConfig())

    hand_atlas.confidence[2, 1] = 0.5
    with pytest.raises(NotFinite, match=r"row 1 \(sample 0\), arm 0 .* is -inf, and 4 in all"):
        reward_table(hand_atlas, RewardConfig(gamma1=1e200))  # beyond float32

    def infinite_when_full(correct: Any, confidence: Any, ratio: Any) -> Any:
        return np.where(ratio == 1.0, np.inf, 0.0)

    with pytest.raises(NotFinite, match=r"row 0 \(sample 3\), arm 2 .* is inf, and 4 in all"):
        reward_table(hand_atlas, infinite_when_full)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 1023])
def test_one_element_is_paid_the_same_bits_as_a_table(length: int) -> None:
    generator = np.random.default_rng(length)
    correct = generator.integers(2, size=length).astype(np.float32)
    confidence = generator.random(length, dtype=np.float32)
    ratio = generator.random(length) * 1.5
    config = RewardConfig(complexity_weight=0.3, target_utilization=0.4)
    whole = reward_of(correct, confidence, ratio, config)
    alone = [reward_of(*one, config) for one in zip(correct, confidence, ratio, strict=True)]
    assert whole.tobytes() == np.array(alone, np.float32).tobytes()


def test_memory_layout_does_not_change_a_bit() -> None:
    generator = np.random.default_rng(0)
    ratio = generator.random((257, 10))
    correct = generator.integers(2, size=ratio.shape).astype(np.float32)
    confidence = generator.random(ratio.shape, dtype=np.float32)
    expected = throttle_reward(correct, confidence, ratio).tobytes()

    def columns_first(array: NDArray[Any]) -> NDArray[Any]:
        return np.asfortranarray(array)

    def strided(array: NDArray[Any]) -> NDArray[Any]:
        wide = np.full((2 * array.shape[0], 3 * array.shape[1]), np.nan, array.dtype)
        wide[::2, ::3] = array
        return wide[::2, ::3]

    def reversed_twice(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]

    def unaligned(array: NDArray[Any]) -> NDArray[Any]:
        raw = bytearray(1) + bytearray(array.tobytes())
        return np.frombuffer(raw, array.dtype, offset=1).reshape(array.shape)

    for layout in (columns_first, strided, reversed_twice, unaligned):
        laid = throttle_reward(layout(correct), layout(confidence), layout(ratio))
        assert laid.tobytes() == expected, layout.__name__
    broadcast = throttle_reward(correct, confidence, ratio[:1])
    tiled = throttle_reward(correct, confidence, np.tile(ratio[:1], (257, 1)))
    assert broadcast.tobytes() == tiled.tobytes()


def test_values_across_the_range_agree_alone_and_together() -> None:
    ratio = np.concatenate([np.linspace(1e-6, 2, 4001), np.arange(1, 1001) / 1000])
    together = throttle_reward(1.0, 0.5, ratio)
    alone = np.array([float(throttle_reward(1.0, 0.5, value)) for value in ratio])
    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("field", ["gamma1", "gamma2", "complexity_weight"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "0.5", None, True])
def test_offsets_and_weight_are_finite_and_not_negative(field: str, value: Any) -> None:
    with pytest.raises(InvalidSetting) as caught:
        RewardConfig(**{field: value})
    message = str(caught.value)
    assert f"{field} must be a finite number, 0 or more; it is {value!r}" in message
    assert f"--set reward.{field}=" in message


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("complexity", "hing", "complexity must be 'distance' or 'hinge'; it is 'hing'"),
        ("power", 3, "power must be 1 or 2; it is 3"),
        ("power", True, "power must be 1 or 2; it is True"),
        ("account", "both", "account must be 'gross' or 'net'; it is 'both'"),
        ("target_utilization", 1.1, "in [0, 1]; it is 1.1"),
        ("target_utilization", math.nan, "in [0, 1]; it is nan"),
    ],
)
def test_every_other_field_has_its_rule(field: str, value: Any, rule: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        RewardConfig(**{field: value})
    assert rule in str(caught.value)
    assert f"--set reward.{field}=" in str(caught.value)


def test_throttle_reward_refuses_a_negative_gamma() -> None:
    with pytest.raises(InvalidSetting, match="gamma2 must be a finite number"):
        throttle_reward(1.0, 0.5, 0.5, gamma2=-1.0)


def test_a_dict_is_a_reward_and_its_unknown_keys_are_refused() -> None:
    assert reward_from(None) == RewardConfig()
    assert reward_from({"gamma1": 2.0, "account": "net"}) == RewardConfig(2.0, account="net")
    with pytest.raises(UnknownName, match=r"no reward field 'gama1'\. Did you mean 'gamma1'\?"):
        reward_from({"gama1": 2.0})
    with pytest.raises(InvalidSetting, match="a float came"):
        reward_from(0.5)  # type: ignore[arg-type]


def test_a_config_crosses_processes_as_plain_values() -> None:
    config = RewardConfig(gamma1=0.25, complexity_weight=2.0)
    assert pickle.loads(pickle.dumps(config)) == config
    assert reward_from(dataclasses.asdict(config)) == config
