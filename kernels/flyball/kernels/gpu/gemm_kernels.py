"""The Triton kernel that multiplies gathered rows with weights: 1x1 and masked 3x3 convolutions.

P output rows, Cin, Cout channels, T taps (1 pointwise, 9 a 3x3 window). The launcher is in
`products.py`, shipped tile sizes in `configurations.py`.
"""

# mypy: ignore-errors
import triton
import triton.language as tl

from flyball.kernels.gpu.row_kernels import activated

__all__ = ["accumulate", "gather_gemm_kernel"]


@triton.jit
def accumulate(a, b, sums, UPCAST: tl.constexpr):
    """sums + a @ b in float32. UPCAST: Triton's interpreter multiplies bfloat16 wrongly."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit(
    do_not_specialize=["height", "width", "out_height", "out_width", "capacity"],
    do_not_specialize_on_alignment=["rank", "begin", "end"],
)
def gather_gemm_kernel(
    x, weight, bias, positions, rank, begin, end, identity, out,
    height, width, out_height, out_width, capacity,
    CIN: tl.constexpr, COUT: tl.constexpr, TAPS: tl.constexpr, STRIDE: tl.constexpr,
    GATHERED: tl.constexpr, RANKED: tl.constexpr, RANGED: tl.constexpr, SCATTER: tl.constexpr,
    ACTIVATION: tl.constexpr, WIDE: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[i] = activation(bias + sum over taps of x[source(i, tap)] @ weight[tap]), persistent.

    The rows i of the list are [begin, end), read on the device; without RANGED they begin at 0.
    The source of row i is i itself, or positions[i] (GATHERED); with nine taps it is a position on
    the input grid under the window of positions[i], or its rank (RANKED), -1 for a zero row.
    With SCATTER, out[p] = activation(identity[p] + ...) at p = positions[i]; without, rows are
    stored from 0. `weight` is (TAPS, CIN, COUT).
    """
    COLUMNS: tl.constexpr = (COUT + BN - 1) // BN
    STEPS: tl.constexpr = (CIN + BK - 1) // BK
    OFFSET: tl.constexpr = tl.int64 if WIDE else tl.int32
    first = tl.load(begin) if RANGED else 0
    rows = tl.minimum(tl.load(end), capacity) - first
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, BM) * COLUMNS, tl.num_programs(0)):
        row = (tile // COLUMNS) * BM + tl.arange(0, BM)
        present = row < rows
        column = (tile % COLUMNS) * BN + tl.arange(0, BN)
        position = row
        if GATHERED or SCATTER or TAPS > 1:
            position = tl.load(positions + first + row, mask=present, other=0)
        if TAPS > 1:
            out_column = position % out_width
            line = position // out_width
            top = (line % out_height) * STRIDE - 1
            left = out_column * STRIDE - 1
            image = line // out_height
        sums = tl.zeros((BM, BN), tl.float32)
        for step in range(TAPS * STEPS):
            tap = step // STEPS
            source = position if GATHERED else row
            inside = present
            if TAPS > 1:
                y = top + tap // 3
                z = left + tap % 3
                inside = present & (y >= 0) & (y < height) & (z >= 0) & (z < width)
                source = (image * height + y) * width + z
                if RANKED:
                    source = tl.load(rank + source, mask=inside, other=-1)
                    inside = source >= 0
            channel = (step % STEPS) * BK + tl.arange(0, BK)
            wanted = inside[:, None]
            known = (column < COUT)[None, :]
            if CIN % BK != 0:
                wanted = wanted & (channel < CIN)[None, :]
                known = known & (channel < CIN)[:, None]
            a_at = source.to(OFFSET)[:, None] * CIN + channel[None, :]
            a = tl.load(x + a_at, mask=wanted, other=0.0)
            b_at = (tap * CIN + channel)[:, None] * COUT + column[None, :]
            if CIN % BK == 0 and COUT % BN == 0:
                b = tl.load(weight + b_at)
            else:
                b = tl.load(weight + b_at, mask=known, other=0.0)
            sums = accumulate(a, b, sums, UPCAST)
        sums += tl.load(bias + column, mask=column < COUT, other=0.0)[None, :]
        stored = present[:, None] & (column < COUT)[None, :]
        target = position if SCATTER else row
        at = target.to(OFFSET)[:, None] * COUT + column[None, :]
        if SCATTER:
            sums += tl.load(identity + at, mask=stored, other=0.0).to(tl.float32)
        sums = activated(sums, ACTIVATION)
        tl.store(out + at, sums.to(out.dtype.element_ty), mask=stored)
