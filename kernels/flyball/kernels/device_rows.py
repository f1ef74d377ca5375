"""The single sparse operators by the Triton kernels; counts stay on the device.

Outputs are as long as their lists. Rows past a list's count are left as they are in memory.
"""

import torch
from torch import Tensor

from flyball.kernels.layers import Layer
from flyball.kernels.sparse_index import SparseIndex

__all__ = ["convolve_rows", "gather_rows", "scatter_rows"]


def gather_rows(rows: Tensor, positions: Tensor, count: Tensor) -> Tensor:
    """The listed rows: (N, C) to (capacity, C)."""
    from flyball.kernels import gpu

    out = rows.new_empty((len(positions), rows.shape[1]))
    gpu.gather(rows, positions, count, out)
    return out


def scatter_rows(rows: Tensor, positions: Tensor, count: Tensor, out: Tensor) -> None:
    """Adds rows to the listed rows of `out`."""
    from flyball.kernels import gpu

    gpu.scatter_add(rows.contiguous(), positions, count, out)


def convolve_rows(layer: Layer, rows: Tensor, index: SparseIndex | None) -> Tensor:
    """A convolution's rows: of every row without an index, else at its active pixels."""
    from flyball.kernels import gpu

    rows, bias = rows.contiguous(), layer.bias.float().contiguous()
    weight = gpu.pack_taps(layer.weight)
    if index is None:
        out = rows.new_empty((len(rows), len(bias)))
        every = torch.full((1,), len(rows), dtype=torch.int32, device=rows.device)
        gpu.gather_gemm(rows, weight, bias, layer.activation, out, rows=every)
        return out
    out = rows.new_empty((len(index.active), len(bias)))
    count = index.counts[:1]
    if layer.is_depthwise:
        gpu.depthwise(
            rows, weight, bias, layer.activation, out,
            positions=index.active, count=count, window=gpu.Window.of(index),
        )  # fmt: skip
        return out
    grid = gpu.Window(
        index.height, index.width, index.out_height, index.out_width, index.stride, None
    )
    gpu.gather_gemm(
        rows, weight, bias, layer.activation, out,
        rows=count, positions=index.active, window=grid,
    )  # fmt: skip
    return out
