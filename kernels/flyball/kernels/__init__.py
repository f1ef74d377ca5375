"""Operators that run only the active part of a layer, and their plain twins."""

from flyball.kernels.width import (
    Active,
    active_count,
    conv2d_active,
    expand_active,
    group_norm_active,
    linear_active,
)

__all__ = [
    "Active",
    "active_count",
    "conv2d_active",
    "expand_active",
    "group_norm_active",
    "linear_active",
]
