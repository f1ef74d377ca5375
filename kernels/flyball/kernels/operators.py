"""Convolutions on rows of pixels, as each sparse implementation offers them.

N rows, P listed rows, T taps, C channels, O outputs.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flyball.kernels.dispatch import Name, cpu_module
from flyball.kernels.layers import Layer
from flyball.kernels.packing import PackedLinear, pack_conv, pack_linear
from flyball.kernels.reference import Activation

__all__ = ["DenseLayer", "Operators", "TorchOperators", "activate_"]

# Rows of a depthwise convolution at a time: the accumulator and one tap stay in the cache.
CHUNK = 256


class Operators(Protocol):
    """One layer's weights in an implementation's own form."""

    def rows(self, rows: Tensor, table: Tensor | None) -> Tensor:
        """The layer's outputs (P, O) from rows (N, C) and a table (P, T), None for all rows."""
        ...

    def add(self, rows: Tensor, table: Tensor | None, out: Tensor, positions: Tensor) -> int:
        """Adds the outputs to `out` (M, O) at `positions` (P,); how many rows that were."""
        ...


class TorchOperators:
    """Plain torch operators, weights packed for oneDNN where it runs."""

    def __init__(self, layer: Layer) -> None:
        self._activation = layer.activation
        self._bias = layer.bias.to(layer.weight.dtype)
        self._linear: PackedLinear | None = None
        self._taps = layer.by_tap
        if not layer.is_depthwise:
            matrix = self._taps.flatten(0, 1).t().contiguous()
            self._linear = pack_linear(matrix, self._bias, relu=layer.activation == "relu")

    def rows(self, rows: Tensor, table: Tensor | None) -> Tensor:
        if self._linear is None:
            assert table is not None
            return activate_(self._depthwise(rows, table), self._activation)
        if table is not None:
            rows = _columns(rows, table)
        if not len(rows):
            return rows.new_empty((0, len(self._bias)))
        found = self._linear(rows)
        return found if self._activation == "relu" else activate_(found, self._activation)

    def add(self, rows: Tensor, table: Tensor | None, out: Tensor, positions: Tensor) -> int:
        out.index_add_(0, positions.long(), self.rows(rows, table))
        return len(positions)

    def _depthwise(self, rows: Tensor, table: Tensor) -> Tensor:
        out = rows.new_empty((len(table), rows.shape[1]))
        rows = torch.cat([rows, rows.new_zeros((1, rows.shape[1]))])
        columns = table.remainder(len(rows)).t().contiguous()
        room = rows.new_empty((min(CHUNK, len(table)), rows.shape[1]))
        weights = self._taps.unbind()
        for first in range(0, len(table), CHUNK):
            part = out[first : first + CHUNK]
            part.copy_(self._bias)
            for places, weight in zip(columns, weights, strict=True):
                here = places[first : first + CHUNK]
                found = torch.index_select(rows, 0, here, out=room[: len(part)])
                part.addcmul_(found, weight)
        return out


def activate_(x: Tensor, activation: Activation) -> Tensor:
    """Activates in place."""
    if activation == "relu":
        return x.relu_()
    return F.hardtanh_(x, 0.0, 6.0) if activation == "relu6" else x


def _columns(rows: Tensor, table: Tensor) -> Tensor:
    """(P, T * C), zeros where the table is -1."""
    if table.shape[1] == 1:
        return rows.index_select(0, table[:, 0])
    flat = table.flatten()
    found = rows.index_select(0, flat.clamp_min(0))
    beyond = (flat < 0).nonzero().view(-1)
    if len(beyond):
        found.index_fill_(0, beyond, 0)
    return found.view(len(table), table.shape[1] * rows.shape[1])


class DenseLayer:
    """A layer at every pixel: (B, C, H, W) to (B, O, Ho, Wo)."""

    def __init__(self, layer: Layer) -> None:
        self._activation = layer.activation
        self._convolve = pack_conv(
            layer.weight,
            layer.bias.to(layer.weight.dtype),
            stride=layer.stride,
            padding=layer.weight.shape[-1] // 2,
            groups=len(layer.weight) if layer.is_depthwise else 1,
            relu=layer.activation == "relu",
        )

    def __call__(self, x: Tensor) -> Tensor:
        y = self._convolve(x)
        return y if self._activation == "relu" else activate_(y, self._activation)


class CppOperators:
    """The C++ operators, float32 on CPU."""

    def __init__(self, layer: Layer) -> None:
        module = cpu_module()
        assert module is not None, "dispatch asks whether they are there"
        self._module = module
        self._layer = layer
        self._bias = layer.bias.to(torch.float32).contiguous()
        by_tap = layer.by_tap
        self._weight = by_tap if layer.is_depthwise else module.pack_rows_weight(by_tap)

    def rows(self, rows: Tensor, table: Tensor | None) -> Tensor:
        rows = rows.contiguous()
        count = len(rows if table is None else table)
        out = rows.new_empty((count, len(self._bias)))
        run = self._module.depthwise if self._layer.is_depthwise else self._module.gather_gemm
        if count:
            run(rows, table, self._weight, self._bias, self._layer.activation, out)
        return out

    def add(self, rows: Tensor, table: Tensor | None, out: Tensor, positions: Tensor) -> int:
        if len(positions):
            self._module.gather_gemm_scatter(
                rows, table, self._weight, self._bias, out, positions, "none"
            )
        return len(positions)


def operators_for(name: Name, layer: Layer) -> Operators:
    """A layer in the form of a sparse implementation."""
    if name == "cpu":
        return CppOperators(layer)
    return TorchOperators(layer)
