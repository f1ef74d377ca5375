"""How the gates of a network are executed: three ways to run one description of it.

`Sliced` computes the active part alone, `Masked` computes everything and multiplies by masks, and
`Packed` is `Sliced` with every weight cut and packed once, for a network that no longer changes.
T-layers (`modules`) hand their work to one of them. B batch, n components, C channels.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flyball.datapaths.axes import (
    Axis,
    active_channels,
    channel_mask,
    channels_of,
)
from flyball.datapaths.errors import InvalidSetting
from flyball.kernels import (
    Active,
    PackedLinear,
    active_count,
    conv_active,
    cut_weight,
    group_norm_active,
    group_norm_relu,
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

    def silence(self, axis: Axis, x: Tensor) -> Tensor:
        """Sets what is off to zero, after an operation that makes something else of a zero."""
        ...

    def fill(self, axis: Axis, x: Tensor) -> Tensor:
        """All channels, zeros where they are off: for readers that know no gates."""
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
        if active_count(active_in) and active_count(active_out):
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
        else:
            y = _of_nothing(layer, x, active_out)
        if layer.norm is not None:
            y = self.normalise(layer.norm, y)
        return F.relu(y) if layer.relu else y

    def normalise(self, layer: "TNorm", x: Tensor) -> Tensor:
        active = active_channels(layer.axis, self.active)
        if not active_count(active):
            return x
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

    def silence(self, axis: Axis, x: Tensor) -> Tensor:
        return x

    def fill(self, axis: Axis, x: Tensor) -> Tensor:
        active, channels = active_channels(axis, self.active), channels_of(axis)
        if active_count(active) == channels:
            return x
        where = torch.arange(active) if isinstance(active, int) else active
        filled = x.new_zeros(len(x), channels, *x.shape[2:])
        return filled.index_copy(1, where.to(x.device), x)

    def _batch_norm(self, layer: "TNorm", x: Tensor, active: Active) -> Tensor:
        row = self.statistics or 0
        weight, bias = take_active(layer.weight, 0, active), take_active(layer.bias, 0, active)
        mean = take_active(layer.running_mean[row], 0, active)
        var = take_active(layer.running_var[row], 0, active)
        y = F.batch_norm(
            x, mean, var, weight, bias, layer.training, momentum=layer.momentum, eps=layer.eps
        )
        # A prefix of running statistics is a view, which training updates in place.
        if layer.training and not isinstance(active, int):
            layer.running_mean[row].index_copy_(0, active.to(mean.device), mean)
            layer.running_var[row].index_copy_(0, active.to(var.device), var)
        return y


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
        if layer.masking == "none":
            return y
        mask = channel_mask(layer.axis_out, self.masks)
        if layer.component is not None and layer.masking == "all":
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

    def silence(self, axis: Axis, x: Tensor) -> Tensor:
        mask = channel_mask(axis, self.masks)
        return x if mask is None else x * _spread(mask, x)

    def fill(self, axis: Axis, x: Tensor) -> Tensor:
        return self.silence(axis, x)

    def _normalised(self, layer: "TNorm", x: Tensor) -> Tensor:
        if layer.kind == "group":
            groups = len(layer.weight) // layer.group_width
            return F.group_norm(x, groups, layer.weight, layer.bias, layer.eps)
        if layer.training:
            raise InvalidSetting(
                "Batch norm takes its statistics over the batch, where masked channels of some "
                "samples would count as zeros. Train nested gates: --set path.gating=nested, "
                "or use group norm: --set path.norm=group."
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

    Batch norm goes into the weights before it. It keeps what it packs, so make one for each arm
    and keep it. Call it under `inference_mode`.
    """

    def __init__(self, active: Sequence[Active], statistics: int | None = None) -> None:
        super().__init__(active, statistics)
        self._convs: dict[TConv, Callable[[Tensor], Tensor]] = {}
        self._linears: dict[TLinear, PackedLinear] = {}
        self._norms: dict[TNorm, tuple[Tensor, Tensor]] = {}

    def convolve(self, layer: "TConv", x: Tensor) -> Tensor:
        packed = self._convs.get(layer)
        if packed is None:
            packed = self._convs[layer] = self._pack(layer)
        return packed(x)

    def normalise(self, layer: "TNorm", x: Tensor) -> Tensor:
        return self._normalised(layer, x, layer.relu) if x.shape[1] else x

    def project(self, layer: "TLinear", x: Tensor) -> Tensor:
        packed = self._linears.get(layer)
        if packed is None:
            active_in = active_channels(layer.axis_in, self.active)
            active_out = active_channels(layer.axis_out, self.active)
            weight, _ = cut_weight(layer.weight, active_in, active_out)
            bias = None if layer.bias is None else take_active(layer.bias, 0, active_out)
            packed = self._linears[layer] = pack_linear(weight, bias, relu=layer.relu)
        return packed(x)

    def _pack(self, layer: "TConv") -> Callable[[Tensor], Tensor]:
        active_in = active_channels(layer.axis_in, self.active)
        active_out = active_channels(layer.axis_out, self.active)
        if not active_count(active_in) or not active_count(active_out):
            return lambda x: Sliced.convolve(self, layer, x)
        weight, groups = cut_weight(layer.weight, active_in, active_out, layer.groups)
        bias = None if layer.bias is None else take_active(layer.bias, 0, active_out)
        norm, relu = layer.norm, layer.relu
        if norm is not None and norm.kind == "batch":
            scale, shift = self._cut_norm(norm)
            weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
            bias = shift if bias is None else shift + bias * scale
            norm = None
        packed = pack_conv(
            weight,
            bias,
            stride=layer.stride,
            padding=layer.padding,
            groups=groups,
            relu=relu and norm is None,
        )
        return packed if norm is None else lambda x: self._normalised(norm, packed(x), relu)

    def _normalised(self, layer: "TNorm", x: Tensor, relu: bool) -> Tensor:
        cut = self._norms.get(layer)
        if cut is None:
            cut = self._norms[layer] = self._cut_norm(layer)
        scale, shift = cut
        if layer.kind == "group":
            groups = len(scale) // layer.group_width
            return group_norm_relu(x, groups, scale, shift, eps=layer.eps, relu=relu)
        y = torch.addcmul(_spread(shift[None], x), x, _spread(scale[None], x))
        return y.relu_() if relu else y

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


def _of_nothing(layer: "TConv", x: Tensor, active_out: Active) -> Tensor:
    """A convolution whose inputs are all off, which leaves its bias, or whose outputs are."""
    y = x.new_zeros(len(x), active_count(active_out), *layer.output_size(x.shape[2:]))
    bias = None if layer.bias is None else take_active(layer.bias, 0, active_out)
    return y if bias is None else y + _spread(bias[None], y)
