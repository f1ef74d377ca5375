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
    "conv2d_active",
    "expand_active",
    "group_norm_active",
    "linear_active",
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


def conv2d_active(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    active_in: Active,
    active_out: Active,
    *,
    padding: int = 0,
) -> Tensor:
    """Convolves the active inputs into the active outputs only.

    TNN Algorithm 2, with the inputs sliced too: under nested gating the active inputs are a
    prefix as well, so the result is the same for far less work.

    Args:
        x: (B, active inputs, H, W).
        weight: of the whole layer, (C_out, C_in, k, k).
        bias: of the whole layer, (C_out,), or None.
        active_in, active_out: active channels on either side.
        padding: zeros added on each side, in pixels.

    Returns:
        (B, active outputs, H', W').
    """
    sliced = _take(_take(weight, 0, active_out), 1, active_in)
    return F.conv2d(x, sliced, None if bias is None else _take(bias, 0, active_out), 1, padding)


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
    sliced = _take(_take(weight, 0, active_out), 1, active_in)
    return F.linear(x, sliced, None if bias is None else _take(bias, 0, active_out))


def group_norm_active(
    x: Tensor, weight: Tensor, bias: Tensor, active: Active, components: int, *, eps: float = 1e-5
) -> Tensor:
    """Normalises each active component by its own statistics, whatever else is active.

    Args:
        x: the active channels, (B, active components x width, H, W).
        weight, bias: of the whole layer, (components x width,).
        active: the active components.
        components: how many the whole layer has.
        eps: added to the variance.
    """
    channels = expand_active(active, len(weight) // components)
    scale, shift = _take(weight, 0, channels), _take(bias, 0, channels)
    return F.group_norm(x, active_count(active), scale, shift, eps)


def _take(tensor: Tensor, dim: int, active: Active) -> Tensor:
    if not isinstance(active, int):
        return tensor.index_select(dim, active)
    return tensor if active == tensor.shape[dim] else tensor.narrow(dim, 0, active)
