"""Gating functions g_psi(x, u): networks that give every component its probability to be on.

Blind ones see u alone, as published; contextual ones see the image too. B batch, N components.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from flyball.datapaths.errors import InvalidSetting

__all__ = ["BlindGate", "ContextualGate", "GateKind", "GateShape", "make_gate_network"]

GateKind = Literal["blind", "contextual"]


class GateFunction(Protocol):
    """Logits of all gates, (B, N), of normalised images and u (B,)."""

    def __call__(self, images: Tensor, u: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class GateShape:
    """What a gate network is made of.

    Attributes:
        kind: "blind" (u in) or "contextual" (image and u in).
        components: n of every T-module.
        input_shape: of an image (C, H, W) or a clip (C, T, H, W); a blind gate ignores it.
        hidden: features of the layer between.
        channels: of the contextual gate's convolutions.
    """

    kind: GateKind
    components: tuple[int, ...]
    input_shape: tuple[int, ...]
    hidden: int = 64
    channels: tuple[int, ...] = (16, 32)

    def __post_init__(self) -> None:
        """Checks that a network can be made of it.

        Raises:
            InvalidSetting: it cannot.
        """
        rules = [
            ("gate", self.kind, self.kind in get_args(GateKind), "'blind' or 'contextual'"),
            ("hidden", self.hidden, self.hidden >= 1, "at least 1"),
            (
                "channels",
                self.channels,
                len(self.channels) >= 1 and min(self.channels, default=0) >= 1,
                "one or more numbers of at least 1",
            ),
        ]
        for name, value, holds, rule in rules:
            if not holds:
                raise InvalidSetting(
                    f"gates.{name} must be {rule}; it is {value!r}. Give GateConfig({name}=VALUE)."
                )
        if not self.components or min(self.components) < 1:
            raise InvalidSetting(
                f"A gate switches the components of T-modules; they have {self.components}. "
                "Give a network with at least one T-module."
            )
        if self.kind == "contextual" and len(self.input_shape) not in (3, 4):
            raise InvalidSetting(
                "A contextual gate sees images (C, H, W) or clips (C, T, H, W); this network "
                f"takes {self.input_shape}. Use a blind gate: GateConfig(gate='blind')."
            )


class BlindGate(nn.Module):
    """FC, ReLU, FC from u to the logits of every component of every T-module (TNN section 4.2)."""

    def __init__(self, components: Sequence[int], *, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, sum(components))
        )

    def forward(self, images: Tensor, u: Tensor) -> Tensor:
        """Logits (B, N).

        Args:
            images: not looked at.
            u: target utilization, in [0, 1], (B,).
        """
        logits: Tensor = self.layers(_centred(u))
        return logits


class ContextualGate(nn.Module):
    """Strided convolutions over the image, their mean over pixels beside u, then FC, ReLU, FC.

    Every convolution halves the image; two or three of few channels cost about a hundredth of a
    small VGG. Two- or three-dimensional after the input's shape.
    """

    def __init__(
        self,
        components: Sequence[int],
        input_shape: Sequence[int],
        *,
        hidden: int = 64,
        channels: Sequence[int] = (16, 32),
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if len(input_shape) == 3 else nn.Conv3d
        layers: list[nn.Module] = []
        inputs = input_shape[0]
        for outputs in channels:
            layers += [conv(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
            inputs = outputs
        self.eyes = nn.Sequential(*layers)
        self.layers = nn.Sequential(
            nn.Linear(inputs + 1, hidden), nn.ReLU(), nn.Linear(hidden, sum(components))
        )

    def forward(self, images: Tensor, u: Tensor) -> Tensor:
        """Logits (B, N).

        Args:
            images: normalised, (B, *input_shape).
            u: target utilization, in [0, 1], (B,).
        """
        seen = self.eyes(images).flatten(2).mean(dim=2)
        logits: Tensor = self.layers(torch.cat([seen, _centred(u)], dim=1))
        return logits


def make_gate_network(shape: GateShape, seed: int) -> BlindGate | ContextualGate:
    """A gate network with weights that the seed alone decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if shape.kind == "blind":
            return BlindGate(shape.components, hidden=shape.hidden)
        return ContextualGate(
            shape.components, shape.input_shape, hidden=shape.hidden, channels=shape.channels
        )


def _centred(u: Tensor) -> Tensor:
    """u in [-1, 1], as a column."""
    return (2.0 * u.float() - 1.0)[:, None]
