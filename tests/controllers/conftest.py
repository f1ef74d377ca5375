"""What several controller tests share: the identity atlas, and one small Ray for a module."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.splits import CONTROLLER_TRAIN, CONTROLLER_VAL, split_code

IdentityAtlas = Callable[[int], OutcomeAtlas]


@pytest.fixture(scope="session")
def identity_atlas() -> IdentityAtlas:
    """Builds the atlas of K contexts and K arms in which only arm k is right in context k.

    The best reward is the mean of Eq. 3 over right answers at u = k / K; every wrong arm costs
    -(0.9 + 0.5)(u + 1.5). Both splits hold the same K rows.
    """

    def build(arms: int) -> OutcomeAtlas:
        one_hot = np.tile(np.eye(arms, dtype=np.float32), (2, 1))
        splits = [split_code(CONTROLLER_TRAIN), split_code(CONTROLLER_VAL)]
        return OutcomeAtlas.from_arrays(
            [(k + 1) / arms for k in range(arms)],
            correct=one_hot,
            confidence=np.full(one_hot.shape, 0.9),
            macs=[(k + 1) * 1000 for k in range(arms)],
            context=one_hot,
            split=np.repeat(splits, arms),
        )

    return build


@pytest.fixture(scope="session")
def identity_folder(
    identity_atlas: IdentityAtlas, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Saves the identity atlas of K arms and gives its folder."""

    def save(arms: int) -> Path:
        folder = tmp_path_factory.mktemp(f"identity-{arms}")
        identity_atlas(arms).save(folder)
        return folder

    return save


def _ray_of(cpus: int) -> Iterator[None]:
    ray = pytest.importorskip("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def small_ray() -> Iterator[None]:
    """A Ray of two CPUs on this machine, without dashboard, shut down after the module."""
    yield from _ray_of(2)


@pytest.fixture(scope="module")
def four_cpus() -> Iterator[None]:
    """A Ray that takes this machine for one of four CPUs; likewise."""
    yield from _ray_of(4)
