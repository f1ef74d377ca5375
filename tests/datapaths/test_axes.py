"""Axes say which channels are on; counts, indices and masks of one gate agree."""

import pytest
import torch
from torch import Tensor

from flyball.datapaths.axes import (
    Axis,
    Segment,
    active_channels,
    channel_mask,
    channels_of,
    count_active,
    dense,
    gated,
    is_gated,
    times,
)
from flyball.datapaths.errors import InvalidSetting
from flyball.kernels import Active

# Two modules of 4 and 3 components; the third axis is that of a dense block: a stem, then layers.
AXES: dict[str, Axis] = {
    "dense": dense(5),
    "gated": gated(12, 0, 4),
    "one component": (Segment(6, 1, 2, 1),),
    "dense block": (Segment(3), Segment(2, 0, 0), Segment(2, 0, 1), Segment(2, 0, 2, 2)),
    "two modules": (*gated(8, 0, 4), *gated(6, 1, 3)),
}
GATES: list[list[Active]] = [
    [4, 3],
    [2, 1],
    [1, 0],
    [torch.tensor([0, 3]), torch.tensor([1])],
    [torch.tensor([2]), 3],
]


def masks_of(active: list[Active]) -> list[Tensor]:
    masks = []
    for gate, n in zip(active, (4, 3), strict=True):
        mask = torch.zeros(1, n)
        mask[0, slice(gate) if isinstance(gate, int) else gate] = 1.0
        masks.append(mask)
    return masks


def indices(active: Active) -> list[int]:
    return list(range(active)) if isinstance(active, int) else active.tolist()


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("active", GATES)
def test_active_channels_are_those_whose_mask_is_one(name: str, active: list[Active]) -> None:
    axis = AXES[name]
    mask = channel_mask(axis, masks_of(active))
    on = torch.ones(channels_of(axis)) if mask is None else mask[0]
    assert indices(active_channels(axis, active)) == torch.nonzero(on).flatten().tolist()
    assert count_active(axis, active) == int(on.sum())
    assert is_gated(axis) == (mask is not None)


def test_nested_gates_of_one_dense_block_leave_a_prefix() -> None:
    assert active_channels(AXES["dense block"], [2, 0]) == 7


def test_flattening_repeats_every_channel() -> None:
    assert active_channels(times(gated(8, 0, 4), 9), [3, 0]) == 3 * 2 * 9


def test_soft_masks_carry_gradients_to_their_component() -> None:
    soft = torch.full((1, 4), 0.5, requires_grad=True)
    mask = channel_mask(gated(12, 0, 4), [soft])
    assert mask is not None
    (mask * torch.arange(12.0)).sum().backward()  # type: ignore[no-untyped-call]
    assert soft.grad is not None
    assert soft.grad.tolist() == [[0 + 1 + 2, 3 + 4 + 5, 6 + 7 + 8, 9 + 10 + 11]]


def test_components_share_channels_equally() -> None:
    with pytest.raises(InvalidSetting, match="5 components do not divide 12 outputs"):
        gated(12, 0, 5)
