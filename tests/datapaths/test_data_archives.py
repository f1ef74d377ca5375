"""Every packing of class folders gives the same image set, and broken archives are refused."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.data import DataConfig, ImageSet, load_images
from flyball.datapaths.data import class_folders as reading
from flyball.datapaths.errors import DataError
from flyball.datapaths.progress import Progress

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
) -> dict[str, bytes]:
    """`count` images a class below each prefix; their seeds tell them apart."""
    names = [f"{p}{c}/{i}.png" for p in prefixes or ("",) for c in classes for i in range(count)]
    return {name: encoded(picture(seed)) for seed, name in enumerate(names)}


def pack(files: dict[str, bytes], target: Path, packing: str, *, reverse: bool = False) -> Path:
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
    root: Path, cache: Path, *, image_size: int | None = None, limit: int | None = None
) -> ImageSet:
    config = DataConfig(
        name="folder", root=str(root), cache=str(cache), image_size=image_size, limit=limit
    )
    return load_images(config)


def assert_refused(root: Path, cache: Path, *words: str) -> None:
    """The message holds all words, and nothing at all is written."""
    with pytest.raises(DataError) as caught:
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


@pytest.mark.parametrize("top", ["", "./", "/", "set/", "set/v1/"])
def test_folders_that_all_share_are_skipped(top: str, tmp_path: Path, cache: Path) -> None:
    files = {f"{top}{name}": data for name, data in class_folders("train/", "test/").items()}
    found = load(pack(files, tmp_path / "data", "tar"), cache)
    assert found.classes == ("cat", "dog")
    assert len(found.rows("test")) == 12


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


def test_a_missing_root_is_refused(tmp_path: Path, cache: Path) -> None:
    assert_refused(tmp_path / "none.tar", cache, "there is no", "none.tar", "--set data.root=FILE")
    for name in ("cifar10", "folder"):
        with pytest.raises(DataError, match=f"'{name}' is read from a folder or archive") as e:
            load_images(DataConfig(name=name, cache=str(cache)))
        assert "--set data.root=FILE" in str(e.value)


def test_what_is_no_archive_or_an_empty_one_is_refused(tmp_path: Path, cache: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    assert_refused(tmp_path / "empty.zip", cache, "A data set holds images (.jpg,", "has none")
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


def test_a_set_too_large_to_keep_is_read_twice_to_the_same_end(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for packing in PACKINGS:
        root = pack(class_folders(), tmp_path / "data", packing, reverse=True)
        kept = load(root, cache / packing / "kept")
        with monkeypatch.context() as patch:
            patch.setattr(reading, "_KEPT_BYTES", 500)
            streamed = load(root, cache / packing / "streamed")
        assert streamed.fingerprint == kept.fingerprint


def test_a_set_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_KEPT_BYTES", 0)
    root = pack(class_folders(), tmp_path / "data", "folder")

    def change(progress: Progress) -> None:
        if progress.stage == "survey":
            (root / "dog" / "2.png").write_bytes(encoded(picture(77)))

    config = DataConfig(name="folder", root=str(root), cache=str(cache))
    with pytest.raises(DataError, match=r"must stay as it is while it is read; dog/2\.png"):
        load_images(config, report=change)
    assert not cache.exists()
