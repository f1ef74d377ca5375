"""From torch's layers to T-layers that hold the very same weights."""

from typing import Any

import torch
from torch import Tensor, nn

from flyball.datapaths.axes import Axis, channels_of
from flyball.datapaths.graph.coupling import BATCH_NORMS
from flyball.datapaths.modules import TConv, TLinear, TNorm

__all__ = ["throttled_conv", "throttled_linear", "throttled_norm"]


def throttled_conv(
    conv: Any, axis_in: Axis, axis_out: Axis, *, norm: nn.Module | None, relu: bool
) -> TConv:
    """A convolution.

    Args:
        conv: nn.Conv2d or nn.Conv3d.
        axis_in, axis_out: what gates its inputs and outputs.
        norm: the batch norm that follows and becomes part of the layer.
        relu: a ReLU follows and becomes part of it.
    """
    padding = conv.padding
    if isinstance(padding, str):
        padding = tuple(side // 2 if padding == "same" else 0 for side in conv.kernel_size)
    with torch.device("meta"):
        layer = TConv(
            axis_in,
            axis_out,
            tuple(conv.kernel_size),
            stride=tuple(conv.stride),
            padding=tuple(padding),
            dims=len(conv.kernel_size),
            groups=conv.groups,
            norm="none" if norm is None else "batch",
            relu=relu,
            bias=conv.bias is not None,
        )
    layer.weight, layer.bias = conv.weight, conv.bias
    if norm is not None:
        layer.norm = throttled_norm(norm, axis_out, relu=False, like=conv.weight)
    return layer


def throttled_norm(norm: Any, axis: Axis, *, relu: bool, like: Tensor) -> TNorm:
    """A batch, group or instance norm.

    Args:
        norm: of torch or torchvision.
        axis: of its channels.
        relu: a ReLU follows and becomes part of the layer.
        like: a tensor of the type and on the device that weights get where the norm has none.
    """
    channels, is_batch = channels_of(axis), isinstance(norm, BATCH_NORMS)
    groups = getattr(norm, "num_groups", channels)
    with torch.device("meta"):
        width = 1 if is_batch else channels // groups
        layer = TNorm(axis, "batch" if is_batch else "group", relu=relu, group_width=width)
    layer.eps = float(norm.eps)
    if getattr(norm, "momentum", None) is not None:
        layer.momentum = float(norm.momentum)
    layer.weight = _parameter(norm.weight, like.new_ones(channels))
    layer.bias = _parameter(norm.bias, like.new_zeros(channels))
    if is_batch:
        layer.running_mean = norm.running_mean.detach().clone()[None]
        layer.running_var = norm.running_var.detach().clone()[None]
    return layer


def throttled_linear(linear: Any, axis_in: Axis, axis_out: Axis, *, relu: bool) -> TLinear:
    """A fully-connected layer; `relu` as in `throttled_conv`."""
    with torch.device("meta"):
        layer = TLinear(axis_in, axis_out, relu=relu, bias=linear.bias is not None)
    layer.weight = linear.weight
    layer.bias = linear.bias
    return layer


def _parameter(given: Tensor | None, otherwise: Tensor) -> nn.Parameter:
    """Given ones stay what they are; frozen or missing ones never train."""
    if isinstance(given, nn.Parameter):
        return given
    values = otherwise.detach().clone() if given is None else given.detach().clone()
    return nn.Parameter(values, requires_grad=False)
