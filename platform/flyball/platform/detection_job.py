"""The detection job: all that one run does, as one typed value, and its presets."""

from collections.abc import Callable
from dataclasses import dataclass, field

from flyball.controllers.evaluate import EvaluationConfig
from flyball.controllers.learn import LearnConfig
from flyball.controllers.networks import ControllerConfig
from flyball.datapaths.arms import default_arms, validated_arms
from flyball.datapaths.detection.bodies import BodyConfig
from flyball.datapaths.detection.config import DetectionDataConfig
from flyball.datapaths.detection.detector import DetectorConfig
from flyball.datapaths.detection.training import DetectorTraining
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.outcomes import OutcomesConfig
from flyball.envs.reward import RewardConfig
from flyball.platform.job import ComputeConfig, StorageConfig

__all__ = ["DETECTION_PRESETS", "DetectionJob", "coco128_detection", "drawn_detection"]


@dataclass(frozen=True)
class DetectionJob:
    """One run of the detection job, from images with boxes to a controller and its ladder.

    Attributes:
        name: of the preset it came from.
        data: images, boxes and their splits.
        detector: its structure; classes and image size are taken from the data.
        training: Phase 1.
        arms: utilizations it is served at, increasing, in (0, 1].
        score_threshold: detections from this score on are delivered, in [0, 1].
        outcomes: how the atlas is built.
        reward: what an answer is worth; one right in part is paid in proportion.
        controller, learn: the controller and how it is trained.
        evaluation: intervals of the ladder.
        storage, compute: where it writes and runs; neither changes a figure.

    Raises:
        InvalidArms: the arms are out of order, repeated, or outside (0, 1].
        InvalidSetting: the threshold is no score.
    """

    name: str
    data: DetectionDataConfig
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    training: DetectorTraining = field(default_factory=DetectorTraining)
    arms: tuple[float, ...] = field(default_factory=default_arms)
    score_threshold: float = 0.5
    outcomes: OutcomesConfig = field(default_factory=lambda: OutcomesConfig(shard_size=128))
    reward: RewardConfig = field(default_factory=lambda: RewardConfig(account="net"))
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    learn: LearnConfig = field(default_factory=lambda: LearnConfig(algorithm="plain"))
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", validated_arms(self.arms))
        if not 0.0 <= self.score_threshold <= 1.0:
            raise InvalidSetting(
                f"A score is in [0, 1], so is its threshold; it is {self.score_threshold}. "
                "Set --set score_threshold=0.5."
            )


def coco128_detection(root: str | None = None) -> DetectionJob:
    """COCO128's boxes as one kind of object, on a narrow ResNet-18; set data.root to the data.

    From drawn weights and 128 images no detector learns 80 classes: all boxes are "object", and
    those with a side below a tenth of the image count as difficult. About ten minutes on one core.
    """
    return DetectionJob(
        name="coco128_detection",
        data=DetectionDataConfig(
            format="yolo",
            root=root,
            image_size=160,
            merged="object",
            difficult_below=16.0,
            use_test_part=False,
            fractions=(0.5, 0.2, 0.1, 0.2),
        ),
        detector=DetectorConfig(body=BodyConfig(width=16), proposals=32, detections=32),
        training=DetectorTraining(optimizer="adam", steps=1200, learning_rate=0.001),
        arms=default_arms(8),
        score_threshold=0.3,
        compute=ComputeConfig(threads=1),
    )


def drawn_detection() -> DetectionJob:
    """Drawn squares, discs and triangles on a narrow ResNet-18: no download, a few minutes."""
    return DetectionJob(
        name="drawn_detection",
        data=DetectionDataConfig(format="drawn", image_size=64, limit=1600),
        detector=DetectorConfig(body=BodyConfig(width=16), roi_size=5, proposals=16, detections=16),
        training=DetectorTraining(optimizer="adam", steps=1200, learning_rate=0.001),
        arms=default_arms(8),
        compute=ComputeConfig(threads=1),
    )


DETECTION_PRESETS: dict[str, Callable[[], DetectionJob]] = {
    "coco128_detection": coco128_detection,
    "drawn_detection": drawn_detection,
}
