"""`ThrottleBanditVector` pays what `ThrottleBandit` pays, and resets by NEXT_STEP."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.spaces import MultiDiscrete
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import InvalidSetting
from flyball.envs import RewardConfig, ThrottleBandit, ThrottleBanditVector, reward_table

BANDIT = "flyball/ThrottleBandit-v0"


def make_vector(atlas: OutcomeAtlas, num_envs: int, **arguments: Any) -> Any:
    return gymnasium.make_vec(
        BANDIT,
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        atlas=atlas,
        **arguments,
    )


def test_make_vec_gives_the_native_vector_environment(hand_atlas: OutcomeAtlas) -> None:
    env = make_vector(hand_atlas, 5)
    assert isinstance(env, ThrottleBanditVector)
    assert env.num_envs == 5
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert env.action_space == MultiDiscrete([3] * 5)
    assert env.observation_space.shape == (5, 2)
    env.close()
    env.close()


@pytest.mark.parametrize("observation", ["context", "image"])
def test_same_rows_are_paid_the_same_as_one_by_one(
    hand_atlas: OutcomeAtlas, hand_images: np.ndarray, observation: Any
) -> None:
    arguments: dict[str, Any] = {
        "atlas": hand_atlas,
        "images": hand_images,
        "observation": observation,
        "split": None,
        "reward": RewardConfig(complexity_weight=0.3, account="net"),
        "controller_macs": 7,
    }
    single = ThrottleBandit(**arguments)
    one_by_one: dict[tuple[int, int], tuple[Any, ...]] = {}
    for seed in range(120):
        seen, start = single.reset(seed=seed)
        action = seed % 3
        _, reward, _, _, info = single.step(action)
        one_by_one[start["sample"], action] = (seen.tolist(), reward, info)
    assert len(one_by_one) == 12

    vector = ThrottleBanditVector(64, **arguments)
    actions = np.arange(64) % 3
    for seed in range(3):
        seen, start = vector.reset(seed=seed)
        assert vector.observation_space.contains(seen)
        after, rewards, terminated, truncated, info = vector.step(actions)
        np.testing.assert_array_equal(after, seen)
        assert terminated.all()
        assert not truncated.any()
        assert rewards.dtype == np.float32
        as_list = [
            {name: array[i].item() for name, array in info.items() if not name.startswith("_")}
            for i in range(64)
        ]
        for i in range(64):
            expected = one_by_one[int(start["sample"][i]), int(actions[i])]
            assert (seen[i].tolist(), float(rewards[i]), as_list[i]) == expected


def test_it_pays_the_table(hand_atlas: OutcomeAtlas) -> None:
    table = reward_table(hand_atlas, RewardConfig(gamma2=0.0))
    row_of_sample = np.argsort(hand_atlas.sample)
    env = ThrottleBanditVector(200, atlas=hand_atlas, split=None, reward={"gamma2": 0.0})
    _, start = env.reset(seed=1)
    actions = np.arange(200) % 3
    rewards = env.step(actions)[1]
    expected = table[row_of_sample[start["sample"]], actions]
    assert rewards.tobytes() == expected.tobytes()


def test_the_step_after_the_end_resets_and_pays_nothing(hand_atlas: OutcomeAtlas) -> None:
    stepped = ThrottleBanditVector(32, atlas=hand_atlas, split=None)
    resetting = ThrottleBanditVector(32, atlas=hand_atlas, split=None)
    stepped.reset(seed=3)
    resetting.reset(seed=3)
    stepped.step(np.zeros(32, np.int64))
    resetting.step(np.zeros(32, np.int64))
    ignored = np.full(32, -7)
    seen, rewards, terminated, truncated, info = stepped.step(ignored)
    np.testing.assert_array_equal(seen, resetting.reset()[0])  # the same stream as reset()
    assert not rewards.any()
    assert not terminated.any()
    assert not truncated.any()
    assert sorted(info) == ["_sample", "sample"]
    assert stepped.step(np.zeros(32, np.int64))[2].all()


def test_two_vectors_with_one_seed_agree_for_50_steps(hand_atlas: OutcomeAtlas) -> None:
    def steps(seed: int) -> list[Any]:
        env = make_vector(hand_atlas, 8, split=None)
        env.action_space.seed(seed)
        record: list[Any] = [env.reset(seed=seed)[0].tolist()]
        for _ in range(50):
            seen, rewards, terminated, _, info = env.step(env.action_space.sample())
            record.append(
                (seen.tolist(), rewards.tolist(), terminated.all(), info["sample"].tolist())
            )
        return record

    assert steps(2) == steps(2)
    assert steps(2) != steps(3)


def test_a_vector_of_one_draws_what_the_single_environment_draws(hand_atlas: OutcomeAtlas) -> None:
    vector = ThrottleBanditVector(1, atlas=hand_atlas, split=None)
    single = ThrottleBandit(atlas=hand_atlas, split=None)
    for step in range(50):
        seed = 9 if step == 0 else None
        assert vector.reset(seed=seed)[1]["sample"][0] == single.reset(seed=seed)[1]["sample"]


def test_info_reads_as_gymnasium_reads_it(hand_atlas: OutcomeAtlas) -> None:
    env = DictInfoToList(make_vector(hand_atlas, 2))
    env.reset(seed=0)
    infos: Any = env.step(np.array([0, 2]))[4]
    assert [info["utilization"] for info in infos] == [0.2, 1.0]


@pytest.mark.parametrize(
    "actions", [[0, 1, 3], [0, -1, 2], [0, 1], [0.0, 1.0, 2.0], 1, [[0, 1, 2]], [True, False, True]]
)
def test_only_an_arm_for_each_environment_is_an_action(
    hand_atlas: OutcomeAtlas, actions: Any
) -> None:
    env = ThrottleBanditVector(3, atlas=hand_atlas)
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match=r"integer in \[0, 2\], one for each of 3"):
        env.step(np.asarray(actions))


def test_it_is_reset_before_it_is_stepped(hand_atlas: OutcomeAtlas) -> None:
    with pytest.raises(ResetNeeded, match="call reset"):
        ThrottleBanditVector(2, atlas=hand_atlas).step(np.zeros(2, np.int64))


@pytest.mark.parametrize("num_envs", [0, -1, 1.5, True])
def test_there_is_at_least_one_environment(hand_atlas: OutcomeAtlas, num_envs: Any) -> None:
    with pytest.raises(InvalidSetting, match="num_envs counts environments"):
        ThrottleBanditVector(num_envs, atlas=hand_atlas)
