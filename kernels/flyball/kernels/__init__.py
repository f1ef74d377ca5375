"""Operators that run only the active part of a layer, and their plain twins."""

from flyball.kernels.dispatch import Ran, explain, forget
from flyball.kernels.group_norm import group_norm_relu
from flyball.kernels.layout import hard_mask
from flyball.kernels.packing import (
    Implementation,
    PackedConv,
    PackedLinear,
    pack_conv,
    pack_linear,
)
from flyball.kernels.sparse_block import (
    PackedBlock,
    pack_basic_block,
    pack_bottleneck,
    pack_inverted_residual,
)
from flyball.kernels.sparse_index import (
    Executed,
    SparseIndex,
    build_index,
    dilate_mask,
    executed_rows,
    neighbours,
)
from flyball.kernels.sparse_ops import conv3x3, depthwise3x3, gather, pointwise, scatter_add
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
    "Executed",
    "Implementation",
    "PackedBlock",
    "PackedConv",
    "PackedLinear",
    "Ran",
    "SparseIndex",
    "active_count",
    "build_index",
    "conv3x3",
    "conv_active",
    "cut_weight",
    "depthwise3x3",
    "dilate_mask",
    "executed_rows",
    "expand_active",
    "explain",
    "forget",
    "gather",
    "group_norm_active",
    "group_norm_relu",
    "hard_mask",
    "linear_active",
    "neighbours",
    "pack_basic_block",
    "pack_bottleneck",
    "pack_conv",
    "pack_inverted_residual",
    "pack_linear",
    "pointwise",
    "scatter_add",
    "take_active",
]
