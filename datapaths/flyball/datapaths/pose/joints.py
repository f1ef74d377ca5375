"""The 16 joints of MPII: their order, their sides, and which of them count.

Right and left are the person's own.
"""

from collections.abc import Mapping

__all__ = ["BONES", "COUNTED", "GROUPS", "HEAD_SHARE", "JOINTS", "MIRRORED"]

JOINTS = (
    "right ankle",
    "right knee",
    "right hip",
    "left hip",
    "left knee",
    "left ankle",
    "pelvis",
    "thorax",
    "upper neck",
    "head top",
    "right wrist",
    "right elbow",
    "right shoulder",
    "left shoulder",
    "left elbow",
    "left wrist",
)

COUNTED = (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15)
"""Joints that enter the mean PCKh: MPII's evaluation leaves pelvis and thorax out."""

MIRRORED = (5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 15, 14, 13, 12, 11, 10)
"""MIRRORED[j] is what joint j becomes when the image is flipped."""

BONES = (
    *((0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9)),
    *((10, 11), (11, 12), (12, 7), (7, 13), (13, 14), (14, 15)),
)
"""Pairs of joints that a limb connects."""

# MPII's table has the head top alone under "head".
GROUPS: Mapping[str, tuple[int, ...]] = {
    "head": (9,),
    "shoulder": (12, 13),
    "elbow": (11, 14),
    "wrist": (10, 15),
    "hip": (2, 3),
    "knee": (1, 4),
    "ankle": (0, 5),
}

HEAD_SHARE = 0.75
"""Head size over the distance from the upper neck to the head top.

MPII's head size is 0.6 of the head box's diagonal, and its two head joints lie 0.8 of it apart.
"""
