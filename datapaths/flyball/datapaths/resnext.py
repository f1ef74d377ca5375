"""ResNeXt-W: the widthwise throttleable ResNeXt of TNN section 4.1; its filter groups are gated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.axes import Axis, dense, gated
from flyball.datapaths.checks import check_choice, check_counts, check_image_size
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.execution import Gates
from flyball.datapaths.modules import Norm, TConv, TLinear
from flyball.datapaths.network import Gating, NetworkOutput, ThrottleableNetwork
from flyball.datapaths.torchvision_weights import load_torchvision

__all__ = [
    "ResNeXtConfig",
    "ThrottleableResNeXt",
    "resnext50",
    "resnext50_from_torchvision",
    "resnext_29",
    "small_resnext",
]


@dataclass(frozen=True)
class ResNeXtConfig:
    """What a ResNeXt-W is made of.

    Attributes:
        stages: channels of the stream of every stage; all but the first halve height and width.
        blocks: residual blocks of every stage.
        stem: channels of the first convolution.
        group_width: channels of one filter group in the first stage; each stage doubles it.
        groups: filter groups of every block.
        imagenet_stem: a 7x7 convolution and a max pool that quarter the image, not a 3x3.
        classes: how many the dense classifier tells apart.
        in_channels: of the image.
        image_size: height and width of the image, in pixels.
        components: n of every T-module; each holds groups / components filter groups.
        norm: "group", or "batch" as published.
        gating: "nested" or "independent" (TNN Fig. 2).
    """

    stages: tuple[int, ...] = (256, 512, 1024)
    blocks: tuple[int, ...] = (3, 3, 3)
    stem: int = 64
    group_width: int = 64
    groups: int = 16
    imagenet_stem: bool = False
    classes: int = 10
    in_channels: int = 3
    image_size: int = 32
    components: int = 16
    norm: Norm = "group"
    gating: Gating = "nested"

    def __post_init__(self) -> None:
        """Checks every field by itself, and that components share the groups.

        Raises:
            InvalidSetting: a number is below 1, stages and blocks differ in number, components
                do not divide the groups, or the image is too small.
            UnknownName: norm or gating have another value.
        """
        check_counts(stages=self.stages, blocks=self.blocks, stem=self.stem)
        check_counts(group_width=self.group_width, groups=self.groups, classes=self.classes)
        check_counts(in_channels=self.in_channels, components=self.components)
        check_choice("norm", self.norm, ("group", "batch"))
        check_choice("gating", self.gating, get_args(Gating))
        if len(self.stages) != len(self.blocks):
            raise InvalidSetting(
                f"Every stage has its number of blocks: {len(self.stages)} stages, "
                f"{len(self.blocks)} numbers of blocks. Set both --set path.stages and path.blocks."
            )
        if self.groups % self.components:
            raise InvalidSetting(
                f"A component is a whole number of filter groups: {self.components} components do "
                f"not divide {self.groups} groups. Set both alike: "
                f"--set path.components={self.groups}."
            )
        check_image_size(self.image_size, len(self.stages) - 1 + 2 * self.imagenet_stem)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.in_channels, self.image_size, self.image_size


def resnext_29(**changes: Any) -> ResNeXtConfig:
    """ResNeXt-29 (16 x 64d) for CIFAR: 16 gated groups in each of 3 stages (TNN section 4.2)."""
    return ResNeXtConfig(**{"norm": "batch", **changes})


def small_resnext(**changes: Any) -> ResNeXtConfig:
    """Two narrow blocks a stage: 20 M MACs on 32x32 images."""
    small = {"stages": (32, 64, 128), "blocks": (2, 2, 2), "stem": 32, "group_width": 2}
    return ResNeXtConfig(**{**small, **changes})


def resnext50(**changes: Any) -> ResNeXtConfig:
    """ResNeXt-50 (32 x 4d) for ImageNet, two filter groups a component (TNN section 4.2, WN)."""
    whole = {
        "stages": (256, 512, 1024, 2048),
        "blocks": (3, 4, 6, 3),
        "group_width": 4,
        "groups": 32,
        "imagenet_stem": True,
        "classes": 1000,
        "image_size": 224,
        "norm": "batch",
    }
    return ResNeXtConfig(**{**whole, **changes})


class ThrottleableResNeXt(ThrottleableNetwork):
    """T(x, u): a stage is one T-module, which all of its blocks share.

    Component j is filter group j of every block of the stage: 16 components in each of 3 stages,
    as published. The sum over the active groups is the 1x1 convolution that reads their channels
    alone. The stream beside them is dense, so a stage may switch all of its groups off: then each
    of its blocks adds the constant that its last norm makes of nothing.
    """

    def __init__(self, config: ResNeXtConfig) -> None:
        super().__init__()
        self.config, self.gating, self.classes = config, config.gating, config.classes
        self.input_shape = config.input_shape
        side, step, pad = (7, 2, 3) if config.imagenet_stem else (3, 1, 1)
        self.stem = TConv(
            dense(config.in_channels),
            dense(config.stem),
            side,
            stride=step,
            padding=pad,
            norm=config.norm,
            relu=True,
        )
        axis, self.stages = dense(config.stem), nn.ModuleList()
        for module, (channels, blocks) in enumerate(zip(config.stages, config.blocks, strict=True)):
            inner = config.groups * config.group_width * 2**module
            inside = gated(inner, module, config.components, what="block of filter groups")
            stage = nn.ModuleList()
            for position in range(blocks):
                stride = 2 if module and not position else 1
                block = _Block(axis, inside, dense(channels), stride, config.groups, config.norm)
                stage.append(block)
                axis = dense(channels)
            self.stages.append(stage)
        self.classifier = TLinear(axis, dense(config.classes))
        self.components = (config.components,) * len(config.stages)
        self.least = (0,) * len(config.stages)

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


def resnext50_from_torchvision(
    state: Mapping[str, Tensor], config: ResNeXtConfig | None = None
) -> ThrottleableResNeXt:
    """A ResNeXt-50 that answers at u = 1 as torchvision's resnext50_32x4d with these weights.

    Args:
        state: its `state_dict()`; the names are mapped as in `torchvision_weights`.
        config: of the same structure; None: `resnext50()`.

    Raises:
        ShapeMismatch: the weights are those of another network.
    """
    network = ThrottleableResNeXt(resnext50() if config is None else config)
    load_torchvision(network, state)
    return network


class _Block(nn.Module):
    """1x1 into the filter groups, grouped 3x3, 1x1 back into the stream (ResNeXt Fig. 3c)."""

    def __init__(
        self, axis: Axis, inside: Axis, out: Axis, stride: int, groups: int, norm: Norm
    ) -> None:
        super().__init__()
        # A group reads its own channels only: masking what it gives is enough.
        self.conv1 = TConv(axis, inside, 1, norm=norm, relu=True, masking="none")
        self.conv2 = TConv(
            inside, inside, 3, stride=stride, padding=1, groups=groups, norm=norm, relu=True
        )
        self.conv3 = TConv(inside, out, 1, norm=norm)
        is_same = stride == 1 and axis == out
        self.shortcut = None if is_same else TConv(axis, out, 1, stride=stride, norm=norm)

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        aside = x if self.shortcut is None else self.shortcut(x, gates)
        branch = self.conv3(self.conv2(self.conv1(x, gates), gates), gates)
        return F.relu(aside + branch)
