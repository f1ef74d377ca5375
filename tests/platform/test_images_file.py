"""The file that environments map images from: the same bytes, written by parts, within a limit."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from flyball.datapaths.data import DataConfig, load_images
from flyball.datapaths.data.streamed import StreamedPixels
from flyball.datapaths.errors import InvalidSetting
from flyball.platform.controller_stage import images_file
from flyball.platform.prepare import Prepared
from flyball.platform.run_folder import RunFolder


class Numbers:
    """A reader of images that are their own row modulo 251."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, row: int) -> str:
        return str(row)

    def decode(self, row: int) -> NDArray[np.uint8]:
        return np.full((3, 2, 4), row % 251, np.uint8)


def prepared(root: Path, count: int, sample: tuple[int, ...] = (3, 2, 4)) -> Prepared:
    pixels = StreamedPixels(cast(Any, Numbers(count)), sample)
    images = replace(load_images(DataConfig()), images=pixels, fingerprint="numbers")
    images = replace(images, labels=np.zeros(count, np.int64))
    return cast(Prepared, SimpleNamespace(images=images, runs=RunFolder(root)))


@pytest.mark.parametrize("count", [5, 1024, 2500])
def test_streamed_images_are_written_as_numpy_would(count: int, tmp_path: Path) -> None:
    file = images_file(prepared(tmp_path, count))
    found = np.load(file, mmap_mode="r", allow_pickle=False)
    assert (found.shape, found.dtype) == ((count, 3, 2, 4), np.uint8)
    np.testing.assert_array_equal(found[:, 2, 1, 3], np.arange(count) % 251)


def test_images_in_memory_are_written_too(tmp_path: Path) -> None:
    digits = load_images(DataConfig())
    ready = cast(Prepared, SimpleNamespace(images=digits, runs=RunFolder(tmp_path)))
    np.testing.assert_array_equal(np.load(images_file(ready)), digits.images)


def test_images_beyond_the_limit_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    ready = prepared(tmp_path, 10, (3, 30_000, 30_000))  # 27 GB
    with pytest.raises(InvalidSetting, match=r"at most 20 GB.*controller\.kind=context_head"):
        images_file(ready)
    assert list(tmp_path.iterdir()) == []
