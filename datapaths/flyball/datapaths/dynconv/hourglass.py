"""Stacked hourglass networks of MobileNetV2 blocks: heat maps of key points (DynConv section 4.2).

B batch, S stacks, J key points, C features, h, w pixels of a heat map: a quarter of the image's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.checks import check_choice
from flyball.datapaths.dynconv.blocks import ConvNorm, InvertedResidual
from flyball.datapaths.dynconv.masks import MASK_UNITS, Masking, MaskUnitKind
from flyball.datapaths.dynconv.network import DynConvNetwork
from flyball.datapaths.errors import InvalidSetting
from flyball.datapaths.network import NetworkOutput
from flyball.kernels import PackedConv, pack_conv
from flyball.kernels.dispatch import Requested

__all__ = ["Hourglass", "HourglassConfig", "mpii_hourglass", "small_hourglass"]

STRIDE = 4
"""Image pixels that a pixel of a heat map stands for, in height and in width."""


@dataclass(frozen=True)
class HourglassConfig:
    """A stacked hourglass.

    Attributes:
        stacks: S; published with 1, 2 and 4.
        features: of the hourglasses, before the width multiplier.
        width: multiplies the channels of every layer; published with .5, .75 and 1.
        expansion: channels of a depthwise convolution for each input channel of its block.
        depth: how often an hourglass halves its pixels.
        mask_unit: "conv" (as published), "squeeze", or "none": a dense network, the static
            baseline.
        is_budgeted: u, the requested share of the conditional MACs, shifts every mask; else it is
            a network for the one budget it is trained for.
        in_channels: channels of the image.
        image_size: height and width of the image; a multiple of 4 * 2^depth.
        classes: J, how many key points it finds.

    Raises:
        InvalidSetting: a field breaks its rule.
    """

    stacks: int = 4
    features: int = 96
    width: float = 1.0
    expansion: int = 6
    depth: int = 4
    mask_unit: MaskUnitKind = "conv"
    is_budgeted: bool = True
    in_channels: int = 3
    image_size: int = 256
    classes: int = 16

    def __post_init__(self) -> None:
        for name in ("stacks", "expansion", "depth", "in_channels", "image_size", "classes"):
            if getattr(self, name) < 1:
                raise InvalidSetting(
                    f"path.network.{name} is 1 or more, not {getattr(self, name)}. "
                    f"Leave it out to have {getattr(HourglassConfig, name)}."
                )
        check_choice("network.mask_unit", self.mask_unit, MASK_UNITS)
        if not 0 < self.width < math.inf:
            raise InvalidSetting(
                f"path.network.width multiplies channels: a number above 0; it is {self.width}. "
                "Set --set path.network.width=0.5."
            )
        if self.channels < 4 or self.channels % 4:
            raise InvalidSetting(
                "path.network.features times path.network.width is a multiple of 4, as the stem "
                f"has a quarter of it; it is {self.features} x {self.width:g}. Set for example "
                "--set path.network.features=96 and a width of 0.5, 0.75 or 1."
            )
        step = STRIDE * 2**self.depth
        if self.image_size % step:
            raise InvalidSetting(
                f"An hourglass of depth {self.depth} divides its image by {step}; "
                f"path.network.image_size is {self.image_size}. "
                f"Set --set path.network.image_size={max(1, round(self.image_size / step)) * step}."
            )

    @property
    def channels(self) -> int:
        """C, the features after the width multiplier."""
        return round(self.features * self.width)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, H, W) of an image."""
        return (self.in_channels, self.image_size, self.image_size)


class Hourglass(DynConvNetwork):
    """Heat maps of key points, refined from stack to stack.

    The layers are those of Fast Pose Distillation's hourglass with MobileNetV2 blocks: the stem and
    the two blocks that widen the features run everywhere, all others under masks.
    """

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.config: HourglassConfig = config
        self.input_shape = config.input_shape
        self.classes = config.classes
        channels = config.channels

        def block() -> _Block:
            return _Block(channels, channels, config.expansion, config.mask_unit)

        self.stem = _BiasedConvNorm(config.in_channels, channels // 4, 7, stride=2)
        self.layer1 = _Block(channels // 4, channels // 2, config.expansion, "none")
        self.layer2 = _Block(channels // 2, channels, config.expansion, "none")
        self.layer3 = block()
        self.stacks = nn.ModuleList(
            _Stack(block, config, is_last=number == config.stacks - 1)
            for number in range(config.stacks)
        )
        self.number_blocks(is_budgeted=config.is_budgeted)

    def run(self, x: Tensor, masking: Masking) -> NetworkOutput:
        """One pass: normalised images (B, C, H, W).

        Returns:
            logits: heat maps of every stack, (B, S, J, h, w); pooled: mean over pixels of the last
            stack's features, (B, C).
        """
        x = self.layer1(self.stem.run(x, masking), masking)
        x = self.layer2(F.max_pool2d(x, 2), masking)
        x = self.layer3(x, masking)
        maps = []
        for stack in self.stacks:
            x, heat = stack(x, masking)
            maps.append(heat)
        return NetworkOutput(torch.stack(maps, dim=1), x.mean(dim=(2, 3)))

    def prepared(self, implementation: Requested = "auto") -> "Hourglass":
        made = super().prepared(implementation)
        assert isinstance(made, Hourglass)
        for layer in made.modules():
            if isinstance(layer, _BiasedConvNorm | _Stack):
                layer.pack()
        return made


def mpii_hourglass(
    stacks: int = 4,
    *,
    width: float = 1.0,
    mask_unit: MaskUnitKind = "conv",
    is_budgeted: bool = True,
) -> HourglassConfig:
    """The networks of DynConv section 4.2: 256x256 images, 16 key points, 96 features."""
    return HourglassConfig(stacks, width=width, mask_unit=mask_unit, is_budgeted=is_budgeted)


def small_hourglass(
    stacks: int = 1,
    *,
    features: int = 32,
    mask_unit: MaskUnitKind = "conv",
    is_budgeted: bool = True,
    image_size: int = 64,
    classes: int = 16,
) -> HourglassConfig:
    """One or two stacks for small images, which train on a CPU."""
    return HourglassConfig(
        stacks,
        features,
        depth=3,
        mask_unit=mask_unit,
        is_budgeted=is_budgeted,
        image_size=image_size,
        classes=classes,
    )


class _Block(InvertedResidual):
    """A block whose sum may be written over what is added to, which nobody reads again.

    Attributes:
        keeps_input: somebody reads its input again.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, unit: MaskUnitKind) -> None:
        super().__init__(inputs, outputs, expansion * inputs, 1, unit)
        self.keeps_input = False

    def make_shortcut(self, inputs: int, outputs: int, stride: int) -> nn.Module | None:
        return None if inputs == outputs else _Nothing(outputs)

    def forward(self, x: Tensor, masking: Masking) -> Tensor:
        if not masking.is_sparse or self.keeps_input:
            return super().forward(x, masking)
        mask = masking.decide(self, x)
        identity = x if self.shortcut is None else self.shortcut(x)
        result: Tensor = self.packed(x, mask, identity=identity, out=identity)
        return result


class _Nothing(nn.Module):
    """What a block adds to that widens: zeros, as it has no shortcut in MobileNetV2."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        is_last = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_last else torch.contiguous_format
        shape = (len(x), self.outputs, *x.shape[2:])
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout).zero_()


class _BiasedConvNorm(ConvNorm):
    """A convolution with a bias of its own, batch norm and ReLU: the published ones have both."""

    def __init__(self, inputs: int, outputs: int, side: int, *, stride: int = 1) -> None:
        super().__init__(inputs, outputs, side, stride=stride, activation="relu")
        self.conv.bias = nn.Parameter(torch.zeros(outputs))
        self._packed: PackedConv | None = None

    def run(self, x: Tensor, masking: Masking) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, Ho, Wo)."""
        if masking.is_sparse and self._packed is not None:
            return self._packed(x)
        result: Tensor = self(x)
        return result

    def folded(self) -> tuple[Tensor, Tensor]:
        weight, bias = super().folded()
        norm = self.norm
        if isinstance(norm, nn.Identity):
            return weight, bias
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        assert self.conv.bias is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return weight, (bias + self.conv.bias * scale).detach()

    def pack(self) -> None:
        """Packs the weights as they are after `fold`."""
        side, stride = self.conv.kernel_size[0], self.conv.stride[0]
        self._packed = pack_conv(
            self.conv.weight, self.conv.bias, stride=stride, padding=side // 2, relu=True
        )

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights are made anew by whoever runs a copy.
        return {**self.__dict__, "_packed": None}


class _Level(nn.Module):
    """One level of an hourglass: blocks at full size beside blocks at half, and what is below."""

    def __init__(self, block: Callable[[], _Block], depth: int, *, keeps_input: bool) -> None:
        super().__init__()
        # Blocks are numbered as they are registered: in order of execution.
        self.up1 = block()
        self.up1.keeps_input = keeps_input
        self.low1 = block()
        self.low2 = _Level(block, depth - 1, keeps_input=False) if depth > 1 else block()
        self.low3 = block()

    def forward(self, x: Tensor, masking: Masking) -> Tensor:
        low = F.max_pool2d(x, 2)
        up: Tensor = self.up1(x, masking)
        low = self.low3(self.low2(self.low1(low, masking), masking), masking)
        if masking.is_sparse:
            # In place, each low pixel onto its four.
            batch, channels, height, width = low.shape
            up.view(batch, channels, height, 2, width, 2).add_(low[:, :, :, None, :, None])
            return up
        return up + F.interpolate(low, scale_factor=2.0, mode="nearest")


class _Stack(nn.Module):
    """An hourglass, its heat maps, and how both enter the next stack."""

    def __init__(
        self, block: Callable[[], _Block], config: HourglassConfig, *, is_last: bool
    ) -> None:
        super().__init__()
        channels, points = config.channels, config.classes
        self.hourglass = _Level(block, config.depth, keeps_input=not is_last)
        self.residual = block()
        self.fc = _BiasedConvNorm(channels, channels, 1)
        self.score = nn.Conv2d(channels, points, 1)
        self.fc_back = None if is_last else nn.Conv2d(channels, channels, 1)
        self.score_back = None if is_last else nn.Conv2d(points, channels, 1)
        self._packed: tuple[PackedConv, PackedConv | None] | None = None

    def forward(self, x: Tensor, masking: Masking) -> tuple[Tensor, Tensor]:
        """What the next stack is given, after the last its features; and heat maps (B, J, h, w)."""
        y = self.residual(self.hourglass(x, masking), masking)
        features = self.fc.run(y, masking)
        if masking.is_sparse and self._packed is not None:
            score, back = self._packed
            return features if back is None else back(features).add_(x), score(features)
        heat = self.score(features)
        if self.fc_back is None or self.score_back is None:
            return features, heat
        return x + self.fc_back(features) + self.score_back(heat), heat

    def pack(self) -> None:
        """Packs the weights as they are; both ways back become one product."""
        first, fc, second = self.score, self.fc_back, self.score_back
        assert first.bias is not None
        score, back = _pointwise(first.weight, first.bias), None
        if fc is not None and second is not None and fc.bias is not None:
            assert second.bias is not None
            through = second.weight.flatten(1)
            weight = fc.weight + (through @ first.weight.flatten(1))[:, :, None, None]
            back = _pointwise(weight, fc.bias + second.bias + through @ first.bias)
        self._packed = (score, back)

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights are made anew by whoever runs a copy.
        return {**self.__dict__, "_packed": None}


def _pointwise(weight: Tensor, bias: Tensor) -> PackedConv:
    return pack_conv(weight, bias, stride=1, padding=0)
