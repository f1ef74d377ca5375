"""Batch-norm statistics for every arm: exact, each arm's own, and loudly checked."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from flyball.datapaths.arm_statistics import check_calibrated, recalibrate
from flyball.datapaths.densenet import small_densenet
from flyball.datapaths.errors import DataError, InvalidSetting
from flyball.datapaths.execution import Packed
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.gates import independent_components, nested_mask
from flyball.datapaths.graph import TorchvisionConfig, throttle
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.networks import make_network
from flyball.datapaths.progress import Progress
from flyball.datapaths.vgg import VggConfig, small_vgg
from flyball.kernels import Active

ARMS = (0.25, 0.5, 1.0)
CLASSES = tuple("0123456789")


def images(count: int, seed: int, channels: int = 1, size: int = 8) -> list[Tensor]:
    """Blurred noise with an offset, in batches of 32."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    fine = torch.randn(count, channels, size, size, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return list(torch.split(smooth + 0.3 * fine + 0.5, 32))


def small_net(**changes: object) -> ThrottleableNetwork:
    torch.manual_seed(0)
    config: VggConfig = small_vgg(in_channels=1, image_size=8, norm="batch", **changes)
    return make_network(config)


def test_statistics_are_those_of_all_batches_together() -> None:
    network, batches = small_net(), images(70, 0)  # 32, 32 and 6: unequal weights
    result = recalibrate(network, batches, ARMS)
    layer = network.norms[0]
    seen: list[Tensor] = []
    conv = next(m for m in network.modules() if getattr(m, "norm", None) is layer)
    for batch in batches:
        y = nn.functional.conv2d(batch, conv.weight, conv.bias, padding=1)  # type: ignore[arg-type]
        seen.append(y.double())
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    for row in range(3):
        on = network.components[0] if row == 0 else network.counts_at(ARMS[row - 1])[0]
        width = on * 32 // 16
        mean, var = layer.running_mean[row, :width], layer.running_var[row, :width]
        torch.testing.assert_close(mean.double(), values.mean(1)[:width], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(var.double(), values.var(1)[:width], rtol=1e-5, atol=1e-6)
    assert result.samples == 70
    assert result.forwards == 3 * 70
    assert result.norms == 2
    assert result.counts == ((16, 16, 16), (4, 4, 4), (8, 8, 8))


def test_the_order_of_batches_does_not_matter() -> None:
    one, other, batches = small_net(), small_net(), images(96, 0)
    recalibrate(one, batches, ARMS)
    recalibrate(other, batches[::-1], ARMS)
    for mine, yours in zip(one.norms, other.norms, strict=True):
        torch.testing.assert_close(mine.running_mean, yours.running_mean)
        torch.testing.assert_close(mine.running_var, yours.running_var)


@pytest.mark.parametrize("gating", ["nested", "independent"])
def test_sliced_equals_masked_with_every_arms_own_row(gating: str) -> None:
    network = small_net(gating=gating).double()
    recalibrate(network, [b.double() for b in images(64, 0)], ARMS, gate_seed=3)
    network.eval()
    x = images(4, 1)[0].double()
    for u in ARMS:
        counts = network.counts_at(u)
        row = network.statistics_of(counts)
        active: list[Active] = []
        masks: list[Tensor] = []
        for module, (count, n) in enumerate(zip(counts, network.components, strict=True)):
            if gating == "nested":
                active.append(count)
                masks.append(nested_mask(torch.full((4,), count), n).double())
            else:
                chosen = independent_components(count, n, module=module, seed=3)
                active.append(chosen)
                masks.append(torch.zeros(4, n).double())
                masks[-1][:, torch.arange(n) if isinstance(chosen, int) else chosen] = 1.0
        wanted = network.masked(x, masks, row)
        sliced = network.sliced(x, active, row).logits
        torch.testing.assert_close(sliced, wanted, rtol=1e-9, atol=1e-9)
        # Batch norm goes into the packed weights.
        packed = network.run(x, Packed(active, row)).logits
        torch.testing.assert_close(packed, wanted, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module", params=["vgg", "densenet", "mobilenet"])
def trained(request: pytest.FixtureRequest) -> Iterator[tuple[ThrottleableNetwork, int, int]]:
    torch.manual_seed(0)
    if request.param == "vgg":
        yield small_net(), 1, 8
    elif request.param == "densenet":
        config = small_densenet(components=(4, 4), image_size=16, norm="batch")
        yield make_network(config), 3, 16
    else:
        model = torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.5)
        network, _ = throttle(model, (3, 32, 32), components=4)
        yield network, 3, 32


def test_a_copied_row_does_not_pass_for_a_calibrated_one(
    trained: tuple[ThrottleableNetwork, int, int],
) -> None:
    network, channels, size = trained
    recalibrate(network, images(128, 0, channels, size), ARMS)
    held_out = images(64, 1, channels, size)
    checks = check_calibrated(network, held_out, ARMS)
    assert [check.counts for check in checks] == [network.counts_at(u) for u in ARMS]
    assert all(0 <= check.divergence < 0.05 for check in checks)
    for norm in network.norms:
        norm.running_mean[1:] = norm.running_mean[:1]
        norm.running_var[1:] = norm.running_var[:1]
    with pytest.raises(InvalidSetting, match="statistics of 2 of 3 arms are not their own"):
        check_calibrated(network, held_out, ARMS)


def test_statistics_that_are_not_numbers_do_not_pass() -> None:
    network = small_net()
    recalibrate(network, images(64, 0), ARMS)
    network.norms[1].running_var[1] = float("nan")
    with pytest.raises(InvalidSetting, match="is nan nats off"):
        check_calibrated(network, images(64, 1), ARMS)


def test_pretrained_statistics_of_the_whole_network_can_be_kept() -> None:
    network = small_net()
    before = network.norms[0].running_mean[0].clone()
    result = recalibrate(network, images(64, 0), ARMS, keep_whole=True)
    assert torch.equal(network.norms[0].running_mean[0], before)
    assert result.forwards == 2 * 64
    recalibrate(network, images(64, 0), ARMS)
    assert not torch.equal(network.norms[0].running_mean[0], before)


def test_nothing_else_changes() -> None:
    network = small_net()
    network.train()
    before = {name: t.clone() for name, t in network.named_parameters()}
    reports: list[Progress] = []
    recalibrate(network, images(64, 0), ARMS, report=reports.append)
    assert all(torch.equal(before[name], t) for name, t in network.named_parameters())
    assert network.training
    assert [(r.stage, r.done, r.total) for r in reports] == [
        ("recalibrate", k, 3) for k in (1, 2, 3)
    ]


def test_a_network_without_batch_norm_needs_nothing() -> None:
    network = make_network(small_vgg(in_channels=1, image_size=8))
    result = recalibrate(network, images(64, 0), ARMS)
    assert (result.norms, result.forwards, result.counts) == (0, 0, ())
    assert check_calibrated(network, images(64, 0), ARMS) == ()


def test_a_frozen_path_serves_calibrated_arms_alone(tmp_path: Path) -> None:
    config = TorchvisionConfig("resnet18", classes=10, image_size=32)
    torch.manual_seed(0)
    network = make_network(config)
    recalibrate(network, images(32, 0, 3, 32), (0.25, 0.5))
    spec = PathSpec(config, (0.25, 0.5, 1.0), CLASSES, (0.0,) * 3, (1.0,) * 3)
    path = FrozenDataPath(network, spec)
    path.save(tmp_path)
    read = FrozenDataPath.load(tmp_path)
    batch = images(4, 1, 3, 32)[0]
    assert torch.equal(read.network.calibrated, network.calibrated)
    for u in path.arms:
        assert torch.equal(read(batch, u).output, path(batch, u).output)
    with pytest.raises(InvalidSetting, match="never calibrated"):
        read.with_arms((0.25, 0.75))
    with pytest.raises(InvalidSetting, match=r"Call recalibrate\(network"):
        read(batch, 0.75)


def test_bad_batches_and_arms_are_refused() -> None:
    network, batches = small_net(), images(64, 0)
    with pytest.raises(InvalidSetting, match="can be read only once"):
        recalibrate(network, iter(batches), ARMS)
    with pytest.raises(DataError, match="there are no batches"):
        recalibrate(network, [], ARMS)
    with pytest.raises(DataError, match=r"batch 1 is \(32, 1, 4, 4\)"):
        recalibrate(network, [batches[0], batches[1][:, :, :4, :4]], ARMS)
    with pytest.raises(DataError, match="batch 0 has 1"):
        recalibrate(network, [batches[0][:1]], ARMS)
    with pytest.raises(InvalidSetting, match=r"in \[0, 1\]"):
        recalibrate(network, batches, (0.5, float("nan")))
    with pytest.raises(InvalidSetting, match="count for each of 3 T-modules"):
        recalibrate(network, batches, [(4, 4)])
    with pytest.raises(InvalidSetting, match="never calibrated"):
        check_calibrated(network, batches, (0.5,))
    # Nothing was written by any of them.
    assert len(network.norms[0].running_mean) == 1
