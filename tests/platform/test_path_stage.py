"""Phase 1's stage: which pixels it learns from, their statistics, and batch norm for every arm."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyball.datapaths.data import DataConfig, ImageSet, load_images
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.frozen import FrozenDataPath
from flyball.datapaths.graph import TorchvisionConfig
from flyball.datapaths.paths import open_path
from flyball.datapaths.schedules import Phase1Config
from flyball.datapaths.vgg import small_vgg
from flyball.platform import prepare as preparing
from flyball.platform import training_images
from flyball.platform.overrides import with_overrides
from flyball.platform.path_stage import has_batch_norm, path_fingerprint, train_path
from flyball.platform.prepare import prepare
from flyball.platform.presets import preset
from flyball.platform.training_images import RowsOf, channel_statistics, training_pixels

QUICK = Phase1Config(epochs=2, batch_size=64, middle_arms=1)
ARMS = (0.25, 0.5, 1.0)


class Streamed:
    """Images that are read by rows alone; remembers what was asked for and what was announced."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.shape, self.dtype = images, images.shape, images.dtype
        self.asked: list[int] = []
        self.announced: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> np.ndarray:
        self.asked.append(np.size(rows))
        return np.asarray(self.images[rows])

    def prefetch(self, rows: np.ndarray) -> None:
        self.announced.append(rows)

    def __array__(self, *_: Any) -> np.ndarray:
        raise AssertionError("it was read whole")


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images(DataConfig(name="digits", fractions=(0.5, 0.2, 0.15, 0.15)))


def plain_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scaled = np.moveaxis(pixels, 1, 0).reshape(pixels.shape[1], -1) / 255.0
    mean, std = scaled.mean(axis=1), scaled.std(axis=1)
    return tuple(round(m, 6) for m in mean.tolist()), tuple(round(s, 6) for s in std.tolist())


@pytest.mark.parametrize("shape", [(300, 3, 4, 4), (40, 2, 5, 3, 3)])
def test_channel_statistics_are_those_of_every_pixel(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found, exact = channel_statistics(pixels), plain_statistics(pixels)
    # both are rounded to six decimals
    np.testing.assert_allclose(found, exact, rtol=0, atol=1.1e-6)
    assert channel_statistics(Streamed(pixels)) == found


def test_of_many_images_evenly_spaced_ones_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (101, 1, 2, 2), dtype=np.uint8)
    monkeypatch.setattr(training_images, "STATISTICS_ROWS", 11)
    monkeypatch.setattr(training_images, "BYTES_AT_ONCE", 20)  # five images
    streamed = Streamed(pixels)
    assert channel_statistics(streamed) == channel_statistics(pixels[::10])
    assert streamed.asked == [5, 5, 1]


def test_pixels_are_copied_only_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.arange(80, dtype=np.uint8).reshape(20, 1, 2, 2)
    rows = np.array([3, 5, 7, 19])
    here = training_pixels(pixels, rows)
    assert isinstance(here, np.ndarray)
    monkeypatch.setattr(training_images, "IN_MEMORY", 15)  # four images are 16 bytes
    for source in (pixels, Streamed(pixels)):
        left = training_pixels(source, rows)
        assert isinstance(left, RowsOf)
        assert (len(left), left.shape, left.dtype) == (4, (4, 1, 2, 2), np.uint8)
        for index in (np.array([2, 0]), slice(1, 3), 3):
            np.testing.assert_array_equal(left[index], here[index])
    streamed = Streamed(pixels)
    training_pixels(streamed, rows).prefetch(np.array([1, 2]))
    assert [row.tolist() for row in streamed.announced] == [[5, 7]]


def test_streamed_images_train_the_same_path(
    digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_images, "BYTES_AT_ONCE", 100 * 64)  # 100 images
    network = small_vgg(stages=((16,),), hidden=16, in_channels=1, image_size=8)
    phase1 = Phase1Config(epochs=1, batch_size=64)
    streamed: Any = Streamed(np.asarray(digits.images))
    paths = [
        train_path(network, phase1, images, tmp_path / name).path
        for name, images in (("a", digits), ("b", replace(digits, images=streamed)))
    ]
    assert paths[0].fingerprint == paths[1].fingerprint
    assert max(streamed.asked) == 100


def test_batch_norm_is_calibrated_for_the_arms_that_are_served(
    digits: ImageSet, tmp_path: Path
) -> None:
    network = small_vgg(stages=((16,), (16,)), hidden=32, in_channels=1, image_size=8, norm="batch")
    assert has_batch_norm(network)
    stage = train_path(network, QUICK, digits, tmp_path / "path", arms=ARMS)
    rows = len(digits.rows("path_train"))
    # the sandwich runs three arms; then every arm goes through all rows, an eighth of them aside
    aside = len(range(0, rows, 8))
    assert stage.forwards == rows * 3 * QUICK.epochs + 3 * (rows - aside) + 3 * aside
    path = open_path(tmp_path / "path")
    assert isinstance(path, FrozenDataPath)
    assert path.arms == ARMS
    statistics = path.network.norms[0].running_mean
    assert statistics.shape[0] == 3
    assert path.with_arms((0.5, 1.0)).arm_macs == path.arm_macs[1:]
    with pytest.raises(InvalidSetting, match="never calibrated"):
        path.with_arms((0.75, 1.0))


def test_arms_name_the_artifact_only_where_they_shape_it(digits: ImageSet) -> None:
    for norm, depends in (("group", False), ("none", False), ("batch", True)):
        network = small_vgg(in_channels=1, image_size=8, norm=norm)
        names = {path_fingerprint(network, QUICK, digits, arms) for arms in (ARMS, (0.5, 1.0))}
        assert (len(names) == 2) == depends


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors"])
def test_weights_that_are_not_there_are_refused_before_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr(preparing, "load_images", read)
    weights = tmp_path / f"missing{ending}"
    network = TorchvisionConfig("resnet18", image_size=32, weights=str(weights))
    job = replace(with_overrides(preset("digits"), [f"storage.root={tmp_path}"]), path=network)
    with pytest.raises(DataError, match=r"no such file.*--set path\.weights="):
        prepare(job)
    weights.touch()
    with pytest.raises(AssertionError, match="images were read"):
        prepare(job)
