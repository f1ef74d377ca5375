"""T-layers: convolutions, norms and linear layers that know what gates their channels (TNN Eq. 2).

They hold weights and axes; `execution` runs them. The cost of a network is read off its T-layers.
B batch, C channels, n components.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from flyball.datapaths.axes import Axis, channels_of
from flyball.datapaths.errors import InvalidSetting

if TYPE_CHECKING:
    from flyball.datapaths.execution import Gates

__all__ = ["Component", "Masking", "Norm", "TConv", "TLinear", "TNorm"]

Norm = Literal["none", "group", "batch"]
Component = tuple[int, int]
Masking = Literal["all", "channels", "none"]


class TNorm(nn.Module):
    """Normalisation of gated channels, and ReLU if asked for.

    "group": GroupNorm whose groups never span two components, so that what a component gives
    does not depend on which others are on. "batch": BatchNorm with one row of statistics for each
    arm, since its running mean and variance hold for one setting of the gates only.

    Args:
        axis: of the channels.
        kind: "group" or "batch".
        relu: followed by a ReLU.
        group_width: channels of one group; None: one group a component, 16 groups where nothing
            is gated.

    Attributes:
        weight, bias: (C,).
        running_mean, running_var: (rows, C), of batch norm; row 0 is the network's own.

    Raises:
        InvalidSetting: groups of this width would span two components.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        axis: Axis,
        kind: Literal["group", "batch"],
        *,
        relu: bool = False,
        group_width: int | None = None,
    ) -> None:
        super().__init__()
        self.axis, self.kind, self.relu = axis, kind, relu
        self.eps, self.momentum = 1e-5, 0.1
        channels = channels_of(axis)
        self.group_width = _group_width(axis) if group_width is None else group_width
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        if kind == "batch":
            self.register_buffer("running_mean", torch.zeros(1, channels))
            self.register_buffer("running_var", torch.ones(1, channels))
        elif any(segment.width % self.group_width for segment in axis):
            raise InvalidSetting(
                f"A group of a GroupNorm lies within one component: groups of {self.group_width} "
                f"channels do not fit components of {[s.width for s in axis]} channels. "
                "Choose path.components so that every component is a whole number of groups."
            )

    def forward(self, x: Tensor, gates: "Gates") -> Tensor:
        """(B, C or active C, ...) to the same shape."""
        return gates.normalise(self, x)

    def reserve(self, rows: int) -> None:
        """Makes room for statistics: new rows start as copies of row 0."""
        if self.kind == "batch" and rows != len(self.running_mean):
            for name in ("running_mean", "running_var"):
                table = getattr(self, name)
                kept = table[:rows]
                new = table[:1].expand(rows - len(kept), -1)
                setattr(self, name, torch.cat([kept, new]).clone())


class TConv(nn.Module):
    """Convolution in two or three dimensions, with the norm and ReLU that follow it.

    Args:
        axis_in, axis_out: what gates its inputs and outputs.
        kernel: side of the kernel, or one for each dimension.
        stride, padding: in pixels; one for all dimensions, or one for each.
        dims: 2 or 3.
        groups: of a grouped convolution.
        norm: "none", "group" or "batch".
        relu: ends in a ReLU.
        bias: None: where no norm follows.
        component: the layer runs only where this component (T-module, position) is on.
        masking: which gates masked execution multiplies the output by: "all", those of its
            "channels" without the component's, or "none", where a later layer of the same
            component is multiplied. So that Eq. 2 holds for soft gates: each acts once.

    Attributes:
        weight: (C_out, C_in / groups, k, ...).

    Raises:
        InvalidSetting: the groups do not divide the channels.
    """

    def __init__(
        self,
        axis_in: Axis,
        axis_out: Axis,
        kernel: int | tuple[int, ...],
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dims: int = 2,
        groups: int = 1,
        norm: Norm = "none",
        relu: bool = False,
        bias: bool | None = None,
        component: Component | None = None,
        masking: Masking = "all",
    ) -> None:
        super().__init__()
        self.axis_in, self.axis_out, self.component = axis_in, axis_out, component
        self.masking = masking
        inputs, outputs = channels_of(axis_in), channels_of(axis_out)
        if inputs % groups or outputs % groups:
            raise InvalidSetting(
                f"The groups of a convolution share its channels equally: {groups} groups do not "
                f"divide {inputs} inputs and {outputs} outputs."
            )
        self.kernel = _each(kernel, dims)
        self.stride, self.padding = _each(stride, dims), _each(padding, dims)
        self.groups, self.relu = groups, relu
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, *self.kernel))
        has_bias = norm == "none" if bias is None else bias
        self.bias = nn.Parameter(torch.zeros(outputs)) if has_bias else None
        self.norm = None if norm == "none" else TNorm(axis_out, norm)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, gates: "Gates") -> Tensor:
        """(B, C_in or active C_in, ...) to (B, C_out or active C_out, ...)."""
        return gates.convolve(self, x)

    def output_size(self, size: Sequence[int]) -> list[int]:
        """Pixels of the output along every dimension, from those of the input."""
        sides = zip(size, self.kernel, self.stride, self.padding, strict=True)
        return [(pixels + 2 * pad - side) // step + 1 for pixels, side, step, pad in sides]


class TLinear(nn.Module):
    """Fully-connected layer, with a ReLU if asked for.

    Args:
        axis_in, axis_out: what gates its inputs and outputs.
        relu: ends in a ReLU.
        bias: adds one.

    Attributes:
        weight: (F_out, F_in).
    """

    def __init__(
        self, axis_in: Axis, axis_out: Axis, *, relu: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.axis_in, self.axis_out, self.relu = axis_in, axis_out, relu
        outputs = channels_of(axis_out)
        self.weight = nn.Parameter(torch.empty(outputs, channels_of(axis_in)))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        if relu:
            nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        else:
            nn.init.normal_(self.weight, std=0.01)

    def forward(self, x: Tensor, gates: "Gates") -> Tensor:
        """(B, F_in or active F_in) to (B, F_out or active F_out)."""
        return gates.project(self, x)


def _group_width(axis: Axis) -> int:
    """One group a component; where nothing is gated, 16 groups or as many as divide."""
    widths = [segment.width for segment in axis if segment.module is not None]
    if widths:
        return math.gcd(*widths)
    channels = channels_of(axis)
    return channels // math.gcd(channels, 16)


def _each(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else value
