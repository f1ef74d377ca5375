"""Triton kernels for CUDA GPUs, and their launchers; imports where there is neither."""

from flyball.kernels.gpu.availability import available
from flyball.kernels.gpu.blocks import (
    TritonBasicBlock,
    TritonBottleneck,
    TritonInvertedResidual,
    basic_block,
    bottleneck,
    inverted_residual,
    pack_taps,
)
from flyball.kernels.gpu.index import build_index
from flyball.kernels.gpu.products import (
    Slice,
    Window,
    depthwise,
    depthwise_gemm_scatter,
    gather_gemm,
    gather_gemm_scatter,
)
from flyball.kernels.gpu.rows import gather, scatter_add

__all__ = [
    "Slice",
    "TritonBasicBlock",
    "TritonBottleneck",
    "TritonInvertedResidual",
    "Window",
    "available",
    "basic_block",
    "bottleneck",
    "build_index",
    "depthwise",
    "depthwise_gemm_scatter",
    "gather",
    "gather_gemm",
    "gather_gemm_scatter",
    "inverted_residual",
    "pack_taps",
    "scatter_add",
]
