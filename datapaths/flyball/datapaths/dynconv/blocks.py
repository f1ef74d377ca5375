"""Residual blocks whose branch runs on the pixels of a mask alone (DynConv section 3.1.1, Eq. 3).

One block, two executions: dense and multiplied by the mask, with gradients; or sparse, with folded
norms and packed weights. B batch, C channels, H, W input pixels, Ho, Wo output pixels.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyball import kernels
from flyball.datapaths.dynconv.masks import Masking, MaskUnitKind, make_unit
from flyball.datapaths.errors import InvalidSetting
from flyball.kernels.dispatch import Requested

__all__ = [
    "Activation",
    "BasicBlock",
    "BlockCost",
    "Bottleneck",
    "ConditionalBlock",
    "ConvNorm",
    "InvertedResidual",
    "activate",
]

Activation = Literal["none", "relu", "relu6"]


@dataclass(frozen=True)
class BlockCost:
    """What the branch of a conditional block costs (DynConv Eqs. 10 and 11).

    Attributes:
        name: of the block in its network.
        pixels: of the output grid, on which the mask lies.
        dilated_pixels: of the grid on which the dilated mask lies.
        active_macs: MACs of every active pixel.
        dilated_macs: MACs of every pixel of the dilated mask.
    """

    name: str
    pixels: int
    dilated_pixels: int
    active_macs: int
    dilated_macs: int

    @property
    def dense(self) -> int:
        """F_b: MACs when every pixel runs (Eq. 10)."""
        return self.pixels * self.active_macs + self.dilated_pixels * self.dilated_macs


class ConvNorm(nn.Module):
    """A convolution without bias, batch norm, and an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, side, stride=stride, padding=side // 2, groups=groups, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(outputs)
        self.activation: Activation = activation
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, Ho, Wo)."""
        return activate(self.norm(self.conv(x)), self.activation)

    def fold(self) -> None:
        """Makes the convolution do the norm's work; for inference, and for good."""
        weight, bias = self.folded()
        conv = self.conv
        made = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            groups=conv.groups,
        )
        made.weight, made.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        self.conv, self.norm = made, nn.Identity()

    def folded(self) -> tuple[Tensor, Tensor]:
        """The convolution that does what both do in evaluation: weight and bias."""
        norm, bias = self.norm, self.conv.bias
        if isinstance(norm, nn.Identity) and bias is not None:
            return self.conv.weight.detach(), bias.detach()
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = self.conv.weight * scale[:, None, None, None]
        return weight.detach(), (norm.bias - norm.running_mean * scale).detach()


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Applies an activation by name; in place where the tensor allows it."""
    if activation == "none":
        return x
    return F.relu(x) if activation == "relu" else F.relu6(x)


class ConditionalBlock(nn.Module):
    """identity + mask * branch(x), with an activation after the sum where the block has one.

    A subclass makes the layers and says what they cost; `DynConvNetwork` numbers the blocks.

    Attributes:
        unit: makes soft decisions from the input; None: the branch runs everywhere, always.
        shortcut: makes the identity fit in channels and stride; None: it is the input.
        stride: of the branch.
        position: among the conditional blocks of the network; -1 without a mask unit.
        dilates_output: the dilated mask lies on the output grid (the first convolution of a basic
            block already has the stride), not on the input's.
        name: in its network.
    """

    dilates_output = False
    after: Activation = "relu"

    def __init__(self, inputs: int, outputs: int, stride: int, unit: MaskUnitKind) -> None:
        super().__init__()
        self.stride = stride
        self.unit = make_unit(unit, inputs, stride)
        self.shortcut = self.make_shortcut(inputs, outputs, stride)
        self.position = -1
        self.name = ""
        self._packed: Any = None

    def make_shortcut(self, inputs: int, outputs: int, stride: int) -> nn.Module | None:
        """A 1x1 convolution with batch norm where shapes differ."""
        if stride == 1 and inputs == outputs:
            return None
        return ConvNorm(inputs, outputs, 1, stride=stride)

    def branch(self, x: Tensor) -> Tensor:
        """F(x), everywhere: (B, C, H, W) to (B, C_out, Ho, Wo)."""
        raise NotImplementedError

    def unit_costs(self) -> tuple[int, int]:
        """MACs of one active pixel, and of one pixel of the dilated mask."""
        raise NotImplementedError

    def pack(self, implementation: Requested) -> Any:
        """The branch with folded norms as a sparse block of `flyball.kernels`."""
        raise NotImplementedError

    def forward(self, x: Tensor, masking: Masking) -> Tensor:
        """(B, C, H, W) to (B, C_out, Ho, Wo)."""
        mask = masking.decide(self, x)
        identity = x if self.shortcut is None else self.shortcut(x)
        if masking.is_sparse:
            result: Tensor = self.packed(x, mask, identity=identity)
            return result
        branch = self.branch(x)
        if mask is not None:
            branch = branch * mask.to(branch.dtype)
        return activate(identity + branch, self.after)

    @property
    def packed(self) -> Any:
        """The sparse block.

        Raises:
            InvalidSetting: no weights were packed.
        """
        if self._packed is None:
            raise InvalidSetting(
                "Sparse execution takes packed weights, and this network has none: train and "
                "change the network itself, and run what its prepared() gives."
            )
        return self._packed

    def prepare(self, implementation: Requested) -> None:
        """Packs the weights as they are now."""
        self._packed = self.pack(implementation)

    def cost(self, height: int, width: int) -> BlockCost:
        """What the branch costs on an input of so many pixels."""
        outputs = -(-height // self.stride) * -(-width // self.stride)
        active, dilated = self.unit_costs()
        wide = outputs if self.dilates_output else height * width
        return BlockCost(self.name, outputs, wide, active, dilated)

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights are the library's own objects; `prepare` makes a copy's own.
        return {**self.__dict__, "_packed": None}


class BasicBlock(ConditionalBlock):
    """Two 3x3 convolutions, the first with the stride (ResNet-8 ... 32 for CIFAR)."""

    dilates_output = True

    def __init__(self, inputs: int, outputs: int, stride: int, unit: MaskUnitKind) -> None:
        super().__init__(inputs, outputs, stride, unit)
        self.conv1 = ConvNorm(inputs, outputs, 3, stride=stride, activation="relu")
        self.conv2 = ConvNorm(outputs, outputs, 3)

    def branch(self, x: Tensor) -> Tensor:
        given: Tensor = self.conv2(self.conv1(x))
        return given

    def unit_costs(self) -> tuple[int, int]:
        return self.conv2.conv.weight.numel(), self.conv1.conv.weight.numel()

    def pack(self, implementation: Requested) -> Any:
        return kernels.pack_basic_block(
            *self.conv1.folded(),
            *self.conv2.folded(),
            stride=self.stride,
            implementation=implementation,
        )


class Bottleneck(ConditionalBlock):
    """1x1, 3x3 with the stride, 1x1 (ResNet-101; the stride as in torchvision)."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, stride: int, unit: MaskUnitKind
    ) -> None:
        super().__init__(inputs, outputs, stride, unit)
        self.conv1 = ConvNorm(inputs, middle, 1, activation="relu")
        self.conv2 = ConvNorm(middle, middle, 3, stride=stride, activation="relu")
        self.conv3 = ConvNorm(middle, outputs, 1)

    def branch(self, x: Tensor) -> Tensor:
        given: Tensor = self.conv3(self.conv2(self.conv1(x)))
        return given

    def unit_costs(self) -> tuple[int, int]:
        active = self.conv2.conv.weight.numel() + self.conv3.conv.weight.numel()
        return active, self.conv1.conv.weight.numel()

    def pack(self, implementation: Requested) -> Any:
        return kernels.pack_bottleneck(
            *self.conv1.folded(),
            *self.conv2.folded(),
            *self.conv3.folded(),
            stride=self.stride,
            implementation=implementation,
        )


class InvertedResidual(ConditionalBlock):
    """MobileNetV2's block: expand 1x1, depthwise 3x3, project 1x1; nothing after the sum."""

    after: Activation = "none"

    def __init__(
        self, inputs: int, outputs: int, expanded: int, stride: int, unit: MaskUnitKind
    ) -> None:
        super().__init__(inputs, outputs, stride, unit)
        self.expand = ConvNorm(inputs, expanded, 1, activation="relu6")
        self.depthwise = ConvNorm(
            expanded, expanded, 3, stride=stride, groups=expanded, activation="relu6"
        )
        self.project = ConvNorm(expanded, outputs, 1)

    def branch(self, x: Tensor) -> Tensor:
        given: Tensor = self.project(self.depthwise(self.expand(x)))
        return given

    def unit_costs(self) -> tuple[int, int]:
        active = self.depthwise.conv.weight.numel() + self.project.conv.weight.numel()
        return active, self.expand.conv.weight.numel()

    def pack(self, implementation: Requested) -> Any:
        expand, expand_bias = self.expand.folded()
        depthwise, depthwise_bias = self.depthwise.folded()
        project, project_bias = self.project.folded()
        return kernels.pack_inverted_residual(
            expand.flatten(1),
            expand_bias,
            depthwise.squeeze(1),
            depthwise_bias,
            project.flatten(1),
            project_bias,
            stride=self.stride,
            activation="relu6",
            implementation=implementation,
        )
