"""VGG-W: the widthwise throttleable VGG of TNN section 4.2, whole or small."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.cost import LayerCost
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.modules import Norm, TConv2d, TLinear, component_width
from flyball.kernels import Active, expand_active, linear_active

__all__ = ["ThrottleableVgg", "VggConfig", "VggOutput", "small_vgg", "vgg_d"]


@dataclass(frozen=True)
class VggConfig:
    """What a VGG-W is made of.

    Attributes:
        stages: channels of every 3x3 convolution, stage by stage; each stage ends in a 2x2 max
            pool that halves height and width.
        hidden: features of the fully-connected T-module.
        classes: how many the dense classifier tells apart.
        in_channels: of the image.
        image_size: height and width of the image, in pixels.
        components: n of every T-module.
        norm: "group" (one group a component), or "none" as published.
        gating: "nested" or "independent" (TNN Fig. 2).
    """

    stages: tuple[tuple[int, ...], ...]
    hidden: int
    classes: int = 10
    in_channels: int = 3
    image_size: int = 32
    components: int = 16
    norm: Norm = "group"
    gating: Literal["nested", "independent"] = "nested"

    def __post_init__(self) -> None:
        """Checks that the image survives its pools and that components share every layer.

        Raises:
            InvalidSetting: they do not, or there is no convolution.
        """
        shrink = 2 ** len(self.stages)
        if not self.stages or not all(self.stages):
            raise InvalidSetting(
                f"A VGG has at least one convolution in every stage; stages are {self.stages}. "
                "Give for example stages=((32,), (64,))."
            )
        for stage in self.stages:
            for outputs in stage:
                component_width("convolution", outputs, self.components)
        component_width("linear layer", self.hidden, self.components)
        if self.image_size % shrink or self.image_size < shrink:
            fitting = max(shrink, self.image_size // shrink * shrink)
            raise InvalidSetting(
                f"{len(self.stages)} pools halve the image {len(self.stages)} times: "
                f"{self.image_size} pixels are not a multiple of {shrink}. "
                f"Resize with --set data.image_size={fitting}."
            )


def vgg_d(**changes: object) -> VggConfig:
    """VGG-D cut after three stages, with FC-4096 and 16 components (TNN section 4.2, CIFAR-10)."""
    stages = ((64, 64), (128, 128), (256, 256, 256))
    return VggConfig(**{"stages": stages, "hidden": 4096, "norm": "none", **changes})  # type: ignore[arg-type]


def small_vgg(**changes: object) -> VggConfig:
    """Two convolutions and a small hidden layer: for 8x8 digits and for tests."""
    return VggConfig(**{"stages": ((32,), (64,)), "hidden": 128, **changes})  # type: ignore[arg-type]


class VggOutput(NamedTuple):
    """What a pass gives; B samples.

    Attributes:
        logits: (B, classes).
        pooled: mean over pixels of the last convolution's active channels, (B, channels).
    """

    logits: Tensor
    pooled: Tensor


class ThrottleableVgg(nn.Module):
    """T(x, u) with the gates of every T-module given from outside.

    `sliced` and `masked` are the same function: sliced computes the active part alone.
    """

    def __init__(self, config: VggConfig) -> None:
        super().__init__()
        self.config = config
        self.convs = nn.ModuleList()
        self.stage_ends: list[bool] = []
        inputs = config.in_channels
        for stage in config.stages:
            for position, outputs in enumerate(stage):
                self.convs.append(TConv2d(inputs, outputs, config.components, config.norm))
                self.stage_ends.append(position == len(stage) - 1)
                inputs = outputs
        self.pixels = (config.image_size // 2 ** len(config.stages)) ** 2
        self.hidden = TLinear(inputs * self.pixels, config.hidden, config.components)
        self.classifier = nn.Linear(config.hidden, config.classes)
        self._initialise()

    @property
    def components(self) -> tuple[int, ...]:
        """n of every T-module, in order of execution."""
        return (self.config.components,) * (len(self.convs) + 1)

    def sliced(self, x: Tensor, active: Sequence[Active]) -> VggOutput:
        """Runs the active components alone.

        Args:
            x: normalised images, (B, C, H, W).
            active: for every T-module a count (nested) or indices (independent) of components.
        """
        channels: Active = x.shape[1]
        for conv, gate, ends in zip(self.convs, active, self.stage_ends, strict=False):
            assert isinstance(conv, TConv2d)
            x = conv.sliced(x, channels, gate)
            channels = expand_active(gate, conv.width)
            x = F.max_pool2d(x, 2) if ends else x
        pooled = x.mean(dim=(2, 3))
        features = self.hidden.sliced(
            x.flatten(1), expand_active(channels, self.pixels), active[-1]
        )
        seen = expand_active(active[-1], self.hidden.width)
        weight, bias = self.classifier.weight, self.classifier.bias
        return VggOutput(linear_active(features, weight, bias, seen, len(bias)), pooled)

    def masked(self, x: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Runs everything and multiplies by a mask for each sample; logits (B, classes).

        Args:
            x: normalised images, (B, C, H, W).
            masks: for every T-module (B, n) of zeros and ones.
        """
        for conv, mask, ends in zip(self.convs, masks, self.stage_ends, strict=False):
            assert isinstance(conv, TConv2d)
            x = conv.masked(x, mask)
            x = F.max_pool2d(x, 2) if ends else x
        logits: Tensor = self.classifier(self.hidden.masked(x.flatten(1), masks[-1]))
        return logits

    def layer_costs(self) -> tuple[LayerCost, ...]:
        """Every layer that multiplies, in order, for `cost`."""
        layers: list[LayerCost] = []
        size, previous = self.config.image_size, None
        for module, (conv, ends) in enumerate(zip(self.convs, self.stage_ends, strict=True)):
            assert isinstance(conv, TConv2d)
            outputs, inputs = conv.conv.weight.shape[:2]
            layers.append(
                LayerCost(f"convs.{module}", size * size * 9, inputs, outputs, previous, module)
            )
            previous, size = module, size // 2 if ends else size
        outputs, inputs = self.hidden.linear.weight.shape
        last = len(self.convs)
        layers.append(LayerCost("hidden", 1, inputs, outputs, previous, last))
        outputs, inputs = self.classifier.weight.shape
        layers.append(LayerCost("classifier", 1, inputs, outputs, last, None))
        return tuple(layers)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        torch.nn.init.normal_(self.classifier.weight, std=0.01)
