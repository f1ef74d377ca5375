"""throttle() on small models: what ties channels together, what stays dense, what is refused."""

import functools
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

from flyball.datapaths.cost import executed_macs, measured_macs
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.execution import Masked, Packed, Sliced
from flyball.datapaths.gates import nested_mask
from flyball.datapaths.graph import Conversion, ThrottledNetwork, throttle

SHAPE = (3, 8, 8)


class Written(nn.Module):
    """A model whose forward is a function of its layers."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.written = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def conv(inputs: int, outputs: int, kernel: int = 3, **changes: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **changes)


def tensors_of(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output
    return [tensor for item in items for tensor in tensors_of(item)]


def converted(
    model: nn.Module, shape: tuple[int, ...] = SHAPE, *, components: int = 4, **changes: Any
) -> tuple[ThrottledNetwork, Conversion]:
    """Converts in float64, and checks the laws that hold for every model.

    Full equals the original; sliced and packed equal masked at every count; the MACs are exact.
    """
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            bound = (3 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.5
            middle = 1.0 if tensor.ndim == 1 and not name.endswith(("bias", "mean")) else 0.0
            tensor.uniform_(middle - bound, middle + bound, generator=generator)
    model = model.double().eval()
    network, report = throttle(model, shape, components=components, **changes)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        wanted = tensors_of(model(x))
        given = tensors_of(network.run_raw(x, Sliced(network.components)))
        torch.testing.assert_close(given, wanted, rtol=1e-9, atol=1e-9)
        for most in range(1, components + 1):
            counts = [min(most, n) for n in network.components]
            pairs = zip(counts, network.components, strict=True)
            masks = [nested_mask(torch.full((2,), c), n).double() for c, n in pairs]
            wanted = tensors_of(network.run_raw(x, Masked(masks)))
            for gates in (Sliced(counts), Packed(counts)):
                given = tensors_of(network.run_raw(x, gates))
                torch.testing.assert_close(given, wanted, rtol=1e-9, atol=1e-9)
            run = measured_macs(functools.partial(network.run_raw, x[:1], Sliced(counts)))
            assert executed_macs(network.layer_costs(), counts) == run
    return network, report


def groups_of(report: Conversion) -> list[set[str]]:
    return [set(module.layers) for module in report.modules]


def test_an_addition_ties_its_operands_and_leaves_the_branch_alone() -> None:
    model = Written(
        lambda m, x: m.head((m.stem(x) + m.last(F.relu(m.inner(m.stem(x))))).mean((2, 3))),
        stem=conv(3, 8), inner=conv(8, 16), last=conv(16, 8), head=nn.Linear(8, 5),
    )  # fmt: skip
    network, report = converted(model)
    assert groups_of(report) == [{"stem", "last"}, {"inner"}]
    assert report.dense_layers == {"head": "it is an output of the network"}
    assert network.classes == 5


def test_a_squeeze_and_excitation_ties_the_gate_to_what_it_scales() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        scale = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))))
        return m.head(F.hardswish(scale * x))

    model = Written(
        forward, stem=conv(3, 16), down=conv(16, 4, 1), up=conv(4, 16, 1), head=conv(16, 2)
    )
    _, report = converted(model)
    assert groups_of(report) == [{"stem", "up"}, {"down"}]


@pytest.mark.parametrize(
    "unzero",
    [
        torch.sigmoid,
        F.softplus,
        lambda x: x + 1.0,
        lambda x: 2.0 - x,
        lambda x: F.pad(x, (1, 1, 1, 1), value=3.0),
    ],
)
def test_what_makes_something_of_a_zero_is_silenced(unzero: Any) -> None:
    # Without that, masked execution would feed the switched-off channels on.
    converted(Written(lambda m, x: m.head(unzero(m.stem(x))), stem=conv(3, 8), head=conv(8, 2)))


def test_a_depthwise_convolution_ties_its_output_to_its_input() -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 16, groups=8), nn.ReLU6(), conv(16, 4))
    _, report = converted(model)
    assert groups_of(report) == [{"0", "1"}]


def test_a_grouped_convolution_is_cut_between_groups() -> None:
    model = nn.Sequential(conv(3, 24), conv(24, 12, groups=6), conv(12, 2))
    _, report = converted(model, components=3)
    assert groups_of(report) == [{"0", "1"}]
    # 4 divides 24 and 12, but not the 6 groups.
    with pytest.raises(InvalidSetting, match="0 stays dense: 4 components do not divide its 6"):
        throttle(model, SHAPE, components=4)


def test_a_concatenation_keeps_groups_apart() -> None:
    model = Written(
        lambda m, x: m.head(m.norm(torch.cat([m.a(x), x, m.b(x)], 1))),
        a=conv(3, 8), b=conv(3, 12), norm=nn.BatchNorm2d(23), head=conv(23, 2),
    )  # fmt: skip
    _, report = converted(model)
    assert groups_of(report) == [{"a"}, {"b"}]


def test_concatenations_of_other_widths_cannot_be_added() -> None:
    model = Written(
        lambda m, x: m.head(torch.cat([m.a(x), m.b(x)], 1) + torch.cat([m.b(x), m.a(x)], 1)),
        a=conv(3, 8), b=conv(3, 4), head=nn.Sequential(conv(12, 8), conv(8, 2)),
    )  # fmt: skip
    _, report = converted(model)
    assert groups_of(report) == [{"head.0"}]
    assert "concatenated differently" in report.dense_layers["a"]


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: x.flatten(1),
        lambda x: torch.flatten(x, 1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(-1, 8 * 64),
        lambda x: x.view(x.shape[0], 512),
    ],
)
def test_every_way_to_flatten_keeps_the_channels(flatten: Any) -> None:
    model = Written(
        lambda m, x: m.out(F.relu(m.hidden(flatten(m.stem(x))))),
        stem=conv(3, 8), hidden=nn.Linear(512, 16), out=nn.Linear(16, 3),
    )  # fmt: skip
    _, report = converted(model)
    assert groups_of(report) == [{"stem"}, {"hidden"}]


def test_a_layer_that_runs_twice_has_one_gate() -> None:
    model = Written(
        lambda m, x: m.head(m.shared(F.relu(m.shared(m.stem(x))))),
        stem=conv(3, 8), shared=conv(8, 8), head=conv(8, 2),
    )  # fmt: skip
    _, report = converted(model)
    assert groups_of(report) == [{"stem", "shared"}]


@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(4, 16),
        nn.InstanceNorm2d(16),
        nn.InstanceNorm2d(16, affine=True),
        nn.BatchNorm2d(16, affine=False),
        FrozenBatchNorm2d(16),
    ],
)
def test_norms_keep_their_channels(norm: nn.Module) -> None:
    _, report = converted(nn.Sequential(conv(3, 16), norm, nn.ReLU(), conv(16, 2)))
    assert groups_of(report) == [{"0"}]


def test_clips_are_convolved_in_three_dimensions() -> None:
    model = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 8, (1, 3, 3)), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    _, report = converted(model, (1, 4, 8, 8))
    assert groups_of(report) == [{"0"}, {"4"}]


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.ConvTranspose2d(8, 8, 2, stride=2), "no rule for it"),
        (nn.Conv2d(8, 8, 3, dilation=2), "a dilated convolution"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "padding mode is 'reflect'"),
        (nn.BatchNorm2d(8, track_running_stats=False), "no running statistics"),
        (nn.PReLU(8), "no rule for it"),
        (nn.LocalResponseNorm(3), "no rule for it"),
        (nn.ChannelShuffle(2), "no rule for it"),
        (nn.Softmax(dim=1), "no rule for it"),
    ],
)
def test_an_unknown_layer_runs_as_it_is_among_dense_channels(layer: nn.Module, why: str) -> None:
    model = nn.Sequential(conv(3, 16), conv(16, 8), layer, conv(8, 16), conv(16, 2))
    _, report = converted(model)
    assert groups_of(report) == [{"0"}, {"3"}]
    assert report.as_they_are[0].layer == f"2 ({type(layer).__name__})"
    assert why in report.as_they_are[0].why
    assert report.dense_layers["1"].startswith("it enters 2")
    with pytest.raises(InvalidSetting, match=r"1 would stay dense: it enters 2 \("):
        throttle(model, SHAPE, components=4, strict=True)


def test_attention_over_pixels_stays_dense() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        mixed, _ = m.attention(tokens, tokens, tokens, need_weights=False)
        return m.head(m.last(mixed.transpose(1, 2).reshape(b, c, h, w)))

    model = Written(
        forward,
        stem=conv(3, 8),
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
        last=conv(8, 16),
        head=conv(16, 2),
    ).eval()
    network, report = throttle(model, SHAPE, components=4)
    assert groups_of(report) == [{"last"}]
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(network.sliced(x, network.components).logits, model(x))


def attend(m: Any, x: Tensor) -> Any:
    """Pixels attend to each other in two matrix products, both of what is dense already."""
    x = m.stem(x)
    pixels = x.flatten(2)
    weights = torch.softmax(pixels.transpose(1, 2) @ pixels, dim=2)
    return m.head(m.last((pixels @ weights).reshape(x.shape)))


def convolve_by_hand(m: Any, x: Tensor) -> Any:
    """Behind a layer that no rule knows, by a product of weights."""
    return m.head(m.last(F.conv2d(m.strange(m.stem(x)), m.one.weight @ m.two.weight, padding=1)))


@pytest.mark.parametrize(
    ("forward", "layers", "macs"),
    [
        (attend, {}, 2 * 8 * 64 * 64),
        (
            convolve_by_hand,
            {
                "strange": nn.Conv2d(8, 8, 3, padding=2, dilation=2),
                "one": nn.Conv2d(8, 8, 3),
                "two": nn.Conv2d(8, 8, 3),
            },
            2 * 64 * 8 * 8 * 9 + 8 * 8 * 27,
        ),
    ],
)
def test_what_multiplies_among_dense_channels_is_counted(
    forward: Any, layers: dict[str, nn.Module], macs: int
) -> None:
    model = Written(forward, stem=conv(3, 8), last=conv(8, 16), head=conv(16, 2), **layers)
    # `converted` compares the cost with what runs
    network, report = converted(model)
    own = 64 * 9 * (3 * 8 + 8 * 16 + 16 * 2)
    assert executed_macs(network.layer_costs(), network.components) == own + macs
    # only what dense channels enter first, and layers of weights, are listed
    assert len(report.as_they_are) <= 2


def test_a_layer_with_branches_in_it_is_run_whole_where_its_shape_is_known() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(len(x.shape)):
                x = x * 0.5 if x.shape[-1] > 4 else x
            return x

    model = nn.Sequential(conv(3, 8), conv(8, 8), Counts(), conv(8, 8), conv(8, 2))
    _, report = converted(model)
    assert groups_of(report) == [{"0"}, {"3"}]
    assert report.as_they_are[0].layer == "2 (Counts)"


def test_a_layer_that_decides_by_values_is_named() -> None:
    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InvalidSetting, match=r"1\.0 \(Decides\)"):
        throttle(nn.Sequential(conv(3, 8), nn.Sequential(Decides()), conv(8, 2)), SHAPE)
    with pytest.raises(InvalidSetting, match=r"Decides\.forward decides"):
        throttle(Decides(), SHAPE)


def test_what_divides_badly_stays_dense_or_gets_fewer_components() -> None:
    model = nn.Sequential(conv(3, 16), conv(16, 6), conv(6, 2))
    _, report = converted(model)
    assert report.dense_layers["1"] == "4 components do not divide its 6 channels"
    network, report = converted(model, divisor="largest")
    assert [module.components for module in report.modules] == [4, 3]
    assert network.counts_at(0.5) == (2, 2)
    with pytest.raises(InvalidSetting, match="1 would stay dense: 4 components do not divide"):
        throttle(model, SHAPE, components=4, strict=True)


def test_layers_stay_dense_on_request() -> None:
    model = nn.Sequential(conv(3, 8), nn.Sequential(conv(8, 8), conv(8, 8)), conv(8, 2))
    _, report = converted(model, keep_dense=("1",), strict=True)
    assert groups_of(report) == [{"0"}]
    assert report.dense_layers["1.1"] == "it was asked to stay dense"
    with pytest.raises(InvalidSetting, match="it has no 'layer9'"):
        throttle(model, SHAPE, keep_dense=("layer9",))


def test_a_residual_around_the_input_stays_dense() -> None:
    model = Written(
        lambda m, x: m.head(x + m.last(m.inner(x))),
        inner=conv(3, 8), last=conv(8, 3), head=conv(3, 4),
    )  # fmt: skip
    _, report = converted(model)
    assert report.dense_layers["last"] == "it is the network's input"


def test_feature_maps_keep_their_structure_and_all_their_channels() -> None:
    body = torchvision.models.resnet18()
    model = IntermediateLayerGetter(body, {"layer2": "mid", "layer3": "deep"})
    network, report = converted(model, (3, 32, 32))
    assert network.classes == 0
    assert {"layer2.0.conv2", "layer3.1.conv2"} <= report.dense_layers.keys()
    # Gated, they are filled up with zeros, and cost less.
    filled, _ = converted(model, (3, 32, 32), gate_maps=True)
    counts = [1] * len(filled.components)
    maps = filled.run_raw(torch.randn(2, 3, 32, 32, dtype=torch.float64), Sliced(counts))
    assert maps["deep"].shape[1] == 256
    assert not maps["deep"][:, 64:].any()
    least = executed_macs(network.layer_costs(), [1] * len(network.components))
    assert executed_macs(filled.layer_costs(), counts) < least


def test_a_pyramids_lateral_convolutions_read_gated_channels() -> None:
    body = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d)
    network, report = converted(_resnet_fpn_extractor(body, 5), (3, 32, 32))
    assert set(report.dense_layers) == {f"fpn.layer_blocks.{level}.0" for level in range(4)}
    assert {f"fpn.inner_blocks.{level}.0" for level in range(4)} in groups_of(report)
    # Frozen norms stay frozen, and training moves neither their weights nor their statistics.
    before = [norm.running_mean.clone() for norm in network.norms]
    network.train().run_raw(
        torch.randn(2, 3, 32, 32, dtype=torch.float64), Sliced(network.components)
    )
    assert all(torch.equal(a, b.running_mean) for a, b in zip(before, network.norms, strict=True))
    assert not any(norm.weight.requires_grad for norm in network.norms)


def test_the_original_is_left_alone() -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), conv(8, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network, _ = throttle(model, torch.zeros(1, *SHAPE), components=4)
    assert network.training
    assert model.training
    loss = network.sliced(torch.ones(2, *SHAPE), (2,)).logits.square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sliced_and_masked_gradients_are_equal() -> None:
    model = torchvision.models.resnet18(num_classes=4).double().eval()
    network, _ = throttle(model, (3, 32, 32), components=4)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    counts = network.counts_at(0.5)
    gradients = []
    masks = [nested_mask(torch.full((2,), c), 4).double() for c in counts]
    for logits in (network.sliced(x, counts).logits, network.masked(x, masks)):
        network.zero_grad()
        logits.square().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(network.parameters()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_training_with_concatenations_updates_the_active_statistics_alone() -> None:
    model = Written(
        lambda m, x: m.head(m.norm(torch.cat([m.a(x), m.b(x)], 1))),
        a=conv(3, 8), b=conv(3, 8), norm=nn.BatchNorm2d(16), head=conv(16, 2),
    )  # fmt: skip
    network, _ = throttle(model, SHAPE, components=4)
    network.train().sliced(torch.randn(4, *SHAPE), (1, 2))
    changed = network.norms[0].running_mean[0] != 0
    assert changed.tolist() == [True] * 2 + [False] * 6 + [True] * 4 + [False] * 4


def test_bad_numbers_are_refused() -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 2))
    with pytest.raises(InvalidSetting, match="two or more components"):
        throttle(model, SHAPE, components=1)
    with pytest.raises(InvalidSetting, match=r"shape \(C, H, W\)"):
        throttle(model, (8, 8))
    with pytest.raises(InvalidSetting, match=r"0 \(Conv2d\) cannot take an input of shape \(4, 8"):
        throttle(model, (4, 8, 8))
    with pytest.raises(InvalidSetting, match="'exact' or 'largest'"):
        throttle(model, SHAPE, components=4, divisor="nearest")  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match="this model has none"):
        throttle(nn.Sequential(nn.ReLU()), SHAPE)
    with pytest.raises(InvalidSetting, match="one input tensor"):
        throttle(nn.Bilinear(3, 3, 2), SHAPE)
    network, _ = throttle(model, SHAPE, components=4)
    for u in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidSetting, match=r"in \[0, 1\]"):
            network.counts_at(u)
