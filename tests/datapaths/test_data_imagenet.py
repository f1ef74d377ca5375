"""ImageNet's folders, its flat validation part with the development kit, and what is refused."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat  # type: ignore[import-untyped,unused-ignore]
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from flyball.datapaths.data import DataConfig, ImageSet, load_images
from flyball.datapaths.errors import DataError, InvalidSetting, PickleRefused

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet1000_samples_256.tar"
WNIDS = ("n01440764", "n01443537", "n02007558")
WORDS = ("tench, Tinca tinca", "crane", "crane")
DEVKIT = "ILSVRC2012_devkit_t12/data"


def jpeg(seed: int, *, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).convert(mode).resize(size).save(file, "JPEG", quality=90)
    return file.getvalue()


def train_files(count: int = 5) -> dict[str, bytes]:
    """In each class one image is grey and one CMYK, as a few of the real ones are."""
    files = {}
    for label, wnid in enumerate(WNIDS):
        for number in range(count):
            mode = {0: "L", 1: "CMYK"}.get(number, "RGB")
            data = jpeg(10 * label + number, size=(40 + number, 30), mode=mode)
            files[f"train/{wnid}/{wnid}_{number}.JPEG"] = data
    return files


def val_folders() -> dict[str, bytes]:
    return {
        f"val/{wnid}/ILSVRC2012_val_{1 + 3 * k + i:08d}.JPEG": jpeg(100 + 3 * k + i)
        for i, wnid in enumerate(WNIDS)
        for k in range(2)
    }


def val_flat() -> dict[str, bytes]:
    """The same images; their ids count classes in another order than the wnids do."""
    ids = {wnid: 3 - place for place, wnid in enumerate(WNIDS)}
    truth = [str(ids[WNIDS[number % 3]]) for number in range(6)]
    synsets = np.array(
        [
            (ids[wnid], wnid, words, "a gloss", 0, 0, 0, 1300)
            for wnid, words in zip(WNIDS, WORDS, strict=True)
        ]
        # a group of classes, which is none itself
        + [(1001, "n00001740", "entity", "all", 3, 0, 9, 0)],
        dtype=[
            ("ILSVRC2012_ID", "O"),
            ("WNID", "O"),
            ("words", "O"),
            ("gloss", "O"),
            ("num_children", "O"),
            ("children", "O"),
            ("wordnet_height", "O"),
            ("num_train_images", "O"),
        ],
    ).reshape(-1, 1)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    flat = {f"val/{name.rpartition('/')[2]}": data for name, data in val_folders().items()}
    return {
        **flat,
        f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt": "\n".join(truth).encode() + b"\n",
        f"{DEVKIT}/meta.mat": meta.getvalue(),
    }


def plant(files: dict[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def load(root: Path, **settings: Any) -> ImageSet:
    given = {"image_size": 21, "cache": str(root.parent / "cache")}
    return load_images(DataConfig(name="imagenet", root=str(root), **{**given, **settings}))


def assert_refused(root: Path, *words: str, **settings: Any) -> None:
    with pytest.raises(DataError) as caught:
        load(root, **settings)
    for word in words:
        assert word in str(caught.value)
    assert not (root.parent / "cache").exists()


def as_torchvision(data: bytes, short_side: int, side: int) -> NDArray[np.uint8]:
    """What the transforms of torchvision's weights make of a file, before they scale it."""
    transform = Compose([Resize(short_side, InterpolationMode.BILINEAR), CenterCrop(side)])
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(transform(image.convert("RGB"))).transpose(2, 0, 1)


def test_classes_are_sorted_wnids_and_val_is_the_test_part(tmp_path: Path) -> None:
    found = load(plant({**train_files(), **val_folders()}, tmp_path / "data"))
    assert found.classes == WNIDS
    assert found.images.shape == (21, 3, 21, 21)
    assert found.labels.tolist() == [*[0] * 5, *[1] * 5, *[2] * 5, 0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(found.rows("test"), np.arange(15, 21))


def test_pixels_are_those_of_torchvisions_transforms(tmp_path: Path) -> None:
    files = {**train_files(), **val_folders()}
    root = plant(files, tmp_path / "data")
    found = load(root)  # 8/7 of 21 is 24, as 256 is of 224
    for row, name in enumerate(sorted(files)):
        np.testing.assert_array_equal(found.images[row], as_torchvision(files[name], 24, 21))
    other = load(root, image_size=20, short_side=29)
    for row, name in enumerate(sorted(files)):
        np.testing.assert_array_equal(other.images[row], as_torchvision(files[name], 29, 20))
    assert load(root, image_size=None, access="stream").shape == (3, 224, 224)


def test_a_flat_val_is_sorted_by_the_key_of_the_development_kit(tmp_path: Path) -> None:
    folders = load(plant({**train_files(), **val_folders()}, tmp_path / "folders"))
    flat = load(plant({**train_files(), **val_flat()}, tmp_path / "flat"))
    np.testing.assert_array_equal(flat.images, folders.images)
    np.testing.assert_array_equal(flat.labels, folders.labels)
    # the first synonym, and the wnid where two classes share it
    assert flat.classes == ("tench", "crane (n01443537)", "crane (n02007558)")


def test_names_can_come_from_a_file(tmp_path: Path) -> None:
    root = plant({**train_files(), **val_folders()}, tmp_path / "data")
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{w} name {i}, other\n" for i, w in enumerate(WNIDS)))
    assert load(root, names=str(names)).classes == ("name 0", "name 1", "name 2")
    names.write_text("n01440764 tench\n")
    with pytest.raises(DataError, match="has none for n01443537 and 2 wnids in all"):
        load(root, names=str(names))
    names.write_text("tench\n")
    with pytest.raises(DataError, match=r"line 1 of .* is 'tench'"):
        load(root, names=str(names))
    with pytest.raises(DataError, match=r"cannot be read .* --set data\.names=FILE"):
        load(root, names=str(tmp_path / "none.txt"))


@pytest.mark.parametrize("packing", ["folder", "tar", "zip"])
@pytest.mark.parametrize("access", ["cache", "stream"])
def test_every_packing_and_access_gives_the_same_pixels(
    packing: str, access: str, tmp_path: Path
) -> None:
    files = {f"ILSVRC/Data/CLS-LOC/{n}": d for n, d in {**train_files(), **val_flat()}.items()}
    plain = load(plant(files, tmp_path / "plain"))
    root = tmp_path / "plain"
    if packing == "zip":
        root = tmp_path / "data.zip"
        with zipfile.ZipFile(root, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, data in files.items():
                zipped.writestr(name, data)
    elif packing == "tar":
        root = tmp_path / "data.tar"
        with tarfile.open(root, "w") as tar:
            tar.add(tmp_path / "plain", "")
    found = load(root, access=access, workers=2)
    np.testing.assert_array_equal(found.images[:], plain.images)
    np.testing.assert_array_equal(found.split, plain.split)
    assert found.classes == plain.classes
    if access == "stream":
        again = pickle.loads(pickle.dumps(found)).images
        np.testing.assert_array_equal(again[::-1], np.asarray(plain.images)[::-1])


def test_val_alone_is_dealt_to_all_four_splits(tmp_path: Path) -> None:
    files = {name.replace("train", "val"): data for name, data in train_files().items()}
    found = load(plant(files, tmp_path / "data"))
    assert np.bincount(found.split).tolist() == [6, 3, 3, 3]


def test_a_limit_keeps_the_first_by_name(tmp_path: Path) -> None:
    root = plant({**train_files(), **val_folders()}, tmp_path / "data")
    few, full = load(root, limit=4), load(root)
    assert len(few) == 12 + 6
    np.testing.assert_array_equal(few.images[4:8], full.images[5:9])


def test_meta_bin_is_a_pickle_and_refused(tmp_path: Path) -> None:
    files = {name: data for name, data in val_flat().items() if name.startswith("val")}
    root = plant({**train_files(), **files, "meta.bin": b"PK\x03\x04"}, tmp_path / "data")
    with pytest.raises(PickleRefused, match=r"meta\.bin in .* is a pickle") as caught:
        load(root)
    assert "ILSVRC2012_devkit_t12.tar.gz" in str(caught.value)
    (root / "meta.bin").unlink()
    assert_refused(root, "has a flat val and lacks the key", "ILSVRC2012_devkit_t12.tar.gz")


def test_a_key_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    root = plant({**train_files(), **val_flat()}, tmp_path / "data")
    truth = root / DEVKIT / "ILSVRC2012_validation_ground_truth.txt"
    whole = truth.read_text()
    truth.write_text(whole.replace("3", "1001"))
    assert_refused(root, "line 1 of", "is '1001', and meta.mat has 3 classes")
    truth.write_text("\n".join(whole.split()[:5]))
    assert_refused(root, "lines of ILSVRC2012_validation_ground_truth.txt, 5", "00000006.JPEG")
    truth.write_text(whole)
    meta = root / DEVKIT / "meta.mat"
    for broken in (b"", b"not MATLAB", meta.read_bytes()[:300]):
        meta.write_bytes(broken)
        assert_refused(root, "meta.mat is the development kit's", f"({len(broken)} bytes)")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"train/dogs/1.JPEG": b""}, ["class folders are wnids", "lies in 'dogs'"]),
        (
            {"train/n01440764/n01443537_9.JPEG": b""},
            ["named after its class", "in the folder of n01440764"],
        ),
        ({"train/n09999999/n09999999_1.JPEG": b""}, ["only train has n09999999", "1 classes"]),
        ({"val/ILSVRC2012_val_00000001.JPEG": b""}, ["images in val and in folders below it"]),
        ({"a/train/n01440764/x.JPEG": b"", "b/train/n01440764/x.JPEG": b""}, []),
    ],
)
def test_other_layouts_are_refused(
    extra: dict[str, bytes], words: list[str], tmp_path: Path
) -> None:
    files = {**train_files(), **val_folders(), **extra}
    if not words:
        files, words = extra, ["has train or val in a and in b"]
    assert_refused(plant(files, tmp_path / "data"), *words)


def test_what_holds_no_class_is_refused(tmp_path: Path) -> None:
    root = plant({"train/n01440764.tar": b"x"}, tmp_path / "packed")
    assert_refused(root, "train/n01440764.tar, a class that is still packed", "train/<wnid>")
    root = plant({"cat/1.JPEG": jpeg(1)}, tmp_path / "other")
    assert_refused(root, "ImageNet is train/<wnid>", "has neither", "data.name=folder")
    root = plant({"train/n01440764/1.JPEG": jpeg(1)}, tmp_path / "one")
    assert_refused(root, "at least two classes", "n01440764 alone")
    packed = tmp_path / "data.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(root, "")
    assert_refused(packed, "A compressed tar can be read from its start only", "Unpack it")


@pytest.mark.parametrize("access", ["cache", "stream"])
def test_corrupt_images_are_refused_or_left_out_on_request(access: str, tmp_path: Path) -> None:
    files = {**train_files(), **val_folders()}
    whole = load(plant(files, tmp_path / "whole"), cache=str(tmp_path / "other"))
    name = f"train/{WNIDS[1]}/{WNIDS[1]}_2.JPEG"
    root = plant({**files, name: files[name][:200]}, tmp_path / "data")
    with pytest.raises(DataError, match=f"must decode; {name} in .*200 bytes"):
        load(root, access=access).images[7]
    found = load(root, access=access, skip_corrupt=True, workers=2)
    assert found.skipped == (name,)
    np.testing.assert_array_equal(found.images[:], np.delete(np.asarray(whole.images), 7, axis=0))
    np.testing.assert_array_equal(found.labels, np.delete(whole.labels, 7))


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"data\.short_side is at least data\.image_size"):
        DataConfig(name="imagenet", short_side=200)
    with pytest.raises(InvalidSetting, match=r"data\.short_side is of folder and imagenet alone"):
        DataConfig(name="cifar10", image_size=8, short_side=9)
    with pytest.raises(InvalidSetting, match=r"data\.names is of imagenet alone"):
        DataConfig(name="folder", names="names.txt")


@pytest.mark.skipif(not REAL.is_file(), reason="the ImageNet samples are not at hand")
def test_real_photographs_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    with tarfile.open(REAL) as tar:
        for number, member in enumerate(tar):
            opened = tar.extractfile(member)
            assert opened is not None
            # one image a class is too few to deal: five stand for a class here
            wnid = WNIDS[number // 5]
            files[f"train/{wnid}/{wnid}_{number:02d}.JPEG"] = opened.read()
            if number == 14:
                break
    found = load(plant(files, tmp_path / "data"), image_size=224)
    assert found.images.shape == (15, 3, 224, 224)
    for row, name in enumerate(sorted(files)):
        np.testing.assert_array_equal(found.images[row], as_torchvision(files[name], 256, 224))
    # natural photographs: neither black nor white on average
    assert 60 < np.asarray(found.images).mean() < 180
