"""What every frozen data path does alike, whatever it is made of.

It refuses to change, groups a batch of mixed u once at its input, and runs equal shapes. B batch,
C' pooled channels, D context features.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from flyball.datapaths.errors import DataError, FrozenPathChanged, InvalidSetting
from flyball.datapaths.tasks import Judgement

__all__ = [
    "FrozenModule",
    "check_inputs",
    "check_scale",
    "check_utilizations",
    "context_features",
    "grouped",
    "in_chunks",
    "per_channel",
    "rows_in_a_chunk",
]

# A pass always runs chunks of one number of rows, the last one padded: libraries pick other
# algorithms for other shapes, so only equal shapes give equal bits. Large inputs get fewer rows.
MOST_ROWS = 64
NUMBERS_IN_A_CHUNK = 2**20

Setting = TypeVar("Setting", int, tuple[int, ...])


class FrozenModule(nn.Module):
    """A module in evaluation mode, without gradients, that refuses both."""

    what: ClassVar[str]
    """What it calls itself in a refusal."""
    advice: ClassVar[str]
    """What to train instead, and how."""

    def train(self, mode: bool = True) -> Self:
        """Refuses: what is frozen stays in evaluation mode.

        Raises:
            FrozenPathChanged: `mode` is True.
        """
        if mode:
            raise FrozenPathChanged(
                f"A frozen {self.what} cannot be trained: every atlas and controller made from it "
                f"would be wrong. {self.advice}"
            )
        return super().train(False)

    def judge(self, output: Tensor, truth: Any) -> Judgement:
        """How right an output is, and how sure."""
        raise NotImplementedError

    def read(self, output: Tensor) -> Judgement:
        """What an output says and how sure, where nobody knows the truth; `correct` is void."""
        return self.judge(output, torch.zeros(len(output), dtype=torch.int64, device=output.device))

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Refuses gradients.

        Raises:
            FrozenPathChanged: `requires_grad` is True.
        """
        if requires_grad:
            raise FrozenPathChanged(f"A frozen {self.what} has no gradients. {self.advice}")
        return super().requires_grad_(False)


def check_inputs(images: Tensor, input_shape: tuple[int, ...]) -> None:
    """Refuses inputs that a data path does not take.

    Args:
        images: (B, *input_shape), floating point.
        input_shape: of one input.

    Raises:
        DataError: they have another shape, or are no floating-point numbers.
    """
    if tuple(images.shape[1:]) != input_shape:
        raise DataError(
            f"This data path takes inputs of shape {input_shape} (channels, then frames "
            f"of a clip, height and width); these are {tuple(images.shape[1:])}. "
            f"Resize with --set data.image_size={input_shape[-1]}, "
            "or train a data path for this size."
        )
    if not images.is_floating_point():
        raise DataError(
            f"Inputs are floating-point numbers in [0, 1]; {images.dtype} came. "
            "Divide bytes by 255: images.float() / 255."
        )


def check_scale(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Refuses a mean or standard deviation that is not one for each channel.

    Raises:
        InvalidSetting: there are fewer or more, or a deviation is not above 0.
    """
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise InvalidSetting(
            f"Every one of the {channels} input channels has a mean and a standard deviation above "
            f"0; the means are {mean}, the deviations {std}. Give one for each channel."
        )


def check_utilizations(u: Tensor, samples: Tensor) -> None:
    """Refuses a tensor of utilizations that has not one for each sample.

    Raises:
        InvalidSetting: it has another shape than (B,).
    """
    if u.shape != (len(samples),):
        raise InvalidSetting(
            f"u is one number, or one for each of the {len(samples)} samples; its shape is "
            f"{tuple(u.shape)}. Give a float or a tensor of shape ({len(samples)},)."
        )


def grouped(
    u: Tensor, samples: Tensor, setting_of: Callable[[float], Setting]
) -> list[tuple[Setting, Tensor]]:
    """A batch of mixed u by what it asks for: every u is checked before anything runs.

    Args:
        u: requested utilizations, (B,).
        samples: the batch, (B, ...).
        setting_of: what a utilization runs, such as its components; refuses one outside [0, 1].

    Returns:
        Every setting, increasing, with its rows, int64.

    Raises:
        InvalidSetting: there is not one u for each sample, or one is outside [0, 1] or NaN.
    """
    check_utilizations(u, samples)
    rows: dict[Setting, list[int]] = {}
    for row, value in enumerate(u.double().tolist()):
        rows.setdefault(setting_of(value), []).append(row)
    return [
        (setting, torch.tensor(rows[setting], device=samples.device)) for setting in sorted(rows)
    ]


def in_chunks(
    run: Callable[[Tensor], Sequence[Tensor]], x: Tensor, rows: int
) -> tuple[Tensor, ...]:
    """Runs chunks of exactly so many rows, the last one padded with zeros.

    Args:
        run: from (rows, ...) to tensors of as many rows each.
        x: (B, ...); B may be 0.
        rows: of a chunk.

    Returns:
        What `run` gives, (B, ...) each.
    """
    parts: list[tuple[Tensor, ...]] = []
    for chunk in torch.split(x, rows):
        count = len(chunk)
        if count < rows:
            chunk = torch.cat([chunk, chunk.new_zeros(rows - count, *chunk.shape[1:])])
        parts.append(tuple(given[:count] for given in run(chunk)))
    return tuple(torch.cat(given) for given in zip(*parts, strict=True))


def rows_in_a_chunk(input_shape: Sequence[int]) -> int:
    """How many inputs one pass takes: a power of two, at most 64, fewer for large inputs."""
    fitting = min(MOST_ROWS, max(1, NUMBERS_IN_A_CHUNK // math.prod(input_shape)))
    return 1 << (fitting.bit_length() - 1)


def context_features(pooled: Tensor, logits: Tensor) -> Tensor:
    """What a controller may look at after the lowest arm's pass.

    Args:
        pooled: features of the pass, float32 (B, C').
        logits: (B, classes).

    Returns:
        float32 (B, D): the features, log-probabilities, their largest probability, and their
        entropy in nats.
    """
    log_probabilities = torch.log_softmax(logits, dim=1)
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities).sum(dim=1, keepdim=True)
    confidence = probabilities.amax(dim=1, keepdim=True)
    return torch.cat([pooled, log_probabilities, confidence, entropy], dim=1)


def per_channel(values: Sequence[float], input_shape: Sequence[Any]) -> Tensor:
    """One number for each channel, spread over an input: (1, C, 1, ...)."""
    return torch.tensor(values).reshape(1, -1, *(1,) * (len(input_shape) - 1))
