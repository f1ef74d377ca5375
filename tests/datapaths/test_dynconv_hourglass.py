"""Stacked hourglasses: shapes, order of execution, sparse against masked dense, and training."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flyball import kernels
from flyball.datapaths.data.config import DataConfig
from flyball.datapaths.dynconv.blocks import ConditionalBlock
from flyball.datapaths.dynconv.hourglass import (
    Hourglass,
    HourglassConfig,
    mpii_hourglass,
    small_hourglass,
)
from flyball.datapaths.dynconv.masks import Masking, PointUnit, SparseMasking
from flyball.datapaths.dynconv.pose_task import PoseEstimation
from flyball.datapaths.dynconv.sparsity import SparsityConfig
from flyball.datapaths.dynconv.training import train_dynconv
from flyball.datapaths.errors import DataError, InvalidSetting, UnknownName
from flyball.datapaths.networks import config_from_json, config_to_json, make_network
from flyball.datapaths.phase1 import Phase1Config
from flyball.datapaths.pose.augment import PoseAugmentation
from flyball.datapaths.pose.figures import figures_of
from flyball.datapaths.pose.painting import paint

TINY = small_hourglass(2, features=8, classes=5)


class Replayed(Masking):
    """Dense execution under the masks of another pass; keeps what the units would have said."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self.masks = masks
        self.soft: list[Tensor] = []

    def decide(self, block: ConditionalBlock, x: Tensor) -> Tensor | None:
        super().decide(block, x)
        if block.unit is None:
            return None
        self.soft.append(block.unit(x))
        return self.masks[block.position]


def lived_in(config: HourglassConfig) -> Hourglass:
    """A network whose norms and mask units are no longer those of the start."""
    torch.manual_seed(5)
    network = Hourglass(config)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
            elif isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.normal_(std=0.2)
        for block in network.conditional:
            assert isinstance(block.unit, PointUnit)
            block.unit.conv.weight.normal_(std=0.3)
    return network.eval()


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("stacks", [1, 2])
@pytest.mark.parametrize("size", [64, 128])
def test_every_stack_gives_maps_of_a_quarter_of_the_image(stacks: int, size: int) -> None:
    config = replace(TINY, stacks=stacks, image_size=size, depth=4, in_channels=1)
    network = Hourglass(config).eval()
    with torch.no_grad():
        output = network.run(torch.randn(3, 1, size, size), Masking())
    assert output.logits.shape == (3, stacks, 5, size // 4, size // 4)
    assert output.pooled.shape == (3, 8)


@pytest.mark.parametrize("stacks", [1, 3])
def test_positions_are_the_order_of_execution(stacks: int) -> None:
    network = Hourglass(replace(TINY, stacks=stacks))
    masking = Masking()
    with torch.no_grad():
        network.run(torch.randn(1, *network.input_shape), masking)
    names = [block.name for block, _ in masking.visits]
    ran = [block.position for block, _ in masking.visits if block.unit is not None]
    assert names[:3] == ["layer1", "layer2", "layer3"]
    assert ran == list(range(len(network.conditional)))
    # Three blocks a level of each of 3 levels, one below them, one after; and layer3.
    assert len(ran) == 1 + stacks * 11


def test_sparse_is_masked_dense() -> None:
    network = lived_in(TINY)
    x = torch.randn(3, *network.input_shape)
    sparse = SparseMasking(keep=True)
    with torch.no_grad():
        found = network.prepared("torch").run(x, sparse)
        masks = [d.mask.float() for d in sparse.decisions if d.mask is not None]
        dense = Replayed(masks)
        wanted = network.run(x, dense)
    shares = torch.tensor([float(mask.mean()) for mask in masks])
    assert 0.1 < float(shares.mean()) < 0.9
    # Norms are folded and sums run in another order, through 25 blocks of float32: 1e-6 each.
    assert relative(found.logits, wanted.logits) < 1e-4
    assert relative(found.pooled, wanted.pooled) < 1e-4
    for mask, soft in zip(masks, dense.soft, strict=True):
        # The same error moves a soft decision; farther from 0 than that, both decide alike.
        is_clear = soft.abs() > 1e-3
        assert torch.equal(mask.bool()[is_clear], (soft >= 0)[is_clear])


def test_without_masks_sparse_is_dense() -> None:
    network = lived_in(TINY)
    dense = Hourglass(replace(TINY, mask_unit="none")).eval()
    own = dense.state_dict()
    dense.load_state_dict({name: network.state_dict()[name] for name in own})
    x = torch.randn(2, *network.input_shape)
    everywhere = [torch.ones(0)] * len(network.conditional)
    with torch.no_grad():
        wanted = dense.run(x, Masking()).logits
        packed = dense.prepared("torch").run(x, SparseMasking()).logits
        for position, (block, size) in enumerate(visited(network)):
            everywhere[position] = torch.ones(2, 1, *size, dtype=torch.bool)
            assert block.position == position
        full = network.prepared("torch").run(x, SparseMasking(given=everywhere)).logits
    # Float32 with folded norms through 25 blocks; see above.
    assert relative(packed, wanted) < 1e-4
    assert relative(full, wanted) < 1e-4


def visited(network: Hourglass) -> list[tuple[ConditionalBlock, tuple[int, int]]]:
    masking = Masking()
    network.run(torch.zeros(1, *network.input_shape), masking)
    return [(block, size) for block, size in masking.visits if block.unit is not None]


def test_prepared_networks_stay_in_channels_last() -> None:
    network = lived_in(TINY).prepared("torch")
    x = torch.randn(2, *network.input_shape).contiguous(memory_format=torch.channels_last)
    kernels.forget()
    with torch.no_grad():
        network.run(x, SparseMasking())
    copies = [ran for ran in kernels.explain() if "copied" in str(ran)]
    assert not copies


@pytest.mark.parametrize("mask_unit", ["conv", "squeeze"])
def test_gradients_reach_every_mask_unit_and_the_budget(mask_unit: Any) -> None:
    torch.manual_seed(0)
    network = Hourglass(replace(TINY, mask_unit=mask_unit)).train()
    x = torch.randn(4, *network.input_shape)
    budget = torch.tensor([0.2, 0.4, 0.6, 0.8])
    generator = torch.Generator().manual_seed(1)
    output, decisions = network.masked(x, budget, generator=generator)
    torch.autograd.backward(output.logits.square().mean())
    assert len(decisions) == len(network.conditional)
    for block in network.conditional:
        assert block.unit is not None
        for parameter in block.unit.parameters():
            assert parameter.grad is not None
            assert float(parameter.grad.abs().sum()) > 0
    assert network.shift is not None
    moved = network.shift.table.grad
    assert moved is not None
    assert bool((moved.abs().sum(dim=0) > 0).all())


def test_a_shut_hourglass_still_passes_its_input_on() -> None:
    network = lived_in(TINY)
    prepared = network.prepared("torch")
    shut = torch.full((2, len(network.conditional)), -1e6)
    x = torch.randn(2, *network.input_shape)
    sparse = SparseMasking(shut)
    with torch.no_grad():
        output = prepared.run(x, sparse)
    assert all(float(decision.active.sum()) == 0 for decision in sparse.decisions)
    assert bool(output.logits.isfinite().all())
    assert float((output.logits[0] - output.logits[1]).abs().max()) > 0


def test_a_configuration_survives_json() -> None:
    config = small_hourglass(2, features=48, mask_unit="squeeze", is_budgeted=False)
    again = config_from_json(config_to_json(config))
    assert again == config
    network = make_network(again)
    assert isinstance(network, Hourglass)
    assert network.shift is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stacks": 0}, "stacks is 1 or more"),
        ({"width": 0.3}, "multiple of 4"),
        ({"features": 2}, "multiple of 4"),
        ({"image_size": 250}, "image_size=256"),
        ({"image_size": 20}, "image_size=64"),
        ({"classes": 0}, "classes is 1 or more"),
    ],
)
def test_wrong_configurations_say_what_to_set(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        replace(mpii_hourglass(), **change)


def test_an_unknown_mask_unit_is_named() -> None:
    unknown: Any = "sqeeze"
    with pytest.raises(UnknownName, match="squeeze"):
        replace(TINY, mask_unit=unknown)


@functools.cache
def figures() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    found = figures_of(DataConfig(name="figures", image_size=64, limit=2, seed=1))
    images = np.stack([paint(scene).pixels for scene in found.scenes])
    return images, found.key_points, found.label


def trained(epochs: int) -> tuple[Hourglass, tuple[float, ...]]:
    torch.manual_seed(0)
    images, points, labels = figures()
    result = train_dynconv(
        Hourglass(small_hourglass(1, features=16)),
        images,
        PoseEstimation(points, (64, 64), sigma=1.0, centred="exact"),
        Phase1Config(
            epochs=epochs,
            batch_size=4,
            optimizer="adam",
            learning_rate=5e-3,
            weight_decay=0.0,
        ),
        SparsityConfig(alpha=0.01, budgets=2),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        labels=labels,
    )
    assert isinstance(result.network, Hourglass)
    return result.network, result.losses


def test_training_on_figures_lowers_the_loss() -> None:
    network, losses = trained(epochs=6)
    assert losses[-1] < 0.5 * losses[0]
    assert not network.training


def test_the_loss_of_perfect_maps_is_zero_and_of_empty_ones_the_mean_square() -> None:
    points = np.array([[[30.0, 10.0, 1.0], [5.0, 50.0, 1.0]]], np.float32)
    task = PoseEstimation(points, (64, 64), sigma=1.0)
    truth = task.truth(np.array([0]), "cpu")
    maps = torch.zeros(1, 2, 2, 16, 16)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    for joint, (column, row) in enumerate([(7, 2), (1, 12)]):
        squares = (rows - row) ** 2 + (columns - column) ** 2
        near = ((rows - row).abs() <= 3) & ((columns - column).abs() <= 3)
        maps[:, :, joint] = torch.exp(-squares / 2.0) * near
    assert float(task.loss(maps, truth)) < 1e-12
    empty = float(task.loss(torch.zeros_like(maps), truth))
    # Two stacks that miss the same maps.
    assert empty == pytest.approx(2 * float(maps[:, 0].square().mean()))


def test_invisible_joints_teach_nothing() -> None:
    points = np.array([[[30.0, 10.0, 0.0], [5.0, 50.0, 0.0]]], np.float32)
    task = PoseEstimation(points, (64, 64))
    assert float(task.loss(torch.randn(1, 1, 2, 16, 16), task.truth(np.array([0]), "cpu"))) == 0.0


def test_augmented_images_take_their_key_points_along() -> None:
    points = np.full((2, 16, 3), 20.0, np.float32)
    points[..., 2] = 1.0
    turn = PoseAugmentation(rotation=0.0, scale=0.0, flip=1.0)
    task = PoseEstimation(points, (64, 64), augmentation=turn)
    x = torch.zeros(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    x[:, :, 20, 20] = 1.0
    generator = torch.Generator().manual_seed(0)
    moved, truth = task.augmented(x, task.truth(np.array([0, 1]), "cpu"), generator)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(truth[..., 0], torch.tensor(44.0))
    # The pixel from 20 to 21 comes to lie from 43 to 44.
    assert float(moved[0, 0, 20, 43]) == pytest.approx(1.0, abs=1e-4)


def test_key_points_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(N, J, 3\)"):
        PoseEstimation(np.zeros((4, 16, 2), np.float32), (64, 64))
    with pytest.raises(InvalidSetting, match="sigma above 0"):
        PoseEstimation(np.zeros((4, 16, 3), np.float32), (64, 64), sigma=0.0)
