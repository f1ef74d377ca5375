"""DynConv ResNets: ResNet-8 ... 32 for CIFAR, and ResNet-101 as torchvision builds it.

B batch, C channels, H, W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.checks import check_choice
from flyball.datapaths.dynconv.blocks import BasicBlock, Bottleneck, ConditionalBlock, ConvNorm
from flyball.datapaths.dynconv.masks import MASK_UNITS, Masking, MaskUnitKind
from flyball.datapaths.dynconv.network import DynConvNetwork
from flyball.datapaths.errors import InvalidSetting, ShapeMismatch
from flyball.datapaths.network import NetworkOutput

__all__ = [
    "DynConvResNet",
    "DynConvResNetConfig",
    "cifar_resnet",
    "load_torchvision_resnet",
    "resnet_101",
]

EXPANSION = 4


@dataclass(frozen=True)
class DynConvResNetConfig:
    """A ResNet of conditional blocks.

    Attributes:
        layers: blocks of every stage; every stage but the first halves the pixels.
        widths: channels of every stage (of the 3x3 convolutions, where `bottleneck`).
        bottleneck: 1x1, 3x3, 1x1 blocks with four times the channels at their ends.
        stem: "cifar": a 3x3 convolution; "imagenet": 7x7 with stride 2, and max pooling.
        mask_unit: "squeeze", "conv", or "none": a dense network, the static baseline.
        is_budgeted: u, the requested share of the conditional MACs, shifts every mask; else it is
            a network for the one budget it is trained for.
        in_channels: C.
        image_size: H and W.
        classes: how many it tells apart.

    Raises:
        InvalidSetting: a field breaks its rule.
    """

    layers: tuple[int, ...] = (3, 3, 3)
    widths: tuple[int, ...] = (16, 32, 64)
    bottleneck: bool = False
    stem: Literal["cifar", "imagenet"] = "cifar"
    mask_unit: MaskUnitKind = "squeeze"
    is_budgeted: bool = True
    in_channels: int = 3
    image_size: int = 32
    classes: int = 10

    def __post_init__(self) -> None:
        if not self.layers or min(self.layers) < 1 or len(self.layers) != len(self.widths):
            raise InvalidSetting(
                "Every stage has one block or more and one width; path.network.layers is "
                f"{self.layers}, path.network.widths {self.widths}. "
                "Give as many of both, such as layers 3,3,3 and widths 16,32,64."
            )
        check_choice("network.stem", self.stem, ("cifar", "imagenet"))
        check_choice("network.mask_unit", self.mask_unit, MASK_UNITS)
        for name in ("in_channels", "image_size", "classes"):
            if getattr(self, name) < 1:
                raise InvalidSetting(
                    f"path.network.{name} is 1 or more, not {getattr(self, name)}. "
                    f"Set --set path.network.{name}={getattr(DynConvResNetConfig, name)}."
                )
        if min(self.widths) < 1:
            raise InvalidSetting(
                f"A width is 1 channel or more; path.network.widths is {self.widths}. "
                "Give for example --set path.network.widths=16,32,64."
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return (self.in_channels, self.image_size, self.image_size)


class DynConvResNet(DynConvNetwork):
    """A classifier of conditional residual blocks."""

    def __init__(self, config: DynConvResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.input_shape = config.input_shape
        self.classes = config.classes
        first = config.widths[0] if config.stem == "cifar" else 64
        side, step = (3, 1) if config.stem == "cifar" else (7, 2)
        self.stem = ConvNorm(config.in_channels, first, side, stride=step, activation="relu")
        self.stages = nn.ModuleList()
        channels = first
        for stage, (count, width) in enumerate(zip(config.layers, config.widths, strict=True)):
            blocks = nn.ModuleList()
            outputs = width * EXPANSION if config.bottleneck else width
            for number in range(count):
                stride = 2 if stage and not number else 1
                block: ConditionalBlock
                if config.bottleneck:
                    block = Bottleneck(channels, width, outputs, stride, config.mask_unit)
                else:
                    block = BasicBlock(channels, outputs, stride, config.mask_unit)
                blocks.append(block)
                channels = outputs
            self.stages.append(blocks)
        self.head = nn.Linear(channels, config.classes)
        self.number_blocks(is_budgeted=config.is_budgeted)

    def run(self, x: Tensor, masking: Masking) -> NetworkOutput:
        x = self.stem(x)
        if self.config.stem == "imagenet":
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x, masking)
        pooled = x.mean(dim=(2, 3))
        return NetworkOutput(self.head(pooled), pooled)


def cifar_resnet(
    depth: int,
    *,
    mask_unit: MaskUnitKind = "squeeze",
    is_budgeted: bool = True,
    widths: tuple[int, ...] = (16, 32, 64),
) -> DynConvResNetConfig:
    """ResNet-8, 14, 20, 26 or 32 for 32x32 images (DynConv section 4.1.1).

    Raises:
        InvalidSetting: the depth is not 6 n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise InvalidSetting(
            f"A CIFAR ResNet has 6 n + 2 layers, such as 8, 14, 20, 26 or 32; not {depth}."
        )
    return DynConvResNetConfig(
        layers=(blocks,) * 3, widths=widths, mask_unit=mask_unit, is_budgeted=is_budgeted
    )


def resnet_101(
    *, mask_unit: MaskUnitKind = "squeeze", is_budgeted: bool = False, classes: int = 1000
) -> DynConvResNetConfig:
    """ResNet-101 for 224x224 images (DynConv section 4.1.1)."""
    return DynConvResNetConfig(
        layers=(3, 4, 23, 3),
        widths=(64, 128, 256, 512),
        bottleneck=True,
        stem="imagenet",
        mask_unit=mask_unit,
        is_budgeted=is_budgeted,
        image_size=224,
        classes=classes,
    )


def load_torchvision_resnet(network: DynConvResNet, state: Mapping[str, Tensor]) -> None:
    """Puts torchvision's weights of a ResNet of the same layers into a network; the masks stay.

    So does the last layer, where the weights are for another number of classes.

    DynConv starts ResNet-101 from pretrained weights (section 4.1.1).

    Args:
        network: with bottlenecks and the ImageNet stem.
        state: torchvision's `state_dict()`.

    Raises:
        ShapeMismatch: a weight is missing, left over, or of another shape.
    """
    own = network.state_dict()
    if tuple(state.get("fc.weight", own["head.weight"]).shape) != tuple(own["head.weight"].shape):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        own = {name: tensor for name, tensor in own.items() if not name.startswith("head.")}
    names = {name: _torchvision_name(name) for name in own}
    wanted = {theirs: name for name, theirs in names.items() if theirs}
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        raise ShapeMismatch(
            "These are not the weights of a torchvision ResNet of these layers: "
            f"missing {missing[:3] or 'none'}, left over {extra[:3] or 'none'}. "
            "Name a state dict of the same layers: --set path.weights=FILE."
        )
    for theirs, name in wanted.items():
        if state[theirs].shape != own[name].shape:
            raise ShapeMismatch(
                f"{theirs} has shape {tuple(state[theirs].shape)}, this network needs "
                f"{tuple(own[name].shape)}. Name weights of the same layers and widths."
            )
    with torch.no_grad():
        for theirs, name in wanted.items():
            own[name].copy_(state[theirs])


def _torchvision_name(name: str) -> str:
    """What torchvision calls a weight; empty for what it does not have."""
    if ".unit." in name or name.startswith("shift."):
        return ""
    parts = name.split(".")
    leaf = parts[-1]
    if parts[0] == "head":
        return f"fc.{leaf}"
    kind = parts[-2]
    if parts[0] == "stem":
        return f"{'conv1' if kind == 'conv' else 'bn1'}.{leaf}"
    stage, block, layer = int(parts[1]) + 1, parts[2], parts[3]
    if layer == "shortcut":
        return f"layer{stage}.{block}.downsample.{0 if kind == 'conv' else 1}.{leaf}"
    number = layer.removeprefix("conv")
    return f"layer{stage}.{block}.{'conv' if kind == 'conv' else 'bn'}{number}.{leaf}"
