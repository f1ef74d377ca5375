"""ResNet-D and ResNet-W: the throttleable ResNets of TNN section 4.1, for CIFAR and for ImageNet.

A block is skipped (depthwise), or made thinner inside (widthwise), or both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.axes import Axis, dense, gated
from flyball.datapaths.checks import check_choice, check_counts, check_image_size
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.execution import Gates
from flyball.datapaths.gates import (
    depthwise_nested_counts,
    sampled_components,
    served_components,
)
from flyball.datapaths.modules import Component, Norm, TConv, TLinear
from flyball.datapaths.network import Gating, NetworkOutput, ThrottleableNetwork
from flyball.datapaths.torchvision_weights import load_torchvision

__all__ = [
    "ResNetConfig",
    "Serving",
    "ThrottleableResNet",
    "Throttling",
    "resnet50",
    "resnet50_from_torchvision",
    "resnet_32",
    "small_resnet",
]

Throttling = Literal["depthwise", "widthwise", "both"]
Serving = Literal["ceil", "depthwise_nested"]

EXPANSION = 4  # of a bottleneck block, from its inner width to the stream


@dataclass(frozen=True)
class ResNetConfig:
    """What a throttleable ResNet is made of.

    Attributes:
        stages: inner channels of every stage; all but the first halve height and width.
        blocks: residual blocks of every stage: n of a depthwise T-module.
        bottleneck: blocks of 1x1, 3x3 and 1x1 whose stream is 4 times as wide; else two 3x3.
        imagenet_stem: a 7x7 convolution and a max pool that quarter the image, not a 3x3.
        classes: how many the dense classifier tells apart.
        in_channels: of the image.
        image_size: height and width of the image, in pixels.
        throttling: "depthwise" skips blocks, "widthwise" narrows them, "both" at once.
        gates_stream: widthwise throttling narrows the stage's stream together with its blocks.
        components: n of a widthwise T-module.
        serving: how depthwise T-modules serve u: "ceil" of u n in every stage, or
            "depthwise_nested", from the last stage on, as the paper does on ImageNet (DN).
        norm: "group", or "batch" as published.
        gating: "nested" or "independent" (TNN Fig. 2).
    """

    stages: tuple[int, ...] = (16, 32, 64)
    blocks: tuple[int, ...] = (5, 5, 5)
    bottleneck: bool = False
    imagenet_stem: bool = False
    classes: int = 10
    in_channels: int = 3
    image_size: int = 32
    throttling: Throttling = "depthwise"
    gates_stream: bool = False
    components: int = 16
    serving: Serving = "ceil"
    norm: Norm = "group"
    gating: Gating = "nested"

    def __post_init__(self) -> None:
        """Checks every field by itself, and that they go together.

        Raises:
            InvalidSetting: a number is below 1, stages and blocks differ in number, the rule or
                the stream have no T-module to act on, or the image is too small.
            UnknownName: a field has a value that does not exist.
        """
        check_counts(stages=self.stages, blocks=self.blocks, classes=self.classes)
        check_counts(in_channels=self.in_channels, components=self.components)
        check_choice("throttling", self.throttling, get_args(Throttling))
        check_choice("serving", self.serving, get_args(Serving))
        check_choice("norm", self.norm, ("group", "batch"))
        check_choice("gating", self.gating, get_args(Gating))
        if len(self.stages) != len(self.blocks):
            raise InvalidSetting(
                f"Every stage has its number of blocks: {len(self.stages)} stages, "
                f"{len(self.blocks)} numbers of blocks. Set both --set path.stages and path.blocks."
            )
        if self.serving == "depthwise_nested" and self.throttling == "widthwise":
            raise InvalidSetting(
                "The depthwise nested rule skips blocks, and widthwise throttling skips none. "
                "Set --set path.throttling=depthwise or --set path.serving=ceil."
            )
        if self.gates_stream and self.throttling == "depthwise":
            raise InvalidSetting(
                "A stream is narrowed by widthwise throttling, and this is depthwise. "
                "Set --set path.throttling=widthwise or --set path.gates_stream=false."
            )
        check_image_size(self.image_size, len(self.stages) - 1 + 2 * self.imagenet_stem)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.in_channels, self.image_size, self.image_size


def resnet_32(**changes: Any) -> ResNetConfig:
    """ResNet-32 for CIFAR with 15 blocks that can be skipped."""
    return ResNetConfig(**{"norm": "batch", **changes})


def small_resnet(**changes: Any) -> ResNetConfig:
    """Three blocks a stage: 40 M MACs on 32x32 images."""
    return ResNetConfig(**{"blocks": (3, 3, 3), **changes})


def resnet50(**changes: Any) -> ResNetConfig:
    """ResNet-50 for ImageNet under the depthwise nested rule (TNN section 4.2, DN)."""
    whole = {
        "stages": (64, 128, 256, 512),
        "blocks": (3, 4, 6, 3),
        "bottleneck": True,
        "imagenet_stem": True,
        "classes": 1000,
        "image_size": 224,
        "serving": "depthwise_nested",
        "norm": "batch",
    }
    return ResNetConfig(**{**whole, **changes})


class ThrottleableResNet(ThrottleableNetwork):
    """T(x, u): the T-modules are a stage's blocks (depthwise) and a stage's width (widthwise).

    Skipping a block skips its residual branch; where the block changes the shape of the stream,
    the 1x1 shortcut beside it always runs. "both" has two T-modules a stage, depth then width,
    and costs about u squared. All blocks may be skipped and all inner channels be off; a stream
    that is gated itself keeps one component.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config, self.gating, self.classes = config, config.gating, config.classes
        self.input_shape = config.input_shape
        side, step, pad = (7, 2, 3) if config.imagenet_stem else (3, 1, 1)
        axis = dense(config.stages[0])
        self.stem = TConv(
            dense(config.in_channels),
            axis,
            side,
            stride=step,
            padding=pad,
            norm=config.norm,
            relu=True,
        )
        self.stages, self.depths = nn.ModuleList(), list[int]()
        components, least = list[int](), list[int]()
        for position, (width, blocks) in enumerate(zip(config.stages, config.blocks, strict=True)):
            depth, inner, out = None, dense(width), dense(width * _expansion(config))
            if config.throttling != "widthwise":
                depth = len(components)
                self.depths.append(depth)
                components.append(blocks)
                least.append(0)
            if config.throttling != "depthwise":
                module, n = len(components), config.components
                inner = gated(width, module, n, what="residual block")
                if config.gates_stream:
                    out = gated(width * _expansion(config), module, n, what="stage")
                components.append(n)
                least.append(int(config.gates_stream))
            stage = nn.ModuleList()
            for block in range(blocks):
                stride = 2 if position and not block else 1
                component = None if depth is None else (depth, block)
                stage.append(_Block(axis, inner, out, stride, component, config))
                axis = out
            self.stages.append(stage)
        self.classifier = TLinear(axis, dense(config.classes))
        self.components, self.least = tuple(components), tuple(least)

    def run(self, x: Tensor, gates: Gates) -> NetworkOutput:
        """One pass: normalised images (B, C, H, W) through the T-layers."""
        x = self.stem(x, gates)
        if self.config.imagenet_stem:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                x = block(x, gates)
        pooled = x.mean(dim=(2, 3))
        return NetworkOutput(self.classifier(pooled, gates), pooled)

    def counts_at(self, u: float) -> tuple[int, ...]:
        """How many components serve a requested u, by the configured rule.

        "depthwise_nested" lets depth modules serve the first total whose share exceeds u: one
        block at least. The total rises with u, a single stage need not: on ResNet-50 the second
        stage gives a block up to the last one at a third. Width modules serve ceil(u n).
        """
        widths = [
            served_components(u, n, min_active=least)
            for n, least in zip(self.components, self.least, strict=True)
        ]
        return self._with_depths(u, widths)

    def sampled_counts(self, u: float) -> tuple[int, ...]:
        """How many train under a sampled u.

        Under "depthwise_nested" the blocks are those that serve u: uniform u makes every total
        from 1 to all equally likely, and only settings that are served are trained.
        """
        widths = [
            sampled_components(u, n, min_active=least)
            for n, least in zip(self.components, self.least, strict=True)
        ]
        return self._with_depths(u, widths)

    def _with_depths(self, u: float, counts: Sequence[int]) -> tuple[int, ...]:
        """Replaces the depth modules' counts where the depthwise nested rule sets them."""
        found = list(counts)
        if self.config.serving == "depthwise_nested":
            nested = depthwise_nested_counts(u, [self.components[m] for m in self.depths])
            for module, count in zip(self.depths, nested, strict=True):
                found[module] = count
        return tuple(found)


def resnet50_from_torchvision(
    state: Mapping[str, Tensor], config: ResNetConfig | None = None
) -> ThrottleableResNet:
    """A ResNet-50 that answers at u = 1 as torchvision's resnet50 with these weights.

    Args:
        state: its `state_dict()`; the names are mapped as in `torchvision_weights`.
        config: of the same structure, whatever its throttling; None: `resnet50()`.

    Raises:
        ShapeMismatch: the weights are those of another network.
    """
    network = ThrottleableResNet(resnet50() if config is None else config)
    load_torchvision(network, state)
    return network


def _expansion(config: ResNetConfig) -> int:
    return EXPANSION if config.bottleneck else 1


class _Block(nn.Module):
    """The residual branch and its shortcut; a component at most."""

    def __init__(
        self,
        axis: Axis,
        inner: Axis,
        out: Axis,
        stride: int,
        component: Component | None,
        config: ResNetConfig,
    ) -> None:
        super().__init__()
        self.component, norm = component, config.norm
        if config.bottleneck:
            plan = [(axis, inner, 1, 1), (inner, inner, 3, stride), (inner, out, 1, 1)]
        else:
            plan = [(axis, inner, 3, stride), (inner, out, 3, 1)]
        self.length = len(plan)
        for position, (before, after, side, step) in enumerate(plan):
            is_last = position == len(plan) - 1
            conv = TConv(
                before,
                after,
                side,
                stride=step,
                padding=side // 2,
                norm=norm,
                relu=not is_last,
                component=component,
                masking="all" if is_last else "channels",
            )
            self.add_module(f"conv{position + 1}", conv)
        is_same = stride == 1 and axis == out
        self.shortcut = None if is_same else TConv(axis, out, 1, stride=stride, norm=norm)

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        aside = x if self.shortcut is None else self.shortcut(x, gates)
        if self.component is not None and gates.is_off(*self.component):
            return F.relu(aside)
        branch = x
        for position in range(self.length):
            branch = self.get_submodule(f"conv{position + 1}")(branch, gates)
        return F.relu(aside + branch)
