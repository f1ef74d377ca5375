"""Laws of every throttleable network: sliced, packed and masked agree, and u rules counts."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from flyball.datapaths.axes import active_channels
from flyball.datapaths.c3d import C3dConfig, small_c3d
from flyball.datapaths.cost import executed_macs
from flyball.datapaths.densenet import (
    DenseNetConfig,
    ThrottleableDenseNet,
    densenet169,
    densenet169_from_torchvision,
    small_densenet,
)
from flyball.datapaths.errors import InvalidSetting, ShapeMismatch, UnknownName
from flyball.datapaths.execution import Masked, Packed, Sliced
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.gates import independent_components
from flyball.datapaths.modules import TNorm
from flyball.datapaths.network import ThrottleableNetwork
from flyball.datapaths.networks import config_from_json, config_to_json, make_network
from flyball.datapaths.resnet import (
    ResNetConfig,
    ThrottleableResNet,
    resnet50,
    resnet50_from_torchvision,
    small_resnet,
)
from flyball.datapaths.resnext import (
    ResNeXtConfig,
    ThrottleableResNeXt,
    resnext50,
    resnext50_from_torchvision,
    small_resnext,
)
from flyball.datapaths.vgg import small_vgg
from flyball.kernels import Active

RESNET = ResNetConfig(
    stages=(8, 16), blocks=(3, 2), classes=5, in_channels=2, image_size=6, components=4
)
RESNEXT = ResNeXtConfig(
    stages=(8, 12),
    blocks=(2, 1),
    stem=6,
    group_width=2,
    groups=4,
    classes=5,
    in_channels=2,
    image_size=6,
    components=4,
)
DENSENET = DenseNetConfig(
    components=(3, 4), growth=4, stem=6, classes=5, in_channels=2, image_size=6
)
C3D = C3dConfig(
    stages=((4,), (8, 12)),
    pools=((1, 2, 2), (2, 2, 1)),
    hidden=(8, 6),
    components=(1, 4, 4, 4, 3),
    classes=5,
    in_channels=2,
    frames=3,
    image_size=4,
    image_width=5,
)
CONFIGS: dict[str, Any] = {
    "vgg": small_vgg(stages=((8,), (8, 12)), hidden=8, components=4, image_size=8, classes=5),
    "resnet depthwise": RESNET,
    "resnet depthwise nested rule": replace(RESNET, serving="depthwise_nested"),
    "resnet depthwise batch": replace(RESNET, norm="batch"),
    "resnet widthwise": replace(RESNET, throttling="widthwise"),
    "resnet widthwise stream": replace(RESNET, throttling="widthwise", gates_stream=True),
    "resnet both": replace(RESNET, throttling="both"),
    "resnet both stream": replace(RESNET, throttling="both", gates_stream=True),
    "bottleneck both": replace(RESNET, bottleneck=True, throttling="both"),
    "bottleneck batch": replace(
        RESNET, bottleneck=True, imagenet_stem=True, image_size=16, norm="batch"
    ),
    "resnext": RESNEXT,
    "resnext two groups a component": replace(RESNEXT, components=2),
    "resnext batch": replace(RESNEXT, norm="batch"),
    "densenet": DENSENET,
    "densenet batch": replace(DENSENET, norm="batch", stem_stride=2),
    "densenet imagenet stem": replace(DENSENET, imagenet_stem=True, image_size=16, norm="batch"),
    "c3d": C3D,
    "c3d published": replace(C3D, norm="none"),
}
ARMS = [0.0, 0.2, 0.3, 0.5, 0.7, 1.0]
every_network = pytest.mark.parametrize("name", CONFIGS)


def network_of(name: str, seed: int = 0) -> ThrottleableNetwork:
    """Biases, scales and running statistics are drawn too: a wrong slice of any would show."""
    torch.manual_seed(seed)
    network = make_network(CONFIGS[name]).double().eval()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, TNorm):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(std=0.3)
                if part.kind == "batch":
                    part.running_mean.normal_(std=0.3)
                    part.running_var.uniform_(0.5, 1.5)
            elif getattr(part, "bias", None) is not None:
                torch.nn.init.normal_(part.bias, std=0.3)  # type: ignore[arg-type]
    return network


def inputs_of(network: ThrottleableNetwork, samples: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, *network.input_shape, generator=generator, dtype=torch.float64)


def gates_of(network: ThrottleableNetwork, counts: Sequence[int], gating: str) -> list[Active]:
    if gating == "nested":
        return list(counts)
    return [
        independent_components(count, n, module=m, seed=3)
        for m, (count, n) in enumerate(zip(counts, network.components, strict=True))
    ]


def masks_of(network: ThrottleableNetwork, gates: Sequence[Active], samples: int) -> list[Tensor]:
    masks = [torch.zeros(samples, n, dtype=torch.float64) for n in network.components]
    for mask, gate in zip(masks, gates, strict=True):
        mask[:, slice(gate) if isinstance(gate, int) else gate] = 1.0
    return masks


def settings_of(network: ThrottleableNetwork) -> list[tuple[int, ...]]:
    """What every arm serves, what training samples, and modules that disagree."""
    counts = {network.counts_at(u) for u in ARMS} | {network.sampled_counts(u) for u in ARMS}
    extremes = zip(network.least, network.components, strict=True)
    few = itertools.islice(itertools.product(*extremes), 4)
    return sorted(counts | set(few))


@every_network
@pytest.mark.parametrize("gating", ["nested", "independent"])
def test_sliced_equals_masked_at_every_arm(name: str, gating: str) -> None:
    network = network_of(name)
    x = inputs_of(network)
    for counts in settings_of(network):
        gates = gates_of(network, counts, gating)
        masks = masks_of(network, gates, len(x))
        sliced, masked = network.sliced(x, gates), network.run(x, Masked(masks))
        # float64 adds up in another order in other shapes: a few units in the last place.
        torch.testing.assert_close(sliced.logits, masked.logits, rtol=1e-9, atol=1e-9)
        kept = masked.pooled[:, masked.pooled.abs().amax(0) > 0]
        torch.testing.assert_close(
            sliced.pooled[:, sliced.pooled.abs().amax(0) > 0], kept, rtol=1e-9, atol=1e-9
        )
        assert network.pooled_channels(gates) == sliced.pooled.shape[1]


@every_network
def test_sliced_equals_masked_in_single_precision(name: str) -> None:
    network = network_of(name).float().requires_grad_(False)
    x = inputs_of(network).float()
    for counts in settings_of(network):
        masks = [mask.float() for mask in masks_of(network, list(counts), len(x))]
        sliced, masked = network.sliced(x, counts).logits, network.masked(x, masks)
        # float32 keeps 7 digits; errors are relative to the largest logit.
        assert float((sliced - masked).abs().max() / masked.abs().max()) < 1e-5


@every_network
@pytest.mark.parametrize("gating", ["nested", "independent"])
def test_samples_of_one_batch_may_each_have_their_own_gates(name: str, gating: str) -> None:
    network = network_of(name)
    settings = settings_of(network)
    x = inputs_of(network, len(settings))
    gates = [gates_of(network, counts, gating) for counts in settings]
    columns = zip(*(masks_of(network, gate, 1) for gate in gates), strict=True)
    together = network.masked(x, [torch.cat(column) for column in columns])
    alone = [network.sliced(x[i : i + 1], gate).logits for i, gate in enumerate(gates)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)


@every_network
@pytest.mark.parametrize("gating", ["nested", "independent"])
def test_gradients_of_sliced_and_masked_agree(name: str, gating: str) -> None:
    network = network_of(name)
    x = inputs_of(network)
    parameters = list(network.parameters())
    for u in (0.0, 0.4, 1.0):
        gates = gates_of(network, network.counts_at(u), gating)
        masks = masks_of(network, gates, len(x))
        losses = network.sliced(x, gates).logits, network.masked(x, masks)
        sliced, masked = (
            torch.autograd.grad(
                loss.square().sum(), parameters, allow_unused=True, materialize_grads=True
            )
            for loss in losses
        )
        for ours, theirs in zip(sliced, masked, strict=True):
            # float64, other accumulation order
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@every_network
@pytest.mark.parametrize("gating", ["nested", "independent"])
def test_packed_equals_sliced_and_answers_alike_again(name: str, gating: str) -> None:
    network = network_of(name).float().requires_grad_(False)
    x = inputs_of(network).float()
    for counts in settings_of(network):
        gates = gates_of(network, counts, gating)
        packed, sliced = Packed(gates), network.sliced(x, gates)
        with torch.inference_mode():
            first, again = network.run(x, packed), network.run(x, packed)
        assert torch.equal(first.logits, again.logits)
        # float32, other accumulation order
        torch.testing.assert_close(first.logits, sliced.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(first.pooled, sliced.pooled, rtol=1e-5, atol=1e-5)


@every_network
def test_every_count_rises_with_u_from_the_least_to_all(name: str) -> None:
    network = network_of(name)
    is_nested_rule = getattr(network.config, "serving", "ceil") == "depthwise_nested"
    for rule in (network.counts_at, network.sampled_counts):
        steps = [rule(u / 100) for u in range(101)]
        assert steps[-1] == network.components
        for before, after in itertools.pairwise(steps):
            if is_nested_rule:
                assert sum(before) <= sum(after)
            else:
                assert all(a <= b for a, b in zip(before, after, strict=True))
        assert all(k >= least for k, least in zip(steps[0], network.least, strict=True))
    if not is_nested_rule:
        assert network.counts_at(0.0) == network.least


@every_network
def test_a_configuration_survives_json(name: str) -> None:
    text = json.dumps(config_to_json(CONFIGS[name]))
    assert config_from_json(json.loads(text)) == CONFIGS[name]


@pytest.mark.parametrize("name", ["resnet both", "resnext", "densenet", "c3d"])
def test_a_frozen_path_of_it_answers_what_the_network_says(name: str) -> None:
    network = network_of(name).float()
    channels, classes = network.input_shape[0], tuple("abcde")
    spec = PathSpec(CONFIGS[name], (0.25, 1.0), classes, (0.5,) * channels, (0.25,) * channels)
    path = FrozenDataPath(network, spec)
    images = torch.rand(3, *network.input_shape, generator=torch.Generator().manual_seed(2))
    for u in path.arms:
        said = path(images, u)
        expected = network.sliced((images - 0.5) / 0.25, network.counts_at(u)).logits
        torch.testing.assert_close(said.output, expected, rtol=1e-5, atol=1e-5)
        assert int(said.macs[0]) == executed_macs(network.layer_costs(), network.counts_at(u))
    assert path.context(images)[0].shape == (3, path.context_size)


def test_statistics_of_a_row_serve_the_samples_that_ask_for_it() -> None:
    network = network_of("resnet depthwise batch").requires_grad_(False)
    network.reserve_statistics([network.components, (1, 1)])
    with torch.no_grad():
        for norm in network.norms:
            norm.running_mean[1].normal_(std=0.3)
    x = inputs_of(network, 2)
    masks = [torch.ones(2, n, dtype=torch.float64) for n in network.components]
    both = network.masked(x, masks, torch.tensor([0, 1]))
    for row in (0, 1):
        alone = network.sliced(x[row : row + 1], network.components, row).logits
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-9, atol=1e-9)
    assert float((both[1] - network.masked(x, masks)[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["resnet widthwise", "resnext", "densenet"])
def test_training_with_batch_norm_moves_the_statistics_of_what_ran_alone(name: str) -> None:
    network = make_network(replace(CONFIGS[name], norm="batch")).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.sliced(torch.randn(4, *network.input_shape), [1, 0])
    for norm in network.norms:
        key = next(key for key, part in network.named_modules() if part is norm)
        moved = norm.running_var[0] != before[f"{key}.running_var"][0]
        active = active_channels(norm.axis, [1, 0])
        assert isinstance(active, int)
        assert not moved[active:].any(), key
    assert torch.isfinite(torch.cat([p.flatten() for p in network.buffers()])).all()


@pytest.mark.parametrize("half", [0.5, 0.25])
def test_a_soft_gate_acts_once_on_what_its_component_gives(half: float) -> None:
    def ratio_holds(part: Any, x: Tensor, counts: Sequence[int]) -> None:
        whole = [torch.ones(len(x), n, dtype=torch.float64) for n in counts]
        full, soft = (part(x, Masked([mask * by for mask in whole])) for by in (1.0, half))
        torch.testing.assert_close(soft, half * full, rtol=1e-9, atol=1e-9)

    densenet = network_of("densenet")
    assert isinstance(densenet, ThrottleableDenseNet)
    x = torch.randn(2, 6, 6, 6, dtype=torch.float64)
    ratio_holds(densenet.get_submodule("blocks.0.layers.0"), x, densenet.components)

    resnext = network_of("resnext")
    block = resnext.get_submodule("stages.0.0")
    ratio_holds(
        lambda x, gates: block.conv2(block.conv1(x, gates), gates),  # type: ignore[operator]
        x,
        resnext.components,
    )

    resnet = network_of("resnet depthwise")
    block = resnet.get_submodule("stages.0.0")
    ratio_holds(
        lambda x, gates: block.conv2(block.conv1(x, gates), gates),  # type: ignore[operator]
        torch.randn(2, 8, 6, 6, dtype=torch.float64),
        resnet.components,
    )


def test_what_a_component_gives_does_not_change_when_more_are_on() -> None:
    x = torch.randn(2, 6, 6, 6, dtype=torch.float64)
    densenet = network_of("densenet").get_submodule("blocks.0")
    few, many = (densenet(x, Sliced([count, 0])) for count in (2, 3))
    # float64, other accumulation order
    torch.testing.assert_close(few, many[:, : few.shape[1]], rtol=1e-12, atol=1e-12)
    block = network_of("resnext").get_submodule("stages.0.0")
    few, many = (
        block.conv2(block.conv1(x, gates), gates)  # type: ignore[operator]
        for gates in (Sliced([2, 0]), Sliced([4, 0]))
    )
    torch.testing.assert_close(few, many[:, : few.shape[1]], rtol=1e-12, atol=1e-12)


def test_with_all_blocks_skipped_stem_shortcuts_and_classifier_answer() -> None:
    network = network_of("resnet depthwise")
    ran = [layer.name for layer in network.layer_costs() if not layer.is_off([0, 0])]
    assert ran == ["stem", "stages.1.0.shortcut", "classifier"]
    x = inputs_of(network, 2)
    y = network.get_submodule("stem")(x, Sliced([0, 0]))
    y = network.get_submodule("stages.1.0.shortcut")(y, Sliced([0, 0])).relu()
    expected = network.get_submodule("classifier")(y.mean((2, 3)), Sliced([0, 0]))
    torch.testing.assert_close(network.sliced(x, [0, 0]).logits, expected)


@pytest.mark.parametrize("name", ["resnet widthwise", "resnext", "densenet"])
def test_with_all_components_off_the_skips_still_tell_images_apart(name: str) -> None:
    network = network_of(name).requires_grad_(False)
    assert network.least == (0, 0)
    first, second = network.sliced(inputs_of(network, 2), (0, 0)).logits
    assert float((first - second).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["vgg", "c3d", "resnet widthwise stream"])
def test_without_a_skip_one_component_of_every_module_stays_on(name: str) -> None:
    network = network_of(name)
    assert set(network.counts_at(0.0)) == {1} == set(network.sampled_counts(0.0))


def test_the_depthwise_nested_rule_by_hand() -> None:
    with torch.device("meta"):
        network = ThrottleableResNet(resnet50())
    # u 16 = 4: one of each stage makes 4, which does not exceed 4; of the third stage one more.
    assert network.counts_at(0.25) == (1, 1, 2, 1)
    # u 16 = 8: two of each; the last stage's 2 of 3 exceed a half, the third's 2 of 6 do not.
    assert network.counts_at(0.5) == (2, 2, 3, 2)
    assert network.counts_at(0.0) == (0, 0, 0, 1)
    assert network.counts_at(1.0) == (3, 4, 6, 3)
    assert network.sampled_counts(0.5) == network.counts_at(0.5)


def test_under_the_nested_rule_a_stage_may_lose_a_block_to_a_later_one() -> None:
    with torch.device("meta"):
        network = ThrottleableResNet(resnet50())
    # Above a third the last stage's second block of 3 may come on, before the second stage's.
    assert network.counts_at(0.33) == (1, 2, 2, 1)
    assert network.counts_at(0.34) == (1, 1, 2, 2)


def test_under_the_nested_rule_every_total_is_equally_likely_to_be_trained() -> None:
    with torch.device("meta"):
        network = ThrottleableResNet(small_resnet(serving="depthwise_nested"))
    totals = [sum(network.sampled_counts((i + 0.5) / 900)) for i in range(900)]
    assert [totals.count(total) for total in range(1, 10)] == [100] * 9


def test_widths_beside_nested_depths_serve_their_own_share() -> None:
    config = replace(RESNET, throttling="both", serving="depthwise_nested")
    # u 5 = 1.5: the last stage's first block, then the first stage's: 2 exceed 1.5.
    assert ThrottleableResNet(config).counts_at(0.3) == (1, 2, 1, 2)


def test_resnext_shares_one_module_of_16_components_in_each_of_3_stages() -> None:
    assert ThrottleableResNeXt(small_resnext()).components == (16, 16, 16)
    assert ThrottleableDenseNet(small_densenet()).components == (16, 16, 16)


@pytest.mark.parametrize(
    ("build", "ours", "theirs"),
    [
        (resnet50_from_torchvision, resnet50(image_size=64), "resnet50"),
        (resnext50_from_torchvision, resnext50(image_size=64), "resnext50_32x4d"),
        (densenet169_from_torchvision, densenet169(image_size=64), "densenet169"),
    ],
)
def test_with_torchvisions_weights_it_answers_as_torchvision(
    build: Any, ours: Any, theirs: str
) -> None:
    torch.manual_seed(0)
    other = torchvision.models.get_model(theirs).eval()
    generator = torch.Generator().manual_seed(0)
    for part in other.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1, generator=generator)  # type: ignore[union-attr]
            part.running_var.uniform_(0.8, 1.2, generator=generator)  # type: ignore[union-attr]
            part.weight.data.uniform_(0.5, 1.0, generator=generator)
    network = build(other.state_dict(), ours).eval()
    x = torch.randn(2, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        said, expected = network.sliced(x, network.components).logits, other(x)
    # float32 through 50 layers and more: relative to the largest logit.
    assert float((said - expected).abs().max() / expected.abs().max()) < 1e-5


def test_weights_of_another_torchvision_network_are_refused() -> None:
    with torch.device("meta"):
        names = torchvision.models.resnet18().state_dict()
    state = {name: torch.zeros(()) for name in names}
    with pytest.raises(ShapeMismatch, match="weights of another network: missing"):
        resnet50_from_torchvision(state, resnet50(stages=(4, 8, 16, 32)))


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (ResNetConfig, {"blocks": (5, 5)}, "3 stages, 2 numbers of blocks"),
        (ResNetConfig, {"blocks": (5, 0, 5)}, r"blocks is made of whole numbers.*\(5, 0, 5\)"),
        (ResNetConfig, {"image_size": 3}, r"halves the image 2 times: 3 pixels"),
        (ResNetConfig, {"gates_stream": True}, "narrowed by widthwise throttling"),
        (
            ResNetConfig,
            {"throttling": "widthwise", "serving": "depthwise_nested"},
            "widthwise throttling skips none",
        ),
        (ResNeXtConfig, {"components": 5}, "5 components do not divide 16 groups"),
        (ResNeXtConfig, {"stages": (256,)}, "1 stages, 3 numbers of blocks"),
        (DenseNetConfig, {"compression": 0.0}, r"in \(0, 1\], not 0.0"),
        (DenseNetConfig, {"components": ()}, "components is made of whole numbers"),
        (DenseNetConfig, {"growth": 2.5}, "growth is made of whole numbers"),
        (small_c3d, {"components": (1, 16, 16)}, "5 layers, 3 numbers"),
        (small_c3d, {"components": (1, 5, 16, 16, 16)}, "5 components do not divide 32 outputs"),
        (small_c3d, {"pools": ((2, 2, 2),) * 2}, "ends in a pool"),
        (small_c3d, {"frames": 4}, r"leave \(0, 4, 4\) of \(4, 32, 32\)"),
    ],
)
def test_a_structure_that_cannot_be_is_refused(
    build: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSetting, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("build", "changes", "near"),
    [
        (ResNetConfig, {"throttling": "depth"}, "depthwise"),
        (ResNetConfig, {"norm": "none"}, "path.norm"),
        (ResNeXtConfig, {"gating": "nest"}, "nested"),
        (DenseNetConfig, {"norm": "groups"}, "group"),
        (small_c3d, {"norm": "batch"}, "path.norm"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused(
    build: Any, changes: dict[str, Any], near: str
) -> None:
    with pytest.raises(UnknownName, match=near):
        build(**changes)


def test_components_must_divide_what_they_gate() -> None:
    with pytest.raises(InvalidSetting, match="3 components do not divide 8 outputs"):
        ThrottleableResNet(replace(RESNET, throttling="widthwise", components=3))
