"""Lists of pixels agree with a count pixel by pixel, and never grow past their capacity."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flyball.kernels import (
    SparseIndex,
    build_index,
    dilate_mask,
    executed_rows,
    hard_mask,
    neighbours,
)
from flyball.kernels.sparse_index import taps

MaskOf = Callable[..., Tensor]
GRIDS = [(1, 1, 1), (1, 7, 7), (2, 7, 7), (2, 6, 8), (1, 5, 9)]


def looked_at(mask: Tensor, stride: int, height: int, width: int) -> Tensor:
    """(B, H, W), by walking every window of every active pixel."""
    touched = torch.zeros(len(mask), height, width, dtype=torch.bool)
    for image, row, column in mask.nonzero().tolist():
        for y in range(stride * row - 1, stride * row + 2):
            for x in range(stride * column - 1, stride * column + 2):
                if 0 <= y < height and 0 <= x < width:
                    touched[image, y, x] = True
    return touched


def input_size(index: int, stride: int, height: int, width: int) -> tuple[int, int]:
    """Both sizes that a stride brings to the same output."""
    return (height * stride, width * stride - index) if stride == 2 else (height, width)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_lists_are_the_pixels_that_windows_touch(
    grid: tuple[int, int, int], stride: int, family: str, mask_of: MaskOf
) -> None:
    batch, out_height, out_width = grid
    mask = mask_of(family, batch, out_height, out_width)
    for odd in range(stride):
        height, width = input_size(odd, stride, out_height, out_width)
        index = build_index(mask, stride=stride, size=(height, width))
        touched = looked_at(mask[:, 0], stride, height, width)
        active = mask.flatten().nonzero().view(-1)
        dilated = touched.flatten().nonzero().view(-1)
        index.check()
        assert index.active.dtype == index.dilated.dtype == index.rank.dtype == torch.int32
        assert index.active.tolist() == active.tolist()
        assert index.dilated.tolist() == dilated.tolist()
        assert index.counts.tolist() == [len(active), len(dilated)]
        rank = torch.full((touched.numel(),), -1)
        rank[dilated] = torch.arange(len(dilated))
        assert index.rank.tolist() == rank.tolist()
        assert torch.equal(dilate_mask(mask, stride=stride, size=(height, width))[:, 0], touched)
        executed = executed_rows(mask[:, 0], stride=stride, size=(height, width))
        assert executed.active.tolist() == mask.sum((1, 2, 3)).tolist()
        assert executed.dilated.tolist() == touched.sum((1, 2)).tolist()


@pytest.mark.parametrize("stride", [1, 2])
def test_windows_hold_the_pixels_around_an_active_one(
    stride: int, family: str, mask_of: MaskOf
) -> None:
    mask = mask_of(family, 2, 5, 4)
    height, width = 5 * stride, 4 * stride - (stride == 2)
    index = build_index(mask, stride=stride, size=(height, width))
    at, ranks = taps(index, index.active), neighbours(index)
    assert at.shape == ranks.shape == (len(index.active), 9)
    for place, (image, row, column) in enumerate(mask[:, 0].nonzero().tolist()):
        for tap in range(9):
            y, x = stride * row + tap // 3 - 1, stride * column + tap % 3 - 1
            inside = 0 <= y < height and 0 <= x < width
            flat = (image * height + y) * width + x if inside else -1
            assert int(at[place, tap]) == flat
            if inside:
                assert int(index.dilated[ranks[place, tap]]) == flat
            else:
                assert int(ranks[place, tap]) == -1


def test_a_full_list_keeps_the_first_pixels_and_the_true_count(
    family: str, mask_of: MaskOf
) -> None:
    mask = mask_of(family, 2, 6, 5)
    whole = build_index(mask)
    for room, near_room in ((0, 0), (3, 5), (60, 60), (61, 75)):
        index = build_index(mask, capacity=room, dilated_capacity=near_room)
        assert len(index.active) == room
        assert len(index.dilated) == near_room
        assert torch.equal(index.counts, whole.counts)
        kept, near = min(room, len(whole.active)), min(near_room, len(whole.dilated))
        assert torch.equal(index.active[:kept], whole.active[:kept])
        assert torch.equal(index.dilated[:near], whole.dilated[:near])
        assert bool((index.active[kept:] == -1).all())
        assert bool((index.dilated[near:] == -1).all())
        ranks = torch.where(whole.rank < near_room, whole.rank, -1)
        assert torch.equal(index.rank, ranks)
        assert bool((neighbours(index)[kept:] == -1).all())
        if room < len(whole.active):
            with pytest.raises(ValueError, match=f"room for {room}; the mask has"):
                index.check()
        elif near_room < len(whole.dilated):
            with pytest.raises(ValueError, match="dilated pixels has room"):
                index.check()
        else:
            index.check()


def test_an_image_is_listed_alike_in_any_batch(mask_of: MaskOf) -> None:
    masks = mask_of("mixed", 7, 6, 5)
    whole = build_index(masks)
    found = 0
    for image in range(7):
        alone = build_index(masks[image : image + 1])
        part = whole.active[found : found + len(alone.active)]
        assert torch.equal(part - image * 30, alone.active)
        found += len(alone.active)
    assert found == len(whole.active)


def test_what_runs_where_a_soft_decision_is_zero() -> None:
    soft = torch.tensor([[-1e-30, 0.0, -0.0, 3.0, -torch.inf, torch.inf]])
    assert hard_mask(soft).tolist() == [[False, True, True, True, False, True]]
    assert hard_mask(soft.half().requires_grad_()).requires_grad is False


def test_nan_decisions_are_refused() -> None:
    soft = torch.zeros(2, 1, 3, 3)
    soft[1, 0, 2, 2] = torch.nan
    with pytest.raises(ValueError, match="1 of 18 are NaN"):
        hard_mask(soft)
    with pytest.raises(ValueError, match="already hard"):
        hard_mask(soft > 0)


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (torch.zeros(1, 1, 4, 4), {}, r"hard_mask\(soft\)"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), {}, r"mask.bool\(\)"),
        (torch.zeros(4, 4, dtype=torch.bool), {}, r"mask\[None\]"),
        (torch.zeros(1, 2, 4, 4, dtype=torch.bool), {}, "one value for each output pixel"),
        (torch.zeros(0, 1, 4, 4, dtype=torch.bool), {}, "at least one pixel"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.bool), {"stride": 3}, "1 or 2; got 3"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.bool), {"size": (4, 5)}, r"the mask has \(4, 4\)"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.bool), {"capacity": -1}, "capacity is a number"),
    ],
)
def test_what_is_no_mask_is_refused(mask: Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_index(mask, **options)  # type: ignore[arg-type]


def test_an_index_cannot_be_changed(mask_of: MaskOf) -> None:
    index = build_index(mask_of("blobs", 1, 4, 4))
    with pytest.raises(AttributeError):
        index.stride = 2  # type: ignore[misc]
    assert isinstance(replace(index, stride=2), SparseIndex)
