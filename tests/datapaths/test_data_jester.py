"""20BN-Jester's folders of frames and lists of labels, and every way they can be broken."""

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flyball.datapaths.data import DataConfig, ImageSet, StreamedPixels, describe, load_images
from flyball.datapaths.data.jester import frames_taken
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.progress import Progress

CLASSES = ("Swiping Left", "Shaking Hand", "Doing other things")
LENGTH = 9  # frames of a clip


def jpeg(seed: int, *, width: int = 17, height: int = 10) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_jester(root: Path, *, train: int = 4, validation: int = 2) -> Path:
    """Clips with ids in another order than their classes; widths differ from clip to clip."""
    (root / "20bn-jester-v1").mkdir(parents=True)
    (root / "jester-v1-labels.csv").write_text("\r\n".join(CLASSES) + "\r\n")
    (root / "jester-v1-test.csv").write_text("999\n")
    number = 0
    for name, count in (("train", train), ("validation", validation)):
        lines = []
        for _ in range(count):
            for label in reversed(CLASSES):
                number += 1
                folder = root / "20bn-jester-v1" / str(number)
                folder.mkdir()
                for frame in range(1, LENGTH + 1):
                    data = jpeg(100 * number + frame, width=15 + number % 3)
                    (folder / f"{frame:05d}.jpg").write_bytes(data)
                lines.append(f"{number};{label}")
        (root / f"jester-v1-{name}.csv").write_text("\n".join(lines) + "\n")
    return root


def config(root: Path, **settings: Any) -> DataConfig:
    given = {"frames": 4, "image_size": 8, "width": 12, "cache": str(root.parent / "cache")}
    return DataConfig(name="jester", root=str(root), **{**given, **settings})


def load(root: Path, **settings: Any) -> ImageSet:
    return load_images(config(root, **settings))


def assert_refused(root: Path, *words: str, **settings: Any) -> None:
    with pytest.raises(DataError) as caught:
        load(root, **settings)
    for word in words:
        assert word in str(caught.value)
    assert not (root.parent / "cache").exists()


def clip_of(root: Path, name: int, frames: list[int]) -> NDArray[np.uint8]:
    """As Pillow gives it; (3, T, 8, 12)."""
    found = []
    for frame in frames:
        file = root / "20bn-jester-v1" / str(name) / f"{frame:05d}.jpg"
        with Image.open(file) as image:
            found.append(np.asarray(image.resize((12, 8), Image.Resampling.BILINEAR)))
    return np.stack(found).transpose(3, 0, 1, 2)


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [
        (9, 4, [1, 3, 5, 7]),
        (36, 16, [1, 3, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]),
        (4, 4, [0, 1, 2, 3]),
        (3, 5, [0, 1, 2, 2, 2]),
        (1, 2, [0, 0]),
    ],
)
def test_frames_are_the_middles_of_equal_segments_or_all_and_the_last_again(
    count: int, wanted: int, expected: list[int]
) -> None:
    assert frames_taken(count, wanted).tolist() == expected


def test_clips_keep_their_frames_their_labels_and_the_validation_list(tmp_path: Path) -> None:
    root = write_jester(tmp_path / "data")
    found = load(root)
    assert found.classes == CLASSES
    assert found.images.shape == (18, 3, 4, 8, 12)
    assert found.shape == (3, 4, 8, 12)
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(found.rows("test"), np.arange(12, 18))
    assert np.bincount(found.split).tolist() == [6, 3, 3, 6]
    # of each three clips the last is "Swiping Left"; the middle frames of four segments of nine
    for row, name in ((0, 3), (1, 6), (4, 2), (11, 10), (12, 15), (17, 16)):
        np.testing.assert_array_equal(found.images[row], clip_of(root, name, [2, 4, 6, 8]))


def test_the_papers_size_is_the_default(tmp_path: Path) -> None:
    root = write_jester(tmp_path / "data")
    found = load(root, frames=None, image_size=None, width=None, access="stream")
    assert found.shape == (3, 16, 100, 160)
    clip = found.images[0]
    for place in range(8, 16):
        np.testing.assert_array_equal(clip[:, place], clip[:, 8])
    assert (clip[:, 8] != clip[:, 7]).any()
    assert load(root, image_size=20, width=None, access="stream").shape == (3, 4, 20, 20)


def test_a_stream_gives_the_cached_bytes_and_writes_nothing(tmp_path: Path) -> None:
    root = write_jester(tmp_path / "data")
    streamed = load(root, access="stream", workers=2)
    assert not (tmp_path / "cache").exists()
    cached = load(root)
    assert streamed.is_streamed
    assert not cached.is_streamed
    np.testing.assert_array_equal(streamed.images[:], cached.images)
    np.testing.assert_array_equal(streamed.split, cached.split)
    again = pickle.loads(pickle.dumps(streamed.images))
    np.testing.assert_array_equal(again[[5, 2]], cached.images[[5, 2]])


def test_fingerprints_know_content_and_no_path(tmp_path: Path) -> None:
    root = write_jester(tmp_path / "data")
    moved = Path(shutil.copytree(root, tmp_path / "moved"))
    for access in ("cache", "stream"):
        assert load(moved, access=access).fingerprint == load(root, access=access).fingerprint
    kept = {access: load(root, access=access).fingerprint for access in ("cache", "stream")}
    (root / "20bn-jester-v1" / "5" / "00004.jpg").write_bytes(jpeg(7, width=40))
    for access, fingerprint in kept.items():
        assert load(root, access=access).fingerprint != fingerprint


def test_a_streamed_fingerprint_knows_changes_that_keep_the_size(tmp_path: Path) -> None:
    root = write_jester(tmp_path / "data")
    before = load(root, access="stream")
    file = root / "20bn-jester-v1" / "5" / "00004.jpg"
    file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))
    os.utime(file, (1, 1))
    assert load(root, access="stream").fingerprint != before.fingerprint


def test_an_unchanged_source_is_not_decoded_again(tmp_path: Path) -> None:
    root = write_jester(tmp_path / "data")
    reports: list[Progress] = []
    load_images(config(root), report=reports.append)
    assert {r.stage for r in reports} == {"survey", "decode"}
    reports.clear()
    load_images(config(root, seed=3), report=reports.append)
    assert {r.stage for r in reports} == {"survey"}


def test_a_limit_keeps_the_first_of_each_class_and_list(tmp_path: Path) -> None:
    root = write_jester(tmp_path / "data")
    few, full = load(root, limit=3), load(root)
    assert len(few) == 9 + 6
    np.testing.assert_array_equal(few.images[:3], full.images[:3])
    np.testing.assert_array_equal(few.images[3:6], full.images[4:7])


def test_lists_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    root = write_jester(tmp_path / "data")
    before = load(root).fingerprint
    (root / "annotations").mkdir()
    for file in root.glob("*.csv"):
        file.rename(root / "annotations" / file.name)
    assert load(root).fingerprint == before


@pytest.mark.parametrize("frame", [1, 4])
def test_a_missing_frame_is_refused_by_clip_and_number(frame: int, tmp_path: Path) -> None:
    root = write_jester(tmp_path / "data")
    (root / "20bn-jester-v1" / "7" / f"{frame:05d}.jpg").unlink()
    for access in ("cache", "stream"):
        assert_refused(root, f"clip 7 has 8 frames and lacks {frame:05d}.jpg", access=access)


def empty(root: Path) -> None:
    for file in (root / "20bn-jester-v1" / "7").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (empty, ["clip 7 has 0 frames and lacks 00001.jpg", "data.skip_corrupt=true"]),
        (
            lambda root: shutil.rmtree(root / "20bn-jester-v1" / "7"),
            ["line 7 of", "jester-v1-train.csv names clip 7", "No such file"],
        ),
        (
            lambda root: (root / "jester-v1-validation.csv").unlink(),
            ["there is no jester-v1-validation.csv in"],
        ),
        (lambda root: shutil.rmtree(root / "20bn-jester-v1"), ["holds no 20bn-jester-v1"]),
        (
            lambda root: (root / "jester-v1-train.csv").write_text("1;Swiping Left\n2 Rolling\n"),
            ["<id>;<class>; line 2 of", "'2 Rolling'"],
        ),
        (
            lambda root: (root / "jester-v1-train.csv").write_text("../1;Swiping Left\n"),
            ["<id>;<class>; line 1 of"],
        ),
        (
            lambda root: (root / "jester-v1-train.csv").write_text("1;Swiping\n"),
            ["line 1 of", "names 'Swiping', which is not one of 3"],
        ),
        (
            lambda root: (root / "jester-v1-validation.csv").write_text("1;Shaking Hand\n"),
            ["1 is in line 1 of", "jester-v1-train.csv and in line 1 of"],
        ),
        (
            lambda root: (root / "jester-v1-labels.csv").write_text("A\nB\nA\n"),
            ["line 3 of", "repeats 'A'"],
        ),
        (lambda root: (root / "jester-v1-labels.csv").write_text("A\n"), ["lists 1"]),
        (lambda root: (root / "jester-v1-labels.csv").write_bytes(b"\xff\xfe\x80"), ["be text"]),
        (
            lambda root: (root / "jester-v1-labels.csv").write_text("\n".join((*CLASSES, "Z"))),
            ["Class 'Z' has no image in the test part"],
        ),
    ],
)
def test_broken_lists_and_folders_are_refused(
    break_it: Callable[[Path], object], words: list[str], tmp_path: Path
) -> None:
    root = write_jester(tmp_path / "data")
    break_it(root)
    assert_refused(root, *words)


def test_a_root_is_needed_and_an_archive_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'jester' is read from a folder or archive"):
        load_images(DataConfig(name="jester"))
    (tmp_path / "a.tar").write_bytes(b"x")
    with pytest.raises(DataError, match="cat 20bn-jester-v1-"):
        load_images(DataConfig(name="jester", root=str(tmp_path / "a.tar")))


def test_a_frame_that_does_not_decode_is_refused_by_name(tmp_path: Path) -> None:
    root = write_jester(tmp_path / "data")
    file = root / "20bn-jester-v1" / "7" / "00004.jpg"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"must decode; 7/00004\.jpg in .*\(40 bytes\)"):
        load(root)
    streamed = load(root, access="stream")
    row = 2  # the third clip of the first class is 9; 7 is the third of the last one
    assert streamed.images[row].shape == (3, 4, 8, 12)
    with pytest.raises(DataError, match=r"must decode; 7/00004\.jpg"):
        streamed.images[10]


@pytest.mark.parametrize("access", ["cache", "stream"])
def test_broken_clips_are_left_out_on_request_counted_and_reported(
    access: str, tmp_path: Path
) -> None:
    root = write_jester(tmp_path / "data", train=5, validation=3)
    whole = load(root, cache=str(tmp_path / "other"))
    (root / "20bn-jester-v1" / "7" / "00005.jpg").unlink()
    shutil.rmtree(root / "20bn-jester-v1" / "8")
    file = root / "20bn-jester-v1" / "18" / "00004.jpg"
    file.write_bytes(file.read_bytes()[:40])
    for _ in range(2):
        reports: list[Progress] = []
        found = load_images(
            config(root, skip_corrupt=True, access=access, workers=1), report=reports.append
        )
        assert len(found) == 24 - 3
        assert set(found.skipped) == {"7", "8", "18"}
        assert describe(found)["skipped"]["count"] == 3
        assert "left out 3 corrupt samples: 8, 7, 18" in reports[-1].note
        # 7 is the last class's, 8 the middle one's, 18 the first one's in the validation list
        assert np.bincount(found.labels).tolist() == [7, 7, 7]
        kept = np.ones(24, bool)
        kept[[12, 7, 15]] = False
        np.testing.assert_array_equal(found.images[:], np.asarray(whole.images)[kept])
    assert "check" not in {r.stage for r in reports}, "it was looked for before"
    assert isinstance(found.images, StreamedPixels) == (access == "stream")


def test_other_settings_are_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"data\.frames is at least 1, or unset; got 0"):
        DataConfig(name="jester", frames=0)
    with pytest.raises(InvalidSetting, match=r"data\.width is at least 1, or unset; got -1"):
        DataConfig(name="jester", width=-1)
