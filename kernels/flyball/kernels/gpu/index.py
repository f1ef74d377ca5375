"""Builds a SparseIndex on the device: two launches, no host synchronisation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flyball.kernels.gpu.availability import LARGEST, available
from flyball.kernels.gpu.configurations import BLOCK, CHUNK
from flyball.kernels.layout import check_mask, output_size
from flyball.kernels.sparse_index import SparseIndex

__all__ = ["ListedMask", "build_index", "list_mask"]


@dataclass(frozen=True)
class ListedMask:
    """An index, and where the rows of each image begin in its lists.

    Attributes:
        index: lists, ranks and counts.
        active_starts, dilated_starts: int32 (B + 1,), on the device; the last one is the count.
    """

    index: SparseIndex
    active_starts: Tensor
    dilated_starts: Tensor


def build_index(
    mask: Tensor,
    stride: int = 1,
    capacity: int | None = None,
    *,
    size: tuple[int, int] | None = None,
    dilated_capacity: int | None = None,
) -> SparseIndex:
    """Lists the active and dilated pixels of a mask in increasing order.

    Counts stay on the device and nothing waits for them; the launch can be captured in a graph.

    Args:
        mask: (B, 1, Ho, Wo) or (B, Ho, Wo), bool.
        stride: of the 3x3 convolution, 1 or 2.
        capacity: room for active pixels; None for the whole grid. More active pixels than that
            are counted, but neither listed nor written anywhere.
        size: (H, W) of the input grid; None for (Ho * stride, Wo * stride).
        dilated_capacity: likewise for dilated pixels; the rank of those not listed is -1.

    Raises:
        ValueError: the mask is not bool or not of that shape, a capacity is negative, or the
            kernels cannot run on its device.
    """
    return list_mask(mask, stride, capacity, size=size, dilated_capacity=dilated_capacity).index


def list_mask(
    mask: Tensor,
    stride: int = 1,
    capacity: int | None = None,
    *,
    size: tuple[int, int] | None = None,
    dilated_capacity: int | None = None,
) -> ListedMask:
    """`build_index`, and where images begin."""
    runs, why = available(mask.device)
    if not runs:
        raise ValueError(f"The Triton kernels cannot build this index: {why}.")
    if stride not in (1, 2):
        raise ValueError(f"The stride of a masked 3x3 convolution is 1 or 2; got {stride}.")
    if mask.ndim not in (3, 4) or min(mask.shape) < 1:
        raise ValueError(
            "A mask is (B, 1, Ho, Wo) or (B, Ho, Wo), with at least one pixel; got "
            f"{tuple(mask.shape)}."
        )
    batch, out_height, out_width = len(mask), mask.shape[-2], mask.shape[-1]
    height, width = size or (out_height * stride, out_width * stride)
    if output_size(height, width, stride) != (out_height, out_width):
        raise ValueError(
            f"A stride of {stride} makes {output_size(height, width, stride)} output pixels of "
            f"{(height, width)}; the mask has {(out_height, out_width)}."
        )
    flags = check_mask(mask, (batch, out_height, out_width), mask.device).view(torch.uint8)
    total, out_total = batch * height * width, batch * out_height * out_width
    room = out_total if capacity is None else capacity
    dilated_room = total if dilated_capacity is None else dilated_capacity
    longest = max(total, room, dilated_room)
    if min(room, dilated_room) < 0 or longest >= LARGEST - BLOCK:
        raise ValueError(
            f"A list has room for 0 to 2^31 - {BLOCK + 1} pixels, like its grid; got a grid of "
            f"{total} and capacities {room} and {dilated_room}."
        )
    from flyball.kernels.gpu.index_kernels import count_blocks, list_blocks

    blocks = -(-longest // BLOCK)
    active, dilated, rank, counts, active_starts, dilated_starts, in_block, near_block = (
        torch.empty(length, dtype=torch.int32, device=mask.device)
        for length in (room, dilated_room, total, 2, batch + 1, batch + 1, blocks, blocks)
    )
    constants = {"STRIDE": stride, "BLOCK": BLOCK, "num_warps": 4, "enable_fp_fusion": True}
    grids = (height, width, out_height, out_width, out_total, total)
    with torch.cuda.device_of(flags):  # type: ignore[no-untyped-call]
        count_blocks[(blocks,)](flags, in_block, near_block, *grids, **constants)
        list_blocks[(blocks,)](
            *(flags, in_block, near_block, active, dilated, rank, counts),
            *(active_starts, dilated_starts, batch, *grids, blocks, room, dilated_room),
            CHUNK=CHUNK,
            **constants,
        )
    index = SparseIndex(
        batch=batch,
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        stride=stride,
        active=active,
        dilated=dilated,
        rank=rank,
        counts=counts,
    )
    return ListedMask(index, active_starts, dilated_starts)
