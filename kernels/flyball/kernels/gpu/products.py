"""Launches the Triton kernels that compute a list of pixels: products, windows and both in one.

P listed pixels, Q rows of a dilated list, T taps, Cin, Cout, E, O channels. How many rows of a list
are valid is read on the device; buffers are as long as their lists. Biases are float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flyball.kernels.gpu.availability import (
    LARGEST,
    capability,
    check_matrix,
    check_places,
    is_interpreted,
)
from flyball.kernels.gpu.configurations import (
    depthwise_gemm_launch,
    depthwise_launch,
    gather_gemm_launch,
)
from flyball.kernels.gpu.rows import launch, require_room
from flyball.kernels.layout import check_alias
from flyball.kernels.sparse_index import SparseIndex

__all__ = [
    "Slice",
    "Window",
    "depthwise",
    "depthwise_gemm_scatter",
    "gather_gemm",
    "gather_gemm_scatter",
]


@dataclass(frozen=True)
class Window:
    """What the 3x3 window (padding 1) around a position of the output grid looks at.

    Attributes:
        height, width: the input grid.
        out_height, out_width: the output grid, in which positions lie.
        stride: 1 or 2.
        rank: int32 (B * height * width,), the row of every input position, -1 for zeros; None
            where the rows are the input grid itself.
    """

    height: int
    width: int
    out_height: int
    out_width: int
    stride: int
    rank: Tensor | None

    @classmethod
    def of(cls, index: SparseIndex) -> "Window":
        """Around active pixels, on rows computed at the index's dilated pixels."""
        grids = (index.height, index.width, index.out_height, index.out_width)
        return cls(*grids, index.stride, index.rank)


@dataclass(frozen=True)
class Slice:
    """Rows [begin, end) of a list, both int32 (1,) on the device: a part of the batch.

    Attributes:
        begin, end: of the listed rows that are computed; results are stored from row 0 on.
        dilated_begin: the dilated row that lies in row 0 of the rows under the windows.
    """

    begin: Tensor
    end: Tensor
    dilated_begin: Tensor | None = None


def gather_gemm(
    x_rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    out: Tensor,
    *,
    rows: Tensor | Slice,
    positions: Tensor | None = None,
    window: Window | None = None,
) -> None:
    """out[i] = activation(bias + the product of row i): a 1x1 or a masked 3x3 convolution.

    Args:
        x_rows: (N, Cin).
        weight: (1, Cin, Cout), or (9, Cin, Cout) with a window; of the dtype of x_rows.
        bias: (Cout,), float32.
        activation: "none", "relu" or "relu6".
        out: (capacity, Cout) or more rows; rows past the count are left alone.
        rows: int32 (1,), on the device: how many rows are computed; or a slice of the list.
        positions: int32 (capacity,): row i is computed from x_rows[positions[i]], or from the
            window around that position; None: from x_rows[i].
        window: the grids of a 3x3 convolution.

    Raises:
        ValueError: shapes, dtypes, devices or layouts do not fit together.
    """
    capacity = len(out) if positions is None else len(positions)
    if not isinstance(rows, Slice):
        require_room("out", len(out), capacity)
    is_gathered = positions is not None
    _multiply(x_rows, weight, bias, activation, out, rows, positions, window, None, is_gathered)


def gather_gemm_scatter(
    x_rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    out_rows: Tensor,
    positions: Tensor,
    *,
    rows: Tensor | Slice,
    window: Window | None = None,
    identity_rows: Tensor | None = None,
    is_gathered: bool = False,
) -> None:
    """out_rows[p] = activation(identity_rows[p] + bias + the product of row i), p = positions[i].

    Args:
        x_rows, weight, bias, rows, window: as for `gather_gemm`.
        activation: after the sum.
        out_rows: (M, Cout), changed at the positions alone.
        positions: int32 (capacity,), unique rows of out_rows.
        identity_rows: (M, Cout); None for out_rows.
        is_gathered: whether a 1x1 convolution computes row i from x_rows[p] instead of x_rows[i].

    Raises:
        ValueError: shapes, dtypes, devices or layouts do not fit together.
    """
    identity = out_rows if identity_rows is None else identity_rows
    check_matrix("identity_rows", identity, tuple(out_rows.shape), x_rows)
    _multiply(
        x_rows, weight, bias, activation, out_rows, rows, positions, window, identity, is_gathered
    )


def _multiply(
    x_rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    out: Tensor,
    rows: Tensor | Slice,
    positions: Tensor | None,
    window: Window | None,
    identity: Tensor | None,
    is_gathered: bool,
) -> None:
    taps = 1 if window is None else 9
    if weight.ndim != 3 or min(weight.shape) < 1 or weight.shape[0] != taps:
        raise ValueError(
            f"The weight is ({taps}, Cin, Cout) {'without' if taps == 1 else 'with'} a window, "
            f"at least one channel each; got {tuple(weight.shape)}. Pack it with pack_taps."
        )
    if window is not None and positions is None:
        raise ValueError("A 3x3 window lies around positions; got none. Give an index's list.")
    _, inputs, outputs = weight.shape
    check_matrix("x_rows", x_rows, (None, inputs), x_rows)
    check_matrix("weight", weight, (taps, inputs, outputs), x_rows)
    check_matrix("out", out, (None, outputs), x_rows)
    _check_apart("x_rows", x_rows, out)
    _check_bias("bias", bias, outputs, x_rows)
    begin, end = _bounds(rows)
    places = end if positions is None else positions
    rank = end if window is None or window.rank is None else window.rank
    for name, listed in (("rows", begin), ("rows", end), ("positions", places), ("rank", rank)):
        check_places(name, listed, x_rows)
    way = gather_gemm_launch(
        inputs,
        outputs,
        x_rows.dtype,
        taps=taps,
        stride=1 if window is None else window.stride,
        activation=activation,
        is_gathered=is_gathered and taps == 1,
        is_ranked=window is not None and window.rank is not None,
        is_ranged=isinstance(rows, Slice),
        is_scattered=identity is not None,
        is_wide=_is_wide(x_rows, out),
        is_interpreted=is_interpreted(),
        capability=capability(x_rows.device),
    )
    from flyball.kernels.gpu.gemm_kernels import gather_gemm_kernel

    capacity = len(out) if positions is None else len(positions)
    tensors = (
        x_rows,
        weight,
        bias,
        places,
        rank,
        begin,
        end,
        out if identity is None else identity,
    )
    launch(gather_gemm_kernel, way, capacity, *tensors, out, *_grids(window), capacity)


def depthwise(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    out: Tensor,
    *,
    positions: Tensor,
    count: Tensor,
    window: Window,
) -> None:
    """out[i] = activation(bias + the depthwise 3x3 window around positions[i]), i < count.

    Args:
        rows: (Q, E), what the window's ranks point to.
        weight: (9, E), row-major over the window.
        bias: (E,), float32.
        activation: "none", "relu" or "relu6".
        out: (capacity, E) or more rows; rows past the count are left alone.
        positions: int32 (capacity,), in the window's output grid.
        count: int32 (1,), on the device.
        window: with ranks.

    Raises:
        ValueError: shapes, dtypes, devices or layouts do not fit together.
    """
    rank = _check_window(rows, weight, bias, window)
    check_matrix("out", out, (None, rows.shape[1]), rows)
    _check_apart("rows", rows, out)
    check_places("positions", positions, rows)
    check_places("count", count, rows)
    require_room("out", len(out), len(positions))
    from flyball.kernels.gpu.depthwise_kernels import depthwise_kernel

    way = depthwise_launch(
        rows.shape[1],
        stride=window.stride,
        activation=activation,
        is_wide=_is_wide(rows, out),
    )
    tensors = (rows, weight, bias, positions, rank, count, out)
    launch(depthwise_kernel, way, len(positions), *tensors, *_grids(window), len(positions))


def depthwise_gemm_scatter(
    rows: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    activation: str,
    weight: Tensor,
    bias: Tensor,
    out_rows: Tensor,
    *,
    positions: Tensor,
    listed: Tensor | Slice,
    window: Window,
    identity_rows: Tensor | None = None,
) -> None:
    """out_rows[p] = identity_rows[p] + bias + activation(depthwise window of p) @ weight.

    The depthwise result is never stored; p = positions[i] are unique, nothing is added atomically.

    Args:
        rows: (Q, E), what the window's ranks point to.
        depthwise_weight, depthwise_bias: (9, E) and float32 (E,).
        activation: between the two convolutions.
        weight, bias: (1, E, O), O at most `largest_output`, and float32 (O,).
        out_rows: (M, O), changed at the positions alone.
        positions: int32 (capacity,).
        listed: int32 (1,), on the device: how many positions are valid; or a slice of them.
        window: with ranks.
        identity_rows: (M, O); None for out_rows.

    Raises:
        ValueError: shapes, dtypes, devices or layouts do not fit together, or O is too large.
    """
    expanded, outputs = rows.shape[1], out_rows.shape[1]
    rank = _check_window(rows, depthwise_weight, depthwise_bias, window)
    identity = out_rows if identity_rows is None else identity_rows
    check_matrix("weight", weight, (1, expanded, outputs), rows)
    check_matrix("out_rows", out_rows, (None, outputs), rows)
    check_matrix("identity_rows", identity, tuple(out_rows.shape), rows)
    _check_apart("rows", rows, out_rows)
    _check_bias("bias", bias, outputs, rows)
    begin, end = _bounds(listed)
    shift = begin
    if isinstance(listed, Slice) and listed.dilated_begin is not None:
        shift = listed.dilated_begin
    for name, places in (("positions", positions), ("listed", begin), ("listed", end)):
        check_places(name, places, rows)
    check_places("dilated_begin", shift, rows)
    from flyball.kernels.gpu.depthwise_kernels import depthwise_gemm_kernel

    way = depthwise_gemm_launch(
        expanded,
        outputs,
        rows.dtype,
        stride=window.stride,
        activation=activation,
        is_ranged=isinstance(listed, Slice),
        is_wide=_is_wide(rows, out_rows),
        is_interpreted=is_interpreted(),
        capability=capability(rows.device),
    )
    weights = (depthwise_weight, depthwise_bias, weight, bias)
    lists = (positions, rank, begin, end, shift)
    arguments = (rows, *weights, *lists, identity, out_rows, *_grids(window), len(positions))
    launch(depthwise_gemm_kernel, way, len(positions), *arguments)


def _check_window(rows: Tensor, weight: Tensor, bias: Tensor, window: Window) -> Tensor:
    """The ranks; raises ValueError where the depthwise weights do not fit the rows."""
    check_matrix("rows", rows, (None, None), rows)
    check_matrix("depthwise weight", weight, (9, rows.shape[1]), rows)
    _check_bias("depthwise bias", bias, rows.shape[1], rows)
    if window.rank is None:
        raise ValueError("A depthwise window looks up ranks; got none. Use Window.of(index).")
    check_places("rank", window.rank, rows)
    return window.rank


def _check_bias(name: str, bias: Tensor, channels: int, like: Tensor) -> None:
    if bias.dtype != torch.float32 or tuple(bias.shape) != (channels,):
        raise ValueError(
            f"{name}: float32 ({channels},) is wanted, also beside half-precision weights; got "
            f"{bias.dtype} {tuple(bias.shape)}."
        )
    if bias.device != like.device or not bias.is_contiguous():
        raise ValueError(f"{name}: contiguous on {like.device}; it is on {bias.device}.")


def _check_apart(name: str, rows: Tensor, out: Tensor) -> None:
    """One program would read what another one has already overwritten."""
    if out.numel() and check_alias(out, rows, name):
        raise ValueError(f"{name}: the result needs memory of its own; got the very same tensor.")


def _bounds(rows: Tensor | Slice) -> tuple[Tensor, Tensor]:
    return (rows.begin, rows.end) if isinstance(rows, Slice) else (rows, rows)


def _grids(window: Window | None) -> tuple[int, int, int, int]:
    if window is None:
        return 1, 1, 1, 1
    return window.height, window.width, window.out_height, window.out_width


def _is_wide(*tensors: Tensor) -> bool:
    """Whether an offset into one of them needs 64 bits."""
    return any(tensor.numel() >= LARGEST for tensor in tensors)
