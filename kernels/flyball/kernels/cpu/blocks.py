"""Whole residual blocks in C++, fused: no intermediate leaves the caches. float32 on CPU.

C inputs, E channels of the first convolution, O outputs; B batch, H, W input pixels, Ho, Wo output
pixels. An image's bits depend on its own pixels and mask alone.
"""

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from flyball.kernels.cpu.build import library
from flyball.kernels.cpu.operators import (
    DONE,
    address,
    check,
    clamp_of,
    pack_rows_weight,
    padded,
    refuse_overlap,
)

__all__ = [
    "BlockCall",
    "CpuBlock",
    "Listed",
    "pack_basic_block",
    "pack_bottleneck",
    "pack_inverted_residual",
    "run_block",
]

NO_MIDDLE, DEPTHWISE, CONVOLUTION = range(3)

Part = tuple[Tensor, Tensor]

_PLACE, _COUNT = ctypes.c_void_p, ctypes.c_int64
_PAIR = _COUNT * 2
_BLOCK = ctypes.CFUNCTYPE(
    ctypes.c_int32, _PLACE, _PLACE, _PLACE, _COUNT, _COUNT, _COUNT, _PLACE, _PLACE, _PLACE
)
"""flyball_block of operators.cpp; declared once, so that a call converts plain integers."""


class Listed(NamedTuple):
    """How many pixels of a batch the first convolution computed, and how many the others."""

    dilated: int
    active: int


class _Arguments(ctypes.Structure):
    """FlyballBlock of operators.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("first", "first_bias", "middle", "middle_bias")),
        *((name, ctypes.c_void_p) for name in ("last", "last_bias")),
        *((name, ctypes.c_int64) for name in ("inputs", "expanded", "between", "outputs")),
        *((name, ctypes.c_int64) for name in ("first_taps", "first_stride")),
        *((name, ctypes.c_int64) for name in ("last_taps", "window_stride")),
        ("middle_kind", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("inner_low", "inner_high")),
        *((name, ctypes.c_float) for name in ("outer_low", "outer_high")),
    )


@dataclass(frozen=True)
class CpuBlock:
    """A residual block's weights, packed; made by the `pack_` functions, run by `run_block`.

    Attributes:
        inputs, outputs: C, O.
        stride: output pixels are input pixels / stride, rounded up.
        may_be_in_place: whether out may be x.
        parts: the packed weights and padded biases of first, middle and last convolution.
        sizes: (C, E, between, O, taps of the first, its stride, taps of the last, the window's
            stride).
        middle: which middle convolution.
        clamps: of the activations inside, and after the sum.
    """

    inputs: int
    outputs: int
    stride: int
    may_be_in_place: bool
    parts: tuple[Part | None, Part | None, Part | None]
    sizes: tuple[int, ...]
    middle: int
    clamps: tuple[float, float, float, float]

    @cached_property
    def arguments(self) -> ctypes.Structure:
        """For C++; valid as long as this block lives."""
        places = [address(t).value for part in self.parts for t in (part or (None, None))]
        return _Arguments(*places, *self.sizes, self.middle, *self.clamps)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "arguments"}


def pack_inverted_residual(
    expand: Tensor,
    expand_bias: Tensor,
    depthwise: Tensor,
    depthwise_bias: Tensor,
    project: Tensor,
    project_bias: Tensor,
    *,
    stride: int = 1,
    activation: str = "relu6",
) -> CpuBlock:
    """identity + mask * project(act(depthwise(act(expand(x))))).

    Args:
        expand: (E, C); depthwise: (E, 3, 3), with the stride; project: (O, E).
        expand_bias, depthwise_bias, project_bias: (E,), (E,), (O,).
        stride: 1 or 2.
        activation: "none", "relu" or "relu6", after the first two convolutions.

    Raises:
        ValueError: the weights do not fit together.
    """
    expanded, inputs = expand.shape
    outputs = len(project)
    check("depthwise", depthwise, (expanded, 3, 3), any_layout=True)
    check("project", project, (outputs, expanded), any_layout=True)
    return CpuBlock(
        inputs,
        outputs,
        _checked_stride(stride),
        True,
        (
            _pack(expand.t()[None], expand_bias),
            _pack(depthwise.reshape(expanded, 9).t()[:, None], depthwise_bias),
            _pack(project.t()[None], project_bias),
        ),
        (inputs, expanded, expanded, outputs, 1, 1, 1, stride),
        DEPTHWISE,
        (*clamp_of(activation), *clamp_of("none")),
    )


def pack_basic_block(
    conv1: Tensor, bias1: Tensor, conv2: Tensor, bias2: Tensor, *, stride: int = 1
) -> CpuBlock:
    """relu(identity + mask * conv2(relu(conv1(x)))), conv1 where conv2 looks.

    Args:
        conv1: (M, C, 3, 3), with the stride; conv2: (O, M, 3, 3).
        bias1, bias2: (M,), (O,).
        stride: 1 or 2.

    Raises:
        ValueError: the weights do not fit together.
    """
    middle, inputs = conv1.shape[:2]
    outputs = len(conv2)
    check("conv1", conv1, (middle, inputs, 3, 3), any_layout=True)
    check("conv2", conv2, (outputs, middle, 3, 3), any_layout=True)
    return CpuBlock(
        inputs,
        outputs,
        _checked_stride(stride),
        False,
        (_pack(_by_tap(conv1), bias1), None, _pack(_by_tap(conv2), bias2)),
        (inputs, middle, middle, outputs, 9, stride, 9, 1),
        NO_MIDDLE,
        (*clamp_of("relu"), *clamp_of("relu")),
    )


def pack_bottleneck(
    conv1: Tensor,
    bias1: Tensor,
    conv2: Tensor,
    bias2: Tensor,
    conv3: Tensor,
    bias3: Tensor,
    *,
    stride: int = 1,
) -> CpuBlock:
    """relu(identity + mask * conv3(relu(conv2(relu(conv1(x)))))).

    Args:
        conv1: (M, C, 1, 1); conv2: (N, M, 3, 3), with the stride; conv3: (O, N, 1, 1).
        bias1, bias2, bias3: (M,), (N,), (O,).
        stride: 1 or 2.

    Raises:
        ValueError: the weights do not fit together.
    """
    first, inputs = conv1.shape[:2]
    second, outputs = len(conv2), len(conv3)
    check("conv1", conv1, (first, inputs, 1, 1), any_layout=True)
    check("conv2", conv2, (second, first, 3, 3), any_layout=True)
    check("conv3", conv3, (outputs, second, 1, 1), any_layout=True)
    return CpuBlock(
        inputs,
        outputs,
        _checked_stride(stride),
        False,
        (
            _pack(_by_tap(conv1), bias1),
            _pack(_by_tap(conv2), bias2),
            _pack(_by_tap(conv3), bias3),
        ),
        (inputs, first, second, outputs, 1, 1, 1, stride),
        CONVOLUTION,
        (*clamp_of("relu"), *clamp_of("relu")),
    )


def run_block(
    packed: CpuBlock,
    x: Tensor,
    mask: Tensor | None,
    size: tuple[int, int, int],
    identity: Tensor,
    out: Tensor,
) -> Listed:
    """Runs the block where the mask is not 0; elsewhere only the identity and the last ReLU.

    Args:
        x: rows (B * H * W, C).
        mask: uint8 or bool (B, Ho, Wo); None for every pixel, without lists.
        size: (B, H, W).
        identity: rows (B * Ho * Wo, O); may be x.
        out: rows (B * Ho * Wo, O), written; may be the identity, and x itself where the identity
            is x too and the block may run in place.

    Returns:
        How many pixels were computed.

    Raises:
        ValueError: an argument does not fit in shape, dtype, device or layout, or out shares
            memory with x in another way than those above.
    """
    batch, height, width = size
    tall, wide = (-(-pixels // packed.stride) for pixels in (height, width))
    check("x", x, (batch * height * width, packed.inputs))
    check("identity", identity, (batch * tall * wide, packed.outputs))
    check("out", out, (batch * tall * wide, packed.outputs))
    if mask is not None:
        kind = torch.bool if mask.dtype == torch.bool else torch.uint8
        check("mask", mask, (batch, tall, wide), kind)
    same = out.data_ptr() == x.data_ptr() == identity.data_ptr()
    if not (same and packed.may_be_in_place and packed.stride == 1):
        refuse_overlap(out, x)
    if out.data_ptr() != identity.data_ptr():
        refuse_overlap(out, identity)
    if not out.numel():
        return Listed(0, 0)
    return BlockCall(packed, size)(x, mask, identity, out)


class BlockCall:
    """A block on tensors whose shapes, layouts and overlaps `run_block` has found right before.

    What is left to do is small beside the smallest maps: addresses go to C++ as they are.
    """

    def __init__(self, packed: CpuBlock, size: tuple[int, int, int]) -> None:
        self._packed = packed  # keeps the weights
        self._arguments = ctypes.byref(packed.arguments)
        self._size = size
        self._run = _BLOCK(("flyball_block", library()))

    def __call__(self, x: Tensor, mask: Tensor | None, identity: Tensor, out: Tensor) -> Listed:
        """Runs the block; the tensors as `run_block` took them, in any shape of the same memory."""
        listed = _PAIR()
        status = self._run(
            self._arguments,
            x.data_ptr(),
            None if mask is None else mask.data_ptr(),
            *self._size,
            identity.data_ptr(),
            out.data_ptr(),
            listed,
        )
        if status != DONE:
            raise MemoryError("The C++ operators could not get memory for their buffers.")
        return Listed(listed[0], listed[1])


def _checked_stride(stride: int) -> int:
    if stride not in (1, 2):
        raise ValueError(f"The stride of a block is 1 or 2; got {stride}.")
    return stride


def _by_tap(weight: Tensor) -> Tensor:
    """(O, C, k, k) as (T, C, O)."""
    return weight.flatten(2).permute(2, 1, 0)


def _pack(weight: Tensor, bias: Tensor) -> Part:
    packed = pack_rows_weight(weight)
    check("bias", bias, (packed.outputs,))
    longer = torch.zeros(padded(packed.outputs))
    longer[: packed.outputs] = bias.detach()
    return packed.tensor, longer
