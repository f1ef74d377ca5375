"""Operators that run only the active part of a layer, and their plain twins."""

from flyball.kernels.group_norm import group_norm_relu
from flyball.kernels.packing import (
    Implementation,
    PackedConv,
    PackedLinear,
    pack_conv,
    pack_linear,
)
from flyball.kernels.width import (
    Active,
    active_count,
    conv_active,
    cut_weight,
    expand_active,
    group_norm_active,
    linear_active,
    take_active,
)

__all__ = [
    "Active",
    "Implementation",
    "PackedConv",
    "PackedLinear",
    "active_count",
    "conv_active",
    "cut_weight",
    "expand_active",
    "group_norm_active",
    "group_norm_relu",
    "linear_active",
    "pack_conv",
    "pack_linear",
    "take_active",
]
