"""VOC and YOLO as they lie on disk: what is read, refused, and left out on request."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from flyball.datapaths.detection.config import DetectionDataConfig
from flyball.datapaths.detection.detection_set import DetectionSet
from flyball.datapaths.detection.load import load_detection
from flyball.datapaths.errors import BadInput, DataError, InvalidSetting, UnknownName
from flyball.datapaths.progress import Progress
from flyball.datapaths.splits import SPLITS

WIDTH, HEIGHT = 40, 30


def draw(file: Path, *boxes: tuple[int, int, int, int], seed: int = 0) -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT), (seed * 7 % 80, 40, 60))
    for box in boxes:
        ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, quality=95)


def voc_object(name: str, box: tuple[int, int, int, int], difficult: int = 0) -> str:
    corners = "".join(
        f"<{tag}>{value}</{tag}>"
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
        f"<difficult>{difficult}</difficult><bndbox>{corners}</bndbox>{part}</object>"
    )


def voc_xml(identifier: str, *objects: str) -> str:
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    head = f"<folder>VOC2007</folder><filename>{identifier}.jpg</filename>{size}"
    return f"<annotation>{head}{''.join(objects)}</annotation>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Eight images of trainval and two of test, one cat each, and a difficult dog in the first."""
    base = tmp_path / "VOCdevkit" / "VOC2007"
    lists = base / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (base / "Annotations").mkdir()
    names = [f"{number:06d}" for number in range(10)]
    for number, name in enumerate(names):
        draw(base / "JPEGImages" / f"{name}.jpg", (10, 5, 30, 25), seed=number)
        objects = [voc_object("cat", (11, 6, 30, 25))]
        if number == 0:
            objects.append(voc_object("dog", (1, 1, WIDTH, HEIGHT), difficult=1))
        (base / "Annotations" / f"{name}.xml").write_text(voc_xml(name, *objects))
    (lists / "trainval.txt").write_text("".join(f"{name}\n" for name in names[:8]))
    (lists / "test.txt").write_text("".join(f"{name}\n" for name in names[8:]))
    (lists / "cat_trainval.txt").write_text("000000  1\n")
    return tmp_path


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Eight images to train and two to validate, one box each; the last has no label file."""
    root = tmp_path / "set"
    for number in range(10):
        part = "train2017" if number < 8 else "val2017"
        draw(root / "images" / part / f"{number}.jpg", (10, 5, 30, 25), seed=number)
        label = root / "labels" / part / f"{number}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        if number < 9:
            label.write_text(f"{number % 2} 0.5 0.5 0.5 0.666667\n")
    (root / "data.yaml").write_text(
        "path: .  # root\ntrain: images/train2017\n\n"
        "names:\n  0: cat\n  1: 'sea lion' # two\nnc: 2\n"
    )
    return root


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., DetectionSet]:
    """Loads with a cache of the test's own."""

    def loaded(root: Path, **settings: object) -> DetectionSet:
        values: dict[str, object] = {"format": "yolo", "image_size": 32, **settings}
        cache = str(tmp_path / "cache")
        return load_detection(DetectionDataConfig(root=str(root), cache=cache, **values))  # type: ignore[arg-type]

    return loaded


Load = Callable[..., DetectionSet]


def test_voc_boxes_count_pixels_from_one_and_include_both_corners(voc: Path, load: Load) -> None:
    data = load(voc, format="voc", image_size=40)
    first = data.truth_of(0)
    # 40 pixels across fill the square: only the 5 rows of grey above move the boxes
    assert first.boxes.tolist() == [[10, 10, 30, 30], [0, 5, 40, 35]]
    assert [data.classes[index] for index in first.classes] == ["cat", "dog"]
    assert first.is_difficult.tolist() == [False, True]
    assert data.images.shape == (10, 3, 40, 40)
    assert data.images[0, :, 12:28, 12:28].min() > 200  # white where the box is
    assert isinstance(data.images, np.memmap)


def test_voc_keeps_its_test_part_and_deals_trainval_to_three(voc: Path, load: Load) -> None:
    data = load(voc, format="voc")
    assert data.rows("test").tolist() == [8, 9]
    assert {len(data.rows(split)) > 0 for split in SPLITS} == {True}
    assert sum(len(data.rows(split)) for split in SPLITS[:3]) == 8
    pooled = load(voc, format="voc", use_test_part=False)
    assert sum(len(pooled.rows(split)) for split in SPLITS) == 10
    assert data.fingerprint != pooled.fingerprint


def test_an_image_is_labelled_by_its_most_frequent_class(voc: Path, load: Load) -> None:
    data = load(voc, format="voc")
    assert {data.classes[label] for label in data.labels} == {"cat"}
    nothing = load(voc, format="voc", keep=("dog",))
    assert nothing.labels.tolist() == [0] + [1] * 9  # a difficult dog, then nothing


def test_yolo_rows_are_shares_of_the_image(yolo: Path, load: Load) -> None:
    data = load(yolo, image_size=40)
    assert data.classes == ("cat", "sea lion")
    np.testing.assert_allclose(data.boxes[0], [10, 10, 30, 30], atol=1e-4)
    assert data.rows("test").tolist() == [8, 9]
    assert data.unlabelled == 1
    assert len(data.truth_of(9).boxes) == 0
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 2]
    assert [len(own.boxes) for own in data.truth_rows(np.array([9, 0]))] == [0, 1]


def test_folder_and_archive_are_one_data_set(yolo: Path, load: Load, tmp_path: Path) -> None:
    archive = tmp_path / "set.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(yolo, "set")
    packed, folder = load(archive), load(yolo)
    assert packed.fingerprint == folder.fingerprint
    np.testing.assert_array_equal(packed.images, folder.images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "set", "set.tar.gz"]


def test_an_archive_may_not_reach_out_of_itself(load: Load, tmp_path: Path) -> None:
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("../labels/train/1.txt")
        tar.addfile(member, io.BytesIO(b""))
    with pytest.raises(DataError, match=r"\.\./labels"):
        load(archive)


@pytest.mark.parametrize(
    "text",
    [
        "names: [cat, sea lion]\n",
        "names: {0: cat, 1: sea lion}\n",
        "names:\n- cat\n- sea lion\ntrain: x\n",
    ],
)
def test_class_names_in_every_usual_notation(yolo: Path, load: Load, text: str) -> None:
    (yolo / "data.yaml").write_text(text)
    assert load(yolo).classes == ("cat", "sea lion")


def test_classes_are_kept_merged_and_left_out(yolo: Path, load: Load) -> None:
    only = load(yolo, keep=("sea lion",))
    assert only.classes == ("sea lion",)
    assert len(only) == 10
    assert len(only.boxes) == 4
    merged = load(yolo, merged="object")
    assert merged.classes == ("object",)
    assert set(merged.box_classes.tolist()) == {0}
    assert len(merged.boxes) == 9
    with pytest.raises(UnknownName, match="sea lion"):
        load(yolo, keep=("sea lino",))


def test_small_boxes_can_count_as_difficult(yolo: Path, load: Load) -> None:
    # 20x20 of 40x30 pixels become 16x16 of 32x32
    assert not load(yolo, difficult_below=15).is_difficult.any()
    assert load(yolo, difficult_below=17).is_difficult.all()


def test_the_deal_depends_on_the_seed_alone(yolo: Path, load: Load) -> None:
    assert load(yolo).split.tolist() == load(yolo).split.tolist()
    assert len({tuple(load(yolo, seed=seed).split.tolist()) for seed in range(6)}) > 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.9 0.5 0.5 0.5", r"row 2 of labels/train2017/0\.txt.*outside"),
        ("0 0.5 0.5 0.0 0.5", r"area; row 2 of labels/train2017/0\.txt"),
        ("0 0.5 0.5 -0.1 0.5", r"area; row 2 of labels/train2017/0\.txt"),
        ("0 0.5 0.5 nan 0.5", r"row 2 of labels/train2017/0\.txt"),
        ("0 1.5 0.5 0.1 0.5", r"row 2 of labels/train2017/0\.txt.*wholly outside"),
        ("0 0.5 0.5 0.5", r"row 2 of labels/train2017/0\.txt.*4 columns"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", r"row 2 of labels/train2017/0\.txt.*7 columns"),
        ("cat 0.5 0.5 0.5 0.5", r"row 2 of labels/train2017/0\.txt.*'cat"),
        ("2 0.5 0.5 0.5 0.5", r"row 2 of labels/train2017/0\.txt in .* has 2"),
        ("-1 0.5 0.5 0.5 0.5", r"row 2 of labels/train2017/0\.txt in .* has -1"),
    ],
)
def test_a_bad_yolo_row_is_named(yolo: Path, load: Load, row: str, message: str) -> None:
    file = yolo / "labels" / "train2017" / "0.txt"
    file.write_text(f"0 0.5 0.5 0.5 0.5\n{row}\n")
    with pytest.raises(DataError, match=message):
        load(yolo)
    told: list[Progress] = []
    config = DetectionDataConfig(
        "yolo", str(yolo), 32, skip_corrupt=True, cache=str(yolo.parent / "c")
    )
    data = load_detection(config, report=told.append)
    assert len(data) == 9
    assert len(data.skipped) == 1
    assert "0.txt" in data.skipped[0]
    assert "1 samples left out" in told[-1].note


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (voc_object("cat", (11, 6, WIDTH + 1, 25)), r"object 1 of .*000003\.xml.*reaches 1 pixel"),
        (voc_object("cat", (0, 6, 30, 25)), r"object 1 of .*000003\.xml.*outside"),
        (voc_object("cat", (30, 6, 29, 25)), r"area; object 1 of .*000003\.xml"),
        (voc_object("unicorn", (11, 6, 30, 25)), r"object 1 of .*000003\.xml in .* has 'unicorn'"),
        ("<object><name>cat</name></object>", r"bndbox/xmin.*000003\.xml"),
        ("<object>", r"000003\.xml.*is not"),
    ],
)
def test_a_bad_voc_object_is_named(voc: Path, load: Load, xml: str, message: str) -> None:
    base = voc / "VOCdevkit" / "VOC2007"
    (base / "Annotations" / "000003.xml").write_text(voc_xml("000003", xml))
    with pytest.raises(DataError, match=message):
        load(voc, format="voc")
    assert len(load(voc, format="voc", skip_corrupt=True).skipped) == 1


def test_one_pixel_is_a_box(voc: Path, load: Load) -> None:
    file = voc / "VOCdevkit" / "VOC2007" / "Annotations" / "000003.xml"
    file.write_text(voc_xml("000003", voc_object("cat", (WIDTH, HEIGHT, WIDTH, HEIGHT))))
    assert load(voc, format="voc", image_size=40).truth_of(3).boxes.tolist() == [[39, 34, 40, 35]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_an_annotation_with_a_document_type_is_refused(
    voc: Path, load: Load, encoding: str
) -> None:
    file = voc / "VOCdevkit" / "VOC2007" / "Annotations" / "000003.xml"
    bomb = '<!DOCTYPE a [<!ENTITY x "xxxx"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>'
    file.write_text(f'<?xml version="1.0" encoding="{encoding}"?>{bomb}', encoding=encoding)
    with pytest.raises(DataError, match="document type"):
        load(voc, format="voc")


def test_an_annotation_of_another_image_is_refused(voc: Path, load: Load) -> None:
    file = voc / "VOCdevkit" / "VOC2007" / "Annotations" / "000003.xml"
    file.write_text(file.read_text().replace(f"<width>{WIDTH}", "<width>41"))
    with pytest.raises(DataError, match=r"000003\.xml.*41x30.*40x30"):
        load(voc, format="voc")


def test_boxes_over_the_edge_are_cut_and_counted_on_request(yolo: Path, load: Load) -> None:
    file = yolo / "labels" / "train2017" / "0.txt"
    file.write_text("0 0.9 0.5 0.5 0.5\n")
    data = load(yolo, clip_boxes=True, image_size=40)
    assert data.clipped == 1
    np.testing.assert_allclose(data.boxes[0], [26, 12.5, 40, 27.5], atol=1e-4)


def test_the_rounding_of_a_text_file_is_no_fault(yolo: Path, load: Load) -> None:
    (yolo / "labels" / "train2017" / "0.txt").write_text("0 0.75 0.5 0.500001 1.000001\n")
    data = load(yolo, image_size=40)
    assert data.clipped == 0
    assert data.boxes[0, 2] == 40


def test_what_is_missing_is_named(voc: Path, yolo: Path, load: Load) -> None:
    base = voc / "VOCdevkit" / "VOC2007"
    (base / "Annotations" / "000004.xml").unlink()
    with pytest.raises(DataError, match=r"000004\.xml"):
        load(voc / "VOCdevkit", format="voc")
    (base / "JPEGImages" / "000002.jpg").unlink()
    with pytest.raises(DataError, match=r"000002\.jpg"):
        load(voc / "VOCdevkit", format="voc")
    data = load(voc / "VOCdevkit", format="voc", skip_corrupt=True)
    assert (len(data), len(data.skipped)) == (8, 2)
    with pytest.raises(DataError, match=r"val2017/9\.jpg"):
        load(yolo, require_labels=True)
    (yolo / "images" / "train2017" / "5.jpg").unlink()
    with pytest.raises(DataError, match=r"labels/train2017/5\.txt"):
        load(yolo)


def test_a_truncated_image_is_named_or_left_out(yolo: Path, load: Load) -> None:
    file = yolo / "images" / "train2017" / "3.jpg"
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(DataError, match=r"3\.jpg"):
        load(yolo)
    data = load(yolo, skip_corrupt=True)
    assert len(data) == 9
    assert "3.jpg" in data.skipped[0]


def test_a_layout_that_is_neither_is_explained(voc: Path, yolo: Path, load: Load) -> None:
    with pytest.raises(DataError, match=r"trainval\.txt"):
        load(yolo, format="voc")
    with pytest.raises(DataError, match=r"data\.classes"):
        load(voc / "VOCdevkit", format="yolo")
    with pytest.raises(DataError, match="label files"):
        load(voc / "VOCdevkit", format="yolo", classes=("cat",))


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "coco"},
        {"image_size": 8},
        {"difficult_below": -1.0},
        {"keep": ("cat", "cat")},
        {"classes": ()},
        {"fractions": (0.5, 0.5, 0.5, 0.5)},
        {"limit": 0},
        {"seed": -1},
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        DetectionDataConfig(**{"format": "yolo", "root": "x", **settings})  # type: ignore[arg-type]


def test_there_must_be_an_image_for_every_split(yolo: Path, load: Load) -> None:
    with pytest.raises(DataError, match="2 images outside the test part"):
        load(yolo, limit=2)
    with pytest.raises(InvalidSetting, match=r"data\.fractions"):
        load(yolo, fractions=(1.0, 0.0, 0.0, 0.0))
