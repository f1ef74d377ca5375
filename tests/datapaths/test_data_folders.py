"""Which folders are classes and parts, what becomes of their images, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.data import DataConfig, ImageSet, load_images
from flyball.datapaths.errors import DataError, InvalidSetting


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


def test_jpegs_are_decoded_as_pillow_does_it(tmp_path: Path, cache: Path) -> None:
    files = {f"{c}/{i}.JPG": encoded(picture(i), "JPEG") for c in "ab" for i in range(4)}
    images = load(plant(files, tmp_path / "data"), cache).images
    for row, name in enumerate(sorted(files)):
        np.testing.assert_array_equal(images[row], pixels_of(files[name]))


def test_without_parts_all_four_splits_are_dealt(tmp_path: Path, cache: Path) -> None:
    found = load(plant(class_folders(count=50), tmp_path / "data"), cache)
    assert np.bincount(found.split).tolist() == [56, 16, 8, 20]
    only_train = plant(class_folders("train/", count=50), tmp_path / "train_only")
    assert load(only_train, cache).fingerprint == found.fingerprint


def test_val_is_the_test_part_only_where_there_is_no_other(tmp_path: Path, cache: Path) -> None:
    two = load(plant(class_folders("train/", "val/"), tmp_path / "two"), cache)
    np.testing.assert_array_equal(two.rows("test"), np.arange(12, 24))
    files = class_folders("train/", "val/", "test/")
    three = load(plant(files, tmp_path / "three"), cache)
    np.testing.assert_array_equal(three.rows("test"), np.arange(24, 36))


def test_grey_images_have_one_channel_unless_one_is_coloured(tmp_path: Path, cache: Path) -> None:
    files = {f"{c}/{i}.png": encoded(picture(i, mode="L")) for c in "ab" for i in range(4)}
    grey = load(plant(files, tmp_path / "grey"), cache)
    assert grey.shape == (1, 5, 6)
    files["a/0.png"] = encoded(picture(0))
    mixed = load(plant(files, tmp_path / "mixed"), cache)
    assert mixed.shape == (3, 5, 6)
    for channel in range(3):
        np.testing.assert_array_equal(mixed.images[1:][:, channel], grey.images[1:][:, 0])


def test_of_sixteen_bits_the_upper_eight_are_kept(tmp_path: Path, cache: Path) -> None:
    deep = encoded(Image.fromarray(np.full((5, 6), 0x1234, np.uint16)))
    files = {f"{c}/{i}.png": deep for c in "ab" for i in range(4)}
    found = load(plant(files, tmp_path / "data"), cache)
    assert found.shape == (1, 5, 6)
    assert (np.asarray(found.images) == 0x12).all()


def test_an_image_size_resizes_the_short_side_and_cuts_out_the_centre(
    tmp_path: Path, cache: Path
) -> None:
    wide = encoded(Image.fromarray(np.array([[0, 10, 20, 30]] * 2, np.uint8)))
    tall = encoded(Image.fromarray(np.full((12, 4), 7, np.uint8)))
    files = {f"{c}/{i}.png": d for c, d in (("a", wide), ("b", tall)) for i in range(4)}
    images = load(plant(files, tmp_path / "data"), cache, image_size=2).images
    assert images.shape == (8, 1, 2, 2)
    assert images[0, 0].tolist() == [[10, 20], [10, 20]]
    assert images[4, 0].tolist() == [[7, 7], [7, 7]]


def test_a_source_without_images_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", cache, "A data set holds images (.jpg,", "has none")


@pytest.mark.parametrize("prefixes", [(), ("train/", "test/")])
def test_a_class_folder_without_an_image_is_refused(
    prefixes: tuple[str, ...], tmp_path: Path, cache: Path
) -> None:
    files = class_folders(*prefixes)
    where = f"{prefixes[0] if prefixes else ''}eel"
    root = plant({**files, f"{where}/readme.txt": b"soon"}, tmp_path / "packed")
    assert_refused(root, cache, "Every class folder holds images", f"{where} in {root} has none")
    folder = plant(files, tmp_path / "data")
    (folder / where).mkdir()
    assert_refused(folder, cache, "Every class folder holds images", f"{where} in {folder}")


def test_one_class_is_refused(tmp_path: Path, cache: Path) -> None:
    for number, prefix in enumerate(("", "train/")):
        root = plant(class_folders(prefix, classes=("cat",)), tmp_path / str(number))
        assert_refused(root, cache, "at least two class folders", "has 1: cat")


def test_parts_with_other_classes_are_refused(tmp_path: Path, cache: Path) -> None:
    files = class_folders("train/", classes=("cat", "dog", "eel"))
    files |= class_folders("test/", classes=("cat", "dog"))
    root = plant(files, tmp_path / "data")
    assert_refused(
        root, cache, "must have the same class folders", f"there is no test/eel in {root}"
    )


def test_an_image_in_no_class_folder_is_refused(tmp_path: Path, cache: Path) -> None:
    stray = {"9.png": encoded(picture(1))}
    root = plant({**class_folders(), **stray}, tmp_path / "one")
    assert_refused(root, cache, "lies in the folder of its class", f"9.png in {root} lies in none")
    stray = {"train/9.png": encoded(picture(1))}
    root = plant({**class_folders("train/", "test/"), **stray}, tmp_path / "two")
    assert_refused(root, cache, f"train/9.png in {root} lies in none")
    stray = {"extra/cat/9.png": encoded(picture(1))}
    root = plant({**class_folders("train/", "test/"), **stray}, tmp_path / "three")
    assert_refused(root, cache, "Beside train and test", f"extra/cat/9.png in {root}")


def test_a_file_that_is_no_image_is_refused(tmp_path: Path, cache: Path) -> None:
    files = class_folders()
    files["dog/3.png"] = b"not a picture"
    root = plant(files, tmp_path / "data")
    assert_refused(root, cache, "Every image must decode", f"dog/3.png in {root} (13 bytes)")


def test_images_of_two_sizes_are_refused_without_an_image_size(tmp_path: Path, cache: Path) -> None:
    files = class_folders()
    files["dog/3.png"] = encoded(picture(1, size=(9, 8)))
    root = plant(files, tmp_path / "data")
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
    root = plant(files, tmp_path / "data")
    assert_refused(root, cache, "8 or 16 bits", f"cat/2.tif in {root} has 32 (mode F)")


def test_a_class_with_too_few_images_is_refused(tmp_path: Path, cache: Path) -> None:
    files = class_folders()
    files |= {f"eel/{i}.png": encoded(picture(i)) for i in range(3)}
    root = plant(files, tmp_path / "one")
    assert_refused(root, cache, "needs an image for each of path_train", "class 'eel' has 3")
    root = plant(class_folders("train/", "test/", count=2), tmp_path / "two")
    assert_refused(root, cache, "class 'cat' has 2 outside the test part")


def test_an_unused_test_share_does_not_stop_a_source_with_a_test_part(
    tmp_path: Path, cache: Path
) -> None:
    config = DataConfig(name="folder", cache=str(cache), fractions=(0.5, 0.25, 0.25, 0.0))
    without = plant(class_folders(), tmp_path / "without")
    with pytest.raises(InvalidSetting, match="The share of test may be 0 only where"):
        load_images(DataConfig(**{**vars(config), "root": str(without)}))
    assert not cache.exists()
    own = plant(class_folders("train/", "test/", count=8), tmp_path / "own")
    found = load_images(DataConfig(**{**vars(config), "root": str(own)}))
    assert np.bincount(found.split).tolist() == [8, 4, 4, 16]


def test_a_folder_with_links_astray_is_refused(tmp_path: Path, cache: Path) -> None:
    root = plant(class_folders(), tmp_path / "data")
    (root / "cat" / "up").symlink_to(root)
    assert_refused(root, cache, "must not contain itself")
    (root / "cat" / "up").unlink()
    (root / "cat" / "9.png").symlink_to(tmp_path / "nowhere.png")
    assert_refused(root, cache, "must lead somewhere", "9.png")


def test_a_folder_of_linked_class_folders_is_read(tmp_path: Path, cache: Path) -> None:
    real = plant(class_folders(), tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for label in ("cat", "dog"):
        (tmp_path / "linked" / label).symlink_to(real / label)
    assert load(tmp_path / "linked", cache).fingerprint == load(real, cache).fingerprint
