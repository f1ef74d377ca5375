"""Live outcomes of a real frozen data path are paid as the atlas pays them, to the bit."""

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from flyball.datapaths.data import ImageSet
from flyball.datapaths.errors import DataError, ForeignArtifact, InvalidSetting
from flyball.datapaths.frozen import FrozenDataPath
from flyball.envs import RewardConfig, ThrottleBandit, ThrottleBanditVector, observations

REWARD = RewardConfig(complexity_weight=0.7, target_utilization=0.4, account="net")
BANDIT = "flyball/ThrottleBandit-v0"


@pytest.mark.parametrize("observation", ["context", "image"])
@pytest.mark.parametrize("split", ["controller_train", "test"])
def test_live_and_atlas_agree_to_the_bit(tiny_system: Any, observation: Any, split: str) -> None:
    common: dict[str, Any] = {
        "images": tiny_system.images,
        "observation": observation,
        "split": split,
        "reward": REWARD,
        "controller_macs": 123,
    }
    stored = ThrottleBanditVector(150, atlas=tiny_system.atlas, **common)
    live = ThrottleBanditVector(150, path=tiny_system.path, **common)
    actions = np.arange(150) % len(tiny_system.path.arms)
    for seed in range(2):
        seen_stored, start_stored = stored.reset(seed=seed)
        seen_live, start_live = live.reset(seed=seed)
        assert seen_live.tobytes() == seen_stored.tobytes()
        np.testing.assert_array_equal(start_live["sample"], start_stored["sample"])
        paid_stored, info_stored = stored.step(actions)[1::3]
        paid_live, info_live = live.step(actions)[1::3]
        assert paid_live.tobytes() == paid_stored.tobytes()
        for name, values in info_stored.items():
            assert info_live[name].tobytes() == values.tobytes(), name
    assert len(np.unique(paid_live)) > 10  # the rewards that agree are not all one number


@pytest.mark.parametrize("observation", ["context", "image"])
def test_one_live_environment_agrees_with_the_atlas(tiny_system: Any, observation: Any) -> None:
    common = {"images": tiny_system.images, "observation": observation, "reward": REWARD}
    stored = ThrottleBandit(atlas=tiny_system.atlas, **common)
    live = ThrottleBandit(path=tiny_system.path, **common)
    for seed in range(12):
        assert stored.reset(seed=seed)[0].tobytes() == live.reset(seed=seed)[0].tobytes()
        assert stored.step(seed % 4)[1:] == live.step(seed % 4)[1:]


@pytest.mark.parametrize("observation", ["context", "image"])
def test_gymnasiums_checker_finds_nothing_live(tiny_system: Any, observation: str) -> None:
    env = gymnasium.make(
        BANDIT,
        path=str(tiny_system.path_folder),
        atlas=str(tiny_system.atlas_folder),
        images=str(tiny_system.images.images_file),
        observation=observation,
    )
    check_env(env.unwrapped)


def test_rows_and_labels_may_come_from_the_atlas(tiny_system: Any) -> None:
    from_files = ThrottleBanditVector(
        20,
        path=str(tiny_system.path_folder),
        atlas=str(tiny_system.atlas_folder),
        images=str(tiny_system.images.images_file),
        split="controller_val",
    )
    from_set = ThrottleBanditVector(
        20, path=tiny_system.path, images=tiny_system.images, split="controller_val"
    )
    actions = np.arange(20) % 4
    assert from_files.reset(seed=4)[0].tobytes() == from_set.reset(seed=4)[0].tobytes()
    assert from_files.step(actions)[1].tobytes() == from_set.step(actions)[1].tobytes()


def test_plain_arrays_with_labels_are_enough(tiny_system: Any) -> None:
    images = tiny_system.images
    plain = ThrottleBandit(
        path=tiny_system.path,
        images=np.asarray(images.images, np.float32) / np.float32(255),
        labels=images.labels.tolist(),
        split=None,
    )
    whole = ThrottleBandit(path=tiny_system.path, images=images, split=None)
    for seed in range(5):
        assert plain.reset(seed=seed)[0].tobytes() == whole.reset(seed=seed)[0].tobytes()
        assert plain.step(3)[1:] == whole.step(3)[1:]


def test_the_lowest_arm_is_not_asked_again_after_its_context(tiny_system: Any) -> None:
    path = FrozenDataPath.load(tiny_system.path_folder)
    env = ThrottleBanditVector(10, path=path, images=tiny_system.images)
    env.reset(seed=0)
    assert path.forwards == 10  # one context for each
    env.step(np.array([0, 0, 0, 0, 0, 0, 1, 2, 3, 3]))
    assert path.forwards == 14  # and one pass for each arm above the lowest


def test_an_atlas_runs_no_data_path(tiny_system: Any) -> None:
    before = tiny_system.path.forwards
    env = ThrottleBanditVector(10, atlas=tiny_system.atlas, images=tiny_system.images)
    env.reset(seed=0)
    env.step(np.zeros(10, np.int64))
    assert tiny_system.path.forwards == before


def test_observations_are_what_the_environment_shows(tiny_system: Any) -> None:
    rows = tiny_system.atlas.take("controller_train")
    row_of = {int(sample): row for row, sample in enumerate(rows.sample)}
    for kind, source in (("context", None), ("image", tiny_system.images.images_file)):
        table = observations(rows, source, kind)  # type: ignore[arg-type]
        env = ThrottleBandit(
            atlas=tiny_system.atlas,
            images=tiny_system.images,
            observation=kind,  # type: ignore[arg-type]
        )
        for seed in range(5):
            seen, start = env.reset(seed=seed)
            assert table[row_of[start["sample"]]].tobytes() == seen.tobytes()
        assert table.dtype == np.float32


def test_net_macs_are_the_atlas_own_account(tiny_system: Any) -> None:
    rows = tiny_system.atlas.take("controller_train")
    row_of = {int(sample): row for row, sample in enumerate(rows.sample)}
    for observation in ("context", "image"):
        net = rows.net_throttle_ratio(77, uses_context=observation == "context")
        env = ThrottleBanditVector(
            40,
            atlas=tiny_system.atlas,
            images=tiny_system.images,
            observation=observation,
            controller_macs=77,
        )
        env.reset(seed=0)
        actions = np.arange(40) % 4
        info = env.step(actions)[4]
        index = [row_of[int(sample)] for sample in info["sample"]]
        np.testing.assert_array_equal(info["net_throttle_ratio"], net[index, actions])


def test_an_atlas_of_another_data_path_is_refused(tiny_system: Any) -> None:
    other = replace(tiny_system.atlas.header, path_fingerprint="someone-else")
    with pytest.raises(ForeignArtifact, match=r"data path someone-else, the data path given is"):
        ThrottleBandit(
            atlas=replace(tiny_system.atlas, header=other),
            path=tiny_system.path,
            images=tiny_system.images,
        )


def test_an_atlas_of_other_images_is_refused(tiny_system: Any) -> None:
    other = replace(tiny_system.images, fingerprint="other-images")
    with pytest.raises(ForeignArtifact, match=r"image set random-120; that given is other-images"):
        ThrottleBandit(atlas=tiny_system.atlas, images=other, observation="image")


def test_an_atlas_with_another_cost_model_is_refused(tiny_system: Any) -> None:
    linear = replace(tiny_system.atlas.header, cost_model="linear")
    with pytest.raises(InvalidSetting, match="counts the MACs it executes"):
        ThrottleBandit(
            atlas=replace(tiny_system.atlas, header=linear),
            path=tiny_system.path,
            images=tiny_system.images,
        )


def test_live_outcomes_need_images_and_labels(tiny_system: Any) -> None:
    pixels = np.asarray(tiny_system.images.images)
    with pytest.raises(InvalidSetting, match="Live outcomes need the images"):
        ThrottleBandit(path=tiny_system.path)
    with pytest.raises(InvalidSetting, match="judges answers by the labels, and none came"):
        ThrottleBandit(path=tiny_system.path, images=pixels, split=None)
    with pytest.raises(InvalidSetting, match="Plain images carry no splits"):
        ThrottleBandit(path=tiny_system.path, images=pixels, labels=tiny_system.images.labels)


@pytest.mark.parametrize("labels", [[0, 1], [0.5] * 120, [[0]] * 120])
def test_every_image_has_a_class_index(tiny_system: Any, labels: Any) -> None:
    pixels = np.asarray(tiny_system.images.images)
    with pytest.raises(DataError, match="one label, a class index: 120 integers"):
        ThrottleBandit(path=tiny_system.path, images=pixels, labels=labels, split=None)


def test_images_of_another_size_are_refused(tiny_system: Any) -> None:
    wide = np.zeros((120, 1, 8, 9), np.uint8)
    with pytest.raises(DataError, match=r"takes images of shape \(1, 8, 8\).*\(1, 8, 9\)"):
        ThrottleBandit(path=tiny_system.path, images=wide, labels=[0] * 120, split=None)


def test_an_image_set_without_rows_in_the_split_is_refused(tiny_system: Any) -> None:
    images: ImageSet = replace(tiny_system.images, split=np.zeros(120, np.int8))
    with pytest.raises(DataError, match=r"'controller_train' has none \(path_train 120"):
        ThrottleBandit(path=tiny_system.path, images=images)
