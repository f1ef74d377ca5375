"""The convolutions of a block, their batch norm folded, and whether they fit together."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import get_args

from torch import Tensor

from flyball.kernels.reference import Activation

__all__ = ["Layer", "check_activation", "check_kernels", "check_layers"]


@dataclass(frozen=True)
class Layer:
    """One convolution of a block, its batch norm folded.

    Attributes:
        name: "expand", "conv2" and so on.
        weight: (O, C, k, k), or (C, 1, k, k) if depthwise; k is 1 or 3.
        bias: (O,).
        activation: that follows.
        stride: 1 or 2.
        is_depthwise: whether each channel is convolved alone.
    """

    name: str
    weight: Tensor
    bias: Tensor
    activation: Activation
    stride: int = 1
    is_depthwise: bool = False

    def detached(self) -> "Layer":
        """Without gradients."""
        return replace(self, weight=self.weight.detach(), bias=self.bias.detach())

    @property
    def taps(self) -> int:
        return self.weight.shape[2] * self.weight.shape[3]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one output pixel."""
        return self.weight.numel()

    @property
    def by_tap(self) -> Tensor:
        """The weight as (T, C, O), or (T, C) if depthwise."""
        if self.is_depthwise:
            return self.weight.flatten(1).t().contiguous()
        return self.weight.flatten(2).permute(2, 1, 0).contiguous()


def check_activation(activation: str) -> None:
    """That there is such an activation.

    Raises:
        ValueError: there is not.
    """
    if activation not in get_args(Activation):
        names = ", ".join(get_args(Activation))
        raise ValueError(f"An activation is one of {names}; got {activation!r}.")


def check_kernels(name: str, layers: tuple[Layer, ...], kernels: tuple[int, ...]) -> None:
    shapes = [tuple(layer.weight.shape) for layer in layers]
    for shape, kernel in zip(shapes, kernels, strict=True):
        if len(shape) != 4 or shape[2:] != (kernel, kernel):
            wanted = ", ".join(f"(outputs, inputs, {k}, {k})" for k in kernels)
            raise ValueError(f"A {name} is packed from weights {wanted}; got {shapes}.")


def check_layers(layers: tuple[Layer, ...], stride: int) -> None:
    if stride not in (1, 2):
        raise ValueError(f"The stride of a packed block is 1 or 2; got {stride}.")
    kind = layers[0].weight
    for layer in layers:
        if layer.weight.dtype != kind.dtype or layer.weight.device != kind.device:
            raise ValueError(
                f"A block's weights are of one dtype on one device: {layers[0].name} is "
                f"{kind.dtype} on {kind.device}, {layer.name} is {layer.weight.dtype} on "
                f"{layer.weight.device}. Convert the block before packing it."
            )
        if not kind.dtype.is_floating_point or min(layer.weight.shape) < 1:
            raise ValueError(
                "Weights are floating-point numbers, at least one output and input; "
                f"{layer.name} is {tuple(layer.weight.shape)}, {kind.dtype}."
            )
        wanted = (len(layer.weight),)
        if tuple(layer.bias.shape) != wanted or layer.bias.device != kind.device:
            raise ValueError(
                f"The bias of {layer.name} is {wanted} on {kind.device}, one value an output; got "
                f"{tuple(layer.bias.shape)} on {layer.bias.device}."
            )
    for before, after in pairwise(layers):
        takes = len(after.weight) if after.is_depthwise else after.weight.shape[1]
        if takes != len(before.weight):
            raise ValueError(
                f"Each layer takes what the one before makes: {before.name} makes "
                f"{len(before.weight)} channels, {after.name} takes {takes}."
            )
