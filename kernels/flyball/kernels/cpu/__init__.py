"""The sparse operators in C++ for float32 on CPU, compiled at first use and kept in the cache."""

from flyball.kernels.cpu.blocks import (
    BlockCall,
    CpuBlock,
    Listed,
    pack_basic_block,
    pack_bottleneck,
    pack_inverted_residual,
    run_block,
)
from flyball.kernels.cpu.build import LibraryUnavailable, available
from flyball.kernels.cpu.operators import (
    PackedWeight,
    depthwise,
    gather_gemm,
    gather_gemm_scatter,
    pack_rows_weight,
)

__all__ = [
    "BlockCall",
    "CpuBlock",
    "LibraryUnavailable",
    "Listed",
    "PackedWeight",
    "available",
    "depthwise",
    "gather_gemm",
    "gather_gemm_scatter",
    "pack_basic_block",
    "pack_bottleneck",
    "pack_inverted_residual",
    "pack_rows_weight",
    "run_block",
]
