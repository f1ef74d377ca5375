"""T-modules: layers whose outputs are components that a gate switches (TNN Eq. 2).

Each has two forms of one function: `sliced` computes the active part alone, one gate for the whole
batch; `masked` computes everything and multiplies by a mask for each sample. B batch, n components.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyball.datapaths.errors import InvalidSetting
from flyball.kernels import (
    Active,
    conv2d_active,
    expand_active,
    group_norm_active,
    linear_active,
)

__all__ = ["Norm", "TConv2d", "TLinear", "component_width"]

Norm = Literal["none", "group"]


class TConv2d(nn.Module):
    """3x3 convolution, normalisation and ReLU over components, joined by concatenation.

    With `norm="group"` a component is normalised by its own mean and variance (GroupNorm with one
    group a component), so that what it gives does not depend on which others are on.

    Args:
        inputs, outputs: channels.
        components: n; divides `outputs`.
        norm: "group", or "none" as published for VGG-D.

    Raises:
        InvalidSetting: `components` does not divide `outputs`.
    """

    def __init__(self, inputs: int, outputs: int, components: int, norm: Norm) -> None:
        super().__init__()
        self.components = components
        self.width = component_width("convolution", outputs, components)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=norm == "none")
        self.norm = nn.GroupNorm(components, outputs) if norm == "group" else None

    def sliced(self, x: Tensor, active_in: Active, active: Active) -> Tensor:
        """(B, active inputs, H, W) to (B, active components x width, H, W).

        Args:
            x: the active input channels.
            active_in: which channels these are.
            active: which components to compute.
        """
        channels = expand_active(active, self.width)
        y = conv2d_active(x, self.conv.weight, self.conv.bias, active_in, channels, padding=1)
        if self.norm is not None:
            y = group_norm_active(
                y, self.norm.weight, self.norm.bias, active, self.components, eps=self.norm.eps
            )
        return F.relu(y)

    def masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, inputs, H, W), inactive channels zero, to (B, outputs, H, W), likewise.

        Args:
            x: all input channels.
            mask: (B, n) of zeros and ones.
        """
        y = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        gate = mask.repeat_interleave(self.width, dim=1)[:, :, None, None]
        return F.relu(y) * gate.to(y.dtype)


class TLinear(nn.Module):
    """Fully-connected layer and ReLU over components, joined by concatenation.

    Args:
        inputs, outputs: features.
        components: n; divides `outputs`.

    Raises:
        InvalidSetting: `components` does not divide `outputs`.
    """

    def __init__(self, inputs: int, outputs: int, components: int) -> None:
        super().__init__()
        self.components = components
        self.width = component_width("linear layer", outputs, components)
        self.linear = nn.Linear(inputs, outputs)

    def sliced(self, x: Tensor, active_in: Active, active: Active) -> Tensor:
        """(B, active inputs) to (B, active components x width)."""
        features = expand_active(active, self.width)
        return F.relu(linear_active(x, self.linear.weight, self.linear.bias, active_in, features))

    def masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, inputs), inactive features zero, to (B, outputs), likewise; mask is (B, n)."""
        y: Tensor = torch.relu(self.linear(x))
        return y * mask.repeat_interleave(self.width, dim=1).to(y.dtype)


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
