"""CIFAR-10 as published (pickled batches), as class folders, and the real images where present."""

import io
import os
import pickle
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.data import DataConfig, ImageSet, load_images
from flyball.datapaths.data.cifar_batches import CIFAR10_CLASSES
from flyball.datapaths.errors import DataError
from flyball.datapaths.progress import Progress

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10_jpeg.tar.xz"
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def python2_batch(pixels: NDArray[np.uint8], labels: list[int]) -> bytes:
    """The opcodes of the published files: Python 2, protocol 2, numpy.core, strings as bytes."""
    rows, width = pixels.shape
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}(U\x04data"
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01J" + struct.pack("<i", rows) + b"J" + struct.pack("<i", width) + b"\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tb"
        b"U\x06labels](" + numbers + b"eu."
    )


def batch_arrays(number: int, per_class: int = 2) -> tuple[NDArray[np.uint8], list[int]]:
    generator = np.random.default_rng(number)
    labels = generator.permutation(np.repeat(np.arange(10), per_class)).tolist()
    return generator.integers(0, 256, (len(labels), 3072), np.uint8), labels


def write_batches(folder: Path, *, protocol: int | None = None) -> Path:
    """torchvision's folder; `protocol` None writes as Python 2 did, else as Python 3 does."""
    inner = folder / "cifar-10-batches-py"
    inner.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        pixels, labels = batch_arrays(number)
        batch: dict[bytes, Any] = {b"data": pixels, b"labels": labels}
        published = python2_batch(pixels, labels)
        (inner / name).write_bytes(published if protocol is None else pickle.dumps(batch, protocol))
    meta = {b"label_names": [name.encode() for name in CIFAR10_CLASSES], b"num_vis": 3072}
    (inner / "batches.meta").write_bytes(pickle.dumps(meta, 2))
    (inner / "readme.html").write_text("<html>")
    return folder


def cifar(root: Path, cache: Path, **settings: Any) -> ImageSet:
    return load_images(DataConfig(name="cifar10", root=str(root), cache=str(cache), **settings))


def assert_refused(root: Path, cache: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        cifar(root, cache)
    for word in words:
        assert word in str(caught.value)
    assert not cache.exists()


def test_batches_keep_their_images_labels_and_test_part(tmp_path: Path) -> None:
    found = cifar(write_batches(tmp_path / "data"), tmp_path / "cache")
    assert found.classes == CIFAR10_CLASSES
    assert found.shape == (3, 32, 32)
    arrays = [batch_arrays(number) for number in range(6)]
    for start, part in ((0, arrays[:5]), (100, arrays[5:])):
        pixels = np.concatenate([pixels for pixels, _ in part]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([labels for _, labels in part])
        order = np.argsort(labels, kind="stable")
        np.testing.assert_array_equal(found.images[start : start + len(order)], pixels[order])
        np.testing.assert_array_equal(found.labels[start : start + len(order)], labels[order])
    np.testing.assert_array_equal(found.rows("test"), np.arange(100, 120))
    assert np.bincount(found.split).tolist() == [70, 20, 10, 20]


def test_the_published_pickles_of_python_2_and_those_of_python_3_are_read_alike(
    tmp_path: Path,
) -> None:
    published = cifar(write_batches(tmp_path / "py2"), tmp_path / "cache")
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        root = write_batches(tmp_path / str(protocol), protocol=protocol)
        assert cifar(root, tmp_path / "cache").fingerprint == published.fingerprint


def test_the_archive_the_folder_and_the_folder_within_are_one(tmp_path: Path) -> None:
    root = write_batches(tmp_path / "data")
    plain = cifar(root, tmp_path / "cache")
    (tmp_path / "packed").mkdir()
    archive = tmp_path / "packed" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    for same in (archive, archive.parent, root / "cifar-10-batches-py"):
        reports: list[Progress] = []
        config = DataConfig(name="cifar10", root=str(same), cache=str(tmp_path / "cache"))
        assert load_images(config, report=reports.append).fingerprint == plain.fingerprint
        assert "decode" not in {r.stage for r in reports}


def test_batches_can_be_limited_and_resized(tmp_path: Path) -> None:
    root = write_batches(tmp_path / "data")
    found = cifar(root, tmp_path / "cache", limit=4, image_size=16)
    assert found.images.shape == (10 * 4 + 10 * 2, 3, 16, 16)
    full = cifar(root, tmp_path / "cache")
    few = cifar(root, tmp_path / "cache", limit=4)
    np.testing.assert_array_equal(few.images[:4], full.images[:4])
    np.testing.assert_array_equal(few.images[4:8], full.images[10:14])


def test_a_batch_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    root = write_batches(tmp_path / "data")
    file = root / "cifar-10-batches-py" / "data_batch_2"
    file.write_bytes(pickle.dumps({b"data": Attack(), b"labels": []}, 2))
    assert_refused(
        root, tmp_path / "cache", "data_batch_2", f"asks for {os.mkdir.__module__}.mkdir"
    )
    assert not (tmp_path / "attacked").exists()
    file.write_bytes(pickle.dumps({b"data": np.array([None, {}]), b"labels": [0, 0]}, 2))
    assert_refused(root, tmp_path / "cache", "data_batch_2", "an array of object")


def test_a_damaged_batch_is_refused(tmp_path: Path) -> None:
    root = write_batches(tmp_path / "data")
    file = root / "cifar-10-batches-py" / "data_batch_3"
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:-1], b"", b"\x00" * 100):
        file.write_bytes(broken)
        assert_refused(root, tmp_path / "cache", f"data_batch_3 in {file.parent}", "Fetch cifar-10")


@pytest.mark.parametrize(
    "batch",
    [
        [],
        {b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), np.int64), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]},
        {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, 1]},
    ],
)
def test_a_pickle_that_is_no_batch_is_refused(batch: object, tmp_path: Path) -> None:
    root = write_batches(tmp_path / "data")
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(batch, 2))
    assert_refused(root, tmp_path / "cache", "holds 'data', n x 3072 bytes", "test_batch in")


def test_missing_batches_are_named(tmp_path: Path) -> None:
    root = write_batches(tmp_path / "data")
    for name in ("data_batch_4", "batches.meta"):
        (root / "cifar-10-batches-py" / name).unlink()
    assert_refused(root, tmp_path / "cache", "lacks data_batch_4, batches.meta")


def test_other_label_names_are_refused(tmp_path: Path) -> None:
    root = write_batches(tmp_path / "data")
    meta = pickle.dumps({b"label_names": [b"apple", b"pear"]}, 2)
    (root / "cifar-10-batches-py" / "batches.meta").write_bytes(meta)
    assert_refused(root, tmp_path / "cache", "label_names are airplane", "has [b'apple', b'pear']")


def write_class_folders(root: Path, classes: tuple[str, ...], side: int = 32) -> Path:
    for part in ("train", "test"):
        for label in classes:
            (root / part / label).mkdir(parents=True)
            for number in range(3):
                file = io.BytesIO()
                Image.new("RGB", (side, side), (number, 0, 0)).save(file, "JPEG")
                (root / part / label / f"{number}.jpg").write_bytes(file.getvalue())
    return root


def test_class_folders_of_other_classes_or_sizes_are_not_cifar10(tmp_path: Path) -> None:
    found = cifar(write_class_folders(tmp_path / "good", CIFAR10_CLASSES), tmp_path / "good_cache")
    assert np.bincount(found.split).tolist() == [10, 10, 10, 30]
    root = write_class_folders(tmp_path / "own", ("cat", "dog"))
    assert_refused(
        root, tmp_path / "cache", "classes are airplane", "has cat, dog", "data.name=folder"
    )
    root = write_class_folders(tmp_path / "small", CIFAR10_CLASSES, side=28)
    assert_refused(root, tmp_path / "cache", "images are 3x32x32", "3x28x28")


@pytest.mark.skipif(not REAL.is_file(), reason="the CIFAR-10 (JPEG) archive is not at hand")
def test_the_real_archive_is_read(tmp_path: Path) -> None:
    found = cifar(REAL, tmp_path / "cache", limit=20)
    assert found.classes == CIFAR10_CLASSES
    assert found.images.shape == (400, 3, 32, 32)
    assert np.bincount(found.split).tolist() == [140, 40, 20, 200]
    assert np.bincount(found.labels).tolist() == [40] * 10
    # natural photographs: neither black nor white on average, and each its own
    pixels = np.asarray(found.images)
    assert 90 < pixels.mean() < 150
    assert len({image.tobytes() for image in pixels}) == 400


@pytest.mark.skipif(not REAL.is_file(), reason="the CIFAR-10 (JPEG) archive is not at hand")
def test_the_real_archive_cut_short_is_refused(tmp_path: Path) -> None:
    short = Path(shutil.copyfile(REAL, tmp_path / "short.tar.xz"))
    with short.open("r+b") as file:
        file.truncate(1_000_000)
    assert_refused(short, tmp_path / "cache", "truncated, corrupt or not readable")
