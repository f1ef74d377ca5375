"""C3D-W: the clip through its pools, the layers that are gated, and nested widths in time."""

import pytest
import torch

from flyball.datapaths.axes import is_gated
from flyball.datapaths.c3d import C3dConfig, ThrottleableC3d, c3d_w, small_c3d
from flyball.datapaths.cost import executed_macs
from flyball.datapaths.execution import Sliced

# TNN Table 3, after every layer: channels, frames, height, width.
TABLE_3 = [
    (64, 16, 100, 160),
    (128, 16, 50, 80),
    (256, 8, 25, 40),
    (256, 8, 25, 40),
    (512, 4, 12, 20),
    (512, 4, 12, 20),
    (512, 2, 6, 10),
    (512, 2, 6, 10),
]


def seen_shapes(network: ThrottleableC3d, x: torch.Tensor, counts: tuple[int, ...]) -> list[object]:
    """What every convolution and hidden layer gives, without the batch."""
    shapes: list[object] = []
    handles = [
        layer.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape[1:])))
        for layer in (*network.convs, *network.hidden, network.classifier)
    ]
    network.sliced(x, counts)
    for handle in handles:
        handle.remove()
    return shapes


def test_every_layer_gives_what_table_3_says() -> None:
    with torch.device("meta"):
        network = ThrottleableC3d(c3d_w())
        x = torch.empty(1, 3, 16, 100, 160)
    assert seen_shapes(network, x, network.components) == [*TABLE_3, (512,), (512,), (27,)]
    assert network.config.pooled_shape == (1, 3, 5)


def test_at_half_every_gated_layer_gives_half_of_it_and_the_first_all() -> None:
    with torch.device("meta"):
        network = ThrottleableC3d(c3d_w())
        x = torch.empty(1, 3, 16, 100, 160)
    halves = [(c // 2, *rest) for c, *rest in TABLE_3[1:]]
    counts = network.counts_at(0.5)
    assert counts == (8, *(16,) * 6, 8, 8)
    assert seen_shapes(network, x, counts) == [TABLE_3[0], *halves, (256,), (256,), (27,)]


def test_a_layer_of_one_component_is_never_gated() -> None:
    network = ThrottleableC3d(small_c3d(components=(1, 16, 1, 8, 1)))
    assert network.components == (16, 8)
    axes = [layer.axis_out for layer in (*network.convs, *network.hidden)]
    assert [is_gated(axis) for axis in axes] == [False, True, False, True, False]


def test_the_small_one_halves_a_clip_three_times_and_costs_32_million_macs() -> None:
    network = ThrottleableC3d(small_c3d())
    assert network.input_shape == (1, 16, 32, 32)
    assert network.config.pooled_shape == (2, 4, 4)
    first, second = 16 * 32**2 * 27 * 8, 8 * 16**2 * 27 * 8 * 32
    third, hidden = 4 * 8**2 * 27 * 32 * 64, 2 * 4 * 4 * 64 * 128 + 128 * 128 + 128 * 10
    total = executed_macs(network.layer_costs(), network.components)
    assert total == first + second + third + hidden
    assert executed_macs(network.layer_costs(), network.counts_at(0.0)) < total / 7


def test_frames_and_pixels_that_no_pool_fills_are_dropped() -> None:
    config = C3dConfig(
        ((4,), (4,)), ((1, 2, 2), (2, 2, 2)), (4,), (1, 2, 2), frames=3, image_size=7
    )
    assert config.pooled_shape == (1, 1, 1)
    network = ThrottleableC3d(config)
    assert network.sliced(torch.rand(2, 1, 3, 7, 7), network.components).logits.shape == (2, 10)


@pytest.mark.parametrize("width", [None, 24])
def test_a_frame_is_as_wide_as_high_unless_said(width: int | None) -> None:
    assert small_c3d(image_width=width).input_shape == (1, 16, 32, width or 32)


def test_the_order_of_the_frames_matters() -> None:
    torch.manual_seed(0)
    network = ThrottleableC3d(small_c3d()).requires_grad_(False).eval()
    clip = torch.rand(1, 1, 16, 32, 32)
    there, back = (network.sliced(x, network.components).logits for x in (clip, clip.flip(2)))
    assert float((there - back).abs().max()) > 1e-4


def test_a_component_of_a_3d_layer_does_not_feel_how_many_others_are_on() -> None:
    torch.manual_seed(0)
    network = ThrottleableC3d(small_c3d()).double()
    x = torch.rand(2, 8, 4, 6, 6, dtype=torch.float64)
    few, many = (network.convs[1](x, Sliced([count, 16, 16, 16])) for count in (3, 16))
    # float64, other accumulation order
    torch.testing.assert_close(few, many[:, : few.shape[1]], rtol=1e-12, atol=1e-12)
