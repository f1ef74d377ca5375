"""Decoded once, found by content, whole or not there; whatever happens while it is written."""

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flyball.datapaths.data import DataConfig, ImageSet, load_images
from flyball.datapaths.data.cache import cache_folder
from flyball.datapaths.errors import DataError, StorageError
from flyball.datapaths.progress import Progress


def picture(seed: int, *, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Image.Image:
    width, height = size
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def class_folders(
    *prefixes: str, count: int = 6, classes: tuple[str, ...] = ("cat", "dog")
) -> dict[str, bytes]:
    """`count` images a class below each prefix; their seeds tell them apart."""
    names = [f"{p}{c}/{i}.png" for p in prefixes or ("",) for c in classes for i in range(count)]
    return {name: encoded(picture(seed)) for seed, name in enumerate(names)}


def plant(files: dict[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(
    root: Path, cache: Path, *, report: Callable[[Progress], None] | None = None, seed: int = 0
) -> ImageSet:
    config = DataConfig(name="folder", root=str(root), cache=str(cache), seed=seed)
    return load_images(config, report=report)


def test_an_unchanged_source_is_neither_looked_through_nor_decoded_again(
    tmp_path: Path, cache: Path
) -> None:
    folder = plant(class_folders(), tmp_path / "data")
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "xztar", folder))
    for root in (folder, archive):
        reports: list[Progress] = []
        first = load(root, cache / root.name, report=reports.append)
        assert [r.stage for r in reports] == ["survey", "decode"]
        assert all(0 <= r.done <= r.total for r in reports)
        reports.clear()
        second = load(root, cache / root.name, report=reports.append, seed=5)
        assert reports == []
        assert second.images_file == first.images_file


def test_the_fingerprint_knows_no_path_and_no_date_but_content_and_splits(
    tmp_path: Path, cache: Path
) -> None:
    root = plant(class_folders(), tmp_path / "data")
    first = load(root, cache)
    moved = shutil.copytree(root, tmp_path / "moved")
    os.utime(moved / "cat" / "0.png", (1, 1))
    reports: list[Progress] = []
    again = load(moved, cache, report=reports.append)
    assert again.fingerprint == first.fingerprint
    assert {r.stage for r in reports} == {"survey"}, "the same content is not decoded twice"
    assert load(root, cache, seed=1).fingerprint != first.fingerprint
    files = class_folders()
    files["cat/0.png"] = encoded(picture(99))
    changed = load(plant(files, tmp_path / "data"), cache)
    assert changed.fingerprint != first.fingerprint


def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path) -> None:
    root = plant(class_folders(), tmp_path / "data")
    first = load(root, cache)
    assert first.images_file is not None
    kept = np.array(first.images)
    first.images_file.write_bytes(first.images_file.read_bytes()[:-1])
    again = load(root, cache)
    np.testing.assert_array_equal(again.images, kept)
    first.images_file.with_suffix(".json").write_text("{")
    assert load(root, cache).fingerprint == first.fingerprint


def test_a_killed_decode_leaves_no_half_array(tmp_path: Path, cache: Path) -> None:
    root = plant(class_folders(), tmp_path / "data")
    script = (
        "import os, signal, sys\n"
        "from flyball.datapaths.data import DataConfig, load_images\n"
        "def die(progress):\n"
        "    if progress.stage == 'decode':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "load_images(DataConfig(name='folder', root=sys.argv[1], cache=sys.argv[2]), report=die)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(root), str(cache)], check=False, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL
    assert list(cache.rglob("*.npy")) == []
    (abandoned,) = cache.rglob(".*.partial")
    os.utime(abandoned, (1, 1))
    assert load(root, cache).fingerprint == load(root, tmp_path / "undisturbed").fingerprint
    assert not abandoned.exists()


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYBALL_CACHE", str(tmp_path / "own"))
    assert cache_folder(DataConfig()) == tmp_path / "own"
    assert cache_folder(DataConfig(cache=str(tmp_path / "field"))) == tmp_path / "field"
    monkeypatch.delenv("FLYBALL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(DataConfig()) == tmp_path / "xdg" / "flyball"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(DataConfig()) == tmp_path / ".cache" / "flyball"


def test_a_cache_that_cannot_be_written_is_refused_before_decoding(tmp_path: Path) -> None:
    root = plant(class_folders(), tmp_path / "data")
    (tmp_path / "file").write_text("no folder")
    reports: list[Progress] = []
    with pytest.raises(StorageError, match="which cannot be written") as caught:
        load(root, tmp_path / "file" / "cache", report=reports.append)
    assert "--set data.cache=FOLDER or FLYBALL_CACHE" in str(caught.value)
    assert {r.stage for r in reports} == {"survey"}


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    root = plant(class_folders(), tmp_path / "data")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            load(root, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache.rglob("*")) == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_that_breaks_off_is_refused_and_nothing_stays(
    kind: str, tmp_path: Path, cache: Path
) -> None:
    files = class_folders(count=6)
    half = encoded(picture(1, size=(6, 5)), kind)
    half = half[: -len(half) // 4]
    files["dog/3.png"] = half
    root = plant(files, tmp_path / "data")
    with pytest.raises(DataError, match="Every image must decode") as caught:
        load(root, cache)
    assert f"dog/3.png in {root} ({len(half)} bytes)" in str(caught.value)
    assert not cache.exists()
    cache.mkdir()
    with pytest.raises(DataError, match="Every image must decode"):
        load(root, cache)
    assert list(cache.rglob("*")) == []
