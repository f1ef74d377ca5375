"""A tiny real governor, untrained but opinionated, and a place that records runs."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flyball.controllers.budget import calibrate
from flyball.controllers.export import save_controller
from flyball.controllers.networks import (
    ControllerConfig,
    build_network,
    fit_standardisation,
    network_macs,
)
from flyball.controllers.protocol import NetworkController, ObservationKind
from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.paths import DataPath
from flyball.datapaths.vgg import ThrottleableVgg, small_vgg
from flyball.platform.governor import CONTROLLER_FOLDER, PATH_FOLDER, Governor

if TYPE_CHECKING:
    from flyball.platform.tracking import Tracking

CLASSES = ("cat", "dog", "owl")
ARMS = (0.25, 0.5, 1.0)


def make_path(seed: int = 2) -> FrozenDataPath:
    """A small VGG with drawn weights, on 8x8 grey images, at three arms."""
    torch.manual_seed(seed)
    config = small_vgg(
        stages=((8,), (8,)), hidden=16, classes=3, in_channels=1, image_size=8, components=4
    )
    network = ThrottleableVgg(config)
    torch.nn.init.normal_(network.classifier.weight)  # else every class is about as likely
    return FrozenDataPath(network, PathSpec(config, ARMS, CLASSES, (0.5,), (0.3,)))


def make_atlas(path: DataPath, count: int) -> OutcomeAtlas:
    """What every arm costs on `count` samples; nothing is answered."""
    nothing = np.zeros((count, len(path.arms)))
    return OutcomeAtlas.from_arrays(
        path.arms,
        correct=nothing,
        confidence=nothing,
        macs=path.arm_macs,
        full_macs=path.full_macs,
        context_macs=path.context_macs,
    )


def make_controller(
    path: DataPath,
    images: NDArray[np.float32],
    observation: ObservationKind = "context",
    seed: int = 2,
) -> NetworkController:
    """A calibrated network whose drawn weights are large: it is of two minds at least."""
    observations = images
    if observation == "context":
        observations = path.context(torch.from_numpy(images))[0].numpy()
    shape = observations.shape[1:]
    kind = ControllerConfig("context_head" if observation == "context" else "image_cnn", width=8)
    generator = torch.Generator().manual_seed(seed)
    network = build_network(kind, shape, len(path.arms), generator=generator).eval()
    fit_standardisation(network, observations)
    torch.nn.init.normal_(network[-1].weight, std=2.0, generator=generator)  # type: ignore[arg-type]
    controller = NetworkController(
        network=network,
        arms=path.arms,
        macs=network_macs(network, shape),
        observation=observation,
        observation_shape=shape,
        classes=path.classes,
        path_fingerprint=path.fingerprint,
    )
    ratios = make_atlas(path, len(images)).net_throttle_ratio(
        controller.macs, uses_context=observation == "context"
    )
    return replace(controller, calibration=calibrate(controller.propensities(observations), ratios))


@pytest.fixture(scope="session")
def images() -> NDArray[np.float32]:
    """256 images of 2x2 patches, bright and dark; float32 in [0, 1]."""
    patches = np.random.default_rng(7).random((256, 1, 2, 2), np.float32) ** 3
    return np.repeat(np.repeat(patches, 4, axis=2), 4, axis=3)


@pytest.fixture(scope="session")
def other_path() -> FrozenDataPath:
    """Of the same structure, with other weights."""
    return make_path(seed=1)


@pytest.fixture(scope="session")
def governor(images: NDArray[np.float32]) -> Governor:
    """Its controller sees the lowest arm's context."""
    path = make_path()
    return Governor(path, make_controller(path, images))


@pytest.fixture(scope="session")
def image_governor(images: NDArray[np.float32]) -> Governor:
    """Its controller sees the image."""
    path = make_path()
    return Governor(path, make_controller(path, images, "image", seed=3))


@pytest.fixture(scope="session")
def other_controller(governor: Governor, images: NDArray[np.float32]) -> NetworkController:
    """Another controller of the governor's data path."""
    return make_controller(governor.path, images, seed=1)


@pytest.fixture(scope="session")
def governor_folder(governor: Governor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`path/` and `controller/`, as a run leaves them."""
    folder = tmp_path_factory.mktemp("governor")
    governor.path.save(folder / PATH_FOLDER)
    assert isinstance(governor.controller, NetworkController)
    save_controller(governor.controller, folder / CONTROLLER_FOLDER, onnx=False)
    return folder


@pytest.fixture(scope="session")
def costs(governor: Governor, images: NDArray[np.float32]) -> OutcomeAtlas:
    """The atlas's own account of what every arm costs on every image."""
    return make_atlas(governor.path, len(images))


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> "Tracking":
    """A real local database, migrated once for all tests."""
    from flyball.platform.tracking import open_tracking  # MLflow takes seconds to import

    return open_tracking(None, tmp_path_factory.mktemp("runs"))
