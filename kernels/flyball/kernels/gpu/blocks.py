"""Masked residual blocks as sequences of Triton kernels; nothing waits for the device.

B batch, C input, E expanded, M hidden, O output channels; activations (B, C, H, W) channels_last.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flyball.kernels.gpu.availability import cache_bytes, check_matrix
from flyball.kernels.gpu.configurations import largest_output
from flyball.kernels.gpu.index import ListedMask, list_mask
from flyball.kernels.gpu.products import (
    Slice,
    Window,
    depthwise,
    depthwise_gemm_scatter,
    gather_gemm,
    gather_gemm_scatter,
)
from flyball.kernels.layout import check_alias, new_pixels, output_size

__all__ = [
    "TritonBasicBlock",
    "TritonBottleneck",
    "TritonInvertedResidual",
    "basic_block",
    "bottleneck",
    "inverted_residual",
    "pack_taps",
]


@dataclass(frozen=True)
class TritonInvertedResidual:
    """Weights of a MobileNetV2 block as the kernels read them.

    Attributes:
        expand: (1, C, E), from `pack_taps`, like project.
        depthwise: (9, E).
        project: (1, E, O).
        expand_bias, depthwise_bias, project_bias: float32.
        stride: of the depthwise convolution.
        activation: after the first two convolutions.
    """

    expand: Tensor
    expand_bias: Tensor
    depthwise: Tensor
    depthwise_bias: Tensor
    project: Tensor
    project_bias: Tensor
    _: KW_ONLY
    stride: int = 1
    activation: str = "relu6"


@dataclass(frozen=True)
class TritonBasicBlock:
    """Weights of two 3x3 convolutions: (9, C, M) and (9, M, O); the stride is the first one's."""

    conv1: Tensor
    bias1: Tensor
    conv2: Tensor
    bias2: Tensor
    _: KW_ONLY
    stride: int = 1


@dataclass(frozen=True)
class TritonBottleneck:
    """Weights (1, C, M), (9, M, M) and (1, M, O); the stride is the 3x3 convolution's."""

    conv1: Tensor
    bias1: Tensor
    conv2: Tensor
    bias2: Tensor
    conv3: Tensor
    bias3: Tensor
    _: KW_ONLY
    stride: int = 1


def pack_taps(weight: Tensor) -> Tensor:
    """A weight in torch's layout as rows of output channels, one matrix for each tap.

    Args:
        weight: (O, C) or (O, C, kh, kw); or depthwise (E, 3, 3) or (E, 1, 3, 3).

    Returns:
        (kh * kw, C, O), for (O, C) with one tap; depthwise (9, E). Contiguous.

    Raises:
        ValueError: it has another shape.
    """
    if weight.ndim == 4 and weight.shape[1] == 1 and tuple(weight.shape[2:]) == (3, 3):
        weight = weight[:, 0]
    if weight.ndim == 3 and tuple(weight.shape[1:]) == (3, 3):
        return weight.reshape(-1, 9).t().contiguous()
    if weight.ndim == 2:
        weight = weight[:, :, None, None]
    if weight.ndim != 4:
        raise ValueError(
            "A weight is (O, C), (O, C, kh, kw) or, depthwise, (E, 3, 3); got "
            f"{tuple(weight.shape)}."
        )
    return weight.flatten(2).permute(2, 1, 0).contiguous()


def inverted_residual(
    x: Tensor,
    mask: Tensor | None,
    packed: TritonInvertedResidual,
    *,
    identity: Tensor | None = None,
    out: Tensor | None = None,
    images: int | None = None,
    is_fused: bool = True,
) -> Tensor:
    """identity + mask * project(act(depthwise(act(expand x)))): DynConv section 3.2.

    Args:
        x: (B, C, H, W), channels_last.
        mask: (B, 1, Ho, Wo) or (B, Ho, Wo), bool; None for every pixel.
        packed: the weights.
        identity: (B, O, Ho, Wo), channels_last; None for x.
        out: where to write, channels_last; x itself works. None: new.
        images: of one slice of the batch, whose expanded rows are meant to stay in the L2 cache;
            None: as many as fit if every pixel is active. It never changes the result.
        is_fused: whether the depthwise result stays on the chip.

    Returns:
        `out`.

    Raises:
        ValueError: shapes, dtypes, devices or layouts do not fit together.
    """
    rows = _rows("x", x, x)
    batch, _, height, width = x.shape
    size = output_size(height, width, packed.stride)
    outputs = packed.project.shape[2]
    identity, out, target = _places(x, identity, out, outputs, size)
    expanded = packed.expand.shape[2]
    listed = list_mask(_mask(mask, batch, size, x), packed.stride, size=(height, width))
    if images is None:
        image = height * width * expanded * x.element_size()
        images = max(1, cache_bytes(x.device) // image)
    is_fused = is_fused and outputs <= largest_output(x.dtype)
    images = min(images, batch) if is_fused else batch
    hidden = x.new_empty((images * height * width, expanded))
    if target.data_ptr() != identity.data_ptr():
        target.copy_(identity)
    index, window = listed.index, Window.of(listed.index)
    first = (packed.expand, packed.expand_bias, packed.activation)
    second = (packed.depthwise, packed.depthwise_bias, packed.activation)
    third = (packed.project, packed.project_bias)
    identity_rows, target_rows = _rows("identity", identity, x), _rows("out", target, x)
    for dilated, active in _slices(listed, images):
        gather_gemm(rows, *first, hidden, rows=dilated, positions=index.dilated)
        if is_fused:
            depthwise_gemm_scatter(
                hidden,
                *second,
                *third,
                target_rows,
                positions=index.active,
                listed=active,
                window=window,
                identity_rows=identity_rows,
            )
    if not is_fused:
        between, count = x.new_empty((len(index.active), expanded)), index.counts[:1]
        depthwise(hidden, *second, between, positions=index.active, count=count, window=window)
        gather_gemm_scatter(
            between,
            *third,
            "none",
            target_rows,
            index.active,
            rows=count,
            identity_rows=identity_rows,
        )
    return _returned(target, out)


def basic_block(
    x: Tensor,
    mask: Tensor | None,
    packed: TritonBasicBlock,
    *,
    identity: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """relu(identity + mask * conv2(relu(conv1 x))); arguments as `inverted_residual`.

    The first convolution runs on the 3x3 dilation of the mask on the output grid.
    """
    rows = _rows("x", x, x)
    batch, _, height, width = x.shape
    size = output_size(height, width, packed.stride)
    identity, out, target = _places(x, identity, out, packed.conv2.shape[2], size)
    index = list_mask(_mask(mask, batch, size, x)).index
    hidden = x.new_empty((len(index.dilated), packed.conv1.shape[2]))
    gather_gemm(
        rows,
        packed.conv1,
        packed.bias1,
        "relu",
        hidden,
        rows=index.counts[1:],
        positions=index.dilated,
        window=Window(height, width, *size, packed.stride, None),
    )
    last = (hidden, packed.conv2, packed.bias2)
    _finish(last, index.active, index.counts[:1], identity, target, Window.of(index))
    return _returned(target, out)


def bottleneck(
    x: Tensor,
    mask: Tensor | None,
    packed: TritonBottleneck,
    *,
    identity: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """relu(identity + mask * conv3(relu(conv2(relu(conv1 x))))); as `inverted_residual`.

    The first convolution runs on the dilated pixels of the input grid.
    """
    rows = _rows("x", x, x)
    batch, _, height, width = x.shape
    size = output_size(height, width, packed.stride)
    identity, out, target = _places(x, identity, out, packed.conv3.shape[2], size)
    flags = _mask(mask, batch, size, x)
    index = list_mask(flags, packed.stride, size=(height, width)).index
    first = x.new_empty((len(index.dilated), packed.conv1.shape[2]))
    second = x.new_empty((len(index.active), packed.conv2.shape[2]))
    gather_gemm(
        rows,
        packed.conv1,
        packed.bias1,
        "relu",
        first,
        rows=index.counts[1:],
        positions=index.dilated,
    )
    gather_gemm(
        first,
        packed.conv2,
        packed.bias2,
        "relu",
        second,
        rows=index.counts[:1],
        positions=index.active,
        window=Window.of(index),
    )
    last = (second, packed.conv3, packed.bias3)
    _finish(last, index.active, index.counts[:1], identity, target, None)
    return _returned(target, out)


def _finish(
    last: tuple[Tensor, Tensor, Tensor],
    active: Tensor,
    count: Tensor,
    identity: Tensor,
    target: Tensor,
    window: Window | None,
) -> None:
    """The last convolution, the sum and its ReLU, which inactive pixels have too."""
    is_same = target.data_ptr() == identity.data_ptr()
    if not is_same:
        torch.clamp_min(identity, 0, out=target)
    gather_gemm_scatter(
        *last,
        "relu",
        _rows("out", target, identity),
        active,
        rows=count,
        window=window,
        identity_rows=_rows("identity", identity, identity),
    )
    if is_same:
        F.relu_(target)


def _slices(listed: ListedMask, images: int) -> Iterator[tuple[Tensor | Slice, Tensor | Slice]]:
    """Dilated and active rows of `images` images after another."""
    index = listed.index
    if images >= index.batch:
        yield index.counts[1:], index.counts[:1]
        return
    for first in range(0, index.batch, images):
        last = min(first + images, index.batch)
        near_first, near_last, on_first, on_last = (
            starts[image : image + 1]
            for starts in (listed.dilated_starts, listed.active_starts)
            for image in (first, last)
        )
        yield Slice(near_first, near_last), Slice(on_first, on_last, near_first)


def _mask(mask: Tensor | None, batch: int, size: tuple[int, int], x: Tensor) -> Tensor:
    if mask is None:
        return torch.ones((batch, *size), dtype=torch.bool, device=x.device)
    if tuple(mask.shape) not in ((batch, 1, *size), (batch, *size)) or mask.device != x.device:
        raise ValueError(
            f"A mask has one value for each output pixel, {(batch, 1, *size)}, on {x.device}; got "
            f"{tuple(mask.shape)} on {mask.device}."
        )
    return mask


def _places(
    x: Tensor, identity: Tensor | None, out: Tensor | None, outputs: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The identity, `out` as it was given, and where the kernels write."""
    shape = (len(x), outputs, *size)
    if identity is None:
        identity = x
    if tuple(identity.shape) != shape:
        raise ValueError(
            f"The identity has the shape of the result, {shape}; got {tuple(identity.shape)}. A "
            "block that changes channels or size needs `identity`."
        )
    if out is None:
        return identity, None, new_pixels(len(x), outputs, *size, like=x)
    if tuple(out.shape) != shape:
        raise ValueError(f"`out` has the shape of the result, {shape}; got {tuple(out.shape)}.")
    check_alias(out, identity, "identity")
    if check_alias(out, x, "x") and identity.data_ptr() != x.data_ptr():
        # x is still read after `out` is first written.
        return identity, out, new_pixels(len(x), outputs, *size, like=x)
    return identity, out, out


def _returned(target: Tensor, out: Tensor | None) -> Tensor:
    if out is None or out.data_ptr() == target.data_ptr():
        return target
    return out.copy_(target)


def _rows(name: str, x: Tensor, like: Tensor) -> Tensor:
    """Activations in channels_last memory as a matrix of pixels, without a copy."""
    if x.ndim != 4:
        raise ValueError(f"{name}: activations are (B, C, H, W); got {tuple(x.shape)}.")
    pixels = x.permute(0, 2, 3, 1)
    if not pixels.is_contiguous():
        raise ValueError(
            f"{name}: activations lie in channels_last memory; got strides {x.stride()}. Convert "
            "once, before the network: x.contiguous(memory_format=torch.channels_last)."
        )
    rows = pixels.view(-1, x.shape[1])
    check_matrix(name, rows, (None, None), like)
    return rows
