"""What "right" means for a pose network on one image: a graded value, and how sure it was.

B images, J joints, h, w of a heat map.
"""

import torch
from torch import Tensor

from flyball.datapaths.pose.heatmaps import Size, decode_heatmaps
from flyball.datapaths.pose.pckh import image_pckh
from flyball.datapaths.pose.pose_set import PoseTruth
from flyball.datapaths.tasks import Judgement

__all__ = ["POSE", "judge_pose"]

POSE = "(pose)"
"""Name of the class that stands after a set's kinds: what every answer of a pose network is."""


def judge_pose(
    heatmaps: Tensor,
    truth: PoseTruth | None,
    input_size: Size,
    *,
    kinds: int = 0,
    threshold: float = 0.5,
) -> Judgement:
    """Judges every image alone.

    Args:
        heatmaps: of the last stack; (B, J, h, w).
        truth: of the B images; None where nobody knows it: then nothing is right.
        input_size: (H, W) that key points are measured in.
        kinds: classes of the set. A pose is none of them, so every answer is the class after
            them, `POSE`; arms never differ in it.
        threshold: largest distance that is right, in head sizes.

    Returns:
        answer: `kinds` throughout; int64 (B,).
        correct: share of the visible joints that is right (`image_pckh`), in [0, 1].
        confidence: mean peak of the heat maps, each held in [0, 1].

    Raises:
        DataError: shapes do not fit.
        InvalidSetting: the threshold is not above 0.
    """
    found = decode_heatmaps(heatmaps, input_size)
    count = len(heatmaps)
    if truth is None:
        correct = torch.zeros(count, device=heatmaps.device)
    else:
        correct = image_pckh(found.points, truth, threshold=threshold)
    return Judgement(
        torch.full((count,), kinds, dtype=torch.int64, device=heatmaps.device),
        correct.float(),
        found.peaks.mean(dim=1),
    )
