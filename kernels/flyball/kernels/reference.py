"""What every sparse operator means, in plain torch; the specification, not fast.

The masked forms compute every pixel and multiply by the mask; the row forms compute lists of rows.
Any floating-point dtype and device; gradients flow. B batch, C channels, E expanded channels,
O outputs, N rows, P listed rows, T taps: 1 for pointwise, 9 for 3x3.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Activation",
    "activate",
    "depthwise",
    "gather",
    "gather_gemm",
    "gather_gemm_scatter",
    "masked_basic_block",
    "masked_bottleneck",
    "masked_inverted_residual",
    "scatter_add",
]

Activation = Literal["none", "relu", "relu6"]


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation's value; x itself for "none"."""
    if activation == "none":
        return x
    return F.relu(x) if activation == "relu" else F.relu6(x)


def gather(rows: Tensor, table: Tensor) -> Tensor:
    """The listed rows, zeros where the table is -1: (N, C) and (P, T) or (P,) -> (P, T * C)."""
    table = table.long()
    found = torch.where((table >= 0)[..., None], rows[table.clamp_min(0)], rows.new_zeros(()))
    return found.flatten(1)


def scatter_add(rows: Tensor, positions: Tensor, out: Tensor) -> Tensor:
    """`out` (M, C) with rows (P, C) added at different positions (P,)."""
    return out.index_add(0, positions.long(), rows)


def gather_gemm(
    rows: Tensor,
    table: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    activation: Activation = "none",
) -> Tensor:
    """A convolution at listed positions.

    Args:
        rows: (N, C).
        table: rows under each tap of each output, (P, T), -1 for padding; None for all rows.
        weight: (T, C, O).
        bias: (O,).
        activation: follows.

    Returns:
        (P, O).
    """
    columns = rows if table is None else gather(rows, table)
    return activate(columns @ weight.flatten(0, 1) + bias.to(rows.dtype), activation)


def gather_gemm_scatter(
    rows: Tensor,
    table: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    positions: Tensor,
    activation_after_sum: Activation = "none",
) -> Tensor:
    """`out` (M, O) with a convolution's rows added at `positions`, then activated there."""
    added = out[positions.long()] + gather_gemm(rows, table, weight, bias)
    return out.index_copy(0, positions.long(), activate(added, activation_after_sum))


def depthwise(
    rows: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: Activation = "none",
) -> Tensor:
    """A depthwise 3x3 convolution at listed positions.

    Args:
        rows: (N, E).
        table: (P, 9), -1 for padding.
        weight: (9, E).
        bias: (E,).
        activation: follows.

    Returns:
        (P, E).
    """
    found = gather(rows, table).view(len(table), len(weight), rows.shape[1])
    return activate((found * weight).sum(1) + bias.to(rows.dtype), activation)


def masked_inverted_residual(
    x: Tensor,
    mask: Tensor | None,
    expand: Tensor,
    expand_bias: Tensor,
    depthwise: Tensor,
    depthwise_bias: Tensor,
    project: Tensor,
    project_bias: Tensor,
    *,
    stride: int = 1,
    activation: Activation = "relu6",
    identity: Tensor | None = None,
) -> Tensor:
    """MobileNetV2's block: identity + mask * project(act(depthwise(act(expand(x))))).

    Args:
        x: (B, C, H, W).
        mask: bool (B, 1, Ho, Wo) or (B, Ho, Wo); None for every pixel.
        expand: (E, C). depthwise: (E, 3, 3). project: (O, E). Biases: (E,), (E,), (O,).
        stride: of the depthwise convolution.
        activation: after the first two.
        identity: (B, O, Ho, Wo); None for x.
    """
    y = activate(_convolve(x, expand[:, :, None, None], expand_bias), activation)
    y = _convolve(y, depthwise[:, None], depthwise_bias, stride, len(depthwise))
    y = _convolve(activate(y, activation), project[:, :, None, None], project_bias)
    return _sum(x if identity is None else identity, mask, y)


def masked_basic_block(
    x: Tensor,
    mask: Tensor | None,
    conv1: Tensor,
    bias1: Tensor,
    conv2: Tensor,
    bias2: Tensor,
    *,
    stride: int = 1,
    identity: Tensor | None = None,
) -> Tensor:
    """ResNet's basic block: relu(identity + mask * conv2(relu(conv1(x)))); weights (O, C, 3, 3)."""
    y = _convolve(F.relu(_convolve(x, conv1, bias1, stride)), conv2, bias2)
    return F.relu(_sum(x if identity is None else identity, mask, y))


def masked_bottleneck(
    x: Tensor,
    mask: Tensor | None,
    conv1: Tensor,
    bias1: Tensor,
    conv2: Tensor,
    bias2: Tensor,
    conv3: Tensor,
    bias3: Tensor,
    *,
    stride: int = 1,
    identity: Tensor | None = None,
) -> Tensor:
    """ResNet's bottleneck: relu(identity + mask * conv3(relu(conv2(relu(conv1(x)))))).

    The weights are (M, C, 1, 1), (M, M, 3, 3) with the stride, (O, M, 1, 1).
    """
    y = F.relu(_convolve(F.relu(_convolve(x, conv1, bias1)), conv2, bias2, stride))
    y = _convolve(y, conv3, bias3)
    return F.relu(_sum(x if identity is None else identity, mask, y))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, bias.to(x.dtype), stride, padding, groups=groups)


def _sum(identity: Tensor, mask: Tensor | None, y: Tensor) -> Tensor:
    if mask is None:
        return identity + y
    mask = mask[:, None] if mask.ndim == 3 else mask
    return identity + torch.where(mask, y, y.new_zeros(()))
