"""DynConv's published structures, number by number, and Eqs. 10 and 11 against rows that ran."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from flyball.datapaths.cost import measured_macs
from flyball.datapaths.dynconv.blocks import (
    BasicBlock,
    Bottleneck,
    ConditionalBlock,
    InvertedResidual,
)
from flyball.datapaths.dynconv.hourglass import Hourglass, mpii_hourglass, small_hourglass
from flyball.datapaths.dynconv.masks import Masking, SparseMasking, SqueezeUnit, TrainingMasking
from flyball.datapaths.dynconv.network import DynConvNetwork, NetworkCost
from flyball.datapaths.dynconv.resnet import (
    DynConvResNet,
    DynConvResNetConfig,
    cifar_resnet,
    resnet_101,
)

SMALL: dict[str, Any] = {
    "basic": replace(cifar_resnet(14, widths=(4, 6, 8)), image_size=17),
    "bottleneck": DynConvResNetConfig(
        layers=(2, 2), widths=(4, 6), bottleneck=True, stem="imagenet", image_size=38
    ),
    "hourglass": small_hourglass(2, features=8, classes=5),
}
BLOCKS: dict[str, Any] = {
    "basic": lambda stride: BasicBlock(6, 6 if stride == 1 else 8, stride, "squeeze"),
    "bottleneck": lambda stride: Bottleneck(12, 4, 12 if stride == 1 else 16, stride, "squeeze"),
    "inverted residual": lambda stride: InvertedResidual(
        6, 6 if stride == 1 else 8, 24, stride, "conv"
    ),
}


def made(config: Any) -> DynConvNetwork:
    kind = DynConvResNet if isinstance(config, DynConvResNetConfig) else Hourglass
    network: DynConvNetwork = kind(config)
    return network


def parameters_of(network: nn.Module, *, masks: bool) -> int:
    """Without what a requested budget adds: the published networks have one budget."""
    return sum(
        parameter.numel()
        for name, parameter in network.named_parameters()
        if not name.startswith("shift.") and (masks or ".unit." not in name)
    )


def linear_unit_macs(network: DynConvNetwork) -> int:
    units = [block.unit for block in network.conditional]
    return sum(unit.linear.in_features for unit in units if isinstance(unit, SqueezeUnit))


def test_resnet_32_for_cifar() -> None:
    network = made(cifar_resnet(32))
    cost = network.costs()
    head, stem, shortcuts = 64 * 10, 442_368, 262_144
    assert len(cost.blocks) == 15
    assert cost.conditional == 68_419_584
    assert cost.fixed == stem + shortcuts + head
    assert cost.full - head == 69_124_096
    assert cost.units - linear_unit_macs(network) == 1_234_944
    assert parameters_of(network, masks=False) == 466_906
    # Of every unit a 3x3 convolution without bias, and a linear layer with one.
    assert parameters_of(network, masks=True) == 466_906 + 10 * linear_unit_macs(network) + 15


@pytest.mark.parametrize(("depth", "blocks"), [(8, 3), (14, 6), (20, 9), (26, 12)])
def test_shallower_resnets_lack_blocks_of_the_same_price(depth: int, blocks: int) -> None:
    deep, cost = made(cifar_resnet(32)).costs(), made(cifar_resnet(depth)).costs()
    assert len(cost.blocks) == blocks
    assert cost.fixed == deep.fixed
    # All blocks but the two that widen cost 2 x 9 x 16 x 16 x 32 x 32 MACs.
    assert deep.conditional - cost.conditional == (15 - blocks) * 4_718_592


def test_resnet_101_for_imagenet() -> None:
    network = made(resnet_101())
    cost = network.costs()
    assert len(cost.blocks) == 33
    head = 2048 * 1000
    assert cost.fixed - head == 477_675_520
    assert cost.conditional == 7_321_681_920
    assert cost.full - head == 7_799_357_440
    assert cost.units - linear_unit_macs(network) == 71_801_856
    assert parameters_of(network, masks=False) == 44_549_160  # torchvision's own count


def test_the_4_stack_hourglass() -> None:
    dense = made(mpii_hourglass(4, mask_unit="none"))
    assert parameters_of(dense, masks=True) == 6_879_904
    assert dense.costs().full == 6_895_104_000
    assert dense.costs().blocks == ()


def test_the_4_stack_hourglass_with_1x1_mask_units() -> None:
    network = made(mpii_hourglass(4, is_budgeted=False))
    cost = network.costs()
    positions = 4 * (2 * 64**2 + 3 * (32**2 + 16**2 + 8**2 + 4**2)) + 64**2
    assert parameters_of(network, masks=True) == 6_885_433 == 6_879_904 + 57 * (96 + 1)
    assert len(cost.blocks) == 57
    assert positions == 53_184 == sum(block.pixels for block in cost.blocks)
    assert cost.conditional == 6_157_430_784 == positions * (9 * 576 + 2 * 96 * 576)
    assert cost.full == 6_895_104_000
    assert cost.units == positions * 96


def test_the_hourglass_of_half_the_channels() -> None:
    network = made(mpii_hourglass(4, width=0.5, mask_unit="none"))
    assert parameters_of(network, masks=True) == 1_834_960
    weights = network.costs().full
    assert weights == 1_826_125_824
    # 1.83 G either way; with one operation more for every bias it is 1.828551 G.
    assert weights + bias_additions(network) == 1_828_550_656


@pytest.mark.parametrize(("stacks", "blocks"), [(1, 15), (2, 29), (4, 57)])
def test_every_stack_adds_fourteen_conditional_blocks(stacks: int, blocks: int) -> None:
    cost = made(mpii_hourglass(stacks)).costs()
    assert len(cost.blocks) == blocks == 1 + 14 * stacks


@pytest.mark.parametrize("kind", SMALL)
def test_masks_and_budgets_cost_no_other_layer_anything(kind: str) -> None:
    dense = made(replace(SMALL[kind], mask_unit="none")).costs()
    masked = made(SMALL[kind]).costs()
    assert dense.units == 0
    assert masked.full == dense.full == dense.fixed


@pytest.mark.parametrize("kind", SMALL)
def test_full_cost_is_what_a_dense_pass_multiplies(kind: str) -> None:
    network = made(SMALL[kind]).eval()
    cost = network.costs()
    x = torch.randn(2, *network.input_shape)
    with torch.no_grad():
        assert measured_macs(lambda: network.run(x, Masking())) == 2 * cost.full
        masked = measured_macs(lambda: network.run(x, TrainingMasking()))
    assert masked == 2 * (cost.full + cost.units)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", BLOCKS)
def test_eq_10_is_what_a_dense_branch_multiplies(kind: str, stride: int) -> None:
    block: ConditionalBlock = BLOCKS[kind](stride).eval()
    x = torch.randn(1, block_inputs(block), 9, 12)
    with torch.no_grad():
        assert block.cost(9, 12).dense == measured_macs(lambda: block.branch(x))


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 1.0])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", BLOCKS)
def test_eq_11_is_what_the_rows_of_a_sparse_block_multiply(
    kind: str, stride: int, share: float
) -> None:
    block: ConditionalBlock = BLOCKS[kind](stride).eval()
    block.position = 0
    block.prepare("torch")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, block_inputs(block), 9, 12, generator=generator)
    mask = torch.rand(3, 1, -(-9 // stride), -(-12 // stride), generator=generator) < share
    masking = SparseMasking(given=[mask], keep=True)
    with torch.no_grad():
        block(x, masking)
    cost = NetworkCost(0, 0, (block.cost(9, 12),))
    assert int(cost.executed(masking.decisions).sum()) == macs_of_rows(block)
    assert masking.decisions[0].active.tolist() == mask.sum(dim=(1, 2, 3)).tolist()
    if share == 1.0:
        assert macs_of_rows(block) == 3 * cost.conditional
    if share == 0.0:
        assert macs_of_rows(block) == 0


@pytest.mark.parametrize("kind", SMALL)
def test_every_block_of_a_network_processes_the_rows_it_is_charged_for(kind: str) -> None:
    torch.manual_seed(0)
    network = made(SMALL[kind])
    cost = network.costs()
    sparse = network.prepared("torch")
    x = torch.randn(2, *network.input_shape)
    masking = SparseMasking(torch.randn(2, len(cost.blocks)) * 0.05)
    with torch.no_grad():
        sparse.run(x, masking)
    assert [decision.block for decision in masking.decisions] == list(range(len(cost.blocks)))
    for decision, block in zip(masking.decisions, sparse.conditional, strict=True):
        assert int(cost.executed([decision]).sum()) == macs_of_rows(block)
    executed = cost.executed(masking.decisions)
    assert 0.1 < float(executed.sum()) / (2 * cost.conditional) < 0.95


@pytest.mark.parametrize("kind", SMALL)
def test_an_image_is_charged_for_its_own_pixels_alone(kind: str) -> None:
    torch.manual_seed(1)
    network = made(SMALL[kind])
    cost, sparse = network.costs(), network.prepared("torch")
    x = torch.randn(3, *network.input_shape)
    together, alone = SparseMasking(), [SparseMasking() for _ in x]
    with torch.no_grad():
        sparse.run(x, together)
        for image, masking in zip(x, alone, strict=True):
            sparse.run(image[None], masking)
    each = torch.cat([cost.executed(masking.decisions) for masking in alone])
    assert each.tolist() == cost.executed(together.decisions).tolist()


@pytest.mark.parametrize("kind", SMALL)
def test_training_and_inference_charge_alike_for_the_same_masks(kind: str) -> None:
    torch.manual_seed(2)
    network = made(SMALL[kind]).eval()
    cost = network.costs()
    dense = TrainingMasking(keep=True)
    x = torch.randn(2, *network.input_shape)
    with torch.no_grad():
        network.run(x, dense)
        masks = [decision.mask > 0.5 for decision in dense.decisions if decision.mask is not None]
        sparse = SparseMasking(given=masks)
        network.prepared("torch").run(x, sparse)
    assert cost.executed(dense.decisions).tolist() == cost.executed(sparse.decisions).tolist()


def block_inputs(block: ConditionalBlock) -> int:
    first = next(
        m
        for name, m in block.named_modules()
        if isinstance(m, nn.Conv2d) and not name.startswith(("unit", "shortcut"))
    )
    return first.in_channels


def macs_of_rows(block: ConditionalBlock) -> int:
    """What the packed block counted of its last call, times the weights of every row."""
    packed = block._packed
    return sum(rows * packed.macs[name] for name, rows in packed.rows.items())


def bias_additions(network: DynConvNetwork) -> int:
    """Additions of the biases of convolutions in one pass of one image."""
    found = []
    hooks = [
        layer.register_forward_hook(lambda m, given, y: found.append(y.shape[1:].numel()))
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d) and layer.bias is not None
    ]
    with torch.no_grad():
        network.eval().run(torch.empty(0, *network.input_shape), Masking())
    for hook in hooks:
        hook.remove()
    return sum(found)
