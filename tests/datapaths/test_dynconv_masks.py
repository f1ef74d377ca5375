"""Masks, straight-through decisions, sparsity losses and the schedule of the bounds."""

import math

import pytest
import torch

from flyball.datapaths.dynconv.blocks import BasicBlock, BlockCost, Bottleneck, InvertedResidual
from flyball.datapaths.dynconv.masks import (
    Decision,
    Masking,
    SparseMasking,
    TrainingMasking,
    logistic_noise,
    make_unit,
    straight_through,
)
from flyball.datapaths.dynconv.network import BudgetShift, NetworkCost
from flyball.datapaths.dynconv.resnet import DynConvResNet, DynConvResNetConfig, cifar_resnet
from flyball.datapaths.dynconv.sparsity import (
    Execution,
    SparsityConfig,
    bound_share,
    execution_of,
    lower_bound_loss,
    network_loss,
    per_layer_loss,
    sparsity_loss,
    temperature_at,
    upper_bound_loss,
)
from flyball.datapaths.errors import InvalidSetting, NotFinite, UnknownName

TINY = DynConvResNetConfig(layers=(1, 1), widths=(8, 16), in_channels=1, image_size=8)


def tiny(**changes: object) -> DynConvResNet:
    torch.manual_seed(0)
    network = DynConvResNet(DynConvResNetConfig(**{**TINY.__dict__, **changes}))
    for name, tensor in network.named_buffers():
        if name.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    for block in network.conditional:
        assert block.unit is not None
        for parameter in block.unit.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return network


def test_a_hard_decision_has_the_gradient_of_the_soft_one() -> None:
    soft = torch.tensor([-2.0, -1e-4, 0.0, 3.0], requires_grad=True)
    hard = straight_through(soft, 2.0)
    assert hard.tolist() == [0, 0, 1, 1]
    hard.sum().backward()  # type: ignore[no-untyped-call]
    y = torch.sigmoid(soft.detach() / 2.0)
    assert soft.grad is not None
    assert torch.allclose(soft.grad, y * (1 - y) / 2.0)


def test_gumbel_noise_executes_a_pixel_as_often_as_its_probability() -> None:
    soft = torch.full((200_000,), math.log(0.3 / 0.7))
    noise = logistic_noise(soft, torch.Generator().manual_seed(0))
    # three standard errors of a share of .3 among 200,000
    assert abs(float(straight_through(soft, 1.0, noise).mean()) - 0.3) < 3 * 0.0011


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_is_above_zero(temperature: float) -> None:
    with pytest.raises(InvalidSetting, match="temperature"):
        straight_through(torch.zeros(1), temperature)


def test_an_unknown_mask_unit_is_named() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'squeeze'"):
        make_unit("sqeeze", 4, 1)  # type: ignore[arg-type]


def test_nan_in_soft_decisions_is_refused() -> None:
    network = tiny().prepared("torch")
    unit = network.conditional[0].unit
    assert unit is not None
    with torch.no_grad():
        next(iter(unit.parameters())).fill_(math.nan)
    masking = SparseMasking()
    with torch.no_grad():
        network.run(torch.randn(1, 1, 8, 8), masking)
    with pytest.raises(NotFinite, match="block 0"):
        masking.check()


@pytest.mark.parametrize("implementation", ["auto", "torch", "dense"])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_sparse_execution_equals_masked_dense_execution(
    implementation: str, bottleneck: bool
) -> None:
    network = tiny(bottleneck=bottleneck).eval()
    x, budget = torch.randn(5, 1, 8, 8), torch.linspace(0.1, 0.9, 5)
    shifts = network.shifts(budget)
    dense, sparse = TrainingMasking(shifts, keep=True), SparseMasking(shifts, keep=True)
    with torch.no_grad():
        wanted = network.run(x, dense)
        given = network.prepared(implementation).run(x, sparse)  # type: ignore[arg-type]
    shares = [float(d.active.sum()) for d in dense.decisions]
    assert 0 < sum(shares) < sum(b.pixels for b in network.costs().blocks) * 5
    for one, other in zip(dense.decisions, sparse.decisions, strict=True):
        assert torch.equal(one.active, other.active)
        assert torch.equal(one.dilated, other.dilated)
    # folding batch norm rounds once more in every layer
    assert torch.allclose(given.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    assert torch.allclose(given.pooled, wanted.pooled, rtol=1e-4, atol=1e-5)


def test_everything_runs_without_asking_the_masks() -> None:
    network = tiny().eval()
    x = torch.randn(2, 1, 8, 8)
    masking = Masking(is_sparse=True)
    with torch.no_grad():
        wanted = network.run(x, Masking()).logits
        given = network.prepared().run(x, masking).logits
    assert not masking.decisions
    assert torch.allclose(given, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("block", "active", "dilated"),
    [
        (BasicBlock(8, 16, 2, "squeeze"), 9 * 16 * 16, 9 * 8 * 16),
        (Bottleneck(8, 4, 16, 2, "squeeze"), 9 * 4 * 4 + 4 * 16, 8 * 4),
        (InvertedResidual(8, 8, 48, 1, "conv"), 9 * 48 + 48 * 8, 8 * 48),
    ],
)
def test_a_block_costs_what_its_rows_cost(block: object, active: int, dilated: int) -> None:
    cost = block.cost(10, 7)  # type: ignore[attr-defined]
    assert (cost.active_macs, cost.dilated_macs) == (active, dilated)
    outputs = 5 * 4 if block.stride == 2 else 70  # type: ignore[attr-defined]
    wide = outputs if block.dilates_output else 70  # type: ignore[attr-defined]
    assert (cost.pixels, cost.dilated_pixels) == (outputs, wide)
    assert cost.dense == outputs * active + wide * dilated


def test_a_budget_shift_starts_at_its_logit_and_is_linear_between_knots() -> None:
    shift = BudgetShift(3)
    given = shift(torch.tensor([0.3, 0.35, 0.4]))
    assert given.shape == (3, 3)
    assert torch.allclose(given[0], torch.full((3,), math.log(0.3 / 0.7)), atol=1e-6)
    assert torch.allclose(given[1], (given[0] + given[2]) / 2, atol=1e-6)


def two_blocks() -> tuple[NetworkCost, list[Decision]]:
    blocks = (BlockCost("a", 4, 4, 10, 5), BlockCost("b", 4, 16, 20, 1))
    first = torch.tensor([4.0, 0.0, 2.0, 2.0], requires_grad=True)
    second = torch.tensor([1.0, 1.0, 4.0, 0.0], requires_grad=True)
    decisions = [
        Decision(0, first, torch.tensor([4.0, 0.0, 4.0, 4.0]), None),
        Decision(1, second, torch.tensor([9.0, 9.0, 16.0, 0.0]), None),
    ]
    return NetworkCost(100, 7, blocks), decisions


def test_executed_macs_are_eq_11_row_by_row() -> None:
    cost, decisions = two_blocks()
    assert cost.conditional == 4 * 10 + 4 * 5 + 4 * 20 + 16 * 1 == 156
    assert cost.full == 256
    assert cost.executed(decisions).tolist() == [60 + 29, 0 + 29, 40 + 96, 40 + 0]


def test_shares_are_averaged_over_the_samples_that_share_a_budget() -> None:
    cost, decisions = two_blocks()
    found = execution_of(decisions, cost, torch.tensor([0.5, 0.9]), torch.tensor([0, 1, 0, 1]))
    assert torch.allclose(found.network, torch.tensor([(89 + 136) / 312, (29 + 40) / 312]))
    assert torch.allclose(found.blocks[0], torch.tensor([100 / 120, 125 / 192]))
    found.network[0].backward()  # type: ignore[no-untyped-call]
    # only N_b has a gradient: one more active pixel of block a costs 10 of 2 x 156
    assert decisions[0].active.grad is not None
    assert decisions[0].active.grad.tolist() == pytest.approx([10 / 312, 0, 10 / 312, 0])


def test_the_losses_are_those_of_the_paper() -> None:
    execution = Execution(torch.tensor([0.5]), torch.tensor([[0.2, 0.9]]), torch.tensor([0.4]))
    assert float(network_loss(execution)) == pytest.approx(0.01)
    assert float(per_layer_loss(execution)) == pytest.approx(0.04 + 0.25)
    assert float(lower_bound_loss(execution, 1.0)) == pytest.approx((0.4 - 0.2) ** 2 / 2)
    assert float(upper_bound_loss(execution, 1.0)) == pytest.approx((0.9 - 0.4) ** 2 / 2)
    assert float(lower_bound_loss(execution, 0.5)) == pytest.approx(0.0)
    assert float(upper_bound_loss(execution, 0.5)) == pytest.approx((0.9 - 0.7) ** 2 / 2)
    all_three = sparsity_loss(execution, SparsityConfig(), 0.5)
    assert float(all_three) == pytest.approx(0.01 + 0.02)
    alone = sparsity_loss(execution, SparsityConfig(criterion="network"), 0.5)
    assert float(alone) == pytest.approx(0.01)


def test_the_bounds_open_along_half_a_cosine_and_stay_open() -> None:
    assert [bound_share(e, 12, 0.5) for e in (0, 3, 6, 11)] == pytest.approx([1, 0.5, 0, 0])


def test_the_temperature_goes_linearly_from_first_to_last() -> None:
    config = SparsityConfig(temperature=5.0, last_temperature=1.0)
    assert [temperature_at(e, 5, config) for e in (0, 2, 4, 9)] == [5, 3, 1, 1]
    assert temperature_at(3, 5, SparsityConfig()) == 1.0


@pytest.mark.parametrize("target", [0.0, -0.1, 1.01, math.nan])
def test_a_budget_is_in_0_1(target: float) -> None:
    with pytest.raises(InvalidSetting, match=r"path\.sparsity\.target is a share .* \(0, 1\]"):
        SparsityConfig(target=target)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", -1.0),
        ("lowest", 0.0),
        ("budgets", 0),
        ("bounds_end", 0.0),
        ("temperature", 0.0),
        ("last_temperature", -1.0),
        ("quiet", 1.5),
    ],
)
def test_a_sparsity_setting_outside_its_range_is_named(field: str, value: float) -> None:
    with pytest.raises(InvalidSetting, match=rf"path\.sparsity\.{field} must be"):
        SparsityConfig(**{field: value})  # type: ignore[arg-type]


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"sparsity criterion 'bound'.*'bounds'"):
        SparsityConfig(criterion="bound")  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [7, 2, 0])
def test_a_cifar_resnet_has_6n_plus_2_layers(depth: int) -> None:
    with pytest.raises(InvalidSetting, match=r"6 n \+ 2"):
        cifar_resnet(depth)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"layers": (1,)}, "as many of both"),
        ({"widths": (8, 0)}, "1 channel or more"),
        ({"classes": 0}, "path.network.classes is 1 or more"),
    ],
)
def test_a_resnet_refuses_what_cannot_be_built(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(InvalidSetting, match=rule):
        tiny(**changes)
