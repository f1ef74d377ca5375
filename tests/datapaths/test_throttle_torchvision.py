"""throttle() on torchvision's classifiers: equals the original, exact at every arm, exact cost."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn

from flyball.datapaths.arms import default_arms
from flyball.datapaths.cost import executed_macs, measured_macs
from flyball.datapaths.execution import Packed
from flyball.datapaths.gates import nested_mask
from flyball.datapaths.graph import Conversion, ThrottledNetwork, throttle

ARMS = default_arms()
SIZE = 64
# float32 sums in another order; relative to the largest logit
CLOSE = 1e-5

# From every layer of the network whose outputs stay dense to the reason.
IS_OUTPUT = "it is an output of the network"
NO_DIVISOR = "16 components do not divide its 24 channels"
STAYS_DENSE = {
    "resnet18": {"fc": IS_OUTPUT},
    "resnet50": {"fc": IS_OUTPUT},
    "vgg16_bn": {"classifier.6": IS_OUTPUT},
    "densenet121": {"classifier": IS_OUTPUT},
    "resnext50_32x4d": {"fc": IS_OUTPUT},
    "mobilenet_v2": {
        "features.2.conv.2": NO_DIVISOR,
        "features.3.conv.2": NO_DIVISOR,
        "classifier.1": IS_OUTPUT,
    },
}
# T-modules, counted by hand: a residual stream is one, every inner width is one.
MODULES = {
    "resnet18": 4 + 8,  # the stem belongs to the first stream
    "resnet50": 1 + 4 + 2 * 16,
    "vgg16_bn": 13 + 2,
    "densenet121": 1 + 2 * 58 + 3,
    "resnext50_32x4d": 1 + 4 + 16,  # both sides of a grouped convolution are one
    # stem, 16 -> 24 (dense) -> 32, 64, 96, 160, 320; 16 expansions; 1280
    "mobilenet_v2": 1 + 6 + 16 + 1,
}


class Converted(NamedTuple):
    """A network beside its original."""

    name: str
    model: nn.Module
    network: ThrottledNetwork
    report: Conversion
    images: Tensor
    logits: Tensor


@pytest.fixture(scope="module", params=sorted(STAYS_DENSE))
def converted(request: pytest.FixtureRequest) -> Iterator[Converted]:
    name = str(request.param)
    model = random_model(name)
    network, report = throttle(model, (3, SIZE, SIZE))
    images = torch.randn(len(ARMS), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        yield Converted(name, model, network, report, images, model(images[:2]))


def random_model(name: str, classes: int = 10) -> nn.Module:
    """Seeded weights and batch-norm statistics, in evaluation mode."""
    with torch.device("meta"):
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                bound = (6 / layer.weight[0].numel()) ** 0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-0.1, 0.1, generator=generator)
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.0, generator=generator)
                layer.bias.uniform_(-0.2, 0.2, generator=generator)
                assert isinstance(layer.running_mean, Tensor)
                assert isinstance(layer.running_var, Tensor)
                layer.running_mean.uniform_(-0.2, 0.2, generator=generator)
                layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def distance(given: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((given - wanted).abs().max() / wanted.abs().max())


def give_rows(network: ThrottledNetwork) -> list[int]:
    """Statistics of their own for every arm, drawn at random; the row of every arm."""
    counts = [network.counts_at(u) for u in ARMS]
    network.reserve_statistics(list(dict.fromkeys([tuple(network.components), *counts])))
    generator = torch.Generator().manual_seed(2)
    for norm in network.norms:
        norm.running_mean[1:].uniform_(-0.2, 0.2, generator=generator)
        norm.running_var[1:].uniform_(0.5, 1.5, generator=generator)
    return [network.statistics_of(count) or 0 for count in counts]


def test_full_utilization_equals_the_original(converted: Converted) -> None:
    network, images = converted.network, converted.images[:2]
    whole = network.components
    assert distance(network.sliced(images, whole).logits, converted.logits) < CLOSE
    assert distance(network.run(images, Packed(whole)).logits, converted.logits) < CLOSE
    masks = [torch.ones(2, n) for n in whole]
    assert distance(network.masked(images, masks), converted.logits) < CLOSE


def test_the_report_states_what_stays_dense(converted: Converted) -> None:
    report, network = converted.report, converted.network
    assert report.dense_layers == STAYS_DENSE[converted.name]
    assert not report.as_they_are
    assert len(network.components) == len(report.modules) == MODULES[converted.name]
    gated = [name for module in report.modules for name in module.layers]
    multiplying = [
        name
        for name, layer in converted.model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    assert sorted([*gated, *report.dense_layers]) == sorted(multiplying)
    for name in report.dense_layers:
        assert name in str(report)


def test_sliced_and_packed_equal_masked_at_every_arm(converted: Converted) -> None:
    # A quarter of the pixels: the law holds for any input, and this is the longest test.
    network, images = converted.network, converted.images[:, :, :32, :32]
    rows = give_rows(network)
    counts = [network.counts_at(u) for u in ARMS]
    table = torch.tensor(counts)
    masks = [nested_mask(table[:, m], n) for m, n in enumerate(network.components)]
    # One pass of mixed u: sample k at arm k, each with its own row.
    wanted = network.masked(images, masks, torch.tensor(rows))
    for arm, (count, row) in enumerate(zip(counts, rows, strict=True)):
        one = images[arm : arm + 1]
        assert distance(network.sliced(one, count, row).logits, wanted[arm : arm + 1]) < CLOSE
        if arm % 4 == 0:
            packed = network.run(one, Packed(count, row)).logits
            assert distance(packed, wanted[arm : arm + 1]) < CLOSE


@pytest.mark.parametrize("u", [0.1, 0.4, 1.0])
def test_executed_macs_are_what_runs(converted: Converted, u: float) -> None:
    network, counts = converted.network, converted.network.counts_at(u)
    macs = executed_macs(network.layer_costs(), counts)
    assert macs == measured_macs(lambda: network.sliced(converted.images[:1], counts))
    if u == 1.0:
        assert macs == measured_macs(lambda: converted.model(converted.images[:1]))


def test_the_pooled_features_are_the_active_ones(converted: Converted) -> None:
    network, counts = converted.network, converted.network.counts_at(0.5)
    pooled = network.sliced(converted.images[:2], counts).pooled
    last = next(reversed(network.layer_costs())).axis_in
    assert pooled.shape == (2, network.pooled_channels(counts))
    assert pooled.shape[1] == sum(segment.channels for segment in last) // 2
