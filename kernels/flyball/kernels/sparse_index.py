"""Which pixels run: lists of active and dilated positions, and the map from one to the other.

B batch, H, W input pixels, Ho, Wo output pixels, P active pixels, Q dilated pixels. Positions are
flat, row-major over (B, H, W) or (B, Ho, Wo), and lists increase. DynConv section 3.2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flyball.kernels.dispatch import choose
from flyball.kernels.layout import check_mask, output_size

__all__ = [
    "Executed",
    "SparseIndex",
    "build_index",
    "dilate_mask",
    "executed_rows",
    "neighbours",
    "taps",
]


@dataclass(frozen=True)
class SparseIndex:
    """The pixels that a masked 3x3 convolution computes and those it looks at.

    Attributes:
        batch, height, width: the input grid.
        out_height, out_width: the output grid, on which the mask lies.
        stride: of the 3x3 convolution, whose padding is 1.
        active: int32 (capacity,), active positions in the output grid; valid up to counts[0].
        dilated: int32 (capacity,), positions in the input grid under the 3x3 window of an active
            pixel; valid up to counts[1].
        rank: int32 (B * H * W,), where a position stands in `dilated`, -1 where it does not.
        counts: int32 (2,), on the device: how many pixels are active and dilated, also where a
            list is too short for them.
    """

    batch: int
    height: int
    width: int
    out_height: int
    out_width: int
    stride: int
    active: Tensor
    dilated: Tensor
    rank: Tensor
    counts: Tensor

    def check(self) -> None:
        """That both lists hold everything; waits for the device.

        Raises:
            ValueError: there are more active or dilated pixels than a list has room for.
        """
        active, dilated = (int(count) for count in self.counts)
        for name, count, room in (
            ("active", active, len(self.active)),
            ("dilated", dilated, len(self.dilated)),
        ):
            if count > room:
                raise ValueError(
                    f"The list of {name} pixels has room for {room}; the mask has {count}. The "
                    "first ones are listed and nothing is written past the end; build the index "
                    f"with a capacity of {count} or more, or without one."
                )


class Executed(NamedTuple):
    """Rows that a masked block computes.

    Attributes:
        active: N of DynConv Eq. (11), active pixels of each image; int64 (B,).
        dilated: N_dilated, pixels of the input grid that a 3x3 window around one touches; (B,).
    """

    active: Tensor
    dilated: Tensor


def build_index(
    mask: Tensor,
    *,
    stride: int = 1,
    size: tuple[int, int] | None = None,
    capacity: int | None = None,
    dilated_capacity: int | None = None,
) -> SparseIndex:
    """Lists the active and dilated pixels of a mask.

    Args:
        mask: (B, 1, Ho, Wo) or (B, Ho, Wo), bool.
        stride: of the 3x3 convolution, 1 or 2.
        size: (H, W) of the input grid; None for (Ho * stride, Wo * stride).
        capacity: room for active pixels. None: on CPU as many as there are, elsewhere the whole
            grid, so that nothing waits for the device.
        dilated_capacity: likewise for dilated pixels.

    Raises:
        ValueError: the mask is not bool or not of that shape, or the sizes do not fit together.
    """
    mask, height, width = _on_grids(mask, stride, size)
    for name, room in (("capacity", capacity), ("dilated_capacity", dilated_capacity)):
        if room is not None and room < 0:
            raise ValueError(f"{name} is a number of pixels >= 0; got {room}.")
    if mask.device.type == "cuda" and choose("auto", torch.float32, mask.device).name == "triton":
        from flyball.kernels import gpu

        return gpu.build_index(
            mask, stride, capacity, size=(height, width), dilated_capacity=dilated_capacity
        )
    dilated = _dilated(mask, stride, height, width).flatten()
    on_cpu = mask.device.type == "cpu"
    active_list, active_count = _listed(mask.flatten(), capacity, on_cpu)
    dilated_list, dilated_count = _listed(dilated, dilated_capacity, on_cpu)
    rank = torch.where(dilated, dilated.cumsum(0, dtype=torch.int32) - 1, -1)
    if dilated_capacity is not None:
        rank = torch.where(rank < dilated_capacity, rank, -1)
    return SparseIndex(
        batch=len(mask),
        height=height,
        width=width,
        out_height=mask.shape[1],
        out_width=mask.shape[2],
        stride=stride,
        active=active_list,
        dilated=dilated_list,
        rank=rank,
        counts=torch.stack([active_count, dilated_count]),
    )


def dilate_mask(mask: Tensor, *, stride: int = 1, size: tuple[int, int] | None = None) -> Tensor:
    """The input pixels that a 3x3 window (padding 1) around an active output pixel touches.

    Args:
        mask: (B, 1, Ho, Wo) or (B, Ho, Wo), bool.
        stride: 1 or 2.
        size: (H, W) of the input grid; None for (Ho * stride, Wo * stride).

    Returns:
        (B, 1, H, W) or (B, H, W), bool.

    Raises:
        ValueError: as `build_index`.
    """
    flat, height, width = _on_grids(mask, stride, size)
    dilated = _dilated(flat, stride, height, width)
    return dilated[:, None] if mask.ndim == 4 else dilated


def executed_rows(
    mask: Tensor, *, stride: int = 1, size: tuple[int, int] | None = None
) -> Executed:
    """N and N_dilated of DynConv Eq. (11) for each image; arguments and errors of `dilate_mask`."""
    flat, height, width = _on_grids(mask, stride, size)
    dilated = _dilated(flat, stride, height, width)
    return Executed(flat.sum((1, 2)), dilated.sum((1, 2)))


def taps(index: SparseIndex, positions: Tensor) -> Tensor:
    """Input positions under the 3x3 window of output positions; -1 beyond the border.

    Args:
        index: gives the grids and the stride.
        positions: int32 (N,), flat in the output grid; -1 gives a row of -1.

    Returns:
        int32 (N, 9), row-major over the window.
    """
    pixels = index.batch * index.height * index.width
    return _windows(
        index, positions, torch.arange(pixels, dtype=torch.int32, device=positions.device)
    )


def neighbours(index: SparseIndex) -> Tensor:
    """Rows of the dilated list under the 3x3 window of every active pixel; -1 beyond the border.

    Returns:
        int32 (capacity, 9), valid up to counts[0]; rows of -1 follow.
    """
    return _windows(index, index.active, index.rank)


def _windows(index: SparseIndex, positions: Tensor, values: Tensor) -> Tensor:
    """(N, 9): the values (B * H * W,) under each position's window, -1 beyond the border."""
    grid = values.view(index.batch, index.height, index.width)
    grid = F.pad(grid, (1, 1, 1, 1), value=-1)
    wide, stride = index.width + 2, index.stride
    line = positions.div(index.out_width, rounding_mode="floor")
    corner = line * (stride * (wide - index.out_width)) + positions * stride
    if index.batch > 1:
        image = line.div(index.out_height, rounding_mode="floor")
        corner += image * ((index.height + 2 - index.out_height * stride) * wide)
    steps = torch.arange(3, dtype=corner.dtype, device=corner.device)
    offsets = (steps[:, None] * wide + steps).view(9)
    flat = (corner[:, None] + offsets).view(-1)
    found = grid.view(-1).index_select(0, flat.clamp_min_(0)).view(-1, 9)
    return torch.where((positions >= 0)[:, None], found, -1)


def _on_grids(mask: Tensor, stride: int, size: tuple[int, int] | None) -> tuple[Tensor, int, int]:
    if stride not in (1, 2):
        raise ValueError(f"The stride of a masked 3x3 convolution is 1 or 2; got {stride}.")
    if mask.ndim not in (3, 4) or min(mask.shape) < 1:
        raise ValueError(
            "A mask is (B, 1, Ho, Wo) or (B, Ho, Wo), with at least one pixel; got "
            f"{tuple(mask.shape)}. Give one image's mask as mask[None]."
        )
    shape = (len(mask), mask.shape[-2], mask.shape[-1])
    height, width = size or (shape[1] * stride, shape[2] * stride)
    if output_size(height, width, stride) != shape[1:]:
        raise ValueError(
            f"A stride of {stride} makes {output_size(height, width, stride)} output pixels of "
            f"{(height, width)}; the mask has {shape[1:]}. Give the size of the convolution's "
            "input, and a mask of its output."
        )
    return check_mask(mask, shape, mask.device), height, width


def _dilated(mask: Tensor, stride: int, height: int, width: int) -> Tensor:
    """(B, H, W): rows first, then columns; three shifted copies each."""
    if stride == 2:
        spread = mask.new_zeros((len(mask), height, width))
        spread[:, ::2, ::2] = mask
        mask = spread
    wide = F.pad(mask, (1, 1, 1, 1))
    wide = wide[:, :, :-2] | wide[:, :, 1:-1] | wide[:, :, 2:]
    return wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]


def _listed(flags: Tensor, capacity: int | None, on_cpu: bool) -> tuple[Tensor, Tensor]:
    """Positions of the flags, -1 after the last one, and their true count."""
    if capacity is None and on_cpu:
        found = flags.nonzero().view(-1).to(torch.int32)
        return found, torch.tensor(len(found), dtype=torch.int32)
    room = flags.numel() if capacity is None else capacity
    place = flags.cumsum(0) - 1
    place = torch.where(flags & (place < room), place, room)
    listed = torch.full((room + 1,), -1, dtype=torch.int32, device=flags.device)
    positions = torch.arange(flags.numel(), dtype=torch.int32, device=flags.device)
    listed.scatter_(0, place, positions)
    return listed[:room], flags.sum(dtype=torch.int32)
