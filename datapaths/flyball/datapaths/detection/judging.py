"""What "right" means for a detector on one image: a graded value, and how sure it was.

B images, D detections.
"""

import numpy as np
import torch
from torch import Tensor

from flyball.datapaths.detection.average_precision import (
    FALSE,
    TRUE,
    Detections,
    detections_of,
    match_detections,
)
from flyball.datapaths.detection.detection_set import ImageTruth, Truth
from flyball.datapaths.tasks import Judgement

__all__ = ["image_confidence", "image_f1", "judge_detections"]


def judge_detections(
    output: Tensor, truth: Truth, *, classes: int, score_threshold: float = 0.5
) -> Judgement:
    """Judges every image alone.

    `correct` is the F1 of the boxes delivered (`image_f1`). Unlike a per-image average precision
    it needs the threshold that a user sets anyway, it charges false alarms in classes that the
    image does not hold, and it is defined for an image without objects.

    Args:
        output: x1, y1, x2, y2, score, class of every detection, class -1 where there is none;
            (B, D, 6).
        truth: boxes of the B images.
        classes: C; the answer C means "nothing found".
        score_threshold: detections from this score on are delivered, in [0, 1].

    Returns:
        answer: class of the detection with the highest score, C where none is delivered.
        correct: F1, in [0, 1].
        confidence: see `image_confidence`.
    """
    device, rows = output.device, output.detach().cpu().numpy()
    everything = detections_of(rows)
    delivered = detections_of(rows, least_score=score_threshold)
    answer = [int(found.classes[0]) if len(found.classes) else classes for found in delivered]
    correct = [image_f1(found, own) for found, own in zip(delivered, truth, strict=True)]
    confidence = [image_confidence(found, score_threshold) for found in everything]
    return Judgement(
        torch.tensor(answer, dtype=torch.int64, device=device),
        torch.tensor(correct, dtype=torch.float32, device=device),
        torch.tensor(confidence, dtype=torch.float32, device=device),
    )


def image_f1(found: Detections, truth: ImageTruth, *, threshold: float = 0.5) -> float:
    """2 TP / (detections + boxes to find), difficult boxes and what found them left out.

    1 where there is nothing to find and nothing was found.

    Args:
        found: detections delivered, in falling order of score.
        truth: boxes of the image.
        threshold: IoU from which a box counts as found (`match_detections`).
    """
    outcome = match_detections(found, truth, threshold=threshold)
    hits, misses = int((outcome == TRUE).sum()), int((outcome == FALSE).sum())
    counted = hits + misses + int((~truth.is_difficult).sum())
    return 2.0 * hits / counted if counted else 1.0


def image_confidence(found: Detections, score_threshold: float) -> float:
    """How sure a detector is of what it delivers: the mean score of it, in [0, 1].

    Where it delivers nothing, 1 less its highest score: how sure it is that nothing is there.
    """
    is_delivered = found.scores >= score_threshold
    if is_delivered.any():
        return float(np.clip(found.scores[is_delivered].mean(), 0.0, 1.0))
    return float(np.clip(1.0 - found.scores.max(initial=0.0), 0.0, 1.0))
