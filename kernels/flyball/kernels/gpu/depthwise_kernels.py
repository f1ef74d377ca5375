"""Triton kernels of the masked depthwise 3x3 convolution, alone and as a product's left operand.

P active rows, Q rows of the dilated list, E expanded and O output channels. Launchers are in
`products.py`, shipped tile sizes in `configurations.py`.
"""

# mypy: ignore-errors
import triton
import triton.language as tl

from flyball.kernels.gpu.gemm_kernels import accumulate
from flyball.kernels.gpu.row_kernels import activated

__all__ = ["depthwise_gemm_kernel", "depthwise_kernel"]

SIZES = ["height", "width", "out_height", "out_width", "capacity"]


@triton.jit
def _corner(position, present, height, width, out_height, out_width, STRIDE: tl.constexpr):
    """The window's upper left input pixel (row, column, flat); a row far outside if not present."""
    line = position // out_width
    top = (line % out_height) * STRIDE - 1
    left = (position % out_width) * STRIDE - 1
    flat = ((line // out_height) * height + top) * width + left
    return tl.where(present, top, -9), left, flat


@triton.jit
def _add_tap(
    sums, rows, weight, rank, at, inside, shift, channel, tap, E: tl.constexpr, BK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """sums + the row at an input position * its factor; a row that is not listed is zero."""
    OFFSET: tl.constexpr = tl.int64 if WIDE else tl.int32
    row = tl.load(rank + at, mask=inside, other=-1)
    found = row >= 0
    place = (row - shift).to(OFFSET)[:, None] * E + channel[None, :]
    if E % BK == 0:
        value = tl.load(rows + place, mask=found[:, None], other=0.0)
        factor = tl.load(weight + tap * E + channel)
    else:
        value = tl.load(rows + place, mask=found[:, None] & (channel < E)[None, :], other=0.0)
        factor = tl.load(weight + tap * E + channel, mask=channel < E, other=0.0)
    return sums + value.to(tl.float32) * factor.to(tl.float32)[None, :]


@triton.jit
def _window(
    rows, weight, bias, rank, top, left, flat, shift, channel, height, width,
    E: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """bias + the nine taps, in their order, float32 (BM, BK).

    One line of the window after another, AHEAD lines in flight: nine taps at once do not fit into
    the registers. That there are three lines is hidden from the compiler, which would unroll them.
    """
    start = tl.load(bias + channel, mask=channel < E, other=0.0)
    sums = tl.zeros((BM, BK), tl.float32) + start[None, :]
    for line in tl.range(0, tl.minimum(height + 2, 3), num_stages=AHEAD):
        inside = (top + line >= 0) & (top + line < height)
        for column in tl.static_range(3):
            sums = _add_tap(
                sums, rows, weight, rank, flat + line * width + column,
                inside & (left + column >= 0) & (left + column < width), shift, channel,
                line * 3 + column, E, BK, WIDE,
            )  # fmt: skip
    return sums


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["rank", "count"])
def depthwise_kernel(
    rows, weight, bias, positions, rank, count, out,
    height, width, out_height, out_width, capacity,
    E: tl.constexpr, STRIDE: tl.constexpr, ACTIVATION: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """out[i] = activation(bias + the window of row i); rows (Q, E), weight (9, E), out (P, E)."""
    STEPS: tl.constexpr = (E + BK - 1) // BK
    OFFSET: tl.constexpr = tl.int64 if WIDE else tl.int32
    last = tl.minimum(tl.load(count), capacity)
    for tile in tl.range(tl.program_id(0), tl.cdiv(last, BM) * STEPS, tl.num_programs(0)):
        row = (tile // STEPS) * BM + tl.arange(0, BM)
        present = row < last
        channel = (tile % STEPS) * BK + tl.arange(0, BK)
        position = tl.load(positions + row, mask=present, other=0)
        top, left, flat = _corner(position, present, height, width, out_height, out_width, STRIDE)
        sums = _window(
            rows, weight, bias, rank, top, left, flat, 0, channel, height, width,
            E, BM, BK, WIDE, AHEAD,
        )  # fmt: skip
        sums = activated(sums, ACTIVATION)
        at = row.to(OFFSET)[:, None] * E + channel[None, :]
        stored = present[:, None] & (channel < E)[None, :]
        tl.store(out + at, sums.to(out.dtype.element_ty), mask=stored)


@triton.jit
def _columns(
    weight, channel, START: tl.constexpr, E: tl.constexpr, O: tl.constexpr,  # noqa: E741
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows `channel` and BN columns from START on of a weight (E, O); zeros outside."""
    column = START + tl.arange(0, BN)
    at = weight + channel[:, None] * O + column[None, :]
    if E % BK == 0 and START + BN <= O:
        return tl.load(at)
    else:
        return tl.load(at, mask=(channel < E)[:, None] & (column < O)[None, :], other=0.0)


@triton.jit
def _finish(
    sums, bias, position, present, identity, out, START: tl.constexpr, O: tl.constexpr,  # noqa: E741
    BN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    OFFSET: tl.constexpr = tl.int64 if WIDE else tl.int32
    column = START + tl.arange(0, BN)
    at = position.to(OFFSET)[:, None] * O + column[None, :]
    stored = present[:, None] & (column < O)[None, :]
    sums += tl.load(bias + column, mask=column < O, other=0.0)[None, :]
    sums += tl.load(identity + at, mask=stored, other=0.0).to(tl.float32)
    tl.store(out + at, sums.to(out.dtype.element_ty), mask=stored)


@triton.jit(
    do_not_specialize=SIZES,
    do_not_specialize_on_alignment=["rank", "begin", "end", "dilated_begin"],
)
def depthwise_gemm_kernel(
    rows, depth_weight, depth_bias, weight, bias, positions, rank, begin, end, dilated_begin,
    identity, out, height, width, out_height, out_width, capacity,
    E: tl.constexpr, O: tl.constexpr, STRIDE: tl.constexpr, ACTIVATION: tl.constexpr,  # noqa: E741
    RANGED: tl.constexpr, WIDE: tl.constexpr, UPCAST: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, REST: tl.constexpr, BK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """out[p] = identity[p] + bias + activation(depthwise window of p) @ weight, p = positions[i].

    A block of channels of the depthwise result never leaves the chip: it is the left operand of
    its product. The O columns are one tile of BN and, where O is no power of two, one of REST.
    With RANGED the list's rows are [begin, end) and `rows` holds the dilated ones from
    dilated_begin on: a slice of the images. Positions are unique: nothing is added atomically.
    """
    first = tl.load(begin) if RANGED else 0
    shift = tl.load(dilated_begin) if RANGED else 0
    last = tl.minimum(tl.load(end), capacity) - first
    for tile in tl.range(tl.program_id(0), tl.cdiv(last, BM), tl.num_programs(0)):
        row = tile * BM + tl.arange(0, BM)
        present = row < last
        position = tl.load(positions + first + row, mask=present, other=0)
        top, left, flat = _corner(position, present, height, width, out_height, out_width, STRIDE)
        sums = tl.zeros((BM, BN), tl.float32)
        if REST > 0:
            more = tl.zeros((BM, REST), tl.float32)
        for start in tl.range(0, E, BK, num_stages=1):
            channel = start + tl.arange(0, BK)
            # Before the window, so that the weights arrive while it is summed.
            w = _columns(weight, channel, 0, E, O, BN, BK)
            if REST > 0:
                v = _columns(weight, channel, BN, E, O, REST, BK)
            d = _window(
                rows, depth_weight, depth_bias, rank, top, left, flat, shift, channel, height,
                width, E, BM, BK, WIDE, AHEAD,
            )  # fmt: skip
            d = activated(d, ACTIVATION).to(w.dtype)
            sums = accumulate(d, w, sums, UPCAST)
            if REST > 0:
                more = accumulate(d, v, more, UPCAST)
        _finish(sums, bias, position, present, identity, out, 0, O, BN, WIDE)
        if REST > 0:
            _finish(more, bias, position, present, identity, out, BN, O, REST, WIDE)
