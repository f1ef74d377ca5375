"""VGG-W: sliced equals masked at every arm, and costs what the ledger says."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from flyball.datapaths.axes import is_gated
from flyball.datapaths.cost import executed_macs, linear_macs, measured_macs
from flyball.datapaths.errors import BadInput, InvalidSetting
from flyball.datapaths.execution import Packed, Sliced
from flyball.datapaths.gates import independent_components, nested_mask
from flyball.datapaths.modules import Norm
from flyball.datapaths.vgg import ThrottleableVgg, VggConfig, small_vgg, vgg_d
from flyball.kernels import Active


def network(config: VggConfig, seed: int = 0) -> ThrottleableVgg:
    torch.manual_seed(seed)
    built = ThrottleableVgg(config).double()
    with torch.no_grad():  # biases and scales that would show a wrong slice
        for name, parameter in built.named_parameters():
            if name.endswith("bias") or ".norm." in name:
                parameter.normal_()
    return built


def mask_of(active: Active, components: int, samples: int) -> Tensor:
    mask = torch.zeros(components, dtype=torch.float64)
    mask[slice(active) if isinstance(active, int) else active] = 1.0
    return mask.expand(samples, -1)


CONFIGS = {
    "group": small_vgg(in_channels=1, image_size=8),
    "published": small_vgg(in_channels=3, image_size=8, norm="none"),
    "two in a stage": small_vgg(stages=((16, 32), (32,)), in_channels=3, image_size=16),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("count", range(1, 17))
def test_nested_sliced_equals_masked_at_every_count(name: str, count: int) -> None:
    net = network(CONFIGS[name])
    x = torch.rand(3, CONFIGS[name].in_channels, *(CONFIGS[name].image_size,) * 2).double()
    gates: Sequence[Active] = [count] * len(net.components)
    masks = [mask_of(count, n, 3) for n in net.components]
    # float64 accumulates differently in other shapes: a few units in the last place.
    torch.testing.assert_close(
        net.sliced(x, gates).logits, net.masked(x, masks), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("count", [1, 5, 16])
def test_independent_sliced_equals_masked(norm: Norm, count: int) -> None:
    config = small_vgg(in_channels=1, image_size=8, gating="independent", norm=norm)
    net = network(config)
    x = torch.rand(3, 1, 8, 8).double()
    gates = [
        independent_components(count, n, module=m, seed=3) for m, n in enumerate(net.components)
    ]
    masks = [mask_of(gate, n, 3) for gate, n in zip(gates, net.components, strict=True)]
    torch.testing.assert_close(
        net.sliced(x, gates).logits, net.masked(x, masks), rtol=1e-9, atol=1e-9
    )


def test_gradients_of_sliced_and_masked_agree() -> None:
    net = network(CONFIGS["group"])
    x = torch.rand(4, 1, 8, 8).double()
    masks = [nested_mask(torch.full((4,), 6), n).double() for n in net.components]
    parameters = list(net.parameters())
    sliced = torch.autograd.grad(net.sliced(x, [6, 6, 6]).logits.square().sum(), parameters)
    masked = torch.autograd.grad(net.masked(x, masks).square().sum(), parameters)
    for ours, theirs in zip(sliced, masked, strict=True):
        # float64, other accumulation order
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("config", [CONFIGS["published"], CONFIGS["group"]])
def test_packed_equals_sliced_and_packs_once(config: VggConfig) -> None:
    net = network(config).float().requires_grad_(False)
    x = torch.rand(2, config.in_channels, 8, 8)
    gates = Packed([6, 6, 6])
    with torch.inference_mode():
        first, again = net.run(x, gates), net.run(x, gates)
    assert torch.equal(first.logits, again.logits)
    # float32: oneDNN adds up in another order
    torch.testing.assert_close(first.logits, net.sliced(x, [6, 6, 6]).logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.pooled, net.sliced(x, [6, 6, 6]).pooled, rtol=1e-5, atol=1e-5)


def test_an_active_component_does_not_feel_how_many_others_are_on() -> None:
    net = network(CONFIGS["group"])
    x = torch.rand(2, 1, 8, 8).double()
    few, many = (net.convs[0](x, Sliced([count] * 3)) for count in (2, 16))
    torch.testing.assert_close(few, many[:, : few.shape[1]], rtol=1e-12, atol=1e-12)


def test_vgg_d_has_the_papers_parameters_and_macs() -> None:
    net = ThrottleableVgg(vgg_d())
    assert sum(p.numel() for p in net.parameters()) == 18_557_770
    layers = net.layer_costs()
    full = executed_macs(layers, net.components)
    convolutions = [layer for layer in layers if layer.name.startswith("convs")]
    assert executed_macs(convolutions, net.components) == 190_513_152
    assert full == 190_513_152 + 16_818_176 == linear_macs(layers, net.components)


@pytest.mark.parametrize("config", [small_vgg(in_channels=1, image_size=8), vgg_d()])
def test_executed_macs_are_those_that_really_ran(config: VggConfig) -> None:
    net = ThrottleableVgg(config).requires_grad_(False)
    x = torch.rand(1, config.in_channels, config.image_size, config.image_size)
    for count in (1, 2, 7, 16):
        gates = [count] * len(net.components)
        ran = measured_macs(lambda gates=gates: net.sliced(x, gates))  # type: ignore[misc]
        assert ran == executed_macs(net.layer_costs(), gates)


def test_executed_falls_as_the_square_of_the_share_and_linear_as_the_share() -> None:
    net = ThrottleableVgg(vgg_d())
    layers, half = net.layer_costs(), [8] * len(net.components)
    gated = [layer for layer in layers if is_gated(layer.axis_in) and is_gated(layer.axis_out)]
    full = executed_macs(gated, net.components)
    assert executed_macs(gated, half) * 4 == full
    assert linear_macs(gated, half) * 2 == full


def test_components_must_divide_the_channels() -> None:
    with pytest.raises(InvalidSetting, match="5 components do not divide 32 outputs"):
        ThrottleableVgg(small_vgg(components=5))


def test_stages_that_are_no_lists_are_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"Every stage is a list.*path\.stages="):
        small_vgg(stages=(8, 16))


def test_an_image_too_small_for_its_pools_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"30 pixels are not a multiple of 8.*image_size=24"):
        vgg_d(image_size=30)


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "layer"},
        {"gating": "nestde"},
        {"hidden": 0},
        {"classes": 0},
        {"in_channels": -1},
        {"components": 0},
        {"stages": ((0,), (16,))},
    ],
)
def test_a_field_that_breaks_its_rule_is_named(change: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=rf"--set path\.{next(iter(change))}="):
        small_vgg(**change)
