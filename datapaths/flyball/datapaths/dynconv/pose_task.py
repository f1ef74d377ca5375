"""What a dynamic hourglass learns: heat maps of key points, after every stack.

N training rows, B batch, S stacks, J key points, h, w pixels of a heat map, H, W of an image.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flyball.datapaths.atlas import hash_bytes
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.pose.augment import PoseAugmentation, augment_poses
from flyball.datapaths.pose.heatmaps import gaussian_targets, heatmap_loss

__all__ = ["PoseEstimation"]


class PoseEstimation:
    """Mean squared error of the heat maps, summed over the stacks; a `TrainingTask`.

    Args:
        key_points: x, y in image pixels and 1 where the joint is visible, else 0; (N, J, 3), in the
            order of the images that are trained on.
        input_size: (H, W).
        sigma: of a joint's Gaussian, in pixels of the heat map; published with 2 for 64 x 64.
        centred: "cell", as published, or "exact"; see `gaussian_targets`.
        augmentation: how far images are moved; None: as published. Inputs are normalised by then:
            what comes into sight has the channels' means.

    Raises:
        DataError: the key points have another shape.
        InvalidSetting: sigma is not above 0.
    """

    def __init__(
        self,
        key_points: NDArray[np.float32],
        input_size: tuple[int, int],
        *,
        sigma: float = 2.0,
        centred: Literal["cell", "exact"] = "cell",
        augmentation: PoseAugmentation | None = None,
    ) -> None:
        if key_points.ndim != 3 or key_points.shape[2] != 3:
            raise DataError(
                "Key points are x, y and visible of every joint of every image, (N, J, 3); they "
                f"are {key_points.shape}. Give those of a PoseSet."
            )
        if not sigma > 0:
            raise InvalidSetting(
                f"A joint's Gaussian has a sigma above 0, in pixels of the heat map; it is {sigma}."
                " Give for example sigma=1 for maps of 16 x 16."
            )
        self.key_points = key_points
        self.input_size = input_size
        self.sigma = sigma
        self.centred: Literal["cell", "exact"] = centred
        self.augmentation = augmentation
        self.fingerprint = fingerprint_of(
            "pose", hash_bytes(key_points), input_size, sigma, centred, repr(augmentation)
        )

    def truth(self, rows: NDArray[np.int64], device: str) -> Tensor:
        """Key points of training rows, float32 (B, J, 3)."""
        return torch.from_numpy(np.array(self.key_points[rows], dtype=np.float32)).to(device)

    def augmented(
        self, x: Tensor, truth: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), layout kept, and key points: turned, scaled and flipped."""
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        moved, points = augment_poses(x, truth, generator, self.augmentation)
        return moved.contiguous(memory_format=layout), points

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """Of heat maps (B, S, J, h, w) and key points (B, J, 3)."""
        height, width = output.shape[3:]
        with torch.no_grad():
            targets = gaussian_targets(
                truth, (height, width), self.input_size, sigma=self.sigma, centred=self.centred
            )
        return heatmap_loss(output.unbind(1), targets.heatmaps, targets.weights)
