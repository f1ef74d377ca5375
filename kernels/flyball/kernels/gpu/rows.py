"""Launches the Triton kernels that gather rows from a grid and add rows onto it."""

from typing import Any

import torch
from torch import Tensor

from flyball.kernels.gpu.availability import available, check_matrix, check_places, processors
from flyball.kernels.gpu.configurations import Launch, rows_launch

__all__ = ["gather", "launch", "scatter_add"]


def gather(x_rows: Tensor, positions: Tensor, count: Tensor, out: Tensor) -> None:
    """out[i] = x_rows[positions[i]] for every i < count; later rows of `out` are left alone.

    Args:
        x_rows: (N, C), a grid of pixels.
        positions: int32 (capacity,), rows of x_rows.
        count: int32 (1,), on the device: how many positions are valid.
        out: (capacity, C) or more rows.

    Raises:
        ValueError: shapes, dtypes, devices or layouts do not fit together.
    """
    check_matrix("x_rows", x_rows, (None, None), x_rows)
    check_matrix("out", out, (None, x_rows.shape[1]), x_rows)
    check_places("positions", positions, x_rows)
    check_places("count", count, x_rows)
    require_room("out", len(out), len(positions))
    from flyball.kernels.gpu.row_kernels import gather_rows

    way = rows_launch(x_rows.shape[1])
    launch(gather_rows, way, len(positions), x_rows, positions, count, out, len(positions))


def scatter_add(
    rows: Tensor,
    positions: Tensor,
    count: Tensor,
    out_rows: Tensor,
    *,
    identity_rows: Tensor | None = None,
    activation: str = "none",
) -> None:
    """out_rows[p] = activation(identity_rows[p] + rows[i]) for p = positions[i], i < count.

    Positions are unique, so that rows are added without atomics and always to the same bits.

    Args:
        rows: (capacity, C) or more rows.
        positions: int32 (capacity,), rows of out_rows.
        count: int32 (1,), on the device.
        out_rows: (M, C), changed in place at the positions.
        identity_rows: (M, C), what is added to; None for out_rows.
        activation: of the sum: "none", "relu" or "relu6".

    Raises:
        ValueError: shapes, dtypes, devices or layouts do not fit together.
    """
    identity = out_rows if identity_rows is None else identity_rows
    check_matrix("rows", rows, (None, None), rows)
    check_matrix("out_rows", out_rows, (None, rows.shape[1]), rows)
    check_matrix("identity_rows", identity, tuple(out_rows.shape), rows)
    check_places("positions", positions, rows)
    check_places("count", count, rows)
    require_room("rows", len(rows), len(positions))
    from flyball.kernels.gpu.row_kernels import scatter_rows

    way = rows_launch(rows.shape[1], activation)
    tensors = (rows, positions, count, identity, out_rows)
    launch(scatter_rows, way, len(positions), *tensors, len(positions))


def require_room(name: str, rows: int, capacity: int) -> None:
    """That a buffer has a row for every position of a list.

    Raises:
        ValueError: it has fewer.
    """
    if rows < capacity:
        raise ValueError(
            f"{name}: the list has room for {capacity} rows, the buffer for {rows}. Make the "
            "buffer as long as the list, or build the index with a smaller capacity."
        )


def launch(kernel: Any, way: Launch, capacity: int, *arguments: Any) -> None:
    """Runs a persistent kernel with as many programs as fill the device, never more than tiles.

    Raises:
        ValueError: the kernels cannot run on the device of the first tensor.
    """
    device = arguments[0].device
    runs, why = available(device)
    if not runs:
        raise ValueError(f"The Triton kernels cannot run here: {why}.")
    if capacity < 1:
        return
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        kernel[way.grid(capacity, processors(device))](*arguments, **way.constants, **way.options)
