"""Group normalisation with ReLU for inference, fast where a group has few channels.

torch normalises channels-last tensors group by group, which takes many times as long as the
convolution before it once a group is a few channels wide. B batch, C channels, G groups.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["group_norm_relu"]

# Measured on one core with channels last: torch is 4 to 12 times slower on narrower groups than
# these, until maps reach 1024 pixels and it takes another way; small inputs are its own again.
NARROW = 4
LARGE_MAP = 1024
SMALL_INPUT = 2**14


def group_norm_relu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, relu: bool = True
) -> Tensor:
    """Normalises every group of channels of every sample to mean 0 and variance 1.

    The same function as `F.group_norm` and `F.relu`, without gradients; the choice of algorithm
    depends on shape and memory format alone.

    Args:
        x: (B, C, ...), any number of pixels.
        groups: G; divides C.
        weight, bias: scale and shift of every channel, (C,).
        eps: added to the variance.
        relu: whether ReLU follows.

    Raises:
        ValueError: the groups do not share the channels equally.
    """
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"The groups share the channels equally: got {groups} groups for {channels} channels. "
            "Give the number of active groups."
        )
    normalise = _by_moments if _is_narrow(x, channels // groups) else F.group_norm
    y = normalise(x, groups, weight, bias, eps)
    return y.relu_() if relu else y


def _is_narrow(x: Tensor, width: int) -> bool:
    if width > NARROW or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    if x.numel() < SMALL_INPUT or x[0, 0].numel() >= LARGE_MAP or x.is_contiguous():
        return False
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.ndim in (4, 5) and x.is_contiguous(memory_format=last)


def _by_moments(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Sums over the pixels of a channel first, which channels last does a vector at a time."""
    samples, channels = x.shape[:2]
    pixels = tuple(range(2, x.ndim))
    grouped = (samples, groups, channels // groups)
    count = x[0].numel() // groups
    mean = x.sum(pixels).view(grouped).sum(2) / count
    square = (x * x).sum(pixels).view(grouped).sum(2) / count
    inverse = torch.rsqrt((square - mean * mean).clamp_min_(0) + eps)
    scale = inverse[:, :, None] * weight.view(grouped[1:])
    shift = bias.view(grouped[1:]) - mean[:, :, None] * scale
    spread = (samples, channels, *(1,) * len(pixels))
    return torch.addcmul(shift.view(spread), x, scale.view(spread))
