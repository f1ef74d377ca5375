"""Images decoded when asked for: the cached bytes, from any thread and process, within a limit."""

import io
import os
import pickle
import shutil
import tarfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.data import DataConfig, ImageSet, StreamedPixels, describe, load_images
from flyball.datapaths.errors import DataError, InvalidSetting, UnknownName
from flyball.datapaths.progress import Progress


def encoded(seed: int, *, size: tuple[int, int] = (6, 5), kind: str = "PNG") -> bytes:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def class_folders(count: int = 8) -> dict[str, bytes]:
    """Two classes in train and test, of 16 images of 90 bytes decoded each: 2,880 bytes in all."""
    names = [f"{p}/{c}/{i}.png" for p in ("train", "test") for c in ("cat", "dog")
             for i in range(count)]  # fmt: skip
    return {name: encoded(seed) for seed, name in enumerate(names)}


def plant(files: dict[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def load(root: Path, **settings: Any) -> ImageSet:
    given = {"name": "folder", "cache": str(root.parent / "cache")}
    return load_images(DataConfig(root=str(root), **{**given, **settings}))


def stream(root: Path, **settings: Any) -> StreamedPixels:
    images = load(root, access="stream", **settings).images
    assert isinstance(images, StreamedPixels)
    return images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant(class_folders(), tmp_path / "data")


@pytest.fixture
def cached(root: Path) -> NDArray[np.uint8]:
    return np.asarray(load(root, cache=str(root.parent / "other")).images)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_is_indexed_as_the_cached_array_is(
    workers: int, root: Path, cached: NDArray[np.uint8]
) -> None:
    images = stream(root, workers=workers)
    assert images.shape == (32, 3, 5, 6)
    assert images.dtype == cached.dtype
    assert (images.ndim, len(images), images.nbytes) == (4, 32, 2880)
    indices: list[Any] = [
        0,
        -1,
        np.int64(7),
        slice(None),
        slice(3, 20, 5),
        slice(None, None, -1),
        slice(9, 9),
        [4, 4, -2],
        np.array([31, 0, 12], np.int64),
        np.array([], np.int64),
        np.arange(32) % 3 == 0,
    ]
    for index in indices:
        given = images[index]
        assert given.dtype == np.uint8
        np.testing.assert_array_equal(given, cached[index])
    assert not (root.parent / "cache").exists()


def test_the_rows_the_splits_and_the_classes_are_those_of_the_cached_set(root: Path) -> None:
    streamed, cached = load(root, access="stream"), load(root, access="cache")
    np.testing.assert_array_equal(streamed.labels, cached.labels)
    np.testing.assert_array_equal(streamed.split, cached.split)
    assert streamed.classes == cached.classes
    assert streamed.shape == cached.shape
    assert streamed.images_file is None
    assert describe(streamed)["streamed"] is True
    assert describe(cached)["streamed"] is False
    assert streamed.fingerprint != cached.fingerprint


@pytest.mark.parametrize("packing", ["tar", "zip"])
def test_archives_are_read_where_they_lie(
    packing: str, root: Path, cached: NDArray[np.uint8]
) -> None:
    archive = Path(shutil.make_archive(str(root.parent / "packed"), packing, root))
    images = stream(archive, workers=2)
    np.testing.assert_array_equal(images[:], cached)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images))[5], cached[5])
    streamed = load(archive, access="stream")
    assert load(archive, access="stream").fingerprint == streamed.fingerprint
    renamed = archive.rename(archive.with_stem("renamed"))
    assert load(renamed, access="stream").fingerprint == streamed.fingerprint


def test_sizes_and_limits_hold(root: Path) -> None:
    for settings in ({"image_size": 3}, {"image_size": 3, "short_side": 4}, {"limit": 4}):
        both = [load(root, access=access, **settings) for access in ("stream", "cache")]
        np.testing.assert_array_equal(both[0].images[:], both[1].images)


def test_a_set_is_cached_up_to_the_limit_and_streamed_beyond(tmp_path: Path) -> None:
    # 32 images of 3 x 100 x 120 bytes are 1.152 MB
    files = {name: encoded(i, size=(120, 100)) for i, name in enumerate(class_folders())}
    root = plant(files, tmp_path / "data")
    assert not load(root, cache_limit_mb=2).is_streamed
    assert load(root, cache_limit_mb=1).is_streamed
    assert not load(root, cache_limit_mb=1, access="cache").is_streamed
    assert not load(root, cache_limit_mb=1, limit=6).is_streamed
    assert load(root, cache_limit_mb=0).is_streamed
    fresh = tmp_path / "fresh"
    reports: list[Progress] = []
    config = DataConfig(name="folder", root=str(root), cache=str(fresh), cache_limit_mb=1)
    load_images(config, report=reports.append)
    assert {r.stage for r in reports} == {"survey"}
    assert not fresh.exists()


def test_what_cannot_be_streamed_says_so(root: Path) -> None:
    archive = Path(shutil.make_archive(str(root.parent / "packed"), "gztar", root))
    with pytest.raises(DataError, match="A compressed tar can be read from its start only"):
        load(archive, access="stream")
    with pytest.raises(InvalidSetting, match=r"data\.cache_limit_mb = 0, and cannot be streamed"):
        load(archive, cache_limit_mb=0)
    assert not load(archive).is_streamed
    with pytest.raises(InvalidSetting, match="folder, imagenet, jester can be streamed, digits"):
        DataConfig(access="stream")
    with pytest.raises(InvalidSetting, match="Decoded, digit_clips takes 98 MB"):
        load_images(DataConfig(name="digit_clips", cache_limit_mb=97))


def test_settings_are_checked() -> None:
    with pytest.raises(UnknownName, match=r"no data\.access 'steam'\. Did you mean 'stream'"):
        DataConfig(access="steam")  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match=r"data\.workers is at least 0, or unset; got -1"):
        DataConfig(workers=-1)
    with pytest.raises(InvalidSetting, match=r"--set data\.cache_limit_mb=20000"):
        DataConfig(cache_limit_mb=-1)
    with pytest.raises(InvalidSetting, match=r"data\.frames is of digit_clips and jester alone"):
        DataConfig(frames=4)


def test_a_stream_is_never_read_whole_by_accident(root: Path) -> None:
    images = stream(root)
    with pytest.raises(DataError, match=r"by rows, images\[rows\], never whole"):
        np.asarray(images)
    for wrong in (32, -33, [0, 40], "a", 1.5, np.zeros((2, 2), int), np.ones(3, bool)):
        with pytest.raises(IndexError):
            images[wrong]


def test_what_was_read_ahead_is_what_is_asked_for(root: Path, cached: NDArray[np.uint8]) -> None:
    images = stream(root, workers=2)
    batches = [np.arange(start, 32, 8) for start in range(8)]
    for rows in batches:
        images.prefetch(rows)
    images.prefetch(batches[7])
    for futures in images._ahead.values():
        for future in futures:
            future.result()
    # what is ready needs its files no more
    shutil.move(root, root.parent / "away")
    np.testing.assert_array_equal(images[batches[7]], cached[batches[7]])
    with pytest.raises(DataError, match=r"must stay as it is while it is read; train/cat/7\.png"):
        images[batches[7]]
    shutil.move(root.parent / "away", root)
    for rows in batches:
        np.testing.assert_array_equal(images[rows], cached[rows])
    still = stream(root, workers=0)
    still.prefetch(batches[0])
    np.testing.assert_array_equal(still[batches[0]], cached[batches[0]])


def test_a_forked_process_has_threads_of_its_own(root: Path, cached: NDArray[np.uint8]) -> None:
    images = stream(Path(shutil.make_archive(str(root.parent / "p"), "zip", root)), workers=2)
    np.testing.assert_array_equal(images[:8], cached[:8])
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # newer Pythons warn of what this test is about: forking while there are threads
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:  # must end here, whatever happens
        try:
            os.write(writer, images[4:12].tobytes())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        given = pipe.read()
    os.waitpid(child, 0)
    assert given == cached[4:12].tobytes()
    np.testing.assert_array_equal(images[:8], cached[:8])


def test_many_threads_may_ask_at_once(root: Path, cached: NDArray[np.uint8]) -> None:
    images = stream(root, workers=2)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for rows in np.random.default_rng(seed).integers(0, 32, (20, 5)):
            if not np.array_equal(images[rows], cached[rows]):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_fingerprint_knows_names_sizes_and_dates_but_no_path(root: Path) -> None:
    before = load(root, access="stream").fingerprint
    moved = Path(shutil.copytree(root, root.parent / "moved"))
    assert load(moved, access="stream").fingerprint == before
    dated = Path(shutil.copytree(root, root.parent / "dated"))
    os.utime(dated / "train" / "cat" / "0.png", (1, 1))
    assert load(dated, access="stream").fingerprint != before
    assert load(root, access="stream", image_size=4).fingerprint != before
    assert load(root, access="stream", seed=1).fingerprint != before
    (moved / "test" / "dog" / "3.png").rename(moved / "test" / "dog" / "33.png")
    assert load(moved, access="stream").fingerprint != before


@pytest.mark.parametrize("packing", ["folder", "zip"])
def test_changed_files_of_equal_size_are_another_streamed_set(packing: str, root: Path) -> None:
    # without compression, any picture of one shape takes equally many bytes
    file = root / "train" / "cat" / "0.png"
    found, sizes = [], set()
    for shade in range(2):
        Image.fromarray(np.full((5, 6, 3), shade, np.uint8)).save(file, compress_level=0)
        sizes.add(file.stat().st_size)
        source, changed = root, file
        if packing == "zip":
            changed = source = Path(shutil.make_archive(str(root.parent / "packed"), "zip", root))
        os.utime(changed, (shade, shade))
        found.append(load(source, access="stream"))
    assert len(sizes) == 1
    assert found[0].fingerprint != found[1].fingerprint


def test_a_sample_that_breaks_while_streaming_is_named(root: Path) -> None:
    images = stream(root, workers=2)
    file = root / "train" / "dog" / "2.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"must decode; train/dog/2\.png in .*does not"):
        images[:]
    file.write_bytes(encoded(1, size=(9, 9)))
    with pytest.raises(DataError, match=r"train/dog/2\.png is now \(3, 9, 9\), not \(3, 5, 6\)"):
        images[8:12]
    file.write_bytes(whole)
    assert images[:].shape == (32, 3, 5, 6)


@pytest.mark.parametrize(
    ("packing", "access"),
    [
        ("folder", "cache"),
        ("folder", "stream"),
        ("zip", "cache"),
        ("zip", "stream"),
        ("xztar", "cache"),
    ],
)
def test_corrupt_images_are_left_out_on_request_counted_and_reported(
    packing: str, access: str, root: Path, cached: NDArray[np.uint8]
) -> None:
    (root / "train" / "dog" / "2.png").write_bytes(b"not a picture")
    torn = root / "test" / "cat" / "5.png"
    torn.write_bytes(torn.read_bytes()[:-30])
    if packing != "folder":
        root = Path(shutil.make_archive(str(root.parent / "packed"), packing, root))
    config = DataConfig(
        name="folder",
        root=str(root),
        cache=str(root.parent / "cache"),
        access=access,  # type: ignore[arg-type]
        skip_corrupt=True,
    )
    with pytest.raises(DataError, match="must decode"):
        load(root, access=access).images[:]
    for time in range(2):
        reports: list[Progress] = []
        found = load_images(config, report=reports.append)
        assert set(found.skipped) == {"train/dog/2.png", "test/cat/5.png"}
        assert describe(found)["skipped"]["count"] == 2
        assert "left out 2 corrupt samples: train/dog/2.png, test/cat/5.png" in reports[-1].note
        np.testing.assert_array_equal(found.images[:], np.delete(cached, [10, 21], axis=0))
        assert np.bincount(found.labels).tolist() == [15, 15]
        looked = {"check", "decode"} & {r.stage for r in reports}
        assert bool(looked) == (time == 0)


def test_a_corrupt_image_still_counts_to_the_limit(root: Path) -> None:
    (root / "train" / "dog" / "2.png").write_bytes(b"not a picture")
    for access in ("cache", "stream"):
        found = load(root, access=access, skip_corrupt=True, limit=6)
        assert np.bincount(found.labels).tolist() == [12, 11]


def test_a_set_without_a_whole_image_is_refused(tmp_path: Path) -> None:
    root = plant({f"{c}/{i}.png": b"torn" for c in "ab" for i in range(4)}, tmp_path / "data")
    for access in ("cache", "stream"):
        with pytest.raises(DataError, match=r"of the 8 of .* none does"):
            load(root, access=access, skip_corrupt=True)


def test_links_and_doubles_in_a_streamed_tar_are_refused(tmp_path: Path) -> None:
    root = plant(class_folders(), tmp_path / "data")
    for link in (True, False):
        archive = Path(shutil.make_archive(str(tmp_path / f"packed{link}"), "tar", root))
        with tarfile.open(archive, "a") as tar:
            member = tarfile.TarInfo("train/cat/0.png" if not link else "train/cat/9.png")
            if link:
                member.type, member.linkname = tarfile.SYMTYPE, "0.png"
            tar.addfile(member)
        with pytest.raises(DataError, match="plain files" if link else "is there twice"):
            load(archive, access="stream")
