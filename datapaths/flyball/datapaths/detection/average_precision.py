"""Mean average precision of detections against true boxes, as PASCAL VOC counts it.

Source: Everingham et al., The PASCAL VOC Challenge (IJCV 2010), section 4.2; the 11-point form is
VOC2007's, the area under the whole curve that of VOC2010 and later. D detections, M true boxes,
C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flyball.datapaths.detection.boxes import overlaps
from flyball.datapaths.detection.detection_set import ImageTruth

__all__ = [
    "FALSE",
    "IGNORED",
    "RULES",
    "TRUE",
    "Detections",
    "PrecisionTable",
    "Rule",
    "average_precision",
    "detections_of",
    "match_detections",
    "mean_average_precision",
]

Rule = Literal["all_points", "eleven_points"]
RULES: tuple[Rule, ...] = ("all_points", "eleven_points")

TRUE, FALSE, IGNORED = 1, 0, -1
"""What a detection turned out to be; IGNORED: it found a difficult box."""


class Detections(NamedTuple):
    """What a detector found in one image, in falling order of score.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels; float64 (D, 4).
        scores: in [0, 1]; float64 (D,).
        classes: int64 (D,).
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class PrecisionTable:
    """Average precision of every class.

    Attributes:
        by_class: in [0, 1]; NaN for a class without a box to find; (C,).
        positives: boxes to find, difficult ones not counted; (C,).
        threshold: the IoU from which a box counts as found.
        rule: how the area under the curve was measured.
    """

    by_class: tuple[float, ...]
    positives: tuple[int, ...]
    threshold: float
    rule: Rule

    @property
    def mean(self) -> float:
        """mAP: the mean over the classes that have a box to find; NaN if none has."""
        found = [value for value in self.by_class if not np.isnan(value)]
        return float(np.mean(found)) if found else float("nan")


def detections_of(output: ArrayLike, *, least_score: float = 0.0) -> tuple[Detections, ...]:
    """A detector's padded output, image by image.

    Args:
        output: x1, y1, x2, y2, score, class of every detection, class -1 where there is none;
            (B, D, 6).
        least_score: detections below it are left out.

    Returns:
        B images; equal scores keep the order they came in.
    """
    images = []
    for rows in np.asarray(output, np.float64):
        kept = rows[(rows[:, 5] >= 0) & (rows[:, 4] >= least_score)]
        kept = kept[np.argsort(-kept[:, 4], kind="stable")]
        images.append(Detections(kept[:, :4], kept[:, 4], kept[:, 5].astype(np.int64)))
    return tuple(images)


def match_detections(
    found: Detections, truth: ImageTruth, *, threshold: float = 0.5
) -> NDArray[np.int8]:
    """What every detection of one image turned out to be, as VOC's development kit decides it.

    In falling order of score, a detection is compared with the true box of its class that it
    overlaps most. From `threshold` on it is TRUE if nothing has found that box before, else
    FALSE: a duplicate; IGNORED if the box is difficult. Below the threshold it is FALSE.

    Args:
        found: of the image, in falling order of score.
        truth: of the image.
        threshold: least IoU, in (0, 1].

    Returns:
        TRUE, FALSE or IGNORED; (D,).
    """
    result = np.full(len(found.scores), FALSE, np.int8)
    if not len(result) or not len(truth.classes):
        return result
    shared = overlaps(found.boxes, truth.boxes.astype(np.float64))
    shared[found.classes[:, None] != truth.classes[None, :]] = -1.0
    best = shared.argmax(axis=1)
    is_taken = np.zeros(len(truth.classes), np.bool_)
    for place, box in enumerate(best):
        if shared[place, box] < threshold:
            continue
        if truth.is_difficult[box]:
            result[place] = IGNORED
        elif not is_taken[box]:
            result[place] = TRUE
            is_taken[box] = True
    return result


def average_precision(
    is_true: NDArray[np.bool_], positives: int, *, rule: Rule = "all_points"
) -> float:
    """Area under the curve of precision against recall.

    Precision at a recall is the highest at that recall or a higher one.

    Args:
        is_true: whether each detection is right, in falling order of score; (D,).
        positives: boxes to find.
        rule: "all_points", the exact area; "eleven_points", the mean over recalls 0, .1, ... 1.

    Returns:
        In [0, 1]; NaN where there is nothing to find.
    """
    if positives == 0:
        return float("nan")
    hits = np.cumsum(is_true)
    recall = hits / positives
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "eleven_points":
        # in integers: hits / positives >= k / 10 must not hang on a rounding
        reached = np.searchsorted(hits * 10, np.arange(11) * positives)
        return float(np.append(envelope, 0.0)[reached].sum() / 11.0)
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def mean_average_precision(
    images: Sequence[Detections],
    truths: Sequence[ImageTruth],
    classes: int,
    *,
    threshold: float = 0.5,
    rule: Rule = "all_points",
) -> PrecisionTable:
    """Average precision of every class over a set of images.

    All detections of a class are ranked together; equal scores keep the order of the images.

    Args:
        images: what was found in each image.
        truths: the boxes of each image, in the same order.
        classes: C.
        threshold: least IoU, in (0, 1].
        rule: as in `average_precision`.
    """
    positives = np.zeros(classes, np.int64)
    results, scores, labels = [], [], []
    for found, truth in zip(images, truths, strict=True):
        positives += np.bincount(truth.classes[~truth.is_difficult], minlength=classes)
        results.append(match_detections(found, truth, threshold=threshold))
        scores.append(found.scores)
        labels.append(found.classes)
    outcome = np.concatenate([*results, np.empty(0, np.int8)])
    score = np.concatenate([*scores, np.empty(0)])
    label = np.concatenate([*labels, np.empty(0, np.int64)])
    order = np.argsort(-score, kind="stable")
    outcome, label = outcome[order], label[order]
    by_class = tuple(
        average_precision(
            outcome[(label == one) & (outcome != IGNORED)] == TRUE, int(positives[one]), rule=rule
        )
        for one in range(classes)
    )
    return PrecisionTable(by_class, tuple(positives.tolist()), threshold, rule)
