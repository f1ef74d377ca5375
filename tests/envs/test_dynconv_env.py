"""The environment over a data path whose cost differs from image to image, live and by atlas."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.data import DataConfig, ImageSet, load_images
from flyball.datapaths.dynconv.config import DynConvConfig
from flyball.datapaths.dynconv.path import DynConvPath
from flyball.datapaths.dynconv.resnet import DynConvResNetConfig
from flyball.datapaths.dynconv.stage import freeze_dynconv, starting_dynconv
from flyball.datapaths.outcomes import OutcomesConfig, build_atlas
from flyball.envs import RewardConfig, ThrottleBandit, ThrottleBanditVector, reward_table

ARMS = (0.2, 0.5, 1.0)
CONTROLLER_MACS = 321
COUNT = 90
ACTIONS = np.arange(COUNT) % len(ARMS)
BOTH = pytest.mark.parametrize("observation", ["context", "image"])
ACCOUNTS = pytest.mark.parametrize("account", ["gross", "net"])


@dataclass(frozen=True)
class Dynamic:
    """A data path, its images, its atlas, and where path and atlas lie."""

    path: DynConvPath
    images: ImageSet
    atlas: OutcomeAtlas
    folder: Path


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Dynamic:
    """Drawn weights, calibrated masks, 300 digits."""
    folder = tmp_path_factory.mktemp("dynamic")
    images = load_images(DataConfig(name="digits", limit=30))
    network = DynConvResNetConfig(layers=(1, 1), widths=(8, 16), in_channels=1, image_size=8)
    config = DynConvConfig(network=network)
    path, _ = freeze_dynconv(
        config, starting_dynconv(config, 4), images, mean=(0.3,), std=(0.37,), arms=ARMS
    )
    path.save(folder / "path")
    np.save(folder / "images.npy", np.asarray(images.images))
    # shards of a size that no environment's batch has
    atlas = build_atlas(path, images, folder / "atlas", OutcomesConfig(shard_size=37))
    return Dynamic(path, images, atlas, folder)


def settings(dynamic: Dynamic, observation: str, account: str, split: str) -> dict[str, Any]:
    return {
        "images": dynamic.images,
        "observation": observation,
        "split": split,
        "reward": RewardConfig(account=account, gamma2=8.0),  # type: ignore[arg-type]
        "controller_macs": CONTROLLER_MACS,
    }


def test_the_context_costs_every_image_something_else(dynamic: Dynamic) -> None:
    costs = dynamic.atlas.context_costs()
    assert len(set(costs.tolist())) > 10, "else the tests below show little"
    np.testing.assert_array_equal(costs, np.asarray(dynamic.atlas.macs)[:, 0])
    assert dynamic.atlas.header.context_macs == round(costs.mean())


@BOTH
@ACCOUNTS
@pytest.mark.parametrize("split", ["controller_train", "test"])
def test_many_live_environments_are_paid_as_the_atlas_pays(
    dynamic: Dynamic, observation: str, account: str, split: str
) -> None:
    common = settings(dynamic, observation, account, split)
    stored = ThrottleBanditVector(COUNT, atlas=dynamic.atlas, **common)
    live = ThrottleBanditVector(COUNT, path=dynamic.path, **common)
    for seed in range(2):
        assert live.reset(seed=seed)[0].tobytes() == stored.reset(seed=seed)[0].tobytes()
        paid_stored, info_stored = stored.step(ACTIONS)[1::3]
        paid_live, info_live = live.step(ACTIONS)[1::3]
        assert paid_live.tobytes() == paid_stored.tobytes()
        assert set(info_live) == set(info_stored)
        for name, values in info_stored.items():
            assert info_live[name].tobytes() == values.tobytes(), name
    assert len(np.unique(info_live["macs"])) > 10


@BOTH
@ACCOUNTS
def test_one_live_environment_is_paid_as_the_atlas_pays(
    dynamic: Dynamic, observation: str, account: str
) -> None:
    common = settings(dynamic, observation, account, "controller_train")
    stored = ThrottleBandit(atlas=dynamic.atlas, **common)
    live = ThrottleBandit(path=dynamic.path, **common)
    for seed in range(9):
        assert stored.reset(seed=seed)[0].tobytes() == live.reset(seed=seed)[0].tobytes()
        assert stored.step(seed % 3)[1:] == live.step(seed % 3)[1:]


@BOTH
def test_net_cost_bills_each_image_the_context_that_it_took(
    dynamic: Dynamic, observation: str
) -> None:
    common = settings(dynamic, observation, "net", "controller_val")
    env = ThrottleBanditVector(COUNT, path=dynamic.path, **common)
    env.reset(seed=3)
    info = env.step(ACTIONS)[4]
    row_of = {int(sample): row for row, sample in enumerate(dynamic.atlas.sample)}
    rows = np.array([row_of[int(sample)] for sample in info["sample"]])
    macs = np.asarray(dynamic.atlas.macs)
    # by hand: the lowest arm is the context's own pass; the others run after it
    context = macs[rows, 0] * (ACTIONS > 0) if observation == "context" else 0
    net = macs[rows, ACTIONS] + context + CONTROLLER_MACS
    np.testing.assert_array_equal(info["net_throttle_ratio"], net / dynamic.path.full_macs)
    np.testing.assert_array_equal(
        info["throttle_ratio"], macs[rows, ACTIONS] / dynamic.path.full_macs
    )


@ACCOUNTS
def test_the_reward_table_is_what_the_environment_pays(dynamic: Dynamic, account: str) -> None:
    common = settings(dynamic, "context", account, "controller_train")
    rows = dynamic.atlas.take("controller_train")
    table = reward_table(rows, common["reward"], controller_macs=CONTROLLER_MACS, uses_context=True)
    row_of = {int(sample): row for row, sample in enumerate(rows.sample)}
    env = ThrottleBanditVector(COUNT, path=dynamic.path, **common)
    env.reset(seed=5)
    paid, info = env.step(ACTIONS)[1::3]
    index = [row_of[int(sample)] for sample in info["sample"]]
    np.testing.assert_array_equal(paid, table[index, ACTIONS])


def test_the_context_pass_is_not_run_again_for_the_lowest_arm(dynamic: Dynamic) -> None:
    path = DynConvPath.load(dynamic.folder / "path")
    env = ThrottleBanditVector(6, path=path, images=dynamic.images)
    before = path.forwards
    env.reset(seed=0)
    assert path.forwards - before == 6
    env.step(np.array([0, 0, 0, 0, 1, 2]))
    assert path.forwards - before == 8


@BOTH
@pytest.mark.parametrize("is_live", [True, False])
def test_gymnasiums_checker_finds_nothing(
    dynamic: Dynamic, observation: str, is_live: bool
) -> None:
    env = gymnasium.make(
        "flyball/ThrottleBandit-v0",
        path=str(dynamic.folder / "path") if is_live else None,
        atlas=str(dynamic.folder / "atlas"),
        images=str(dynamic.folder / "images.npy"),
        observation=observation,
    )
    check_env(env.unwrapped)
