"""`ThrottleBandit` keeps Gymnasium's contract, pays the atlas's rewards, and refuses bad input."""

import math
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    InvalidSetting,
    NotFinite,
    PickleRefused,
    UnknownName,
)
from flyball.envs import ENVIRONMENT_IDS, RewardConfig, ThrottleBandit, reward_table
from flyball.envs.observations import observations

BANDIT = "flyball/ThrottleBandit-v0"


@pytest.mark.parametrize("name", ENVIRONMENT_IDS)
@pytest.mark.parametrize("observation", ["context", "image"])
def test_gymnasiums_checker_finds_nothing(
    name: str, observation: str, hand_atlas: OutcomeAtlas, hand_images: np.ndarray
) -> None:
    env = gymnasium.make(name, atlas=hand_atlas, images=hand_images, observation=observation)
    check_env(env.unwrapped)


def test_spaces_are_exact(hand_atlas: OutcomeAtlas, hand_images: np.ndarray) -> None:
    env = ThrottleBandit(atlas=hand_atlas)
    finite = np.finfo(np.float32)
    assert env.observation_space == Box(finite.min, finite.max, (2,), np.float32)
    assert env.action_space == Discrete(3)
    assert env.observation_space.contains(env.observation_space.sample())
    seen = ThrottleBandit(atlas=hand_atlas, images=hand_images, observation="image")
    assert seen.observation_space == Box(0.0, 1.0, (1, 2, 2), np.float32)


def test_an_episode_is_one_round(hand_atlas: OutcomeAtlas) -> None:
    env = ThrottleBandit(atlas=hand_atlas, controller_macs=10)
    table = reward_table(hand_atlas, RewardConfig())
    row_of = {3: 0, 0: 1, 2: 2}  # samples of the training split
    seed = 0
    met: set[tuple[int, int]] = set()
    while len(met) < 9 and seed < 200:
        seen, start = env.reset(seed=seed)
        row, action = row_of[start["sample"]], seed % 3
        assert hand_atlas.context is not None
        np.testing.assert_array_equal(seen, hand_atlas.context[row])
        after, reward, terminated, truncated, info = env.step(action)
        np.testing.assert_array_equal(after, seen)
        assert (terminated, truncated) == (True, False)
        assert reward == table[row, action]
        # context 20, controller 10; the lowest arm is the context
        macs, net = [(20, 30), (60, 90), (100, 130)][action]
        assert info == {
            "correct": hand_atlas.correct[row, action],
            "confidence": hand_atlas.confidence[row, action],
            "throttle_ratio": macs / 100,
            "net_throttle_ratio": net / 100,
            "macs": macs,
            "utilization": hand_atlas.arms[action],
            "sample": start["sample"],
        }
        assert {type(value) for value in info.values()} == {float, int}
        met.add((row, action))
        seed += 1
    assert len(met) == 9  # every training row under every arm, the validation row never


def test_image_observations_are_the_samples_bytes_over_255(
    hand_atlas: OutcomeAtlas, hand_images: np.ndarray
) -> None:
    env = ThrottleBandit(atlas=hand_atlas, images=hand_images, observation="image", split=None)
    samples = set()
    for seed in range(50):
        seen, start = env.reset(seed=seed)
        expected = np.full((1, 2, 2), start["sample"], np.float32) / np.float32(255)
        np.testing.assert_array_equal(seen, expected)
        samples.add(start["sample"])
    assert samples == {0, 1, 2, 3}


def test_two_environments_with_one_seed_agree_for_50_steps(hand_atlas: OutcomeAtlas) -> None:
    def steps(seed: int) -> list[Any]:
        env = gymnasium.make(BANDIT, atlas=hand_atlas, split=None)
        env.action_space.seed(seed)
        record: list[Any] = []
        for step in range(50):
            seen, start = env.reset(seed=seed if step == 0 else None)
            action = env.action_space.sample()
            record.append((seen.tolist(), start, action, *env.step(action)[1:]))
        return record

    assert steps(11) == steps(11)
    assert steps(11) != steps(12)


def test_rows_are_drawn_uniformly_with_replacement(hand_atlas: OutcomeAtlas) -> None:
    env = ThrottleBandit(atlas=hand_atlas, split=None)
    env.reset(seed=5)
    drawn = np.bincount([env.reset()[1]["sample"] for _ in range(4000)], minlength=4)
    # Binomial(4000, 1/4): mean 1000, deviation 27.4; five deviations, and the seed is fixed.
    assert np.abs(drawn - 1000).max() < 137


def test_an_atlas_opened_from_its_folder_pays_the_same(
    hand_atlas: OutcomeAtlas, hand_images: np.ndarray, tmp_path: Path
) -> None:
    hand_atlas.save(tmp_path / "outcomes")
    np.save(tmp_path / "images.npy", hand_images)
    config = {
        "atlas": str(tmp_path / "outcomes"),
        "images": str(tmp_path / "images.npy"),
        "observation": "image",
        "split": None,
        "reward": {"gamma1": 0.25, "account": "net"},
        "controller_macs": 5,
    }
    mapped = gymnasium.make(BANDIT, **pickle.loads(pickle.dumps(config)))
    held = ThrottleBandit(
        atlas=hand_atlas,
        images=hand_images,
        observation="image",
        split=None,
        reward=RewardConfig(gamma1=0.25, account="net"),
        controller_macs=5,
    )
    for seed in range(20):
        np.testing.assert_array_equal(mapped.reset(seed=seed)[0], held.reset(seed=seed)[0])
        assert mapped.step(seed % 3)[1:] == held.step(seed % 3)[1:]


@pytest.mark.parametrize("action", [-1, 3, 0.2, "low", None, [0, 1], True, math.nan])
def test_only_the_index_of_an_arm_is_an_action(hand_atlas: OutcomeAtlas, action: Any) -> None:
    env = ThrottleBandit(atlas=hand_atlas)
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match=r"one of the 3 arms, an integer in \[0, 2\]"):
        env.step(action)


def test_a_finished_episode_is_reset_before_it_goes_on(hand_atlas: OutcomeAtlas) -> None:
    env = ThrottleBandit(atlas=hand_atlas)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)


def test_it_is_made_from_an_atlas_or_a_path() -> None:
    with pytest.raises(InvalidSetting, match=r"neither came\. Give atlas="):
        ThrottleBandit()


def test_image_observations_need_images(hand_atlas: OutcomeAtlas) -> None:
    with pytest.raises(InvalidSetting, match="Image observations need the images"):
        ThrottleBandit(atlas=hand_atlas, observation="image")


def test_image_observations_that_no_memory_holds_are_refused(hand_atlas: OutcomeAtlas) -> None:
    # one byte in all, seen again and again: nothing is allocated before the refusal
    side = 2**24
    images = np.broadcast_to(np.uint8(0), (4, 1, side, side))
    with pytest.raises(InvalidSetting, match=r"at most 8 GB.*controller\.kind=context_head"):
        observations(hand_atlas, images, "image")


def test_context_observations_need_an_atlas_with_context() -> None:
    bare = OutcomeAtlas.from_arrays([1.0], correct=[[1]], confidence=[[1]], macs=[9])
    with pytest.raises(InvalidSetting, match='observation="image"'):
        ThrottleBandit(atlas=bare, split=None)


def test_a_context_that_is_not_finite_names_its_row(hand_atlas: OutcomeAtlas) -> None:
    assert hand_atlas.context is not None
    hand_atlas.context[1, 0] = np.inf
    with pytest.raises(NotFinite, match=r"row 1 \(sample 0\)"):
        ThrottleBandit(atlas=hand_atlas)


def test_a_reward_that_is_not_finite_is_found_before_the_first_step(
    hand_atlas: OutcomeAtlas,
) -> None:
    hand_atlas.confidence[1, 0] = np.nan
    with pytest.raises(NotFinite, match=r"row 1 \(sample 0\), arm 0"):
        ThrottleBandit(atlas=hand_atlas)


def test_names_that_do_not_exist_are_refused(hand_atlas: OutcomeAtlas) -> None:
    with pytest.raises(UnknownName, match=r"no observation 'contxt'\. Did you mean 'context'"):
        ThrottleBandit(atlas=hand_atlas, observation="contxt")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match=r"no split 'train'"):
        ThrottleBandit(atlas=hand_atlas, split="train")
    with pytest.raises(UnknownName, match=r"no reward field 'gamma'"):
        ThrottleBandit(atlas=hand_atlas, reward={"gamma": 0.5})


def test_a_split_without_rows_is_refused(hand_atlas: OutcomeAtlas) -> None:
    with pytest.raises(DataError, match=r"'test' has none .*controller_train 3"):
        ThrottleBandit(atlas=hand_atlas, split="test")


@pytest.mark.parametrize("macs", [-1, 2.5, "10", True])
def test_controller_macs_are_counted_in_whole_numbers(hand_atlas: OutcomeAtlas, macs: Any) -> None:
    with pytest.raises(InvalidSetting, match="controller_macs counts multiply-accumulates"):
        ThrottleBandit(atlas=hand_atlas, controller_macs=macs)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 2, 2), np.uint8), r"shape \(samples, channels, height, width\); uint8"),
        (np.zeros((4, 1, 2, 2), np.int64), "int64 of shape"),
        (np.full((4, 1, 2, 2), 255.0, np.float32), r"lie in \[0, 1\]; these reach from 255"),
        (np.full((4, 1, 2, 2), np.nan, np.float32), r"lie in \[0, 1\]"),
        (np.zeros((3, 1, 2, 2), np.uint8), r"names samples 0 to 3, and there are 3 images"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    hand_atlas: OutcomeAtlas, images: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ThrottleBandit(atlas=hand_atlas, images=images, observation="image", split=None)


def test_files_that_cannot_be_used_are_refused(hand_atlas: OutcomeAtlas, tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match="does not exist"):
        ThrottleBandit(atlas=tmp_path / "nowhere")

    def env(images: Path) -> ThrottleBandit:
        return ThrottleBandit(atlas=hand_atlas, images=images, observation="image")

    with pytest.raises(DataError, match="no images at"):
        env(tmp_path / "missing.npy")
    np.save(tmp_path / "cut.npy", np.zeros((4, 1, 2, 2), np.uint8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-3])
    with pytest.raises(DataError, match=r"not a whole \.npy array"):
        env(tmp_path / "cut.npy")
    (tmp_path / "empty.npy").touch()
    with pytest.raises(DataError, match=r"not a whole \.npy array"):
        env(tmp_path / "empty.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    with pytest.raises(DataError, match=r"not a whole \.npy array of numbers"):
        env(tmp_path / "objects.npy")
    np.savez(tmp_path / "many.npz", a=np.zeros(3))
    with pytest.raises(DataError, match=r"many\.npz is none"):
        env(tmp_path / "many.npz")
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(PickleRefused):
        env(tmp_path / "pickle.npy")
