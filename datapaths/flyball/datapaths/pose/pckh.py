"""PCKh: the share of joints that are found within half a head size of where they are.

As MPII's evaluation and Fast Pose Distillation have it: joints that are not visible do not count;
pelvis and thorax are measured, and left out of every mean. N images, J = 16 joints.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.pose.joints import COUNTED, GROUPS, JOINTS
from flyball.datapaths.pose.pose_set import PoseTruth

__all__ = ["PckhTable", "image_pckh", "pckh"]


@dataclass(frozen=True)
class PckhTable:
    """PCKh over a set of images.

    Attributes:
        mean: right joints over visible joints, of all images together, in [0, 1]; pelvis and
            thorax left out. NaN where no joint is visible.
        by_joint: the same of each joint; NaN where it is never visible.
        by_group: mean of a left and a right joint, as MPII's tables show it; its head is the head
            top.
        visible: in how many images each joint is visible.
        threshold: in head sizes.
    """

    mean: float
    by_joint: Mapping[str, float]
    by_group: Mapping[str, float]
    visible: Mapping[str, int]
    threshold: float


def pckh(points: Tensor, truth: PoseTruth, *, threshold: float = 0.5) -> PckhTable:
    """PCKh of a whole set.

    Args:
        points: where joints were seen, x, y in input pixels; (N, J, 2).
        truth: of the same images.
        threshold: largest distance that is right, in head sizes; above 0.

    Raises:
        DataError: the shapes do not fit.
        InvalidSetting: the threshold is not above 0.
    """
    right, visible = _right(points, truth, threshold)
    hits, counts = right.sum(dim=0).tolist(), visible.sum(dim=0).tolist()
    share = [_share(hit, count) for hit, count in zip(hits, counts, strict=True)]
    return PckhTable(
        mean=_share(sum(hits[j] for j in COUNTED), sum(counts[j] for j in COUNTED)),
        by_joint=dict(zip(JOINTS, share, strict=True)),
        by_group={
            name: sum(share[joint] for joint in joints) / len(joints)
            for name, joints in GROUPS.items()
        },
        visible=dict(zip(JOINTS, (int(count) for count in counts), strict=True)),
        threshold=threshold,
    )


def image_pckh(points: Tensor, truth: PoseTruth, *, threshold: float = 0.5) -> Tensor:
    """The share of each image's visible joints that is right, pelvis and thorax left out.

    Its mean over images weighs images alike where `pckh` weighs joints alike. An image without a
    visible joint has nothing to miss: 1.

    Returns:
        float32 (N,), in [0, 1].

    Raises:
        DataError, InvalidSetting: as of `pckh`.
    """
    right, visible = _right(points, truth, threshold)
    counted = torch.tensor(COUNTED, device=points.device)
    hits = right.index_select(1, counted).sum(dim=1)
    counts = visible.index_select(1, counted).sum(dim=1)
    return torch.where(counts > 0, hits / counts.clamp(min=1), torch.ones_like(counts / 1.0))


def _right(points: Tensor, truth: PoseTruth, threshold: float) -> tuple[Tensor, Tensor]:
    """Which joints are found, and which are visible; bool (N, J) each."""
    if not threshold > 0.0 or not math.isfinite(threshold):
        raise InvalidSetting(
            f"A joint is right within a distance above 0, in head sizes; got {threshold}. "
            "Give e.g. 0.5."
        )
    shape = (len(points), len(JOINTS))
    if (
        points.shape != (*shape, 2)
        or truth.key_points.shape != (*shape, 3)
        or truth.head_sizes.shape != shape[:1]
    ):
        raise DataError(
            f"PCKh compares {len(JOINTS)} joints of every image: points (N, {len(JOINTS)}, 2), key "
            f"points (N, {len(JOINTS)}, 3), head sizes (N,); got {tuple(points.shape)}, "
            f"{tuple(truth.key_points.shape)}, {tuple(truth.head_sizes.shape)}. Give all of the "
            "same images."
        )
    known = truth.to(points.device)
    visible = known.key_points[..., 2] > 0
    distance = (points.double() - known.key_points[..., :2].double()).norm(dim=2)
    near = distance <= threshold * known.head_sizes.double()[:, None]
    return near & visible, visible


def _share(hits: float, count: float) -> float:
    return hits / count if count else math.nan
