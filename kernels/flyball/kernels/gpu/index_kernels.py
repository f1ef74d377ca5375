"""Triton kernels that list the active and dilated pixels of a mask, in order, without atomics.

Two launches: counts of every block of positions, then the lists, for which each program adds up
the counts before its own. Launchers are in `index.py`.
"""

# mypy: ignore-errors
import triton
import triton.language as tl

__all__ = ["count_blocks", "list_blocks"]

SIZES = ["height", "width", "out_height", "out_width", "total", "out_total"]


@triton.jit
def _is_active(mask, position, out_total):
    return tl.load(mask + position, mask=position < out_total, other=0).to(tl.int32) != 0


@triton.jit
def _is_touched(mask, position, height, width, out_height, out_width, total, STRIDE: tl.constexpr):
    """Whether a 3x3 window (padding 1) around an active output pixel covers an input position."""
    inside = position < total
    column = position % width
    line = position // width
    row = line % height
    image = line // height
    touched = tl.zeros_like(position)
    for tap in tl.static_range(9):
        above = row + 1 - tap // 3
        left = column + 1 - tap % 3
        out_row = above // STRIDE
        out_column = left // STRIDE
        seen = inside & (above >= 0) & (left >= 0)
        seen = seen & (out_row < out_height) & (out_column < out_width)
        if STRIDE > 1:
            seen = seen & (above % STRIDE == 0) & (left % STRIDE == 0)
        centre = (image * out_height + out_row) * out_width + out_column
        touched = touched | tl.load(mask + centre, mask=seen, other=0).to(tl.int32)
    return touched != 0


@triton.jit(do_not_specialize=SIZES)
def count_blocks(
    mask, active_counts, dilated_counts, height, width, out_height, out_width, out_total, total,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many of BLOCK positions are active and dilated; grid: blocks of the input grid."""
    block = tl.program_id(0)
    position = block * BLOCK + tl.arange(0, BLOCK)
    active = _is_active(mask, position, out_total)
    touched = _is_touched(mask, position, height, width, out_height, out_width, total, STRIDE)
    tl.store(active_counts + block, tl.sum(active.to(tl.int32), 0))
    tl.store(dilated_counts + block, tl.sum(touched.to(tl.int32), 0))


@triton.jit
def _write(flags, position, base, last, listed, starts, pixels, total, capacity, BLOCK):
    """Stores a block's flagged positions in order, and where each image begins in the list."""
    flags = flags.to(tl.int32)
    place = base + tl.cumsum(flags, 0) - flags
    tl.store(listed + place, position, mask=(flags != 0) & (place < capacity))
    tl.store(starts + position // pixels, place, mask=(position < total) & (position % pixels == 0))
    # What follows the list is -1, also in a buffer that held another list.
    after = (position >= last) & (position < capacity)
    tl.store(listed + position, tl.full([BLOCK], -1, tl.int32), mask=after)
    return tl.where((flags != 0) & (place < capacity), place, -1)


@triton.jit(do_not_specialize=[*SIZES, "batch", "blocks", "capacity", "dilated_capacity"])
def list_blocks(
    mask, active_counts, dilated_counts, active, dilated, rank, counts, active_starts,
    dilated_starts, batch, height, width, out_height, out_width, out_total, total, blocks,
    capacity, dilated_capacity, STRIDE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Lists, ranks, counts and starts of images; grid as `count_blocks`, capacities <= grids.

    The counts of all blocks are read CHUNK at a time, however many there are.
    """
    block = tl.program_id(0)
    active_base = 0
    dilated_base = 0
    active_last = 0
    dilated_last = 0
    for start in range(0, blocks, CHUNK):
        other = start + tl.arange(0, CHUNK)
        of_active = tl.load(active_counts + other, mask=other < blocks, other=0)
        of_dilated = tl.load(dilated_counts + other, mask=other < blocks, other=0)
        active_base += tl.sum(tl.where(other < block, of_active, 0), 0)
        dilated_base += tl.sum(tl.where(other < block, of_dilated, 0), 0)
        active_last += tl.sum(of_active, 0)
        dilated_last += tl.sum(of_dilated, 0)
    if block == 0:
        tl.store(counts, active_last)
        tl.store(counts + 1, dilated_last)
        tl.store(active_starts + batch, active_last)
        tl.store(dilated_starts + batch, dilated_last)
    position = block * BLOCK + tl.arange(0, BLOCK)
    flags = _is_active(mask, position, out_total)
    _write(
        flags, position, active_base, active_last, active, active_starts,
        out_height * out_width, out_total, capacity, BLOCK,
    )  # fmt: skip
    flags = _is_touched(mask, position, height, width, out_height, out_width, total, STRIDE)
    place = _write(
        flags, position, dilated_base, dilated_last, dilated, dilated_starts,
        height * width, total, dilated_capacity, BLOCK,
    )  # fmt: skip
    tl.store(rank + position, place, mask=position < total)
