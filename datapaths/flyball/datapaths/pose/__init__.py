"""Human pose with MPII's 16 joints: rendered figures and MPII, heat maps, PCKh and augmentation."""

from flyball.datapaths.pose.augment import PoseAugmentation, augment_poses
from flyball.datapaths.pose.heatmaps import (
    Poses,
    Targets,
    decode_heatmaps,
    gaussian_targets,
    heatmap_loss,
)
from flyball.datapaths.pose.joints import BONES, COUNTED, JOINTS, MIRRORED
from flyball.datapaths.pose.judging import POSE, judge_pose
from flyball.datapaths.pose.pckh import PckhTable, image_pckh, pckh
from flyball.datapaths.pose.pose_set import PoseSet, PoseTruth, posed

__all__ = [
    "BONES",
    "COUNTED",
    "JOINTS",
    "MIRRORED",
    "POSE",
    "PckhTable",
    "PoseAugmentation",
    "PoseSet",
    "PoseTruth",
    "Poses",
    "Targets",
    "augment_poses",
    "decode_heatmaps",
    "gaussian_targets",
    "heatmap_loss",
    "image_pckh",
    "judge_pose",
    "pckh",
    "posed",
]
