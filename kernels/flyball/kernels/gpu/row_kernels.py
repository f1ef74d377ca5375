"""Triton kernels that move rows (pixels) between a dense grid and a list, and their activation.

Launchers are in `rows.py`. A list's positions are unique, so that adding needs no atomics.
"""

# mypy: ignore-errors
import triton
import triton.language as tl

__all__ = ["activated", "gather_rows", "scatter_rows"]


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """0 none, 1 ReLU, 2 ReLU6; NaN stays NaN, as in torch."""
    if ACTIVATION > 0:
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACTIVATION == 2:
        x = tl.minimum(x, 6.0, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit(do_not_specialize=["capacity"], do_not_specialize_on_alignment=["count"])
def gather_rows(
    x, positions, count, out, capacity, CHANNELS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """out[i] = x[positions[i]] for i < min(count, capacity)."""
    COLUMNS: tl.constexpr = (CHANNELS + BN - 1) // BN
    rows = tl.minimum(tl.load(count), capacity)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, BM) * COLUMNS, tl.num_programs(0)):
        row = (tile // COLUMNS) * BM + tl.arange(0, BM)
        channel = (tile % COLUMNS) * BN + tl.arange(0, BN)
        position = tl.load(positions + row, mask=row < rows, other=0).to(tl.int64)
        inside = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
        value = tl.load(x + position[:, None] * CHANNELS + channel[None, :], mask=inside)
        at = row.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
        tl.store(out + at, value, mask=inside)


@triton.jit(do_not_specialize=["capacity"], do_not_specialize_on_alignment=["count"])
def scatter_rows(
    rows_in, positions, count, identity, out, capacity, CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out[p] = activation(identity[p] + rows_in[i]) with p = positions[i]; out may be identity."""
    COLUMNS: tl.constexpr = (CHANNELS + BN - 1) // BN
    rows = tl.minimum(tl.load(count), capacity)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, BM) * COLUMNS, tl.num_programs(0)):
        row = (tile // COLUMNS) * BM + tl.arange(0, BM)
        channel = (tile % COLUMNS) * BN + tl.arange(0, BN)
        position = tl.load(positions + row, mask=row < rows, other=0).to(tl.int64)
        inside = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
        at = row.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
        value = tl.load(rows_in + at, mask=inside).to(tl.float32)
        place = position[:, None] * CHANNELS + channel[None, :]
        value += tl.load(identity + place, mask=inside).to(tl.float32)
        value = activated(value, ACTIVATION)
        tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
