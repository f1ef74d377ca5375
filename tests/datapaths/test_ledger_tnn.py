"""The TNN paper's published structures, number by number, and executed MACs against what ran."""

import math
from typing import Any

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from flyball.controllers.networks import ControllerConfig, build_network
from flyball.datapaths.axes import is_gated
from flyball.datapaths.c3d import c3d_w, small_c3d
from flyball.datapaths.cost import executed_macs, linear_macs, measured_macs
from flyball.datapaths.densenet import densenet169, densenet_bc, small_densenet
from flyball.datapaths.gates import independent_components
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.networks import make_network
from flyball.datapaths.resnet import resnet50, resnet_32, small_resnet
from flyball.datapaths.resnext import resnext50, resnext_29, small_resnext
from flyball.datapaths.vgg import small_vgg, vgg_d
from flyball.kernels import Active

PUBLISHED: dict[str, Any] = {
    "VGG-D": vgg_d(),
    "ResNet-32": resnet_32(),
    "ResNet-32 widthwise": resnet_32(throttling="widthwise"),
    "ResNet-50": resnet50(),
    "ResNeXt-29": resnext_29(),
    "ResNeXt-50": resnext50(),
    "DenseNet-BC": densenet_bc(),
    "DenseNet-169": densenet169(),
    "C3D-W": c3d_w(),
}
SMALL: dict[str, Any] = {
    "VGG": small_vgg(image_size=16),
    "ResNet depthwise": small_resnet(image_size=16),
    "ResNet both": small_resnet(image_size=16, throttling="both", gates_stream=True),
    "ResNet nested rule": small_resnet(image_size=16, serving="depthwise_nested"),
    "ResNeXt": small_resnext(image_size=16),
    "DenseNet": small_densenet(image_size=16),
    "C3D": small_c3d(),
}


class Counted(TorchFunctionMode):
    """Counts MACs of every convolution and linear layer from the shapes that it really sees."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (F.conv2d, F.conv3d, torch.conv2d, torch.conv3d):
            self.macs += result.numel() * args[1][0].numel()
        elif func is F.linear:
            self.macs += result.numel() * args[1].shape[1]
        return result


def on_meta(config: Any) -> ThrottleableNetwork:
    with torch.device("meta"):
        return make_network(config)


def parameters_of(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def macs_of(name: str) -> int:
    network = on_meta(PUBLISHED[name])
    return executed_macs(network.layer_costs(), network.components)


def test_c3d_w_is_that_of_table_3() -> None:
    network = on_meta(c3d_w())
    layers = network.layer_costs()
    assert parameters_of(network) == 31_865_115
    never = [x for x in layers if not is_gated(x.axis_in) and not is_gated(x.axis_out)]
    assert [layer.name for layer in never] == ["convs.0"]
    assert linear_macs(never, network.components) == 1_327_104_000
    total = executed_macs(layers, network.components)
    assert total == 48_611_603_968
    assert abs(total / 48.703e9 - 1) < 0.0025  # the paper counts more than weights
    assert network.components == (16, *(32,) * 6, 16, 16)


def test_the_c3d_controller_is_that_of_table_4() -> None:
    config = ControllerConfig("c3d", width=64, layers=2)
    with torch.device("meta"):
        network = build_network(config, (3, 16, 100, 160), 10).eval()
    x, shapes = torch.empty(1, 3, 16, 100, 160, device="meta"), []
    elements, biases = 0, 0
    for part in network:
        x = part(x)
        if isinstance(part, torch.nn.Conv3d):
            shapes.append(tuple(x.shape[1:]))
            elements += x.numel()
        biases += x.numel() * isinstance(part, torch.nn.Linear)
    assert shapes == [
        (64, 16, 96, 156),
        (64, 8, 46, 76),
        (64, 6, 40, 70),
        (64, 3, 20, 35),
        (32, 3, 10, 18),
        (32, 3, 5, 9),
        (16, 3, 3, 5),
    ]
    assert [m.in_features for m in network if isinstance(m, torch.nn.Linear)] == [720, 256, 256]
    assert parameters_of(network) == 1_693_754
    one = torch.empty(1, 3, 16, 100, 160, device="meta")
    macs = measured_macs(lambda: network(one))
    assert round(macs / 1e9, 6) == 33.984982
    # The paper's 34.077: a bias counts 1 and batch norm 4 for every output.
    assert round((macs + 5 * elements + biases) / 1e9, 4) == 34.0768


def test_vgg_d_is_cut_after_three_stages() -> None:
    network = on_meta(vgg_d())
    convs = [layer for layer in network.layer_costs() if layer.name.startswith("convs")]
    assert parameters_of(network) == 18_557_770
    assert executed_macs(convs, network.components) == 190_513_152
    assert macs_of("VGG-D") == 190_513_152 + 16_818_176


def test_densenet_bc_is_densenet_bc_100_12() -> None:
    network = on_meta(densenet_bc())
    assert parameters_of(network) == 769_162
    assert network.components == (16, 16, 16)
    assert round(macs_of("DenseNet-BC") / 1e6, 2) == 287.93


def test_resnet_32_is_that_of_the_dynamic_convolutions_paper() -> None:
    assert parameters_of(on_meta(resnet_32())) == 466_906
    assert macs_of("ResNet-32") == 69_124_096 + 640  # convolutions, classifier


def test_resnext_29_is_16_groups_of_64() -> None:
    # ResNeXt, Table 7: 68.1 M parameters.
    assert parameters_of(on_meta(resnext_29())) // 100_000 == 681


@pytest.mark.parametrize(
    ("name", "billions", "features", "ours"),
    [
        ("resnet50", 4.087, 2048, "ResNet-50"),
        ("densenet169", 3.358, 1664, "DenseNet-169"),
        ("resnext50_32x4d", 4.228, 2048, "ResNeXt-50"),
    ],
)
def test_macs_of_torchvisions_backbones(
    name: str, billions: float, features: int, ours: str
) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(name).eval()
    one = torch.empty(1, 3, 224, 224, device="meta")
    macs = measured_macs(lambda: network(one))
    assert round((macs - features * 1000) / 1e9, 3) == billions  # convolutions
    assert macs_of(ours) == macs
    assert parameters_of(on_meta(PUBLISHED[ours])) == parameters_of(network)


@pytest.mark.parametrize("name", PUBLISHED)
def test_executed_macs_of_published_networks_are_those_of_the_shapes_that_run(name: str) -> None:
    network = on_meta(PUBLISHED[name]).eval()
    layers = network.layer_costs()
    x = torch.empty(1, *network.input_shape, device="meta")
    for counts in {network.counts_at(k / 4) for k in range(5)}:
        ran = measured_macs(lambda counts=counts: network.sliced(x, counts))  # type: ignore[misc]
        assert ran == executed_macs(layers, counts), counts


@pytest.mark.parametrize("gating", ["nested", "independent"])
@pytest.mark.parametrize("name", SMALL)
def test_executed_macs_are_those_of_the_layers_that_really_ran(name: str, gating: str) -> None:
    torch.manual_seed(0)
    network = make_network(SMALL[name]).requires_grad_(False).eval()
    layers = network.layer_costs()
    x = torch.rand(1, *network.input_shape)
    for counts in {network.counts_at(k / 16) for k in range(17)}:
        gates: list[Active] = list(counts)
        if gating == "independent":
            gates = [
                independent_components(count, n, module=m, seed=0)
                for m, (count, n) in enumerate(zip(counts, network.components, strict=True))
            ]
        with Counted() as counted:
            network.sliced(x, gates)
        assert counted.macs == executed_macs(layers, gates), counts


def test_the_second_witness_counts_what_torch_counts() -> None:
    def both(run: Any) -> tuple[int, int]:
        with Counted() as counted:
            run()
        return counted.macs, measured_macs(run)

    x, weight = torch.rand(2, 8, 5, 6), torch.rand(4, 2, 3, 3)
    grouped = both(lambda: F.conv2d(x, weight, None, 2, 1, 1, 4))
    assert grouped == (2 * 4 * 3 * 3 * 2 * 9,) * 2
    assert both(lambda: F.linear(x.flatten(1), torch.rand(7, 240))) == (2 * 7 * 240,) * 2


@pytest.mark.parametrize("name", ["ResNeXt-29", "DenseNet-BC", "C3D-W", "VGG-D"])
def test_linear_counts_the_share_of_components_and_executed_never_more(name: str) -> None:
    network = on_meta(PUBLISHED[name])
    layers = network.layer_costs()
    free = [x for x in layers if not is_gated(x.axis_out) and x.component is None]
    fixed, total = (linear_macs(part, network.components) for part in (free, layers))
    half: tuple[int, ...] = tuple(n // 2 for n in network.components)
    expected = fixed + (total - fixed) / 2
    if name == "DenseNet-BC":  # later layers of a block read more, so halves are not equal
        assert linear_macs(layers, half) < expected
    else:
        assert math.isclose(linear_macs(layers, half), expected)
    assert executed_macs(layers, half) <= linear_macs(layers, half)
    assert executed_macs(layers, network.components) == total
