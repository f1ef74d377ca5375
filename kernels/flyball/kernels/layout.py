"""What sparse operators accept: activations as rows of pixels, boolean masks, one device.

B batch, C channels, H, W pixels; Ho, Wo output pixels. An activation (B, C, H, W) in channels_last
memory is the matrix (B * H * W, C), one row a pixel, without a copy.
"""

import torch
from torch import Tensor

__all__ = [
    "check_alias",
    "check_like",
    "check_mask",
    "check_pixels",
    "hard_mask",
    "new_pixels",
    "output_size",
    "rows_of",
]


def hard_mask(soft: Tensor) -> Tensor:
    """Where a soft decision is for running: True where it is at least 0.

    DynConv section 3.1 at inference: no noise, the sign alone decides.

    Args:
        soft: decisions before the sigmoid, any shape, floating point.

    Returns:
        The mask, bool, of the same shape.

    Raises:
        ValueError: the decisions are no floating-point numbers, or one of them is NaN.
    """
    if not soft.is_floating_point():
        raise ValueError(
            "Soft decisions are floating-point numbers, active where >= 0; got "
            f"{soft.dtype}. A bool mask is already hard: give it as it is."
        )
    if bool(torch.isnan(soft).any()):
        raise ValueError(
            f"A soft decision is a number; {int(torch.isnan(soft).sum())} of {soft.numel()} are "
            "NaN, which is neither active nor inactive. Look for the overflow that made them: "
            "the mask unit's weights, or its input."
        )
    return soft.detach() >= 0


def output_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Output pixels of a 3x3 convolution with padding 1: (Ho, Wo)."""
    return (height - 1) // stride + 1, (width - 1) // stride + 1


def check_mask(mask: Tensor, size: tuple[int, int, int], device: torch.device) -> Tensor:
    """The mask as (B, Ho, Wo), contiguous.

    Args:
        mask: (B, 1, Ho, Wo) or (B, Ho, Wo), bool.
        size: (B, Ho, Wo) that it has to have.
        device: where it has to be.

    Raises:
        ValueError: it is of another shape or dtype, or elsewhere.
    """
    if mask.dtype != torch.bool:
        hint = (
            "threshold soft decisions with hard_mask(soft), probabilities with p >= 0.5"
            if mask.is_floating_point()
            else "convert zeros and ones with mask.bool()"
        )
        raise ValueError(f"A mask is bool, True where to run; got {mask.dtype}: {hint}.")
    batch, height, width = size
    if tuple(mask.shape) not in ((batch, 1, height, width), size):
        raise ValueError(
            f"A mask has one value for each output pixel: {(batch, 1, height, width)} or {size}; "
            f"got {tuple(mask.shape)}. Make it at the size of the block's output, which a stride "
            "of 2 halves, rounded up."
        )
    if mask.device != device:
        raise ValueError(
            f"The mask and the activations are on one device: the mask is on {mask.device}, the "
            f"activations on {device}. Move one: mask.to(x.device)."
        )
    return mask.reshape(size).contiguous()


def check_pixels(x: Tensor, channels: int, like: Tensor) -> None:
    """That x is (B, C, H, W) with these channels, of the dtype and on the device of `like`.

    Raises:
        ValueError: it is not.
    """
    if x.ndim != 4:
        raise ValueError(
            "Activations are (batch, channels, height, width), best in channels_last memory; got "
            f"{x.ndim} dimensions, {tuple(x.shape)}. Give one image as x[None]; rows (pixels, "
            "channels) as rows.view(B, H, W, C).permute(0, 3, 1, 2)."
        )
    if x.shape[1] != channels:
        raise ValueError(
            f"The first weights take {channels} channels; the activations {tuple(x.shape)} have "
            f"{x.shape[1]}. Give the input of the layer that was packed."
        )
    if min(x.shape) < 1:
        raise ValueError(f"Activations have at least one image and pixel; got {tuple(x.shape)}.")
    check_like("activations", x, tuple(x.shape), like)


def check_like(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """That x has this shape, and the dtype and device of `like`.

    Raises:
        ValueError: it has not; `name` says what it is.
    """
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: the shape here is {shape}; got {tuple(x.shape)}.")
    if x.dtype != like.dtype:
        raise ValueError(
            f"{name}: the packed weights are {like.dtype}; got {x.dtype}. Convert it, or pack "
            f"weights of {x.dtype}."
        )
    if x.device != like.device:
        raise ValueError(
            f"{name}: the packed weights are on {like.device}; got {x.device}. Move one; packed "
            "weights move by packing again."
        )


def check_alias(out: Tensor, x: Tensor, name: str) -> bool:
    """Whether `out` is the very memory of x; a partial overlap is refused.

    Raises:
        ValueError: the two share some of their memory, not all of it.
    """
    if out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
        return False
    same = out.data_ptr() == x.data_ptr() and out.shape == x.shape and out.stride() == x.stride()
    first, last = _span(out)
    x_first, x_last = _span(x)
    if not same and first < x_last and x_first < last:
        raise ValueError(
            f"`out` is {name} itself or memory of its own; it shares a part of {name}'s memory. "
            "Give another tensor, or None."
        )
    return same


def rows_of(x: Tensor) -> tuple[Tensor, bool]:
    """Activations (B, C, H, W) as rows (B * H * W, C), and whether they had to be copied."""
    pixels = x.permute(0, 2, 3, 1)
    is_copied = not pixels.is_contiguous()
    return pixels.contiguous().view(-1, x.shape[1]), is_copied


def new_pixels(batch: int, channels: int, height: int, width: int, like: Tensor) -> Tensor:
    """Uninitialised activations (B, C, H, W) in channels_last memory."""
    rows = torch.empty((batch, height, width, channels), dtype=like.dtype, device=like.device)
    return rows.permute(0, 3, 1, 2)


def _span(x: Tensor) -> tuple[int, int]:
    """First byte, and the one after the last."""
    length = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + length * x.element_size()
