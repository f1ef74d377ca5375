"""Masks as a trained network makes them: one ragged figure in the middle of every image.

B batch.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["blob_mask"]

DRAWN = 64
LIMBS, RAGGED, SPREAD = 0.35, 0.05, 0.2


def blob_mask(batch: int, side: int, ratio: float, *, seed: int = 0) -> Tensor:
    """Person-like masks: a quarter active of 64 x 64 pixels dilates to about .32.

    Args:
        batch: B.
        side: height and width in pixels; fewer pixels show the same figures.
        ratio: share of active pixels, in (0, 1]. In a batch every image has its own, at most a
            fifth above or below; there is at least one active pixel.
        seed: of the figures, which grow with the ratio.

    Returns:
        bool (B, 1, side, side).
    """
    if ratio >= 1.0:
        return torch.ones(batch, 1, side, side, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    drawn = max(DRAWN, side)
    coarse = torch.randn(batch, 1, 4, 4, generator=generator)
    noise = torch.randn(batch, 1, drawn, drawn, generator=generator)
    spread = torch.rand(batch, generator=generator) * 2 - 1 if batch > 1 else torch.zeros(1)
    # Wavy limbs on a hill that is taller than wide, and single pixels at its edge.
    limbs = F.interpolate(coarse, size=(drawn, drawn), mode="bicubic", align_corners=True)
    place = torch.linspace(-1.0, 1.0, drawn)
    hill = 0.72 * place[:, None] ** 2 + 1.2 * place[None, :] ** 2
    height = F.adaptive_avg_pool2d(LIMBS * limbs - hill + RAGGED * noise, side).flatten(1)
    mask = torch.zeros_like(height, dtype=torch.bool)
    for image, extra in enumerate(spread.tolist()):
        share = min(1.0, ratio * (1.0 + SPREAD * extra))
        count = max(1, round(share * side * side))
        mask[image, height[image].topk(count).indices] = True
    return mask.view(batch, 1, side, side)
