"""MPII in its published forms: where people are cut out, what counts, and what is refused."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat  # type: ignore[import-untyped,unused-ignore]

from flyball.datapaths.data import DataConfig, load_images
from flyball.datapaths.errors import DataError
from flyball.datapaths.pose import JOINTS, PoseSet
from flyball.datapaths.splits import SPLITS

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "mmpose_pose_samples.tar"
CENTRE, SCALE = (120.0, 90.0), 0.4
"""A square of 100 pixels around (119.5, 95.5): 15 scales below the centre, counted from 0."""


def joints() -> list[list[float]]:
    return [[100.0 + 2 * joint, 80.0 + joint] for joint in range(16)]


def record(image: str = "a.png", **changes: Any) -> dict[str, Any]:
    made = {
        "image": image,
        "center": list(CENTRE),
        "scale": SCALE,
        "joints": joints(),
        "joints_vis": [1] * 16,
    }
    return {**made, **changes}


def photograph(mark: tuple[int, int] | None = None) -> Image.Image:
    """A grey photograph of 200 x 150 with a white square of 3 x 3 around a pixel."""
    pixels = np.full((150, 200, 3), 90, np.uint8)
    if mark is not None:
        x, y = mark
        pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
    return Image.fromarray(pixels)


def write(root: Path, **files: Any) -> Path:
    """Photographs a.png to h.png and annotation files, by their stems."""
    (root / "images").mkdir(parents=True)
    (root / "annot").mkdir()
    for name in "abcdefgh":
        photograph((110, 84)).save(root / "images" / f"{name}.png")
    for name, records in files.items():
        (root / "annot" / f"{name}.json").write_text(json.dumps(records))
    return root


def load(root: Path, **settings: Any) -> PoseSet:
    made: dict[str, Any] = {
        "name": "mpii",
        "root": str(root),
        "cache": str(root.parent / "cache"),
        "image_size": 64,
        "workers": 0,
        **settings,
    }
    found = load_images(DataConfig(**made))
    assert isinstance(found, PoseSet)
    return found


def four(**changes: Any) -> list[dict[str, Any]]:
    return [record(f"{name}.png", **changes) for name in "abcd"]


def test_pixels_and_joints_move_alike(tmp_path: Path) -> None:
    # MATLAB's pixel (111, 85) is the white one
    marked = joints()
    marked[3] = [111.0, 85.0]
    found = load(write(tmp_path / "mpii", train=four(joints=marked)), image_size=200)
    x, y, seen = found.key_points[0, 3]
    # 100 pixels become 200: (110.5 - 69.5, 84.5 - 45.5) twice
    assert (x, y, seen) == (82.0, 78.0, 1.0)
    rows, columns = np.nonzero(np.asarray(found.images[0])[0] > 240)
    assert rows.mean() + 0.5 == pytest.approx(78.0, abs=0.01)
    assert columns.mean() + 0.5 == pytest.approx(82.0, abs=0.01)


def test_the_square_is_black_beyond_the_photograph(tmp_path: Path) -> None:
    found = load(write(tmp_path / "mpii", train=four(center=[1.0, 1.0])), image_size=50)
    image = np.asarray(found.images[0])
    # centre (.5, 6.5) below: half of the columns, and 43.5 of the 100 rows lie outside
    assert image[:, :, :24].max() == 0
    assert image[:, :21].max() == 0
    assert (image[:, 24:, 27:] > 80).all()


def test_joints_that_are_not_annotated_are_zero(tmp_path: Path) -> None:
    hidden = record(joints_vis=[0, *[1] * 15], joints=[[-1.0, -1.0], *joints()[1:]])
    found = load(write(tmp_path / "mpii", train=[hidden, *four()]))
    assert found.key_points[0, 0].tolist() == [0.0, 0.0, 0.0]
    assert found.key_points[0, 1:, 2].min() == 1.0


def test_a_head_is_a_tenth_of_the_square_unless_its_box_is_known(tmp_path: Path) -> None:
    records = [record(headbox=[10, 10, 13, 14]), *four()]
    found = load(write(tmp_path / "mpii", train=records))
    # .6 of a diagonal of 5, of a square of 100 pixels made 64; else 25 of 250 a scale
    assert found.head_sizes[0] == pytest.approx(0.6 * 5 * 0.64)
    np.testing.assert_allclose(found.head_sizes[1:], 6.4, rtol=1e-6)


def test_valid_is_the_test_part_of_train(tmp_path: Path) -> None:
    root = write(tmp_path / "mpii", train=four(), valid=[record("e.png"), record("f.png")])
    found = load(root)
    assert found.classes == ("person",)
    assert found.rows("test").tolist() == [4, 5]
    assert sorted(len(found.rows(split)) for split in SPLITS[:3]) == [1, 1, 2]


def test_one_file_alone_is_dealt_into_four_splits(tmp_path: Path) -> None:
    found = load(write(tmp_path / "mpii", valid=four()))
    assert [len(found.rows(split)) for split in SPLITS] == [1, 1, 1, 1]


def test_a_limit_takes_the_first_people_of_each_part(tmp_path: Path) -> None:
    records = [*four(), record("e.png")]
    found = load(write(tmp_path / "mpii", train=records, valid=records), limit=3)
    assert len(found) == 6


def test_the_default_side_is_256(tmp_path: Path) -> None:
    assert load(write(tmp_path / "mpii", train=four()), image_size=None).shape == (3, 256, 256)


def test_streamed_and_cached_people_are_the_same(tmp_path: Path) -> None:
    root = write(tmp_path / "mpii", train=four())
    cached, streamed = load(root, access="cache"), load(root, access="stream")
    assert streamed.is_streamed
    np.testing.assert_array_equal(streamed.images[np.arange(4)], cached.images)
    np.testing.assert_array_equal(streamed.key_points, cached.key_points)


def test_other_joints_of_the_same_photographs_are_another_set(tmp_path: Path) -> None:
    first = load(write(tmp_path / "one", train=four()))
    moved = joints()
    moved[5][0] += 1.0
    second = load(write(tmp_path / "two", train=four(joints=moved)))
    assert first.fingerprint != second.fingerprint


def test_an_archive_reads_like_a_folder(tmp_path: Path) -> None:
    root = write(tmp_path / "mpii", train=four())
    with tarfile.open(tmp_path / "mpii.tar", "w") as tar:
        tar.add(root, "mpii")
    packed, plain = load(tmp_path / "mpii.tar"), load(root)
    np.testing.assert_array_equal(packed.images, plain.images)
    np.testing.assert_array_equal(packed.key_points, plain.key_points)


def struct(**fields: Any) -> dict[str, Any]:
    return fields


def structs(rows: list[dict[str, Any]]) -> np.ndarray:
    """MATLAB's struct array, whose members all have the same fields."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    made = np.empty(len(rows), [(name, object) for name in names])
    for place, row in enumerate(rows):
        made[place] = tuple(row.get(name, np.zeros((0, 0))) for name in names)
    return made


def release(ids: range = range(16)) -> bytes:
    """Two people in a training image, one of them a bystander; one in a test image."""
    points = [
        {"x": x, "y": y, "id": joint, "is_visible": 1.0}
        for joint, (x, y) in zip(ids, joints(), strict=False)
    ]
    head = struct(x1=10.0, y1=10.0, x2=13.0, y2=14.0)
    person = {
        **head,
        "annopoints": {"point": structs(points)},
        "scale": SCALE,
        "objpos": {"x": CENTRE[0], "y": CENTRE[1]},
    }
    images = [
        {"image": {"name": f"{name}.png"}, "annorect": structs([person, head])} for name in "abcd"
    ]
    images.append({"image": {"name": "e.png"}, "annorect": {**head, "scale": 1.0}})
    images.append({"image": {"name": "f.png"}, "annorect": person})
    images.append({"image": {"name": "g.png"}, "annorect": np.zeros((0, 0))})
    file = io.BytesIO()
    flags = np.array([1, 1, 1, 1, 0, 1, 1], np.uint8)
    savemat(file, {"RELEASE": {"annolist": structs(images), "img_train": flags}})
    return file.getvalue()


def test_the_release_reads_like_the_json(tmp_path: Path) -> None:
    records = [
        record(f"{name}.png", headbox=[10, 10, 13, 14]) for name in ("a", "b", "c", "d", "f")
    ]
    by_json = load(write(tmp_path / "json", train=records))
    root = write(tmp_path / "mat")
    (root / "mpii_human_pose_v1_u12_1.mat").write_bytes(release())
    by_release = load(root)
    assert len(by_release) == 5  # bystanders, and people of test images, are none
    np.testing.assert_array_equal(by_release.key_points, by_json.key_points)
    np.testing.assert_array_equal(by_release.head_sizes, by_json.head_sizes)
    np.testing.assert_array_equal(by_release.images, by_json.images)


def test_the_json_comes_before_the_release(tmp_path: Path) -> None:
    root = write(tmp_path / "mpii", train=four())
    (root / "mpii_human_pose_v1_u12_1.mat").write_bytes(b"nothing of the kind")
    assert len(load(root)) == 4


def test_a_release_of_another_form_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "mpii")
    file = root / "mpii_human_pose_v1_u12_1.mat"
    file.write_bytes(b"no MATLAB file")
    with pytest.raises(DataError, match=r"RELEASE\.annolist.*u12_1\.mat"):
        load(root)
    file.write_bytes(release(range(1, 17)))
    with pytest.raises(DataError, match=r"person 0 of image 0 .* joint id 16 is not in 0 to 15"):
        load(root)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": "z.png"}, r"its photograph z\.png is not in"),
        ({"image": 7}, "its image is 7, no file name"),
        ({"joints": joints()[:15]}, r"joints are \(15, 2\)"),
        ({"joints_vis": [1] * 15}, "with a flag each"),
        ({"joints_vis": [2] * 16}, "not made of 0 and 1"),
        ({"joints_vis": [0] * 16}, "none of its joints is annotated"),
        ({"joints": [[float("nan"), 1.0]] * 16}, "one is not finite"),
        ({"scale": 0.0}, "scale 0 are no place and height"),
        ({"scale": 4000.0}, "scale 4000 are no place and height"),
        ({"center": [float("inf"), 1.0]}, r"centre \(inf, 1\)"),
        ({"center": [1.0]}, "not enough values"),
        ({"headbox": [3, 3, 3, 3]}, "has no size"),
        ({"scale": "large"}, "could not convert"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_or_left_out(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    root = write(tmp_path / "mpii", train=[*four(), record(**changes)])
    with pytest.raises(DataError, match=rf"(?s)record 4 of annot/train\.json.*{reason}"):
        load(root)
    assert not (tmp_path / "cache").exists()
    found = load(root, skip_corrupt=True)
    assert len(found) == 4
    assert len(found.skipped) == 1
    assert "record 4" in found.skipped[0]


def test_a_record_without_a_field_is_named(tmp_path: Path) -> None:
    broken = record()
    del broken["scale"]
    with pytest.raises(DataError, match=r"record 1 of .*it has no 'scale'"):
        load(write(tmp_path / "mpii", train=[record(), broken]))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "is not"), ("{}", "is dict"), ("[]", "is list without any")],
)
def test_annotations_that_are_none_are_refused(text: str, reason: str, tmp_path: Path) -> None:
    root = write(tmp_path / "mpii")
    (root / "annot" / "train.json").write_text(text)
    with pytest.raises(DataError, match=rf"annot/train\.json.*{reason}"):
        load(root)


def test_a_root_without_annotations_or_with_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no annotations"):
        load(write(tmp_path / "none"))
    root = write(tmp_path / "two", train=four(), mpii_train=four())
    with pytest.raises(DataError, match="Keep one of them"):
        load(root)


def test_two_photographs_of_one_name_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "mpii", train=four())
    photograph().save(root / "a.png")
    with pytest.raises(DataError, match=r"have a name each; .* has a\.png"):
        load(root)


def test_a_photograph_that_does_not_decode_is_named_or_left_out(tmp_path: Path) -> None:
    root = write(tmp_path / "mpii", train=[*four(), record("e.png")])
    (root / "images" / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"images/b\.png"):
        load(root)
    found = load(root, skip_corrupt=True)
    assert len(found) == len(found.key_points) == 4


def test_without_a_root_there_is_nothing_to_read() -> None:
    with pytest.raises(DataError, match="none is named"):
        load_images(DataConfig(name="mpii"))


@pytest.mark.skipif(not REAL.exists(), reason="sample images of MPII are not at hand")
def test_real_records(tmp_path: Path) -> None:
    with tarfile.open(REAL) as tar:
        for member in tar.getmembers():
            name = Path(member.name)
            data = tar.extractfile(member)
            if name.parent.name == "mpii" and data is not None:
                known = "train.json" if name.name == "test_mpii.json" else name.name
                (tmp_path / "mpii").mkdir(exist_ok=True)
                (tmp_path / "mpii" / known).write_bytes(data.read())
    found = load(tmp_path / "mpii", image_size=256)
    assert found.images.shape == (5, 3, 256, 256)
    # two of the people show no ankles
    assert found.key_points[..., 2].sum(axis=1).tolist() == [16, 16, 14, 14, 16]
    seen = found.key_points[..., 2] > 0
    places = found.key_points[..., :2][seen]
    assert ((places > 0) & (places < 256)).all()
    neck, top = JOINTS.index("upper neck"), JOINTS.index("head top")
    apart = np.linalg.norm(found.key_points[:, top, :2] - found.key_points[:, neck, :2], axis=1)
    # the joints of the head lie .8 of its box's diagonal apart, a head size is .6 of it
    np.testing.assert_allclose(0.75 * apart, found.head_sizes, rtol=1e-5)
