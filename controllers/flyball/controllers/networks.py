"""The networks that choose an arm; how they learn lives in `learn` and `rllib`.

Axis letters: B batch, K arms, C channels, T frames, H, W, D context features, N samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flyball.datapaths.cost import measured_macs
from flyball.datapaths.errors import InvalidSetting, unknown_name

__all__ = [
    "ControllerConfig",
    "NetworkKind",
    "Standardise",
    "build_network",
    "c3d_controller",
    "fit_standardisation",
    "network_macs",
    "standardisation_of",
]

NetworkKind = Literal["context_head", "image_cnn", "clip_cnn", "c3d"]
_SHAPES = {
    "context_head": "(features,)",
    "image_cnn": "(channels, height, width)",
    "clip_cnn": "(channels, frames, height, width)",
    "c3d": "(channels, frames, height, width)",
}
Sides = tuple[int, int, int]
LARGE_IMAGE = 16
LARGEST_MAP = 4
OUTPUT_SHRINK = 0.01

# TNN Table 4: what the width is divided by, kernel, stride, padding.
_C3D: tuple[tuple[int, Sides, Sides, int], ...] = (
    (1, (3, 7, 7), (1, 1, 1), 1),
    (1, (3, 7, 7), (2, 2, 2), 1),
    (1, (3, 7, 7), (1, 1, 1), 0),
    (1, (3, 3, 3), (2, 2, 2), 1),
    (2, (3, 3, 3), (1, 2, 2), 1),
    (2, (3, 3, 3), (1, 2, 2), 1),
    (4, (3, 3, 3), (1, 2, 2), 1),
)
_C3D_HIDDEN = 4  # units of a hidden layer, as a multiple of the width


@dataclass(frozen=True)
class ControllerConfig:
    """Which network chooses the arm, and how wide it is.

    Attributes:
        kind: "context_head", an MLP on context features; "image_cnn", a small CNN on the image;
            "clip_cnn", a small 3D CNN on the clip; "c3d", the paper's large one (TNN Table 4).
        width: units of every hidden layer, and channels of the CNN's last convolutions; of a c3d
            channels of the first ones, with 4 times as many units; >= 2.
        layers: hidden layers before the last one; >= 0.

    Raises:
        UnknownName: there is no such kind.
        InvalidSetting: a width below 2 or fewer than 0 layers.
    """

    kind: NetworkKind = "context_head"
    width: int = 32
    layers: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(NetworkKind):
            raise unknown_name("controller network", str(self.kind), get_args(NetworkKind))
        _check_count("width", self.width, least=2)
        _check_count("layers", self.layers, least=0)


def c3d_controller() -> ControllerConfig:
    """The contextual controller exactly as TNN Table 4 has it: 34 G MACs on the paper's clips."""
    return ControllerConfig("c3d", width=64, layers=2)


class Standardise(nn.Module):
    """(x - mean) * scale with fixed figures, stored with the weights and exported with them.

    Attributes:
        scale: float32, (D,) for context features, (C, 1, 1) for images, (C, 1, 1, 1) for clips.
        shift: -mean * scale, in the same shape: one pass over the input instead of two.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(*shape))
        self.register_buffer("shift", torch.zeros(*shape))

    def forward(self, observations: Tensor) -> Tensor:
        return torch.addcmul(self.shift, observations, self.scale)

    def assign(self, mean: Any, scale: Any) -> None:
        """Takes over figures in its own shape, whatever numbers or arrays hold them."""
        mean, scale = (
            torch.as_tensor(figures, dtype=torch.float32).view_as(self.scale)
            for figures in (mean, scale)
        )
        with torch.no_grad():
            self.scale.copy_(scale)
            self.shift.copy_(-mean * scale)


def build_network(
    config: ControllerConfig,
    observation_shape: Sequence[int],
    arms_count: int,
    *,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A network that gives the logits (B, K) of a policy over the arms.

    It starts close to the uniform policy: the last layer's weights are drawn small.

    Args:
        config: kind and width.
        observation_shape: (D,) for "context_head", (C, H, W) for "image_cnn", (C, T, H, W) for
            "clip_cnn" and "c3d".
        arms_count: K, >= 1.
        generator: draws the weights; torch's global one if None.

    Raises:
        InvalidSetting: the observation has another number of axes than the kind needs, or the
            clip is too small for a c3d.
    """
    shape = tuple(int(size) for size in observation_shape)
    _check_count("arms_count", arms_count, least=1)
    axes = _SHAPES[config.kind].count(",") + (config.kind != "context_head")
    if len(shape) != axes:
        raise InvalidSetting(
            f"A {config.kind} needs observations of shape {_SHAPES[config.kind]}; {shape} came. "
            'Set controller.kind to "context_head" for context features, to "image_cnn" for '
            'images, to "clip_cnn" for clips.'
        )
    body: list[nn.Module] = [Standardise((shape[0], *(1,) * (axes - 1)))]
    features, hidden = shape[0], config.width
    if config.kind == "image_cnn":
        convolutions, features = _convolutions(config.width, shape)
        body += [*convolutions, nn.Flatten()]
    elif config.kind == "clip_cnn":
        convolutions, features = _clip_convolutions(config.width, shape)
        body += [*convolutions, nn.Flatten()]
    elif config.kind == "c3d":
        convolutions, features = _c3d_convolutions(config.width, shape)
        body, hidden = [*body, *convolutions, nn.Flatten()], _C3D_HIDDEN * config.width
    for _ in range(config.layers):
        body += [nn.Linear(features, hidden), nn.ReLU()]
        features = hidden
    network = nn.Sequential(*body, nn.Linear(features, arms_count))
    _draw_weights(network, generator)
    return network


def standardisation_of(
    observations: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and 1 / standard deviation of observations; a constant feature gets scale 1.

    Args:
        observations: (N, D), each feature alone, or (N, C, H, W) or (N, C, T, H, W), each channel
            alone.

    Returns:
        mean and scale, float32, (D,), (C, 1, 1) or (C, 1, 1, 1).
    """
    axes = (0, *range(2, observations.ndim))
    mean = observations.mean(axis=axes, dtype=np.float64)
    spread = observations.std(axis=axes, dtype=np.float64)
    scale = 1.0 / np.where(spread > 1e-6, spread, 1.0)
    shape = (*mean.shape, *(1,) * (observations.ndim - 2))
    return mean.reshape(shape).astype(np.float32), scale.reshape(shape).astype(np.float32)


def fit_standardisation(network: nn.Module, observations: NDArray[np.float32]) -> None:
    """Sets the network's `Standardise`, if it has one, from training observations (N, ...)."""
    for module in network.modules():
        if isinstance(module, Standardise):
            module.assign(*standardisation_of(observations))


def network_macs(network: nn.Module, observation_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one observation, convolutions and linear layers, exactly."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    one = torch.zeros(1, *(int(size) for size in observation_shape), device=device)
    with torch.no_grad():
        return measured_macs(lambda: network(one))


def _convolutions(width: int, shape: tuple[int, ...]) -> tuple[list[nn.Module], int]:
    """A stem, then stride-2 convolutions until the map is at most 4 x 4; and its features.

    The stem's stride is 4 from 16 pixels on: most of a stride-2 stem's time goes to its output.
    """
    channels, height, thickness = shape
    kernel, stride = (5, 4) if max(height, thickness) >= LARGE_IMAGE else (3, 2)
    wanted = max(1, width // 2)
    layers: list[nn.Module] = []
    while not layers or channels < width or max(height, thickness) > LARGEST_MAP:
        layers += [nn.Conv2d(channels, wanted, kernel, stride, padding=kernel // 2), nn.ReLU()]
        height, thickness = -(-height // stride), -(-thickness // stride)
        channels, wanted, kernel, stride = wanted, width, 3, 2
    return layers, channels * height * thickness


def _clip_convolutions(width: int, shape: tuple[int, ...]) -> tuple[list[nn.Module], int]:
    """A stem of stride 4 or 2, then stride 2 until at most 4 x 4 x 4 is left; and its features."""
    channels, size = shape[0], shape[1:]
    kernel, stride = (5, 4) if max(size[1:]) >= LARGE_IMAGE else (3, 2)
    wanted = max(1, width // 4)
    layers: list[nn.Module] = []
    while not layers or channels < width or max(size) > LARGEST_MAP:
        layers += [nn.Conv3d(channels, wanted, kernel, stride, padding=kernel // 2), nn.ReLU()]
        size = tuple(-(-pixels // stride) for pixels in size)
        channels, wanted, kernel, stride = wanted, width, 3, 2
    return layers, channels * math.prod(size)


def _c3d_convolutions(width: int, shape: tuple[int, ...]) -> tuple[list[nn.Module], int]:
    """Convolution, batch norm and ReLU, seven times (TNN Table 4); and their features."""
    channels, size = shape[0], shape[1:]
    layers: list[nn.Module] = []
    for share, kernel, stride, pad in _C3D:
        outputs = max(1, width // share)
        layers += [
            nn.Conv3d(channels, outputs, kernel, stride, padding=pad),
            nn.BatchNorm3d(outputs),
            nn.ReLU(),
        ]
        sides = zip(size, kernel, stride, strict=True)
        size = tuple((pixels + 2 * pad - side) // step + 1 for pixels, side, step in sides)
        if min(size) < 1:
            raise InvalidSetting(
                f"The 7 convolutions of a c3d leave nothing of {shape[1:]} (frames, height, "
                "width); they need 5 x 21 x 21 and more. "
                "Take a small network: --set controller.kind=clip_cnn."
            )
        channels = outputs
    return layers, channels * math.prod(size)


def _draw_weights(network: nn.Sequential, generator: torch.Generator | None) -> None:
    """torch's own initial distribution, drawn from `generator`; the last layer's made small."""
    for module in network:
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            bound = 1.0 / math.sqrt(module.weight[0].numel())
            if module.bias is not None:
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    last = network[-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(OUTPUT_SHRINK)


def _check_count(name: str, value: Any, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidSetting(
            f"{name} is a whole number, {least} or more; it is {value!r}. "
            f"Set it with --set controller.{name}={max(least, 32)}."
        )
