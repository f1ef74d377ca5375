"""What a detector answers at every arm: its outcome atlas, and its mAP."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.detection.average_precision import (
    Detections,
    PrecisionTable,
    Rule,
    detections_of,
    mean_average_precision,
)
from flyball.datapaths.detection.detection_set import DetectionSet
from flyball.datapaths.detection.path import DetectorPath
from flyball.datapaths.errors import DataError
from flyball.datapaths.outcomes import OutcomesConfig, build_atlas
from flyball.datapaths.progress import Progress, Report, silent

__all__ = ["build_detection_atlas", "detections_at_every_arm", "map_at_every_arm"]

_ROWS = 64
_SHARD = 128


def build_detection_atlas(
    path: DetectorPath,
    data: DetectionSet,
    folder: Path | str,
    config: OutcomesConfig | None = None,
    *,
    report: Report = silent,
) -> OutcomeAtlas:
    """Asks every arm about every image but path_train's; see `outcomes.build_atlas`.

    `correct` is the F1 of an image's boxes; `answer` and `label` index the path's classes, the
    last of which is "nothing": the class of the surest detection, and of most of the boxes.

    Args:
        path: frozen detector.
        data: images with boxes.
        folder: where the atlas goes; finished shards found there are kept.
        config: shard size, splits and cost model.
        report: hears of every finished shard.

    Raises:
        ForeignArtifact: the folder holds shards of another detector, data set or plan.
        DataError: the images or the classes do not fit the detector.
        StorageError: the folder cannot be written.
    """
    _check_classes(path, data)
    return build_atlas(
        path,
        cast(Any, data),
        folder,
        config or OutcomesConfig(shard_size=_SHARD),
        report=report,
    )


def map_at_every_arm(
    path: DetectorPath,
    data: DetectionSet,
    split: str,
    *,
    rule: Rule = "all_points",
    report: Report = silent,
) -> tuple[PrecisionTable, ...]:
    """Average precision of every class at IoU 0.5, arm by arm, over one split.

    Args:
        path: frozen detector.
        data: images with boxes.
        split: name of the split.
        rule: "eleven_points" is VOC2007's, "all_points" the whole area.
        report: hears of every finished arm.

    Raises:
        DataError: the images or the classes do not fit the detector, or the split is empty.
    """
    truths = data.truth_rows(data.rows(split))
    return tuple(
        mean_average_precision(found, truths, len(data.classes), rule=rule)
        for found in detections_at_every_arm(path, data, split, report=report)
    )


def detections_at_every_arm(
    path: DetectorPath, data: DetectionSet, split: str, *, report: Report = silent
) -> tuple[tuple[Detections, ...], ...]:
    """What the detector finds in every image of a split, arm by arm.

    Raises:
        DataError: the images or the classes do not fit the detector, or the split is empty.
    """
    _check_classes(path, data)
    rows = data.rows(split)
    if not len(rows):
        raise DataError(
            f"Detections are measured on images; {split} of {data.name} has none. Give it a share "
            "with --set data.fractions=0.5,0.25,0.1,0.15."
        )
    arms = []
    for arm, u in enumerate(path.arms):
        found: list[Detections] = []
        for start in range(0, len(rows), _ROWS):
            chunk = np.asarray(data.images[rows[start : start + _ROWS]])
            images = torch.from_numpy(chunk).to(path.mean.device).float() / 255.0
            found += detections_of(path(images, u).output.cpu().numpy())
        arms.append(tuple(found))
        report(Progress("map", arm + 1, len(path.arms), f"u = {u:g}"))
    return tuple(arms)


def _check_classes(path: DetectorPath, data: DetectionSet) -> None:
    if path.objects != data.classes:
        raise DataError(
            f"A detector is asked about the classes it knows: {', '.join(path.objects)}; "
            f"{data.name} has {', '.join(data.classes)}. Load the data with the same classes, or "
            "train a detector for these."
        )
