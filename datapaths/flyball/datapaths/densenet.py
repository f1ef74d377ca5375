"""DenseNet-DW: the throttleable DenseNet-BC of TNN section 4.1; its narrow layers are gated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.axes import Axis, Segment, channels_of, dense
from flyball.datapaths.checks import check_choice, check_counts, check_image_size
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.execution import Gates
from flyball.datapaths.modules import Norm, TConv, TLinear, TNorm
from flyball.datapaths.network import Gating, NetworkOutput, ThrottleableNetwork
from flyball.datapaths.torchvision_weights import load_torchvision

__all__ = [
    "DenseNetConfig",
    "ThrottleableDenseNet",
    "densenet169",
    "densenet169_from_torchvision",
    "densenet_bc",
    "small_densenet",
]


@dataclass(frozen=True)
class DenseNetConfig:
    """What a DenseNet-DW is made of.

    Attributes:
        components: dense layers of every dense block: n of every T-module.
        growth: channels that a dense layer adds.
        stem: channels of the first convolution.
        stem_stride: stride of a 3x3 stem; 2 halves the image at once.
        imagenet_stem: a 7x7 convolution and a max pool that quarter the image, not a 3x3.
        bottleneck: inner channels of a dense layer, as a multiple of the growth.
        compression: share of the channels that a transition keeps, in (0, 1].
        classes: how many the dense classifier tells apart.
        in_channels: of the image.
        image_size: height and width of the image, in pixels.
        norm: "group" (groups within one layer's channels), or "batch" as published.
        gating: "nested" or "independent" (TNN Fig. 2).
    """

    components: tuple[int, ...] = (16, 16, 16)
    growth: int = 12
    stem: int = 24
    stem_stride: int = 1
    imagenet_stem: bool = False
    bottleneck: int = 4
    compression: float = 0.5
    classes: int = 10
    in_channels: int = 3
    image_size: int = 32
    norm: Norm = "group"
    gating: Gating = "nested"

    def __post_init__(self) -> None:
        """Checks every field by itself, and that the image survives its transitions.

        Raises:
            InvalidSetting: a number is below 1, or the image is too small.
            UnknownName: norm or gating have another value.
        """
        check_counts(components=self.components, growth=self.growth, stem=self.stem)
        check_counts(stem_stride=self.stem_stride, bottleneck=self.bottleneck)
        check_counts(classes=self.classes, in_channels=self.in_channels)
        check_choice("norm", self.norm, ("group", "batch"))
        check_choice("gating", self.gating, get_args(Gating))
        if not 0.0 < self.compression <= 1.0:
            raise InvalidSetting(
                f"A transition keeps a share of the channels in (0, 1], not {self.compression}. "
                "Set it with --set path.compression=0.5."
            )
        at_once = 2 if self.imagenet_stem else math.ceil(math.log2(self.stem_stride))
        check_image_size(self.image_size, len(self.components) - 1 + at_once)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.in_channels, self.image_size, self.image_size


def densenet_bc(**changes: Any) -> DenseNetConfig:
    """DenseNet-BC-100-12: 3 dense blocks of 16 components, growth 12 (TNN section 4.2)."""
    return DenseNetConfig(**{"norm": "batch", **changes})


def small_densenet(**changes: Any) -> DenseNetConfig:
    """Half the growth on half the pixels: 18 M MACs on 32x32 images."""
    return DenseNetConfig(**{"growth": 6, "stem": 12, "stem_stride": 2, **changes})


def densenet169(**changes: Any) -> DenseNetConfig:
    """DenseNet-169 for ImageNet (TNN section 4.2, WN)."""
    whole = {
        "components": (6, 12, 32, 32),
        "growth": 32,
        "stem": 64,
        "imagenet_stem": True,
        "classes": 1000,
        "image_size": 224,
        "norm": "batch",
    }
    return DenseNetConfig(**{**whole, **changes})


class ThrottleableDenseNet(ThrottleableNetwork):
    """T(x, u): a dense block is one T-module, a component one of its dense layers.

    The layers' outputs are concatenated, so switching one off makes the block thinner
    (widthwise) and shorter (depthwise) at once, and every later layer reads less. What enters a
    block always passes through: all of its components may be off.
    """

    def __init__(self, config: DenseNetConfig) -> None:
        super().__init__()
        self.config, self.gating, self.classes = config, config.gating, config.classes
        self.input_shape = config.input_shape
        axis = dense(config.stem)
        if config.imagenet_stem:
            self.stem = TConv(
                dense(config.in_channels),
                axis,
                7,
                stride=2,
                padding=3,
                norm=config.norm,
                relu=True,
            )
        else:  # the first norm of the first block follows at once
            self.stem = TConv(
                dense(config.in_channels), axis, 3, stride=config.stem_stride, padding=1, bias=False
            )
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for module, layers in enumerate(config.components):
            self.blocks.append(_DenseBlock(axis, module, layers, config))
            new = (Segment(config.growth, module, position, 1) for position in range(layers))
            axis = (*axis, *new)
            if module < len(config.components) - 1:
                out = dense(max(1, math.floor(channels_of(axis) * config.compression)))
                self.transitions.append(_Transition(axis, out, config.norm))
                axis = out
        self.norm = _pre_norm(axis, config.norm)
        self.classifier = TLinear(axis, dense(config.classes))
        self.components = config.components
        self.least = (0,) * len(config.components)

    def run(self, x: Tensor, gates: Gates) -> NetworkOutput:
        """One pass: normalised images (B, C, H, W) through the T-layers."""
        x = self.stem(x, gates)
        if self.config.imagenet_stem:
            x = F.max_pool2d(x, 3, 2, 1)
        for module, block in enumerate(self.blocks):
            x = block(x, gates)
            if module < len(self.transitions):
                x = self.transitions[module](x, gates)
        pooled = self.norm(x, gates).mean(dim=(2, 3))
        return NetworkOutput(self.classifier(pooled, gates), pooled)


def densenet169_from_torchvision(
    state: Mapping[str, Tensor], config: DenseNetConfig | None = None
) -> ThrottleableDenseNet:
    """A DenseNet-169 that answers at u = 1 as torchvision's densenet169 with these weights.

    Args:
        state: its `state_dict()`; the names are mapped as in `torchvision_weights`.
        config: of the same structure; None: `densenet169()`.

    Raises:
        ShapeMismatch: the weights are those of another network.
    """
    network = ThrottleableDenseNet(densenet169() if config is None else config)
    load_torchvision(network, state)
    return network


class _DenseBlock(nn.Module):
    """Dense layers, each of which reads what entered and what all before it have added."""

    def __init__(self, axis: Axis, module: int, layers: int, config: DenseNetConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for position in range(layers):
            self.layers.append(_DenseLayer(axis, (module, position), config))
            axis = (*axis, Segment(config.growth, module, position, 1))
        self.module = module

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        for position, layer in enumerate(self.layers):
            if not gates.is_off(self.module, position):
                x = torch.cat([x, layer(x, gates)], dim=1)
        return x


class _DenseLayer(nn.Module):
    """1x1 bottleneck and 3x3 convolution, each after norm and ReLU; gives `growth` channels."""

    def __init__(self, axis: Axis, component: tuple[int, int], config: DenseNetConfig) -> None:
        super().__init__()
        module, position = component
        inner = dense(config.bottleneck * config.growth)
        out = (Segment(config.growth, module, position, 1),)
        self.norm = _pre_norm(axis, config.norm)
        self.conv1 = TConv(
            axis, inner, 1, norm=config.norm, relu=True, component=component, masking="none"
        )
        self.conv2 = TConv(
            inner, out, 3, padding=1, bias=False, component=component, masking="channels"
        )

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        added: Tensor = self.conv2(self.conv1(self.norm(x, gates), gates), gates)
        return added


class _Transition(nn.Module):
    """Norm, ReLU, a 1x1 convolution to fewer channels, and a 2x2 mean."""

    def __init__(self, axis: Axis, out: Axis, norm: Norm) -> None:
        super().__init__()
        self.norm = _pre_norm(axis, norm)
        self.conv = TConv(axis, out, 1, bias=False)

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        return F.avg_pool2d(self.conv(self.norm(x, gates), gates), 2)


def _pre_norm(axis: Axis, norm: Norm) -> TNorm:
    """Norm and ReLU before a convolution, in groups that divide every segment."""
    width = math.gcd(*(segment.width for segment in axis))
    return TNorm(axis, "batch" if norm == "batch" else "group", relu=True, group_width=width)
