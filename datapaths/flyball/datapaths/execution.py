"""How the gates of a network are executed: three ways to run one description of it.

`Sliced` computes the active part alone, `Masked` computes everything and multiplies by masks, and
`Packed` is `Sliced` with every weight cut and packed once, for a network that no longer changes.
T-layers (`modules`) hand their work to one of them. B batch, n components, C channels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flyball.datapaths.axes import active_channels, channel_mask
from flyball.datapaths.errors import InvalidSetting
from flyball.kernels import (
    Active,
    PackedConv,
    PackedLinear,
    conv_active,
    cut_weight,
    group_norm_active,
    linear_active,
    pack_conv,
    pack_linear,
    take_active,
)

if TYPE_CHECKING:
    from flyball.datapaths.modules import TConv, TLinear, TNorm

__all__ = ["Gates", "Masked", "Packed", "Sliced"]


class Gates(Protocol):
    """The gates of one pass and the way they are executed."""

    def is_off(self, module: int, component: int) -> bool:
        """Whether a component is off for the whole batch, so that its layers need not run."""
        ...

    def convolve(self, layer: "TConv", x: Tensor) -> Tensor:
        """Runs a convolution with its norm and activation."""
        ...

    def normalise(self, layer: "TNorm", x: Tensor) -> Tensor:
        """Runs a normalisation with its activation."""
        ...

    def project(self, layer: "TLinear", x: Tensor) -> Tensor:
        """Runs a linear layer with its activation."""
        ...


class Sliced:
    """Computes the active components alone; one gate for the whole batch.

    Attributes:
        active: for every T-module a count (the first so many) or sorted indices of components.
        statistics: row of the batch-norm statistics; None: row 0, the network's own.
    """

    def __init__(self, active: Sequence[Active], statistics: int | None = None) -> None:
        self.active = tuple(active)
        self.statistics = statistics

    def is_off(self, module: int, component: int) -> bool:
        gate = self.active[module]
        return component >= gate if isinstance(gate, int) else not bool((gate == component).any())

    def convolve(self, layer: "TConv", x: Tensor) -> Tensor:
        active_in = active_channels(layer.axis_in, self.active)
        active_out = active_channels(layer.axis_out, self.active)
        y = conv_active(
            x,
            layer.weight,
            layer.bias,
            active_in,
            active_out,
            stride=layer.stride,
            padding=layer.padding,
            groups=layer.groups,
        )
        if layer.norm is not None:
            y = self.normalise(layer.norm, y)
        return F.relu(y) if layer.relu else y

    def normalise(self, layer: "TNorm", x: Tensor) -> Tensor:
        active = active_channels(layer.axis, self.active)
        if layer.kind == "group":
            y = group_norm_active(
                x, layer.weight, layer.bias, active, layer.group_width, eps=layer.eps
            )
        else:
            y = self._batch_norm(layer, x, active)
        return F.relu(y) if layer.relu else y

    def project(self, layer: "TLinear", x: Tensor) -> Tensor:
        active_in = active_channels(layer.axis_in, self.active)
        active_out = active_channels(layer.axis_out, self.active)
        y = linear_active(x, layer.weight, layer.bias, active_in, active_out)
        return F.relu(y) if layer.relu else y

    def _batch_norm(self, layer: "TNorm", x: Tensor, active: Active) -> Tensor:
        row = self.statistics or 0
        weight, bias = take_active(layer.weight, 0, active), take_active(layer.bias, 0, active)
        mean = take_active(layer.running_mean[row], 0, active)
        var = take_active(layer.running_var[row], 0, active)
        if layer.training and not isinstance(active, int):
            raise InvalidSetting(
                "Batch norm keeps running statistics of a prefix of channels, and independent "
                "gates have none. Train with nested gates, or with group norm."
            )
        # A prefix of running statistics is a view: training updates them in place.
        return F.batch_norm(
            x, mean, var, weight, bias, layer.training, momentum=layer.momentum, eps=layer.eps
        )


class Masked:
    """Computes everything and multiplies by masks, one gate for each sample.

    Attributes:
        masks: for every T-module (B, n), in [0, 1]; soft masks and gradients are allowed.
        statistics: row of the batch-norm statistics, one for all or one for each sample, (B,).
    """

    def __init__(self, masks: Sequence[Tensor], statistics: int | Tensor | None = None) -> None:
        self.masks = tuple(masks)
        self.statistics = statistics

    def is_off(self, module: int, component: int) -> bool:
        return False

    def convolve(self, layer: "TConv", x: Tensor) -> Tensor:
        convolve = F.conv3d if layer.weight.ndim == 5 else F.conv2d
        y = convolve(x, layer.weight, layer.bias, layer.stride, layer.padding, 1, layer.groups)
        if layer.norm is not None:
            y = self._normalised(layer.norm, y)
        y = F.relu(y) if layer.relu else y
        mask = channel_mask(layer.axis_out, self.masks)
        if layer.component is not None:
            module, component = layer.component
            own = self.masks[module][:, component : component + 1]
            mask = own if mask is None else mask * own
        return y if mask is None else y * _spread(mask, y)

    def normalise(self, layer: "TNorm", x: Tensor) -> Tensor:
        y = self._normalised(layer, x)
        y = F.relu(y) if layer.relu else y
        mask = channel_mask(layer.axis, self.masks)
        return y if mask is None else y * _spread(mask, y)

    def project(self, layer: "TLinear", x: Tensor) -> Tensor:
        y = F.linear(x, layer.weight, layer.bias)
        y = F.relu(y) if layer.relu else y
        mask = channel_mask(layer.axis_out, self.masks)
        return y if mask is None else y * mask.to(y.dtype)

    def _normalised(self, layer: "TNorm", x: Tensor) -> Tensor:
        if layer.kind == "group":
            groups = len(layer.weight) // layer.group_width
            return F.group_norm(x, groups, layer.weight, layer.bias, layer.eps)
        if layer.training:
            raise InvalidSetting(
                "Batch norm takes its statistics over the batch, where masked channels of some "
                "samples would count as zeros. Train sliced: --set phase1.schedule=sandwich or "
                "incremental, or use group norm."
            )
        row = 0 if self.statistics is None else self.statistics
        mean, var = layer.running_mean[row], layer.running_var[row]
        scale = layer.weight * torch.rsqrt(var + layer.eps)
        shift = layer.bias - mean * scale
        if scale.ndim == 1:
            scale, shift = scale[None], shift[None]
        return x * _spread(scale, x) + _spread(shift, x)


class Packed(Sliced):
    """`Sliced` for inference on weights that stay as they are: each is cut and packed once.

    It keeps what it packs, so make one for each arm and keep it. Call it under `inference_mode`.
    """

    def __init__(self, active: Sequence[Active], statistics: int | None = None) -> None:
        super().__init__(active, statistics)
        self._convs: dict[int, PackedConv] = {}
        self._linears: dict[int, PackedLinear] = {}
        self._norms: dict[int, tuple[Tensor, Tensor]] = {}

    def convolve(self, layer: "TConv", x: Tensor) -> Tensor:
        fuses = layer.relu and layer.norm is None
        packed = self._convs.get(id(layer))
        if packed is None:
            active_in = active_channels(layer.axis_in, self.active)
            active_out = active_channels(layer.axis_out, self.active)
            weight, groups = cut_weight(layer.weight, active_in, active_out, layer.groups)
            bias = None if layer.bias is None else take_active(layer.bias, 0, active_out)
            packed = pack_conv(
                weight,
                bias,
                stride=layer.stride,
                padding=layer.padding,
                groups=groups,
                relu=fuses,
            )
            self._convs[id(layer)] = packed
        y = packed(x)
        if layer.norm is not None:
            y = self.normalise(layer.norm, y)
        return y if fuses or not layer.relu else F.relu_(y)

    def normalise(self, layer: "TNorm", x: Tensor) -> Tensor:
        cut = self._norms.get(id(layer))
        if cut is None:
            cut = self._norms[id(layer)] = self._cut_norm(layer)
        scale, shift = cut
        if layer.kind == "group":
            y = F.group_norm(x, len(scale) // layer.group_width, scale, shift, layer.eps)
        else:
            y = torch.addcmul(_spread(shift[None], x), x, _spread(scale[None], x))
        return F.relu_(y) if layer.relu else y

    def project(self, layer: "TLinear", x: Tensor) -> Tensor:
        packed = self._linears.get(id(layer))
        if packed is None:
            active_in = active_channels(layer.axis_in, self.active)
            active_out = active_channels(layer.axis_out, self.active)
            weight, _ = cut_weight(layer.weight, active_in, active_out)
            bias = None if layer.bias is None else take_active(layer.bias, 0, active_out)
            packed = self._linears[id(layer)] = pack_linear(weight, bias, relu=layer.relu)
        return packed(x)

    def _cut_norm(self, layer: "TNorm") -> tuple[Tensor, Tensor]:
        active = active_channels(layer.axis, self.active)
        weight, bias = take_active(layer.weight, 0, active), take_active(layer.bias, 0, active)
        if layer.kind == "group":
            return weight.contiguous(), bias.contiguous()
        row = self.statistics or 0
        mean = take_active(layer.running_mean[row], 0, active)
        var = take_active(layer.running_var[row], 0, active)
        scale = weight * torch.rsqrt(var + layer.eps)
        return scale, bias - mean * scale


def _spread(values: Tensor, x: Tensor) -> Tensor:
    """(B or 1, C) over the pixels of x, in its own type."""
    return values.reshape(*values.shape, *(1,) * (x.ndim - 2)).to(x.dtype)

