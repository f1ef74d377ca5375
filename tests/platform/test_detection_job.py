"""The detection job from a YOLO folder to a ladder, and on real images where they are at hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flyball.controllers.evaluate import EvaluationConfig
from flyball.controllers.learn import LearnConfig
from flyball.datapaths.detection.bodies import BodyConfig
from flyball.datapaths.detection.config import DetectionDataConfig
from flyball.datapaths.detection.detection_set import NOTHING
from flyball.datapaths.detection.detector import DetectorConfig
from flyball.datapaths.detection.drawn import SHAPES, drawn_shapes
from flyball.datapaths.detection.load import load_detection
from flyball.datapaths.detection.training import DetectorTraining
from flyball.datapaths.errors import BadInput, InvalidSetting
from flyball.platform.detection_job import DETECTION_PRESETS, DetectionJob
from flyball.platform.detection_stages import DetectionResult, run_detection
from flyball.platform.job import StorageConfig

COCO128 = Path(__file__).parents[2].parent / "shared" / "data" / "coco128_det_416.tar"
SIZE = 48


@pytest.fixture(scope="module")
def yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty drawn images as a YOLO folder."""
    drawn, root = drawn_shapes(60, image_size=SIZE), tmp_path_factory.mktemp("yolo")
    for folder in ("images/train", "labels/train"):
        (root / folder).mkdir(parents=True)
    for row in range(len(drawn)):
        name = f"{row:03d}"
        pixels = drawn.images[row].transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(root / "images/train" / f"{name}.png")
        truth = drawn.truth_of(row)
        lines = []
        for label, (x1, y1, x2, y2) in zip(truth.classes, truth.boxes / SIZE, strict=True):
            lines.append(
                f"{label} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}"
            )
        (root / "labels/train" / f"{name}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(f"names: [{', '.join(SHAPES)}]\n")
    return root


@pytest.fixture(scope="module")
def job(yolo: Path, tmp_path_factory: pytest.TempPathFactory) -> DetectionJob:
    """Small in everything."""
    root = tmp_path_factory.mktemp("runs")
    return DetectionJob(
        name="tiny",
        data=DetectionDataConfig(
            "yolo",
            str(yolo),
            SIZE,
            fractions=(0.4, 0.3, 0.1, 0.2),
            cache=str(root / "cache"),
        ),
        detector=DetectorConfig(
            body=BodyConfig(width=8, components=4),
            roi_size=4,
            proposals=8,
            detections=6,
            least_score=0.01,
        ),
        training=DetectorTraining(steps=8, batch_size=4, warmup_steps=1),
        arms=(0.25, 0.5, 1.0),
        score_threshold=0.2,
        learn=LearnConfig(algorithm="plain", updates=60, validations=3, batch_size=32),
        evaluation=EvaluationConfig(bootstrap=50, budgets=2),
        storage=StorageConfig(str(root), least_free_mb=1),
    )


@pytest.fixture(scope="module")
def result(job: DetectionJob) -> DetectionResult:
    return run_detection(job)


def test_it_goes_from_boxes_to_a_ladder(job: DetectionJob, result: DetectionResult) -> None:
    assert [row.u for row in result.curve.rows] == [0.25, 0.5, 1.0]
    assert [row.macs for row in result.curve.rows] == list(result.path.arm_macs)
    assert result.evaluation.classes == (*SHAPES, NOTHING)
    fixed = [rung.accuracy.mean for rung in result.evaluation.curve("test")]
    assert fixed == pytest.approx([row.f1 for row in result.curve.rows])
    assert result.forwards == {"phase1": 32, "outcomes": 36 * 3, "map": 12 * 3}
    names = {"map.txt", "map.png", "map.json", "ladder.txt", "ladder.png", "job.json"}
    assert names <= {file.name for file in result.folder.iterdir()}
    assert (result.folder / "map.png").read_bytes().startswith(b"\x89PNG")
    assert "learned controller" in result.text()
    assert "throttle ratio" in result.text()
    assert not list(Path(job.storage.root).rglob("*.pkl"))
    assert not list(Path(job.storage.root).glob("paths/*/checkpoint"))


def test_a_second_run_asks_the_detector_for_its_map_alone(
    job: DetectionJob, result: DetectionResult
) -> None:
    again = run_detection(job)
    assert again.forwards == {"phase1": 0, "outcomes": 0, "map": 12 * 3}
    assert set(again.reused) == {"phase1", "outcomes", "controller"}
    assert again.evaluation.to_json() == result.evaluation.to_json()
    assert again.curve.rows == result.curve.rows


@pytest.mark.parametrize(
    "change",
    [
        {"arms": (0.5, 0.25)},
        {"score_threshold": 1.5},
        {"score_threshold": float("nan")},
    ],
)
def test_a_job_that_cannot_be_is_refused(job: DetectionJob, change: dict[str, object]) -> None:
    with pytest.raises(InvalidSetting):
        replace(job, **change)  # type: ignore[arg-type]


def test_nothing_is_written_where_the_data_cannot_be_read(
    job: DetectionJob, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for root in (None, str(tmp_path / "nowhere")):
        broken = replace(
            job,
            data=replace(job.data, root=root),
            storage=StorageConfig(str(runs), least_free_mb=1),
        )
        with pytest.raises(BadInput, match=r"data\.root"):
            run_detection(broken)
    assert not runs.exists()


def test_a_preset_is_a_whole_job_of_its_own_name() -> None:
    for name, make in DETECTION_PRESETS.items():
        assert make().name == name


@pytest.mark.skipif(not COCO128.exists(), reason="COCO128 is not at hand")
def test_coco128_is_read_whole_and_evaluated_at_every_arm(
    job: DetectionJob, tmp_path: Path
) -> None:
    data = DetectionDataConfig("yolo", str(COCO128), 64, cache=str(tmp_path / "cache"))
    whole = load_detection(data)
    assert (len(whole), len(whole.boxes), len(set(whole.box_classes.tolist()))) == (256, 1827, 76)
    assert (len(whole.classes), whole.unlabelled, whole.clipped) == (80, 2, 0)
    assert len(whole.rows("test")) == 128
    few = replace(
        job,
        name="coco128",
        data=replace(data, merged="object", limit=12),
        training=replace(job.training, steps=2),
        storage=StorageConfig(str(tmp_path / "runs"), least_free_mb=1),
    )
    found = run_detection(few)
    assert [row.u for row in found.curve.rows] == [0.25, 0.5, 1.0]
    assert found.curve.images == 12
    assert all(0.0 <= row.mean_ap <= 1.0 for row in found.curve.rows)
    assert found.evaluation.samples["test"] == 12
