"""Clips go wherever images go: atlas, environments and governor take one axis more."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flyball.controllers.networks import ControllerConfig, build_network, fit_standardisation
from flyball.controllers.protocol import NetworkController
from flyball.datapaths.c3d import C3dConfig, ThrottleableC3d
from flyball.datapaths.data import ImageSet
from flyball.datapaths.errors import DataError
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.outcomes import build_atlas
from flyball.datapaths.splits import SPLITS
from flyball.envs import ThrottleBanditVector, observations
from flyball.platform.governor import Governor

CLASSES = ("left", "right", "still")
CLIP = (1, 4, 8, 8)


@pytest.fixture(scope="module")
def path() -> FrozenDataPath:
    config = C3dConfig(
        ((8,), (8,)), ((1, 2, 2), (2, 2, 2)), (8,), (4, 4, 4), 3, frames=4, image_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ThrottleableC3d(config)
    return FrozenDataPath(network, PathSpec(config, (0.25, 0.5, 1.0), CLASSES, (0.5,), (0.3,)))


@pytest.fixture(scope="module")
def clips() -> ImageSet:
    generator = np.random.default_rng(0)
    return ImageSet(
        generator.integers(256, size=(40, *CLIP), dtype=np.uint8),
        generator.integers(3, size=40),
        CLASSES,
        (np.arange(40) % len(SPLITS)).astype(np.int8),
        "clips",
        "clips-40",
    )


@pytest.mark.parametrize("observation", ["context", "image"])
def test_live_outcomes_are_the_atlas_own(
    path: FrozenDataPath, clips: ImageSet, tmp_path: Path, observation: str
) -> None:
    atlas = build_atlas(path, clips, tmp_path / "atlas")
    live, stored = (
        ThrottleBanditVector(12, atlas=atlas, path=asked, images=clips, observation=observation)  # type: ignore[arg-type]
        for asked in (path, None)
    )
    shape = CLIP if observation == "image" else (path.context_size,)
    assert live.single_observation_space.shape == shape
    seen = live.reset(seed=0)[0]
    assert seen.tobytes() == stored.reset(seed=0)[0].tobytes()
    actions = np.arange(12) % 3
    assert live.step(actions)[1].tobytes() == stored.step(actions)[1].tobytes()
    assert observations(atlas, clips, "image").shape == (30, *CLIP)


def test_a_governor_answers_clips(path: FrozenDataPath, clips: ImageSet) -> None:
    kind = ControllerConfig("context_head", width=4)
    generator = torch.Generator().manual_seed(0)
    network = build_network(kind, (path.context_size,), 3, generator=generator).eval()
    pixels = np.asarray(clips.images, np.float32) / np.float32(255)
    fit_standardisation(network, path.context(torch.from_numpy(pixels))[0].numpy())
    torch.nn.init.normal_(network[-1].weight, std=3.0, generator=generator)  # type: ignore[arg-type]
    governor = Governor(
        path, NetworkController(network, path.arms, 7, "context", (path.context_size,))
    )
    said = governor.predict(pixels)
    assert len(set(said.arm.tolist())) > 1, "else this test shows little"
    for row in range(len(clips)):
        u = path.arms[said.arm[row]]
        own = path(torch.from_numpy(pixels[row : row + 1]), u).output
        assert said.prediction[row] == own.argmax()
    with pytest.raises(DataError, match=r"batch of clips of shape \(B, 1, 4, 8, 8\) .*frames"):
        governor.predict(pixels[:, :, 0])
