"""Axes: values that say which T-module gates the channels of a tensor, and what is on of them.

B batch, C channels, n components of a T-module.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flyball.datapaths.errors import InvalidSetting
from flyball.kernels import Active, active_count, expand_active

__all__ = [
    "Axis",
    "Segment",
    "active_channels",
    "channel_mask",
    "channels_of",
    "component_width",
    "count_active",
    "dense",
    "gated",
    "is_gated",
    "times",
]


@dataclass(frozen=True)
class Segment:
    """Neighbouring channels that one T-module gates in equal components, or that are never gated.

    Attributes:
        channels: when everything is on.
        module: position of the T-module; None: never gated.
        first: the first of its components that these channels belong to.
        components: how many of its components share these channels, in order and equally.
    """

    channels: int
    module: int | None = None
    first: int = 0
    components: int = 1

    @property
    def width(self) -> int:
        """Channels of one component."""
        return self.channels // self.components


Axis = tuple[Segment, ...]


def dense(channels: int) -> Axis:
    """Channels that are never gated."""
    return (Segment(channels),)


def gated(channels: int, module: int, components: int, *, what: str = "layer") -> Axis:
    """All channels of a T-module.

    Raises:
        InvalidSetting: the components cannot share the channels equally.
    """
    component_width(what, channels, components)
    return (Segment(channels, module, 0, components),)


def times(axis: Axis, count: int) -> Axis:
    """The axis after flattening `count` pixels into every channel."""
    return tuple(Segment(s.channels * count, s.module, s.first, s.components) for s in axis)


def is_gated(axis: Axis) -> bool:
    """Whether any channel can be switched off."""
    return any(segment.module is not None for segment in axis)


def channels_of(axis: Axis) -> int:
    """Channels when everything is on."""
    return sum(segment.channels for segment in axis)


def count_active(axis: Axis, active: Sequence[Active]) -> int:
    """How many channels are on."""
    return sum(active_count(_active_of(segment, active)) for segment in axis)


def active_channels(axis: Axis, active: Sequence[Active]) -> Active:
    """Which channels are on: the first so many, or sorted indices.

    Args:
        axis: of the tensor.
        active: for every T-module a count (the first so many) or sorted indices of components.
    """
    parts = [_active_of(segment, active) for segment in axis]
    prefix, is_open = 0, True
    for segment, part in zip(axis, parts, strict=True):
        if not is_open and active_count(part):
            break
        if not isinstance(part, int):
            break
        prefix += part
        is_open = is_open and part == segment.channels
    else:
        return prefix
    start, indices = 0, []
    for segment, part in zip(axis, parts, strict=True):
        chosen = torch.arange(part) if isinstance(part, int) else part.cpu()
        indices.append(chosen + start)
        start += segment.channels
    return torch.cat(indices)


def channel_mask(axis: Axis, masks: Sequence[Tensor]) -> Tensor | None:
    """The gate of every channel, (B, C); None where no channel is ever gated.

    Args:
        axis: of the tensor.
        masks: for every T-module (B, n), in [0, 1]; gradients flow through.
    """
    if not is_gated(axis):
        return None
    parts = []
    for segment in axis:
        if segment.module is None:
            parts.append(masks[0].new_ones(len(masks[0]), segment.channels))
        else:
            own = masks[segment.module][:, segment.first : segment.first + segment.components]
            parts.append(own.repeat_interleave(segment.width, dim=1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def component_width(what: str, outputs: int, components: int) -> int:
    """Channels or features of one component.

    Raises:
        InvalidSetting: the components cannot share the outputs equally.
    """
    if components < 1 or outputs < 1 or outputs % components:
        raise InvalidSetting(
            f"The components of a {what} share its outputs equally: {components} components do "
            f"not divide {outputs} outputs. Choose a divisor with --set path.components=N."
        )
    return outputs // components


def _active_of(segment: Segment, active: Sequence[Active]) -> Active:
    """Active channels within one segment."""
    if segment.module is None:
        return segment.channels
    gate = active[segment.module]
    if isinstance(gate, int):
        return min(max(gate - segment.first, 0), segment.components) * segment.width
    own = gate[(gate >= segment.first) & (gate < segment.first + segment.components)]
    if len(own) == segment.components:
        return segment.channels
    return expand_active(own - segment.first, segment.width) if len(own) else 0
