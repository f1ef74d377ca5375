"""Convolutions and linear layers whose weights are cut once and kept in the library's own layout.

For inference on CPU. oneDNN repacks an ordinary weight, and always a sliced one, at every call;
here that happens at the first call for an input size. Elsewhere the plain torch operators run on
the same weights. B batch, C channels, F features; D, H, W pixels; k kernel size.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Implementation", "PackedConv", "PackedLinear", "pack_conv", "pack_linear"]

Run = Callable[[Tensor], Tensor]
Seen = tuple[torch.Size, torch.dtype, torch.device]

# Measured on one core. Setting up a oneDNN call takes about 20 microseconds, in which torch's own
# operators finish a product this small.
SMALL_LINEAR_MACS = 2**19
SMALL_CONV_MACS = 2**20
SMALL_CONV_PIXELS = 256

# oneDNN lays weights out by input size. One batch size stands for all above 1, so that the layout,
# and with it every bit, depends on the shape of the input and not on which shape came first.
MANY = 64


class Implementation(NamedTuple):
    """What runs, and why.

    Attributes:
        name: "onednn" (weights in oneDNN's layout) or "torch" (plain operators).
        why: a reason for people.
    """

    name: Literal["onednn", "torch"]
    why: str


class PackedConv:
    """A convolution of fixed weights, with ReLU if asked for; made by `pack_conv`.

    Calling it with x of (B, C, H, W) or (B, C, D, H, W) gives what `F.conv2d` or `F.conv3d` and
    `F.relu` give, channels last where oneDNN runs. Equal shapes give equal bits. No gradients.

    Attributes:
        implementation: what runs where the input is not too small for it, and why.
        packings: how many times weights have been brought into oneDNN's layout.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        groups: int,
        relu: bool,
    ) -> None:
        self.implementation = _implementation(weight)
        self.packings = 0
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._stride, self._padding, self._groups = stride, padding, groups
        self._relu = relu
        self._runs: dict[Seen, Run] = {}
        self._packs: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Convolves.

        Raises:
            ValueError: x does not fit the weights in channels, dimensions, dtype or device.
        """
        run = self._runs.get((x.shape, x.dtype, x.device))
        return self._plan(x)(x) if run is None else run(x)

    def implementation_for(self, shape: Sequence[int]) -> Implementation:
        """What runs for inputs of this shape, and why."""
        pixels = [
            (size + 2 * pad - kernel) // step + 1
            for size, pad, kernel, step in zip(
                shape[2:], self._padding, self._weight.shape[2:], self._stride, strict=True
            )
        ]
        total = shape[0] * math.prod(pixels)
        if self.implementation.name == "torch":
            return self.implementation
        if total <= SMALL_CONV_PIXELS and total * self._weight.numel() <= SMALL_CONV_MACS:
            return Implementation("torch", "the input is small: setting oneDNN up takes longer")
        return self.implementation

    def _plan(self, x: Tensor) -> Run:
        dims = self._weight.ndim - 2
        _check_input(x, self._weight, x.ndim == dims + 2, self._weight.shape[1] * self._groups)
        last = torch.channels_last if dims == 2 else torch.channels_last_3d
        attr = "relu" if self._relu else "none"
        stride, padding, groups = list(self._stride), list(self._padding), self._groups
        bias, run = self._bias, None
        if self.implementation_for(x.shape).name == "onednn":
            packed, ones = self._packed(x), [1] * dims
            operator = torch.ops.mkldnn._convolution_pointwise.default

            def run(x: Tensor) -> Tensor:
                x = x.contiguous(memory_format=last)
                y: Tensor = operator(x, packed, bias, padding, stride, ones, groups, attr, [], "")
                return y

        else:
            convolve = F.conv2d if dims == 2 else F.conv3d
            is_packing = self.implementation.name == "onednn"
            layout = last if is_packing else torch.contiguous_format
            weight, relu = self._weight.contiguous(memory_format=layout), self._relu

            def run(x: Tensor) -> Tensor:
                x = x.contiguous(memory_format=layout)
                y = convolve(x, weight, bias, stride, padding, 1, groups)
                return y.relu_() if relu else y

        self._runs[x.shape, x.dtype, x.device] = run
        return run

    def _packed(self, x: Tensor) -> Tensor:
        shape = (1 if x.shape[0] == 1 else MANY, *x.shape[1:])
        if shape not in self._packs:
            self._packs[shape] = torch.ops.mkldnn._reorder_convolution_weight(
                self._weight.contiguous(),
                list(self._padding),
                list(self._stride),
                [1] * len(self._stride),
                self._groups,
                list(shape),
            )
            self.packings += 1
        return self._packs[shape]


class PackedLinear:
    """A linear layer of fixed weights, with ReLU if asked for; made by `pack_linear`.

    Calling it with x of (B, F) gives what `F.linear` and `F.relu` give. Equal shapes give equal
    bits. No gradients.

    Attributes:
        implementation: what runs where the input is not too small for it, and why.
        packings: how many times weights have been brought into oneDNN's layout.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
        self.implementation = _implementation(weight)
        self.packings = 0
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._relu = relu
        self._runs: dict[Seen, Run] = {}
        self._packs: dict[bool, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Multiplies.

        Raises:
            ValueError: x does not fit the weights in features, dimensions, dtype or device.
        """
        run = self._runs.get((x.shape, x.dtype, x.device))
        return self._plan(x)(x) if run is None else run(x)

    def implementation_for(self, shape: Sequence[int]) -> Implementation:
        """What runs for inputs of this shape, and why."""
        if self.implementation.name == "torch":
            return self.implementation
        if shape[0] * self._weight.numel() <= SMALL_LINEAR_MACS:
            return Implementation("torch", "the input is small: setting oneDNN up takes longer")
        return self.implementation

    def _plan(self, x: Tensor) -> Run:
        _check_input(x, self._weight, x.ndim == 2, self._weight.shape[1])
        bias, relu = self._bias, self._relu
        if self.implementation_for(x.shape).name == "onednn":
            packed, attr = self._packed(is_single=len(x) == 1), "relu" if relu else "none"
            operator = torch.ops.mkldnn._linear_pointwise.default

            def run(x: Tensor) -> Tensor:
                y: Tensor = operator(x, packed, bias, attr, [], "")
                return y

        else:
            weight = self._weight.contiguous()

            def run(x: Tensor) -> Tensor:
                y = F.linear(x, weight, bias)
                return y.relu_() if relu else y

        self._runs[x.shape, x.dtype, x.device] = run
        return run

    def _packed(self, *, is_single: bool) -> Tensor:
        if is_single not in self._packs:
            self._packs[is_single] = torch.ops.mkldnn._reorder_linear_weight(
                self._weight.contiguous(), 1 if is_single else MANY
            )
            self.packings += 1
        return self._packs[is_single]


def pack_conv(
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    groups: int = 1,
    relu: bool = False,
) -> PackedConv:
    """Fixes a convolution for inference.

    Args:
        weight: cut to the active part, (C_out, C_in / groups, k, k) or (C_out, C_in / groups,
            k, k, k). Must not be changed afterwards: what is packed would not follow.
        bias: (C_out,), or None.
        stride: in pixels, one for all dimensions or one for each.
        padding: zeros added on each side, in pixels, likewise.
        groups: channels are convolved within so many groups; C_out makes it depthwise.
        relu: whether ReLU follows.

    Raises:
        ValueError: the parts do not fit together.
    """
    if weight.ndim not in (4, 5):
        raise ValueError(
            "A packed convolution has 2 or 3 dimensions: weights of (outputs, inputs, k, k) or "
            f"(outputs, inputs, k, k, k); got {tuple(weight.shape)}. Use pack_linear for 2-D "
            "weights."
        )
    _check_bias(weight, bias)
    if groups < 1 or len(weight) % groups:
        raise ValueError(
            f"The groups share the outputs equally: got {groups} groups for {len(weight)} outputs. "
            "Cut whole groups, and give their number."
        )
    dims = weight.ndim - 2
    steps, pads = _each("stride", stride, dims, least=1), _each("padding", padding, dims, least=0)
    return PackedConv(weight, bias, steps, pads, groups, relu)


def pack_linear(weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> PackedLinear:
    """Fixes a linear layer for inference.

    Args:
        weight: cut to the active part, (F_out, F_in). Must not be changed afterwards.
        bias: (F_out,), or None.
        relu: whether ReLU follows.

    Raises:
        ValueError: the parts do not fit together.
    """
    if weight.ndim != 2:
        raise ValueError(
            f"A packed linear layer has weights of (outputs, inputs); got {tuple(weight.shape)}. "
            "Use pack_conv for convolutions."
        )
    _check_bias(weight, bias)
    return PackedLinear(weight, bias, relu)


def _implementation(weight: Tensor) -> Implementation:
    if weight.device.type != "cpu":
        return Implementation("torch", f"oneDNN packs on CPU; the weights are on {weight.device}")
    if not (torch._C._has_mkldnn and torch.backends.mkldnn.enabled):
        return Implementation("torch", "this torch has no oneDNN, or it is switched off")
    if weight.dtype == torch.float32:
        return Implementation("onednn", "float32 on CPU")
    if weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Implementation("onednn", "bfloat16 on a CPU that multiplies it")
    return Implementation("torch", f"oneDNN does not pack {weight.dtype} on this CPU")


def _check_bias(weight: Tensor, bias: Tensor | None) -> None:
    if bias is None:
        return
    wanted = (weight.shape[:1], weight.dtype, weight.device)
    if (bias.shape, bias.dtype, bias.device) != wanted:
        raise ValueError(
            "The bias has one value for each output, of the weights' kind: the weights are "
            f"{_described(weight)}, the bias is {_described(bias)}. Cut both by the same gate and "
            "move them together."
        )


def _check_input(x: Tensor, weight: Tensor, has_dimensions: bool, inputs: int) -> None:
    fits = has_dimensions and x.shape[1] == inputs
    if not fits or x.dtype != weight.dtype or x.device != weight.device:
        pixels = ", ".join(("B", str(inputs), *("pixels",) * (weight.ndim - 2)))
        raise ValueError(
            f"These weights take inputs of ({pixels}), {weight.dtype} on {weight.device}; got "
            f"{_described(x)}. Give the active channels alone, in the weights' dtype and on their "
            "device, or pack the weights that fit this input."
        )


def _each(name: str, value: int | Sequence[int], dims: int, *, least: int) -> tuple[int, ...]:
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims or min(values) < least:
        raise ValueError(
            f"{name} is a number >= {least}, or {dims} of them for a convolution of {dims} "
            f"dimensions; got {value}. Give one number for all dimensions."
        )
    return values


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
