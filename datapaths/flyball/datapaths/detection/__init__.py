"""Throttleable object detection: data with boxes, mAP, Faster R-CNN, its frozen path and atlas.

Names are loaded on first use: whoever reads boxes does not wait for torchvision.
"""

import importlib
from typing import Any

_HOMES = {
    "BodyConfig": "bodies",
    "DetectionDataConfig": "config",
    "DetectionSet": "detection_set",
    "Detections": "average_precision",
    "DetectorConfig": "detector",
    "DetectorPath": "path",
    "DetectorSpec": "spec",
    "DetectorTraining": "training",
    "ImageTruth": "detection_set",
    "PrecisionTable": "average_precision",
    "ThrottleableDetector": "detector",
    "build_detection_atlas": "atlas",
    "calibrate_norms": "calibration",
    "drawn_shapes": "drawn",
    "image_f1": "judging",
    "judge_detections": "judging",
    "load_detection": "load",
    "map_at_every_arm": "atlas",
    "mean_average_precision": "average_precision",
    "train_detector": "training",
}

__all__ = tuple(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"flyball.datapaths.detection has no {name!r}; {', '.join(_HOMES)}")
    return getattr(importlib.import_module(f"flyball.datapaths.detection.{_HOMES[name]}"), name)
