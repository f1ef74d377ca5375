"""Residual blocks that run where a mask says so, their weights packed once; for inference.

Batch norm is folded into the weights before. B batch, C channels, E expanded channels, M middle
channels, O outputs, H, W input pixels, Ho, Wo output pixels, P active pixels, Q dilated pixels.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flyball.kernels.dispatch import (
    Choice,
    Line,
    Name,
    Requested,
    break_even,
    choose,
    note,
    note_again,
)
from flyball.kernels.layers import Layer, check_activation, check_kernels, check_layers
from flyball.kernels.layout import (
    check_alias,
    check_like,
    check_mask,
    check_pixels,
    new_pixels,
    output_size,
    rows_of,
)
from flyball.kernels.reference import Activation
from flyball.kernels.ways import Again, Counts, Cpp, Kind, Plan, Way, way_for

__all__ = ["PackedBlock", "pack_basic_block", "pack_bottleneck", "pack_inverted_residual"]


def pack_inverted_residual(
    expand: Tensor,
    expand_bias: Tensor,
    depthwise: Tensor,
    depthwise_bias: Tensor,
    project: Tensor,
    project_bias: Tensor,
    *,
    stride: int = 1,
    activation: Activation = "relu6",
    implementation: Requested = "auto",
) -> "PackedBlock":
    """MobileNetV2's block: identity + mask * project(act(depthwise(act(expand(x))))).

    The expansion runs at the dilated pixels, the rest at the active ones (DynConv Fig. 3).

    Args:
        expand: (E, C). Weights must not be changed afterwards: what is packed would not follow.
        depthwise: (E, 3, 3).
        project: (O, E).
        expand_bias, depthwise_bias, project_bias: (E,), (E,), (O,).
        stride: of the depthwise convolution, 1 or 2.
        activation: after the first two convolutions; none follows the sum.
        implementation: "auto", or what has to run.

    Raises:
        ValueError: the parts do not fit together, or the implementation cannot run.
    """
    if expand.ndim != 2 or project.ndim != 2 or depthwise.shape[1:] != (3, 3):
        raise ValueError(
            "An inverted residual is packed from weights (E, C), (E, 3, 3) and (O, E); got "
            f"{tuple(expand.shape)}, {tuple(depthwise.shape)} and {tuple(project.shape)}. Drop "
            "the axes of size 1: weight[:, :, 0, 0], and weight[:, 0] of the depthwise one."
        )
    check_activation(activation)
    layers = (
        Layer("expand", expand[:, :, None, None], expand_bias, activation),
        Layer("depthwise", depthwise[:, None], depthwise_bias, activation, stride, True),
        Layer("project", project[:, :, None, None], project_bias, "none"),
    )
    return PackedBlock("inverted_residual", layers, stride, implementation)


def pack_basic_block(
    conv1: Tensor,
    bias1: Tensor,
    conv2: Tensor,
    bias2: Tensor,
    *,
    stride: int = 1,
    implementation: Requested = "auto",
) -> "PackedBlock":
    """ResNet's basic block: relu(identity + mask * conv2(relu(conv1(x)))).

    The first convolution runs where the second looks: at the dilated mask of the output grid.

    Args:
        conv1: (M, C, 3, 3), with the stride. Weights must not be changed afterwards.
        conv2: (O, M, 3, 3).
        bias1, bias2: (M,), (O,).
        stride: 1 or 2.
        implementation: "auto", or what has to run.

    Raises:
        ValueError: the parts do not fit together, or the implementation cannot run.
    """
    layers = (
        Layer("conv1", conv1, bias1, "relu", stride),
        Layer("conv2", conv2, bias2, "none"),
    )
    check_kernels("basic block", layers, (3, 3))
    return PackedBlock("basic_block", layers, stride, implementation)


def pack_bottleneck(
    conv1: Tensor,
    bias1: Tensor,
    conv2: Tensor,
    bias2: Tensor,
    conv3: Tensor,
    bias3: Tensor,
    *,
    stride: int = 1,
    implementation: Requested = "auto",
) -> "PackedBlock":
    """ResNet's bottleneck: relu(identity + mask * conv3(relu(conv2(relu(conv1(x)))))).

    The first convolution runs at the dilated pixels of the input grid.

    Args:
        conv1: (M, C, 1, 1). Weights must not be changed afterwards.
        conv2: (M, M, 3, 3), with the stride.
        conv3: (O, M, 1, 1).
        bias1, bias2, bias3: (M,), (M,), (O,).
        stride: 1 or 2.
        implementation: "auto", or what has to run.

    Raises:
        ValueError: the parts do not fit together, or the implementation cannot run.
    """
    layers = (
        Layer("conv1", conv1, bias1, "relu"),
        Layer("conv2", conv2, bias2, "relu", stride),
        Layer("conv3", conv3, bias3, "none"),
    )
    check_kernels("bottleneck", layers, (1, 3, 1))
    return PackedBlock("bottleneck", layers, stride, implementation)


@dataclass(frozen=True)
class _Call:
    """Checked arguments: activations in channels_last memory, the mask (B, Ho, Wo)."""

    x: Tensor
    mask: Tensor | None
    identity: Tensor
    out: Tensor
    notes: tuple[str, ...]

    def image(self, place: int) -> "_Call":
        """One image's call."""
        one = slice(place, place + 1)
        mask = None if self.mask is None else self.mask[one]
        x, identity, out = self.x[one], self.identity[one], self.out[one]
        return replace(self, x=x, mask=mask, identity=identity, out=out)


Signature = tuple[Any, ...]
APART, OVER_IDENTITY, ELSEWHERE = range(3)
"""Where a call writes: to new memory, over the identity, or to memory it was given."""


def _signature(
    x: Tensor, mask: Tensor | None, identity: Tensor | None, out: Tensor | None
) -> Signature:
    """All that checks look at, but for the values of the mask and memory of another tensor."""
    if out is None:
        where = APART
    else:
        where = OVER_IDENTITY if out is (x if identity is None else identity) else ELSEWHERE
    return (_layout(x), _layout(mask), None if identity is x else _layout(identity), where)


def _layout(tensor: Tensor | None) -> tuple[Any, ...] | None:
    if tensor is None:
        return None
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


class PackedBlock:
    """A residual block of fixed weights; made by the `pack_` functions.

    An image's bits depend on its own pixels and mask alone, not on the batch or the threads,
    except in "dense" and "torch" on CUDA.

    Attributes:
        kind: which block.
        stride: 1 or 2.
        inputs, outputs: C and O.
        macs: multiply-accumulates of one row of each convolution, by its name.
    """

    def __init__(
        self, kind: Kind, layers: tuple[Layer, ...], stride: int, implementation: Requested
    ) -> None:
        check_layers(layers, stride)
        self.kind = kind
        self.stride = stride
        self.inputs = layers[0].weight.shape[1]
        self.outputs = len(layers[-1].weight)
        self.macs = {layer.name: layer.macs for layer in layers}
        self._plan = Plan(kind, tuple(layer.detached() for layer in layers), stride)
        self._weight = self._plan.layers[0].weight
        self._requested = implementation
        self._choice = choose(implementation, self._weight.dtype, self._weight.device)
        self._ways: dict[Name, Way] = {}
        self._counts: list[Counts] = []
        self._known: dict[Signature, tuple[Again, Line]] = {}

    @property
    def rows(self) -> dict[str, int]:
        """Rows that each convolution processed in the last call, by its name; all images.

        "cpu" and "triton" count on demand, from the mask: it must not have been changed since.
        """
        total = dict.fromkeys(self.macs, 0)
        for count in self._counts:
            for name, rows in count().items():
                total[name] += rows
        return total

    def __call__(
        self,
        x: Tensor,
        mask: Tensor | None,
        *,
        identity: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Runs the block where the mask is True; elsewhere the identity passes.

        Args:
            x: (B, C, H, W), best in channels_last memory; another layout is copied.
            mask: bool (B, 1, Ho, Wo) or (B, Ho, Wo); None for every pixel.
            identity: (B, O, Ho, Wo), what the block adds to; None for x.
            out: (B, O, Ho, Wo) to write to, which may be x or the identity; None for new memory.

        Returns:
            (B, O, Ho, Wo): `out`, or new memory in channels_last. Without gradients.

        Raises:
            ValueError: an argument does not fit the weights in shape, dtype or device, or `out`
                shares a part of another's memory.
        """
        signature = _signature(x, mask, identity, out)
        known = self._known.get(signature)
        if known is not None:
            return self._again(known, x, mask, identity, out)
        with torch.no_grad():
            call = self._checked(x, mask, identity, out)
            self._counts = []
            for ran in self._run(call):
                line = note(self.kind, x, ran, *call.notes)
            self._remember(signature, call, line)
            if out is None or call.out is out:
                return call.out
            return out.copy_(call.out)

    def _remember(self, signature: Signature, call: _Call, line: Line) -> None:
        """Lets the next call like this one skip the checks: for small maps they take a fifth."""
        way = self._ways.get("cpu")
        is_apart = signature[-1] == APART or self.kind == "inverted_residual"
        is_whole = not call.notes and line[4] == "cpu" and len(self._ways) == 1
        if isinstance(way, Cpp) and is_whole and is_apart and signature[-1] != ELSEWHERE:
            height, width = call.x.shape[2:]
            self._known[signature] = (way.again((len(call.x), height, width)), line)

    def _again(
        self,
        known: tuple[Again, Line],
        x: Tensor,
        mask: Tensor | None,
        identity: Tensor | None,
        out: Tensor | None,
    ) -> Tensor:
        run, line = known
        identity = x if identity is None else identity
        out = torch.empty_like(identity) if out is None else out
        self._counts = [run(x, mask, identity, out)]
        note_again(line)
        return out

    def _checked(
        self, x: Tensor, mask: Tensor | None, identity: Tensor | None, out: Tensor | None
    ) -> _Call:
        check_pixels(x, self.inputs, self._weight)
        batch, _, height, width = x.shape
        size = (batch, *output_size(height, width, self.stride))
        shape = (batch, self.outputs, *size[1:])
        if mask is not None:
            mask = check_mask(mask, size, x.device)
        if identity is not None:
            check_like("identity", identity, shape, self._weight)
        elif tuple(x.shape) != shape:
            raise ValueError(
                f"Without an identity the block adds to its input, which has to be {shape}; it is "
                f"{tuple(x.shape)}. Give identity=, the shortcut's output."
            )
        notes = []
        target = out
        if out is not None:
            check_like("out", out, shape, self._weight)
            is_x = check_alias(out, x, "x")
            if identity is not None and not check_alias(out, identity, "the identity") and is_x:
                target = None
            if not out.permute(0, 2, 3, 1).is_contiguous():
                notes.append("out was written through a copy, it is not channels_last")
                target = None
        laid = {"x": x} if identity is None else {"x": x, "identity": identity}
        for name, tensor in laid.items():
            rows, is_copied = rows_of(tensor)
            if is_copied:
                images, _, tall, wide = tensor.shape
                laid[name] = rows.view(images, tall, wide, -1).permute(0, 3, 1, 2)
                notes.append(f"{name} was copied to channels_last")
        if target is None:
            target = new_pixels(batch, self.outputs, *size[1:], self._weight)
        return _Call(laid["x"], mask, laid.get("identity", laid["x"]), target, tuple(notes))

    def _run(self, call: _Call) -> list[Choice]:
        """Runs, and says what ran; what runs on an image does not depend on the others."""
        choice = self._choice
        if choice.name in ("torch", "dense") and call.mask is None:
            choice = Choice("dense", "no mask, every pixel runs")
        pixels = call.x.shape[2] * call.x.shape[3]
        limit = break_even(choice.name, self.kind, pixels)
        if self._requested != "auto" or call.mask is None or limit >= 1:
            self._run_by(choice, call)
            return [choice]
        dense = Choice("dense", f"{choice.why}; dense is faster above a share of {limit}")
        shares = [1.0] if limit <= 0 else self._plan.shares(call.mask, *call.x.shape[2:])
        if min(shares) > limit:
            self._run_by(dense, call)
            return [dense]
        if max(shares) <= limit:
            self._run_by(choice, call)
            return [choice]
        for place, share in enumerate(shares):
            self._run_by(dense if share > limit else choice, call.image(place))
        return [choice, dense]

    def _run_by(self, choice: Choice, call: _Call) -> None:
        if choice.name not in self._ways:
            self._ways[choice.name] = way_for(choice.name, self._plan)
        way = self._ways[choice.name]
        self._counts.append(way(call.x, call.mask, call.identity, call.out))
