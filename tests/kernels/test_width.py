"""Width-sliced layers equal the dense layer with the inactive channels left out."""

import pytest
import torch
from torch.nn import functional as F

from flyball.kernels import (
    Active,
    active_count,
    conv_active,
    expand_active,
    group_norm_active,
    linear_active,
)

PREFIX_OR_INDICES: list[Active] = [1, 3, 6, torch.tensor([0, 2, 5]), torch.tensor([4])]


def indices(active: Active) -> torch.Tensor:
    return torch.arange(active) if isinstance(active, int) else active


@pytest.mark.parametrize("active_in", PREFIX_OR_INDICES)
@pytest.mark.parametrize("active_out", PREFIX_OR_INDICES)
def test_a_sliced_convolution_is_the_dense_one_on_zeroed_inputs(
    active_in: Active, active_out: Active
) -> None:
    x, weight = torch.rand(2, 6, 5, 7).double(), torch.rand(6, 6, 3, 3).double()
    bias = torch.rand(6).double()
    zeroed = torch.zeros_like(x)
    zeroed[:, indices(active_in)] = x[:, indices(active_in)]
    dense = F.conv2d(zeroed, weight, bias, padding=1)[:, indices(active_out)]
    sliced = conv_active(x[:, indices(active_in)], weight, bias, active_in, active_out, padding=1)
    # float64, another order of summation
    torch.testing.assert_close(sliced, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("active", PREFIX_OR_INDICES)
def test_a_sliced_linear_layer_is_the_dense_one_on_zeroed_inputs(active: Active) -> None:
    x, weight = torch.rand(4, 6).double(), torch.rand(6, 6).double()
    zeroed = torch.zeros_like(x)
    zeroed[:, indices(active)] = x[:, indices(active)]
    dense = F.linear(zeroed, weight)[:, indices(active)]
    sliced = linear_active(x[:, indices(active)], weight, None, active, active)
    torch.testing.assert_close(sliced, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("active", PREFIX_OR_INDICES)
def test_a_component_is_normalised_by_its_own_statistics(active: Active) -> None:
    x, scale, shift = torch.rand(2, 12, 3, 3).double(), torch.rand(12).double(), torch.rand(12)
    channels = indices(expand_active(active, 2))
    whole = F.group_norm(x, 6, scale, shift.double())[:, channels]
    part = group_norm_active(x[:, channels], scale, shift.double(), expand_active(active, 2), 2)
    torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12)


def test_components_expand_to_their_channels() -> None:
    assert expand_active(3, 4) == 12
    expanded = expand_active(torch.tensor([0, 2]), 3)
    assert isinstance(expanded, torch.Tensor)
    assert expanded.tolist() == [0, 1, 2, 6, 7, 8]
    assert (active_count(5), active_count(torch.tensor([1, 4]))) == (5, 2)
