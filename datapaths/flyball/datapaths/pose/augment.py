"""Turned, scaled and flipped copies of a batch and of its key points, for training.

B images, C channels, J = 16 joints, H, W.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.pose.joints import JOINTS, MIRRORED

__all__ = ["PoseAugmentation", "augment_poses", "moved"]


@dataclass(frozen=True)
class PoseAugmentation:
    """How far a batch is moved; the defaults are DynConv's for MPII.

    Attributes:
        rotation: at most, in degrees, either way; in [0, 180].
        scale: at most, as a share, up and down; in [0, 1).
        flip: chance of a mirror image, in [0, 1].

    Raises:
        InvalidSetting: one is outside its range.
    """

    rotation: float = 30.0
    scale: float = 0.25
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.rotation <= 180 and 0 <= self.scale < 1 and 0 <= self.flip <= 1):
            raise InvalidSetting(
                "Poses are turned by 0 to 180 degrees, scaled by a share in [0, 1) and flipped "
                f"with a chance in [0, 1]; got {self.rotation}, {self.scale} and {self.flip}. "
                "Give e.g. 30, 0.25 and 0.5."
            )


def augment_poses(
    images: Tensor,
    key_points: Tensor,
    generator: torch.Generator,
    augmentation: PoseAugmentation | None = None,
) -> tuple[Tensor, Tensor]:
    """Moves each image of a batch in its own way about its centre, and its key points with it.

    What comes into sight from outside is 0: black, or the mean of normalised images. A joint that
    leaves the image keeps its flag: its target is empty all the same.

    Args:
        images: (B, C, H, W), floats.
        key_points: x, y in pixels, and visible; (B, J, 3).
        generator: what the moves are drawn from; it may lie on another device.
        augmentation: how far; None: the published one.

    Raises:
        DataError: the shapes do not fit, or the images are no floats.
    """
    how = augmentation or PoseAugmentation()
    draw = torch.rand(len(images), 3, generator=generator, device=generator.device)
    draw = draw.to(images.device)
    angle = math.radians(how.rotation) * (2.0 * draw[:, 0] - 1.0)
    scale = 1.0 + how.scale * (2.0 * draw[:, 1] - 1.0)
    return moved(images, key_points, angle, scale, draw[:, 2] < how.flip)


def moved(
    images: Tensor, key_points: Tensor, angle: Tensor, scale: Tensor, is_flipped: Tensor
) -> tuple[Tensor, Tensor]:
    """Flips, then scales, then turns each image about its centre.

    Args:
        images, key_points: as of `augment_poses`.
        angle: clockwise, in radians; (B,).
        scale: above 1 enlarges; (B,).
        is_flipped: left becomes right, and joints change their names; bool (B,).

    Raises:
        DataError: the shapes do not fit, or the images are no floats.
    """
    count = len(images)
    if (
        images.ndim != 4
        or not images.is_floating_point()
        or key_points.shape != (count, len(JOINTS), 3)
    ):
        raise DataError(
            f"Poses are moved with their images: floats (B, C, H, W) and (B, {len(JOINTS)}, 3); "
            f"got {images.dtype} of {tuple(images.shape)} and {tuple(key_points.shape)}. "
            "Divide pixels by 255 first."
        )
    height, width = images.shape[2:]
    cosine, sine = torch.cos(angle), torch.sin(angle)
    mirror = 1.0 - 2.0 * is_flipped.to(angle.dtype)
    # forward, in pixels from the centre: turn @ scale @ mirror
    forward = torch.stack(
        [
            torch.stack([cosine * mirror, -sine], dim=1),
            torch.stack([sine * mirror, cosine], dim=1),
        ],
        dim=1,
    )
    forward = forward * scale[:, None, None]
    # grid_sample asks where a place comes from, with both sides from -1 to 1
    aspect = torch.tensor([[1.0, height / width], [width / height, 1.0]], device=images.device)
    backward = torch.linalg.inv(forward) * aspect
    theta = torch.cat([backward, backward.new_zeros(count, 2, 1)], dim=2)
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    turned = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    centre = torch.tensor([width / 2, height / 2], device=key_points.device)
    places = (key_points[..., :2] - centre) @ forward.transpose(1, 2).to(key_points.dtype) + centre
    carried = torch.cat([places, key_points[..., 2:]], dim=2)
    swapped = carried[:, list(MIRRORED)]
    return turned, torch.where(is_flipped[:, None, None], swapped, carried)
