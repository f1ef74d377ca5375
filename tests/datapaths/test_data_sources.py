"""Folders and archives of class folders: every packing, the cache, and what is refused."""

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.data import DataConfig, ImageSet, load_images
from flyball.datapaths.data.cache import cache_folder
from flyball.datapaths.errors import BadInput, DataError, InvalidSetting, StorageError
from flyball.datapaths.progress import Progress

Files = dict[str, bytes]
PACKINGS = ("folder", "tar", "tar.gz", "tar.bz2", "tar.xz", "zip")


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
) -> Files:
    """`count` images a class below each prefix; their seeds tell them apart."""
    names = [f"{p}{c}/{i}.png" for p in prefixes or ("",) for c in classes for i in range(count)]
    return {name: encoded(picture(seed)) for seed, name in enumerate(names)}


def pack(files: Files, target: Path, packing: str, *, reverse: bool = False) -> Path:
    """Writes files as a folder or archive; in `reverse` order an archive's order is not sorted."""
    names = sorted(files, reverse=reverse)
    if packing == "folder":
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(files[name])
        return target
    archive = target.with_name(f"{target.name}.{packing}")
    if packing == "zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for name in names:
                zipped.writestr(name, files[name])
        return archive
    with (
        archive.open("wb") as raw,
        tarfile.open(
            fileobj=raw,
            mode=f"w:{packing.partition('.')[2]}",  # type: ignore[call-overload]
        ) as tar,
    ):
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return archive


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(
    root: Path,
    cache: Path,
    *,
    report: Callable[[Progress], None] | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> ImageSet:
    config = DataConfig(
        name="folder",
        root=str(root),
        cache=str(cache),
        image_size=image_size,
        limit=limit,
        seed=seed,
    )
    return load_images(config, report=report)


def assert_refused(root: Path, cache: Path, *words: str, error: type[BadInput] = DataError) -> None:
    """The message holds all words, and nothing at all is written."""
    with pytest.raises(error) as caught:
        load(root, cache)
    for word in words:
        assert word in str(caught.value)
    assert not cache.exists()


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_packing_gives_the_same_image_set(packing: str, tmp_path: Path, cache: Path) -> None:
    files = class_folders("train/", "test/")
    plain = load(pack(files, tmp_path / "plain", "folder"), cache / "plain")
    other = load(pack(files, tmp_path / "other", packing, reverse=True), cache / "other")
    assert other.fingerprint == plain.fingerprint
    names = [
        f"{p}/{c}/{i}.png" for p in ("train", "test") for c in ("cat", "dog") for i in range(6)
    ]
    for row, name in enumerate(names):
        np.testing.assert_array_equal(other.images[row], pixels_of(files[name]))
    assert other.classes == ("cat", "dog")
    assert other.labels.tolist() == [*[0] * 6, *[1] * 6] * 2
    np.testing.assert_array_equal(other.rows("test"), np.arange(12, 24))
    assert isinstance(other.images, np.memmap)
    assert other.images_file is not None
    np.testing.assert_array_equal(np.load(other.images_file), other.images)


def test_nothing_but_the_cache_is_written(tmp_path: Path, cache: Path) -> None:
    root = pack(class_folders(), tmp_path / "data", "tar.gz")
    load(root, cache)
    kinds = sorted(
        f"{file.parent.relative_to(tmp_path)}/*{file.suffix}"
        for file in tmp_path.rglob("*")
        if file.is_file()
    )
    assert kinds == ["./*.gz", "cache/images/*.json", "cache/images/*.npy", "cache/sources/*.json"]


def test_jpegs_are_decoded_as_pillow_does_it(tmp_path: Path, cache: Path) -> None:
    files = {f"{c}/{i}.JPG": encoded(picture(i), "JPEG") for c in "ab" for i in range(4)}
    images = load(pack(files, tmp_path / "data", "zip"), cache).images
    for row, name in enumerate(sorted(files)):
        np.testing.assert_array_equal(images[row], pixels_of(files[name]))


@pytest.mark.parametrize("top", ["", "./", "/", "set/", "set/v1/"])
def test_folders_that_all_share_are_skipped(top: str, tmp_path: Path, cache: Path) -> None:
    files = {f"{top}{name}": data for name, data in class_folders("train/", "test/").items()}
    found = load(pack(files, tmp_path / "data", "tar"), cache)
    assert found.classes == ("cat", "dog")
    assert len(found.rows("test")) == 12


def test_without_parts_all_four_splits_are_dealt(tmp_path: Path, cache: Path) -> None:
    found = load(pack(class_folders(count=50), tmp_path / "data", "folder"), cache)
    assert np.bincount(found.split).tolist() == [56, 16, 8, 20]
    only_train = pack(class_folders("train/", count=50), tmp_path / "train_only", "folder")
    assert load(only_train, cache).fingerprint == found.fingerprint


def test_val_is_the_test_part_only_where_there_is_no_other(tmp_path: Path, cache: Path) -> None:
    two = load(pack(class_folders("train/", "val/"), tmp_path / "two", "tar"), cache)
    np.testing.assert_array_equal(two.rows("test"), np.arange(12, 24))
    files = class_folders("train/", "val/", "test/")
    three = load(pack(files, tmp_path / "three", "tar"), cache)
    np.testing.assert_array_equal(three.rows("test"), np.arange(24, 36))


def test_hidden_and_other_files_are_ignored(tmp_path: Path, cache: Path) -> None:
    files = class_folders()
    junk = {
        "README.txt": b"read me",
        "cat/notes.csv": b"1,2",
        ".DS_Store": b"x",
        "cat/._0.png": b"x",
        ".git/0.png": b"x",
        "__MACOSX/cat/._0.png": b"x",
    }
    clean = load(pack(files, tmp_path / "clean", "zip"), cache)
    for packing in ("folder", "zip"):
        full = load(pack({**files, **junk}, tmp_path / "full", packing), cache)
        assert full.fingerprint == clean.fingerprint


def test_grey_images_have_one_channel_unless_one_is_coloured(tmp_path: Path, cache: Path) -> None:
    files = {f"{c}/{i}.png": encoded(picture(i, mode="L")) for c in "ab" for i in range(4)}
    grey = load(pack(files, tmp_path / "grey", "tar"), cache)
    assert grey.shape == (1, 5, 6)
    files["a/0.png"] = encoded(picture(0))
    mixed = load(pack(files, tmp_path / "mixed", "tar"), cache)
    assert mixed.shape == (3, 5, 6)
    for channel in range(3):
        np.testing.assert_array_equal(mixed.images[1:, channel], grey.images[1:, 0])


def test_of_sixteen_bits_the_upper_eight_are_kept(tmp_path: Path, cache: Path) -> None:
    deep = encoded(Image.fromarray(np.full((5, 6), 0x1234, np.uint16)))
    files = {f"{c}/{i}.png": deep for c in "ab" for i in range(4)}
    found = load(pack(files, tmp_path / "data", "tar"), cache)
    assert found.shape == (1, 5, 6)
    assert (np.asarray(found.images) == 0x12).all()


def test_an_image_size_resizes_the_short_side_and_cuts_out_the_centre(
    tmp_path: Path, cache: Path
) -> None:
    wide = encoded(Image.fromarray(np.array([[0, 10, 20, 30]] * 2, np.uint8)))
    tall = encoded(Image.fromarray(np.full((12, 4), 7, np.uint8)))
    files = {f"{c}/{i}.png": d for c, d in (("a", wide), ("b", tall)) for i in range(4)}
    images = load(pack(files, tmp_path / "data", "tar"), cache, image_size=2).images
    assert images.shape == (8, 1, 2, 2)
    assert images[0, 0].tolist() == [[10, 20], [10, 20]]
    assert images[4, 0].tolist() == [[7, 7], [7, 7]]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_limit_keeps_the_first_by_name_of_each_class_and_part(
    reverse: bool, tmp_path: Path, cache: Path
) -> None:
    files = class_folders("train/", "test/")
    found = load(pack(files, tmp_path / "data", "tar", reverse=reverse), cache, limit=3)
    names = [
        f"{p}/{c}/{i}.png" for p in ("train", "test") for c in ("cat", "dog") for i in range(3)
    ]
    assert len(found) == 12
    for row, name in enumerate(names):
        np.testing.assert_array_equal(found.images[row], pixels_of(files[name]))


def test_an_unchanged_source_is_neither_looked_through_nor_decoded_again(
    tmp_path: Path, cache: Path
) -> None:
    for packing in ("folder", "tar.xz"):
        root = pack(class_folders(), tmp_path / "data", packing)
        reports: list[Progress] = []
        first = load(root, cache / packing, report=reports.append)
        assert [r.stage for r in reports] == ["survey", "decode"]
        assert all(0 <= r.done <= r.total for r in reports)
        reports.clear()
        second = load(root, cache / packing, report=reports.append, seed=5)
        assert reports == []
        assert second.images_file == first.images_file


def test_the_fingerprint_knows_no_path_and_no_date_but_content_and_splits(
    tmp_path: Path, cache: Path
) -> None:
    root = pack(class_folders(), tmp_path / "data", "tar")
    first = load(root, cache)
    moved = Path(shutil.copy(root, tmp_path / "moved.tar"))
    os.utime(moved, (1, 1))
    reports: list[Progress] = []
    again = load(moved, cache, report=reports.append)
    assert again.fingerprint == first.fingerprint
    assert {r.stage for r in reports} == {"survey"}, "the same content is not decoded twice"
    assert load(root, cache, seed=1).fingerprint != first.fingerprint
    files = class_folders()
    files["cat/0.png"] = encoded(picture(99))
    changed = load(pack(files, tmp_path / "data", "tar"), cache)
    assert changed.fingerprint != first.fingerprint


def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path) -> None:
    root = pack(class_folders(), tmp_path / "data", "tar")
    first = load(root, cache)
    assert first.images_file is not None
    kept = np.array(first.images)
    first.images_file.write_bytes(first.images_file.read_bytes()[:-1])
    again = load(root, cache)
    np.testing.assert_array_equal(again.images, kept)
    first.images_file.with_suffix(".json").write_text("{")
    assert load(root, cache).fingerprint == first.fingerprint


def test_a_killed_decode_leaves_no_half_array(tmp_path: Path, cache: Path) -> None:
    root = pack(class_folders(), tmp_path / "data", "tar")
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
    root = pack(class_folders(), tmp_path / "data", "tar")
    (tmp_path / "file").write_text("no folder")
    reports: list[Progress] = []
    with pytest.raises(StorageError, match="which cannot be written") as caught:
        load(root, tmp_path / "file" / "cache", report=reports.append)
    assert "--set data.cache=FOLDER or FLYBALL_CACHE" in str(caught.value)
    assert {r.stage for r in reports} == {"survey"}


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    root = pack(class_folders(), tmp_path / "data", "tar")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            load(root, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache.rglob("*")) == []


def test_a_missing_root_is_refused(tmp_path: Path, cache: Path) -> None:
    assert_refused(tmp_path / "none.tar", cache, "there is no", "none.tar", "--set data.root=FILE")
    for name in ("cifar10", "folder"):
        with pytest.raises(DataError, match=f"'{name}' is read from a folder or archive") as e:
            load_images(DataConfig(name=name, cache=str(cache)))
        assert "--set data.root=FILE" in str(e.value)


def test_what_is_no_archive_is_refused(tmp_path: Path, cache: Path) -> None:
    for number, content in enumerate((b"", b"hello", b"\x80\x04N.")):
        file = tmp_path / f"{number}.tar.gz"
        file.write_bytes(content)
        assert_refused(file, cache, "must be a folder, or a .tar", f"({len(content)} bytes)")


@pytest.mark.parametrize("packing", PACKINGS[1:])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_a_truncated_archive_is_refused(
    packing: str, share: float, tmp_path: Path, cache: Path
) -> None:
    root = pack(class_folders(count=20), tmp_path / "data", packing)
    whole = root.read_bytes()
    root.write_bytes(whole[: int(len(whole) * share)])
    assert_refused(root, cache, "is truncated, corrupt or not readable", "Fetch or pack it again")


def test_a_tar_cut_between_two_members_is_refused(tmp_path: Path, cache: Path) -> None:
    root = pack(class_folders(), tmp_path / "data", "tar")
    with tarfile.open(root) as tar:
        cut = tar.getmembers()[8].offset
    root.write_bytes(root.read_bytes()[:cut])
    assert_refused(root, cache, "is truncated, corrupt or not readable", f"at byte {cut}")


@pytest.mark.parametrize("packing", PACKINGS[1:])
def test_a_corrupt_archive_is_refused(packing: str, tmp_path: Path, cache: Path) -> None:
    root = pack(class_folders(count=20), tmp_path / "data", packing)
    bytes_ = bytearray(root.read_bytes())
    start = len(bytes_) // 2
    if packing == "tar":  # a plain tar sums its headers alone
        with tarfile.open(root) as tar:
            start = tar.getmembers()[20].offset
    for place in range(start, start + 200):
        bytes_[place] ^= 0xFF
    root.write_bytes(bytes(bytes_))
    if packing == "zip":  # its bytes are stored as they are; the sum of the member is wrong
        assert_refused(root, cache, "is truncated, corrupt or not readable", "CRC")
    else:
        assert_refused(root, cache, "is truncated, corrupt or not readable")


def test_a_locked_zip_is_refused(tmp_path: Path, cache: Path) -> None:
    root = pack(class_folders(), tmp_path / "data", "zip")
    bytes_ = bytearray(root.read_bytes())
    entry = bytes_.find(b"PK\x01\x02")
    bytes_[entry + 8] |= 1
    bytes_[6] |= 1
    root.write_bytes(bytes(bytes_))
    assert_refused(root, cache, "not readable", "encrypted")


def test_a_source_without_images_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", cache, "A data set holds images (.jpg,", "has none")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    assert_refused(tmp_path / "empty.zip", cache, "A data set holds images (.jpg,", "has none")


@pytest.mark.parametrize("prefixes", [(), ("train/", "test/")])
def test_a_class_folder_without_an_image_is_refused(
    prefixes: tuple[str, ...], tmp_path: Path, cache: Path
) -> None:
    files = class_folders(*prefixes)
    where = f"{prefixes[0] if prefixes else ''}eel"
    root = pack({**files, f"{where}/readme.txt": b"soon"}, tmp_path / "packed", "tar")
    assert_refused(root, cache, "Every class folder holds images", f"{where} in {root} has none")
    folder = pack(files, tmp_path / "data", "folder")
    (folder / where).mkdir()
    assert_refused(folder, cache, "Every class folder holds images", f"{where} in {folder}")


def test_one_class_is_refused(tmp_path: Path, cache: Path) -> None:
    for number, prefix in enumerate(("", "train/")):
        root = pack(class_folders(prefix, classes=("cat",)), tmp_path / str(number), "tar")
        assert_refused(root, cache, "at least two class folders", "has 1: cat")


def test_parts_with_other_classes_are_refused(tmp_path: Path, cache: Path) -> None:
    files = class_folders("train/", classes=("cat", "dog", "eel"))
    files |= class_folders("test/", classes=("cat", "dog"))
    root = pack(files, tmp_path / "data", "zip")
    assert_refused(
        root, cache, "must have the same class folders", f"there is no test/eel in {root}"
    )


def test_an_image_in_no_class_folder_is_refused(tmp_path: Path, cache: Path) -> None:
    stray = {"9.png": encoded(picture(1))}
    root = pack({**class_folders(), **stray}, tmp_path / "one", "tar")
    assert_refused(root, cache, "lies in the folder of its class", f"9.png in {root} lies in none")
    stray = {"train/9.png": encoded(picture(1))}
    root = pack({**class_folders("train/", "test/"), **stray}, tmp_path / "two", "tar")
    assert_refused(root, cache, f"train/9.png in {root} lies in none")
    stray = {"extra/cat/9.png": encoded(picture(1))}
    root = pack({**class_folders("train/", "test/"), **stray}, tmp_path / "three", "tar")
    assert_refused(root, cache, "Beside train and test", f"extra/cat/9.png in {root}")


def test_a_file_that_is_no_image_is_refused(tmp_path: Path, cache: Path) -> None:
    files = class_folders()
    files["dog/3.png"] = b"not a picture"
    root = pack(files, tmp_path / "data", "tar")
    assert_refused(root, cache, "Every image must decode", f"dog/3.png in {root} (13 bytes)")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_that_breaks_off_is_refused_and_nothing_stays(
    kind: str, tmp_path: Path, cache: Path
) -> None:
    files = class_folders(count=6)
    half = encoded(picture(1, size=(6, 5)), kind)
    half = half[: -len(half) // 4]
    files["dog/3.png"] = half
    root = pack(files, tmp_path / "data", "tar")
    assert_refused(root, cache, "Every image must decode", f"dog/3.png in {root}")
    cache.mkdir()
    with pytest.raises(DataError, match="Every image must decode"):
        load(root, cache)
    assert list(cache.rglob("*")) == []


def test_images_of_two_sizes_are_refused_without_an_image_size(tmp_path: Path, cache: Path) -> None:
    files = class_folders()
    files["dog/3.png"] = encoded(picture(1, size=(9, 8)))
    root = pack(files, tmp_path / "data", "tar")
    assert_refused(
        root,
        cache,
        "All images must have one size",
        f"cat/0.png in {root} is 6x5",
        f"dog/3.png in {root} is 9x8",
        "--set data.image_size=N",
    )
    assert load(root, cache, image_size=4).shape == (3, 4, 4)


def test_images_of_32_bits_are_refused(tmp_path: Path, cache: Path) -> None:
    files = class_folders()
    files["cat/2.tif"] = encoded(Image.fromarray(np.zeros((5, 6), np.float32)), "TIFF")
    root = pack(files, tmp_path / "data", "tar")
    assert_refused(root, cache, "8 or 16 bits", f"cat/2.tif in {root} has 32 (mode F)")


def test_a_class_with_too_few_images_is_refused(tmp_path: Path, cache: Path) -> None:
    files = class_folders()
    files |= {f"eel/{i}.png": encoded(picture(i)) for i in range(3)}
    root = pack(files, tmp_path / "one", "tar")
    assert_refused(root, cache, "needs an image for each of path_train", "class 'eel' has 3")
    root = pack(class_folders("train/", "test/", count=2), tmp_path / "two", "tar")
    assert_refused(root, cache, "class 'cat' has 2 outside the test part")


def test_an_unused_test_share_does_not_stop_a_source_with_a_test_part(
    tmp_path: Path, cache: Path
) -> None:
    config = DataConfig(name="folder", cache=str(cache), fractions=(0.5, 0.25, 0.25, 0.0))
    without = pack(class_folders(), tmp_path / "without", "tar")
    with pytest.raises(InvalidSetting, match="The share of test may be 0 only where"):
        load_images(DataConfig(**{**vars(config), "root": str(without)}))
    assert not cache.exists()
    own = pack(class_folders("train/", "test/", count=8), tmp_path / "own", "tar")
    found = load_images(DataConfig(**{**vars(config), "root": str(own)}))
    assert np.bincount(found.split).tolist() == [8, 4, 4, 16]


def test_members_that_lead_out_or_are_links_are_refused(tmp_path: Path, cache: Path) -> None:
    files = {**class_folders(), "../cat/9.png": encoded(picture(1))}
    for packing in ("tar", "zip"):
        root = pack(files, tmp_path / "out", packing)
        assert_refused(root, cache, "must lie within it", "'../cat/9.png'")
    root = pack(class_folders(), tmp_path / "linked", "tar")
    with tarfile.open(root, "a") as tar:
        link = tarfile.TarInfo("cat/9.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert_refused(root, cache, "must be plain files", "cat/9.png", "--dereference")


def test_a_file_twice_in_an_archive_is_refused(tmp_path: Path, cache: Path) -> None:
    root = pack(class_folders(), tmp_path / "data", "tar")
    with tarfile.open(root, "a") as tar:
        member = tarfile.TarInfo("cat/0.png")
        again = encoded(picture(5))
        member.size = len(again)
        tar.addfile(member, io.BytesIO(again))
    assert_refused(root, cache, f"cat/0.png in {root} is there twice")


def test_a_folder_with_links_astray_is_refused(tmp_path: Path, cache: Path) -> None:
    root = pack(class_folders(), tmp_path / "data", "folder")
    (root / "cat" / "up").symlink_to(root)
    assert_refused(root, cache, "must not contain itself")
    (root / "cat" / "up").unlink()
    (root / "cat" / "9.png").symlink_to(tmp_path / "nowhere.png")
    assert_refused(root, cache, "must lead somewhere", "9.png")


def test_a_folder_of_linked_class_folders_is_read(tmp_path: Path, cache: Path) -> None:
    real = pack(class_folders(), tmp_path / "real", "folder")
    (tmp_path / "linked").mkdir()
    for label in ("cat", "dog"):
        (tmp_path / "linked" / label).symlink_to(real / label)
    assert load(tmp_path / "linked", cache).fingerprint == load(real, cache).fingerprint
