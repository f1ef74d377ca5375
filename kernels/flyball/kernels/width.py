"""Width-sliced layers in plain torch: the specification that faster implementations must equal.

What is active is a count, the first `count` channels (nested gating), or the sorted indices of the
active channels (independent gating). B batch, C channels, H and W pixels, F features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Active",
    "active_count",
    "conv_active",
    "cut_weight",
    "expand_active",
    "group_norm_active",
    "linear_active",
    "take_active",
]

Active = int | Tensor


def active_count(active: Active) -> int:
    """How many are active."""
    return active if isinstance(active, int) else len(active)


def expand_active(active: Active, width: int) -> Active:
    """From active components to active channels, `width` channels to a component."""
    if isinstance(active, int):
        return active * width
    offsets = torch.arange(width, device=active.device)
    return (active[:, None] * width + offsets).flatten()


def conv_active(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    active_in: Active,
    active_out: Active,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    groups: int = 1,
) -> Tensor:
    """Convolves the active inputs into the active outputs only, in two or three dimensions.

    TNN Algorithm 2, with the inputs sliced too: under nested gating the active inputs are a
    prefix as well, so the result is the same for far less work.

    Args:
        x: (B, active inputs, ...).
        weight: of the whole layer, (C_out, C_in / groups, k, ...).
        bias: of the whole layer, (C_out,), or None.
        active_in, active_out: active channels on either side; of a grouped convolution, whole
            groups.
        stride, padding: of the convolution, in pixels.
        groups: of the whole layer; as many stay as the active inputs fill.

    Returns:
        (B, active outputs, ...).
    """
    sliced, left = cut_weight(weight, active_in, active_out, groups)
    cut = None if bias is None else take_active(bias, 0, active_out)
    convolve = F.conv3d if weight.ndim == 5 else F.conv2d
    return convolve(x, sliced, cut, stride, padding, 1, left)


def cut_weight(
    weight: Tensor, active_in: Active, active_out: Active, groups: int = 1
) -> tuple[Tensor, int]:
    """The active part of a weight (C_out, C_in / groups, ...), and how many groups are left."""
    sliced = take_active(weight, 0, active_out)
    if groups == 1:
        return take_active(sliced, 1, active_in), 1
    return sliced, active_count(active_in) // weight.shape[1]


def linear_active(
    x: Tensor, weight: Tensor, bias: Tensor | None, active_in: Active, active_out: Active
) -> Tensor:
    """Multiplies the active inputs into the active outputs only.

    Args:
        x: (B, active inputs).
        weight: of the whole layer, (F_out, F_in).
        bias: of the whole layer, (F_out,), or None.
        active_in, active_out: active features on either side.

    Returns:
        (B, active outputs).
    """
    sliced = take_active(take_active(weight, 0, active_out), 1, active_in)
    return F.linear(x, sliced, None if bias is None else take_active(bias, 0, active_out))


def group_norm_active(
    x: Tensor, weight: Tensor, bias: Tensor, active: Active, group_width: int, *, eps: float = 1e-5
) -> Tensor:
    """Normalises each active group of channels by its own statistics, whatever else is active.

    Args:
        x: the active channels, (B, active channels, ...).
        weight, bias: of the whole layer, (channels,).
        active: the active channels; whole groups of them.
        group_width: channels of one group.
        eps: added to the variance.
    """
    scale, shift = take_active(weight, 0, active), take_active(bias, 0, active)
    return F.group_norm(x, active_count(active) // group_width, scale, shift, eps)


def take_active(tensor: Tensor, dim: int, active: Active) -> Tensor:
    """The active part of a tensor along one dimension; a view where it is a prefix."""
    if not isinstance(active, int):
        return tensor.index_select(dim, active.to(tensor.device))
    return tensor if active == tensor.shape[dim] else tensor.narrow(dim, 0, active)
