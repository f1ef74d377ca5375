"""A small atlas with every number chosen by hand, and a real, tiny data path with its own atlas."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.data import ImageSet
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.outcomes import build_atlas
from flyball.datapaths.splits import SPLITS, split_code
from flyball.datapaths.vgg import ThrottleableVgg, VggConfig

ARMS = (0.2, 0.6, 1.0)


@pytest.fixture
def hand_atlas() -> OutcomeAtlas:
    """Four samples, three arms of 20, 60 and 100 MACs; row 0 to 2 train, row 3 validates."""
    return OutcomeAtlas.from_arrays(
        ARMS,
        correct=[[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 1]],
        confidence=[[0.9, 0.95, 1.0], [0.4, 0.8, 0.9], [0.3, 0.5, 0.7], [0.6, 0.6, 0.6]],
        macs=[20, 60, 100],
        split=[split_code("controller_train")] * 3 + [split_code("controller_val")],
        sample=[3, 0, 2, 1],
        context=[[0.0, 1.0], [1.0, -1.0], [2.0, 0.5], [3.0, 0.25]],
        context_macs=20,
    )


@pytest.fixture
def hand_images() -> np.ndarray:
    """Four images of 1x2x2 whose bytes are their own row."""
    return np.repeat(np.arange(4, dtype=np.uint8), 4).reshape(4, 1, 2, 2)


@dataclass(frozen=True)
class TinySystem:
    """A data path, the images it was asked about, its atlas, and where all of them lie."""

    path: FrozenDataPath
    images: ImageSet
    atlas: OutcomeAtlas
    path_folder: Path
    atlas_folder: Path


@pytest.fixture(scope="session")
def tiny_system(tmp_path_factory: pytest.TempPathFactory) -> TinySystem:
    """An untrained VGG-W of four components on 120 random images of three classes."""
    folder = tmp_path_factory.mktemp("tiny")
    config = VggConfig(
        stages=((8,), (8,)), hidden=16, classes=3, in_channels=1, image_size=8, components=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ThrottleableVgg(config)
    spec = PathSpec(config, (0.25, 0.5, 0.75, 1.0), ("a", "b", "c"), mean=(0.5,), std=(0.1,))
    path = FrozenDataPath(network, spec)
    path.save(folder / "path")

    generator = np.random.default_rng(7)
    pixels = generator.integers(256, size=(120, 1, 8, 8), dtype=np.uint8)
    np.save(folder / "images.npy", pixels)
    images = ImageSet(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        labels=generator.integers(3, size=120),
        classes=("a", "b", "c"),
        split=np.arange(120, dtype=np.int8) % len(SPLITS),
        name="random",
        fingerprint="random-120",
        images_file=folder / "images.npy",
    )
    atlas = build_atlas(path, images, folder / "outcomes")
    return TinySystem(path, images, atlas, folder / "path", folder / "outcomes")
