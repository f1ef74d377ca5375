"""The two small networks that choose an arm; how they learn lives in `learn` and `rllib`.

Axis letters: B batch, K arms, C channels, H, W, D context features, N samples.
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
    "Standardise",
    "build_network",
    "fit_standardisation",
    "network_macs",
    "standardisation_of",
]

NetworkKind = Literal["context_head", "image_cnn"]
LARGE_IMAGE = 16
LARGEST_MAP = 4
OUTPUT_SHRINK = 0.01


@dataclass(frozen=True)
class ControllerConfig:
    """Which network chooses the arm, and how wide it is.

    Attributes:
        kind: "context_head", an MLP on context features; "image_cnn", a small CNN on the image.
        width: units of every hidden layer, and channels of the CNN's last convolutions; >= 2.
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


class Standardise(nn.Module):
    """(x - mean) * scale with fixed figures, stored with the weights and exported with them.

    Attributes:
        scale: float32, (D,) for context features, (C, 1, 1) for images.
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
        observation_shape: (D,) for "context_head", (C, H, W) for "image_cnn".
        arms_count: K, >= 1.
        generator: draws the weights; torch's global one if None.

    Raises:
        InvalidSetting: the observation has another number of axes than the kind needs.
    """
    shape = tuple(int(size) for size in observation_shape)
    _check_count("arms_count", arms_count, least=1)
    axes = 1 if config.kind == "context_head" else 3
    if len(shape) != axes:
        needs = "(features,)" if axes == 1 else "(channels, height, width)"
        raise InvalidSetting(
            f"A {config.kind} needs observations of shape {needs}; {shape} came. Set "
            'controller.kind to "context_head" for context features, to "image_cnn" for images.'
        )
    if axes == 1:
        body: list[nn.Module] = [Standardise(shape)]
        features = shape[0]
    else:
        convolutions, features = _convolutions(config.width, shape)
        body = [Standardise((shape[0], 1, 1)), *convolutions, nn.Flatten()]
    for _ in range(config.layers):
        body += [nn.Linear(features, config.width), nn.ReLU()]
        features = config.width
    network = nn.Sequential(*body, nn.Linear(features, arms_count))
    _draw_weights(network, generator)
    return network


def standardisation_of(
    observations: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and 1 / standard deviation of observations; a constant feature gets scale 1.

    Args:
        observations: (N, D), each feature alone, or (N, C, H, W), each channel alone.

    Returns:
        mean and scale, float32, (D,) or (C, 1, 1).
    """
    axes = (0,) if observations.ndim == 2 else (0, 2, 3)
    mean = observations.mean(axis=axes, dtype=np.float64)
    spread = observations.std(axis=axes, dtype=np.float64)
    scale = 1.0 / np.where(spread > 1e-6, spread, 1.0)
    shape = mean.shape if observations.ndim == 2 else (*mean.shape, 1, 1)
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


def _draw_weights(network: nn.Sequential, generator: torch.Generator | None) -> None:
    """torch's own initial distribution, drawn from `generator`; the last layer's made small."""
    for module in network:
        if isinstance(module, nn.Conv2d | nn.Linear):
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
