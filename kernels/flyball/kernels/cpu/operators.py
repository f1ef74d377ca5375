"""Products and depthwise convolutions of gathered rows in C++; float32 on CPU.

N rows given, P rows computed, T taps (1 of a 1x1, 9 of a 3x3 convolution), C input and O output
channels, E channels of a depthwise convolution, M rows added to. A row's bits depend on that row
and the weights alone: not on the other rows, nor on the number of threads.
"""

import ctypes
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from flyball.kernels.cpu.build import library

__all__ = [
    "PackedWeight",
    "depthwise",
    "gather_gemm",
    "gather_gemm_scatter",
    "pack_rows_weight",
]

# An activation as the interval it clamps to.
CLAMPS = {"none": (-inf, inf), "relu": (0.0, inf), "relu6": (0.0, 6.0)}

DONE, TABLE_OUT_OF_RANGE, POSITIONS_NOT_RISING = range(3)


@dataclass(frozen=True)
class PackedWeight:
    """A convolution's weights in the order in which the register tile reads them.

    Attributes:
        tensor: opaque; its order depends on the processor's vectors.
        taps, inputs, outputs: T, C, O.
    """

    tensor: Tensor
    taps: int
    inputs: int
    outputs: int


def pack_rows_weight(weight: Tensor) -> PackedWeight:
    """Packs a weight (T, C, O), float32 on CPU.

    Raises:
        ValueError: it has another shape, dtype or device.
    """
    if weight.ndim != 3 or 0 in weight.shape:
        raise ValueError(
            f"A weight of rows is (taps, inputs, outputs), none of them 0; got "
            f"{tuple(weight.shape)}."
        )
    weight = check("weight", weight, tuple(weight.shape), any_layout=True).detach().contiguous()
    taps, inputs, outputs = weight.shape
    cpp = library()
    packed = torch.empty(taps * inputs * padded(outputs))
    cpp.flyball_pack(address(weight), *map(ctypes.c_int64, weight.shape), address(packed))
    return PackedWeight(packed, taps, inputs, outputs)


def gather_gemm(
    x: Tensor,
    table: Tensor | None,
    weight: PackedWeight,
    bias: Tensor,
    activation: str,
    out: Tensor,
) -> None:
    """out[p] = activation(bias + sum over taps t of x[table[p, t]] @ weight[t]).

    Args:
        x: (N, C).
        table: int32 (P, T), rows of x, -1 for a row of zeros; None for all rows in order (T = 1).
        bias: (O,).
        activation: "none", "relu" or "relu6".
        out: (P, O), written; shares no memory with x.

    Raises:
        ValueError: an argument does not fit in shape, dtype, device or layout, or the table
            names a row that is not there. Nothing is written then.
    """
    count = _check_product(x, table, weight, bias, activation, out)
    check("out", out, (count, weight.outputs))
    _raise_for(
        library().flyball_gather_gemm(
            *_product(x, table, count, weight, bias, activation), address(out)
        ),
        len(x),
    )


def gather_gemm_scatter(
    x: Tensor,
    table: Tensor | None,
    weight: PackedWeight,
    bias: Tensor,
    out: Tensor,
    positions: Tensor,
    activation_after_sum: str,
) -> None:
    """out[positions[p]] = activation(out[positions[p]] + bias + sum of x[table[p, t]] @ weight[t]).

    Args:
        x, table, weight, bias: as of `gather_gemm`.
        out: (M, O), added to in place; shares no memory with x.
        positions: int32 (P,), rows of out, rising.
        activation_after_sum: "none", "relu" or "relu6", on these rows alone.

    Raises:
        ValueError: as of `gather_gemm`, or positions do not rise or lie outside out.
    """
    count = _check_product(x, table, weight, bias, activation_after_sum, out)
    check("out", out, (len(out), weight.outputs))
    check("positions", positions, (count,), torch.int32)
    _raise_for(
        library().flyball_gather_gemm_scatter(
            *_product(x, table, count, weight, bias, activation_after_sum),
            address(out),
            ctypes.c_int64(len(out)),
            address(positions),
        ),
        len(x),
        len(out),
    )


def depthwise(
    x: Tensor, table: Tensor, weight: Tensor, bias: Tensor, activation: str, out: Tensor
) -> None:
    """out[p] = activation(bias + sum over taps t of x[table[p, t]] * weight[t]).

    Args:
        x: (N, E).
        table: int32 (P, 9), rows of x, -1 for a row of zeros.
        weight: (9, E).
        bias: (E,).
        activation: "none", "relu" or "relu6".
        out: (P, E), written; shares no memory with x.

    Raises:
        ValueError: as of `gather_gemm`.
    """
    check("weight", weight, (9, *weight.shape[1:2]), any_layout=True)
    packed = pack_rows_weight(weight[:, None])
    channels = packed.outputs
    check("x", x, (len(x), channels))
    check("bias", bias, (channels,))
    check("table", table, (len(table), 9), torch.int32)
    check("out", out, (len(table), channels))
    refuse_overlap(out, x)
    low, high = clamp_of(activation)
    status = library().flyball_depthwise(
        address(x),
        ctypes.c_int64(len(x)),
        address(table),
        ctypes.c_int64(len(table)),
        address(packed.tensor),
        ctypes.c_int64(channels),
        address(bias),
        ctypes.c_float(low),
        ctypes.c_float(high),
        address(out),
    )
    _raise_for(status, len(x))


def check(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    any_layout: bool = False,
) -> Tensor:
    """The tensor, if C++ may take its address.

    Raises:
        ValueError: another shape, dtype or device, or not contiguous.
    """
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} is {shape} of {dtype} on cpu; got {tuple(tensor.shape)} of {tensor.dtype} on "
            f"{tensor.device}."
        )
    if not (any_layout or tensor.is_contiguous()):
        raise ValueError(
            f"{name} has to be contiguous, its strides are {tensor.stride()}. Pass "
            f"{name}.contiguous()."
        )
    return tensor


def refuse_overlap(out: Tensor, x: Tensor) -> None:
    """Raises ValueError where the two share memory: rows would be read after they were written."""
    first, second = out.data_ptr(), x.data_ptr()
    if first < second + 4 * x.numel() and second < first + 4 * out.numel():
        raise ValueError("out shares memory with the rows it is computed from; give it its own.")


def clamp_of(activation: str) -> tuple[float, float]:
    """The interval that an activation clamps to.

    Raises:
        ValueError: it is unknown.
    """
    try:
        return CLAMPS[activation]
    except KeyError:
        raise ValueError(
            f"An activation is one of {', '.join(CLAMPS)}; got {activation!r}."
        ) from None


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's values begin."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def padded(channels: int) -> int:
    """Channels rounded up to whole vectors."""
    lanes: int = library().flyball_lanes()
    return -(-channels // lanes) * lanes


def _check_product(
    x: Tensor,
    table: Tensor | None,
    weight: PackedWeight,
    bias: Tensor,
    activation: str,
    out: Tensor,
) -> int:
    """How many rows are to be computed."""
    check("x", x, (len(x), weight.inputs))
    check("bias", bias, (weight.outputs,))
    clamp_of(activation)
    refuse_overlap(out, x)
    if table is not None:
        check("table", table, (len(table), weight.taps), torch.int32)
        return len(table)
    if weight.taps != 1:
        raise ValueError(f"Only a weight of 1 tap needs no table; this one has {weight.taps}.")
    return len(x)


def _product(
    x: Tensor,
    table: Tensor | None,
    count: int,
    weight: PackedWeight,
    bias: Tensor,
    activation: str,
) -> tuple[object, ...]:
    low, high = clamp_of(activation)
    return (
        address(x),
        ctypes.c_int64(len(x)),
        address(table),
        ctypes.c_int64(count),
        address(weight.tensor),
        ctypes.c_int64(weight.taps),
        ctypes.c_int64(weight.inputs),
        ctypes.c_int64(weight.outputs),
        address(bias),
        ctypes.c_float(low),
        ctypes.c_float(high),
    )


def _raise_for(status: int, rows: int, out_rows: int = 0) -> None:
    if status == DONE:
        return
    if status == TABLE_OUT_OF_RANGE:
        raise ValueError(
            f"A table names rows 0 to {rows - 1}, or -1 for zeros; this one names others. Build it "
            "from the index of this input."
        )
    if status == POSITIONS_NOT_RISING:
        raise ValueError(
            f"Positions rise strictly within 0 to {out_rows - 1}; these do not: two additions to "
            "one row would race."
        )
    raise MemoryError("The C++ operators could not get memory for their buffers.")
