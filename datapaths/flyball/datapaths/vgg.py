"""VGG-W: the widthwise throttleable VGG of TNN section 4.2, whole or small."""

from dataclasses import dataclass
from typing import get_args

from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.axes import component_width, dense, gated, times
from flyball.datapaths.checks import check_choice, check_counts
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.execution import Gates
from flyball.datapaths.modules import Norm, TConv, TLinear
from flyball.datapaths.network import Gating, NetworkOutput, ThrottleableNetwork

__all__ = ["ThrottleableVgg", "VggConfig", "small_vgg", "vgg_d"]


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
        norm: "group" (one group a component), "batch" (statistics for every arm), or "none" as
            published.
        gating: "nested" or "independent" (TNN Fig. 2).
    """

    stages: tuple[tuple[int, ...], ...]
    hidden: int
    classes: int = 10
    in_channels: int = 3
    image_size: int = 32
    components: int = 16
    norm: Norm = "group"
    gating: Gating = "nested"

    def __post_init__(self) -> None:
        """Checks the numbers, that the image survives its pools, and that components share layers.

        Raises:
            InvalidSetting: they do not, there is no convolution, or a number is below 1.
            UnknownName: norm or gating have another value.
        """
        check_choice("norm", self.norm, get_args(Norm))
        check_choice("gating", self.gating, get_args(Gating))
        check_counts(
            hidden=self.hidden,
            classes=self.classes,
            in_channels=self.in_channels,
            components=self.components,
        )
        if not all(isinstance(stage, tuple) for stage in self.stages):
            raise InvalidSetting(
                f"Every stage is a list of convolutions; the stages are {self.stages}. "
                "Give for example --set 'path.stages=((32,),(64,))'."
            )
        shrink = 2 ** len(self.stages)
        if not self.stages or not all(self.stages):
            raise InvalidSetting(
                f"A VGG has at least one convolution in every stage; stages are {self.stages}. "
                "Give for example stages=((32,), (64,))."
            )
        for stage in self.stages:
            check_counts(stages=stage)
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

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.in_channels, self.image_size, self.image_size


def vgg_d(**changes: object) -> VggConfig:
    """VGG-D cut after three stages, with FC-4096 and 16 components (TNN section 4.2, CIFAR-10)."""
    stages = ((64, 64), (128, 128), (256, 256, 256))
    return VggConfig(**{"stages": stages, "hidden": 4096, "norm": "none", **changes})  # type: ignore[arg-type]


def small_vgg(**changes: object) -> VggConfig:
    """Two convolutions and a small hidden layer: for 8x8 digits and for tests."""
    return VggConfig(**{"stages": ((32,), (64,)), "hidden": 128, **changes})  # type: ignore[arg-type]


class ThrottleableVgg(ThrottleableNetwork):
    """T(x, u): every convolution and the hidden layer are T-modules; nothing can be skipped."""

    def __init__(self, config: VggConfig) -> None:
        super().__init__()
        self.config, self.gating, self.classes = config, config.gating, config.classes
        self.input_shape = config.input_shape
        self.convs = nn.ModuleList()
        self.stage_ends: list[bool] = []
        n, axis = config.components, dense(config.in_channels)
        for stage in config.stages:
            for position, outputs in enumerate(stage):
                out = gated(outputs, len(self.convs), n, what="convolution")
                self.convs.append(TConv(axis, out, 3, padding=1, norm=config.norm, relu=True))
                self.stage_ends.append(position == len(stage) - 1)
                axis = out
        pixels = (config.image_size // 2 ** len(config.stages)) ** 2
        hidden = gated(config.hidden, len(self.convs), n, what="linear layer")
        self.hidden = TLinear(times(axis, pixels), hidden, relu=True)
        self.classifier = TLinear(hidden, dense(config.classes))
        self.components = (n,) * (len(self.convs) + 1)
        self.least = (1,) * len(self.components)

    def run(self, x: Tensor, gates: Gates) -> NetworkOutput:
        """One pass: normalised images (B, C, H, W) through the T-layers."""
        for conv, ends in zip(self.convs, self.stage_ends, strict=True):
            x = conv(x, gates)
            x = F.max_pool2d(x, 2) if ends else x
        pooled = x.mean(dim=(2, 3))
        return NetworkOutput(self.classifier(self.hidden(x.flatten(1), gates), gates), pooled)
