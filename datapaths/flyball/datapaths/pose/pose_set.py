"""Images of one person each, where the joints are, and how large the head is.

N images, J = 16 joints (`joints.JOINTS`), H, W. In lengths a pixel runs from its index to the next:
the image spans 0 to W, the centre of its first pixel is 0.5.
"""

import hashlib
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flyball.datapaths.data.image_set import ImageSet
from flyball.datapaths.errors import DataError
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.pose.joints import JOINTS

__all__ = ["PoseSet", "PoseTruth", "posed"]


class PoseTruth(NamedTuple):
    """What poses are judged by; B images.

    Attributes:
        key_points: x, y in input pixels and 1 where the joint counts, else 0; float32 (B, J, 3).
        head_sizes: in input pixels, above 0; float32 (B,).
    """

    key_points: Tensor
    head_sizes: Tensor

    def to(self, device: torch.device | str) -> "PoseTruth":
        """The same on a torch device."""
        return PoseTruth(self.key_points.to(device), self.head_sizes.to(device))


@dataclass(frozen=True, eq=False, kw_only=True)
class PoseSet(ImageSet):
    """An image set with key points; its classes are kinds of images, for reports.

    `posed` makes one. The fingerprint covers key points and head sizes too.

    Attributes:
        key_points: x, y in input pixels (see the module), and 1 where the joint is visible, else
            0; read-only float32 (N, J, 3). A visible joint may lie outside the image.
        head_sizes: what PCKh measures distances by, in input pixels; read-only float32 (N,).
    """

    key_points: NDArray[np.float32]
    head_sizes: NDArray[np.float32]

    def truth_rows(self, rows: NDArray[np.int64]) -> PoseTruth:
        """Key points and head sizes of some images, in the order of `rows`."""
        return PoseTruth(
            torch.from_numpy(np.array(self.key_points[rows])),
            torch.from_numpy(np.array(self.head_sizes[rows])),
        )


def posed(
    images: ImageSet, key_points: NDArray[np.float32], head_sizes: NDArray[np.float32]
) -> PoseSet:
    """Puts key points beside images.

    Args:
        images: in colour.
        key_points, head_sizes: of every row; see `PoseSet`.

    Raises:
        DataError: they do not fit the images, are not finite, or a head has no size.
    """
    points = np.ascontiguousarray(key_points, np.float32)
    heads = np.ascontiguousarray(head_sizes, np.float32)
    count = len(images)
    if len(images.shape) != 3 or images.shape[0] != 3:
        raise DataError(
            f"Poses are found in colour images, (3, H, W); {images.name} has {images.shape}. "
            "Load another data set."
        )
    if points.shape != (count, len(JOINTS), 3) or heads.shape != (count,):
        raise DataError(
            f"Every image has {len(JOINTS)} key points of x, y and visible, and a head size: "
            f"({count}, {len(JOINTS)}, 3) and ({count},); got {points.shape} and {heads.shape}. "
            "Give both for each image, in their order."
        )
    is_wrong = ~(np.isfinite(points).all(axis=(1, 2)) & np.isin(points[..., 2], (0, 1)).all(axis=1))
    is_wrong |= ~(np.isfinite(heads) & (heads > 0))
    if is_wrong.any():
        raise DataError(
            "Key points are finite, visible is 0 or 1, and a head size is above 0; that of image "
            f"{int(np.flatnonzero(is_wrong)[0])} of {images.name} and {int(is_wrong.sum())} in all "
            "is not. Correct the annotations."
        )
    for array in (points, heads):
        array.setflags(write=False)
    digest = hashlib.sha256(points.tobytes() + heads.tobytes()).hexdigest()
    own = {field.name: getattr(images, field.name) for field in fields(ImageSet)}
    own["fingerprint"] = fingerprint_of("poses", images.fingerprint, digest)
    return PoseSet(**own, key_points=points, head_sizes=heads)
