"""What a frozen detector is beside its weights, and reading it back from JSON."""

from dataclasses import dataclass, field
from typing import Any

from flyball.datapaths.detection.bodies import BodyConfig
from flyball.datapaths.detection.detector import DetectorConfig

__all__ = ["DetectorSpec", "spec_from_json"]


@dataclass(frozen=True)
class DetectorSpec:
    """Everything about a frozen detector but its weights.

    Attributes:
        detector: structure.
        arms: utilizations it is served at, increasing, in (0, 1].
        classes: names of the kinds of object, in the order of the detections' classes.
        mean, std: of each input channel of the training images, on the [0, 1] scale.
        score_threshold: detections from this score on are delivered, in [0, 1].
        provenance: how it was trained; for people and fingerprints.
    """

    detector: DetectorConfig
    arms: tuple[float, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    score_threshold: float = 0.5
    provenance: dict[str, Any] = field(default_factory=dict)


def spec_from_json(text: dict[str, Any]) -> DetectorSpec:
    """The specification that was written as plain values.

    Raises:
        KeyError, TypeError, AttributeError: a field is missing or strange.
    """
    values = {name: _tuples(value) for name, value in text["detector"].items()}
    body = BodyConfig(**{name: _tuples(value) for name, value in text["detector"]["body"].items()})
    return DetectorSpec(
        detector=DetectorConfig(**{**values, "body": body}),
        arms=tuple(text["arms"]),
        classes=tuple(text["classes"]),
        mean=tuple(text["mean"]),
        std=tuple(text["std"]),
        score_threshold=float(text["score_threshold"]),
        provenance=dict(text["provenance"]),
    )


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
