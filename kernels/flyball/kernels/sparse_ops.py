"""Single sparse operators: gather, scatter-add, pointwise, depthwise 3x3 and 3x3 on listed pixels.

For inference. Blocks of `sparse_block` pack their weights once; here weights are brought into the
implementation's form at every call. B batch, C channels, E expanded channels, O outputs, H, W
pixels, Ho, Wo output pixels; P and Q the lengths of an index's active and dilated lists, whose
rows past its counts mean nothing.
"""

from typing import Literal

import torch
from torch import Tensor

from flyball.kernels.device_rows import convolve_rows, gather_rows, scatter_rows
from flyball.kernels.dispatch import Choice, Requested, choose, note
from flyball.kernels.layers import Layer, check_activation
from flyball.kernels.layout import check_like, check_pixels, rows_of
from flyball.kernels.operators import operators_for
from flyball.kernels.reference import Activation
from flyball.kernels.sparse_index import SparseIndex, neighbours, taps

__all__ = ["conv3x3", "depthwise3x3", "gather", "pointwise", "scatter_add"]

Which = Literal["active", "dilated"]


def gather(
    x: Tensor, index: SparseIndex, *, which: Which = "dilated", implementation: Requested = "auto"
) -> Tensor:
    """The rows of the listed pixels.

    Args:
        x: (B, C, H, W) on the input grid for "dilated", (B, C, Ho, Wo) for "active".
        index: of the mask.
        which: list.
        implementation: "auto", "torch" or "triton".

    Returns:
        (Q, C) or (P, C).

    Raises:
        ValueError: x is not on the list's grid, a list is too short, or the implementation
            cannot run.
    """
    positions = _positions(x, index, which)
    choice = _without_cpp("gather", implementation, x)
    with torch.no_grad():
        rows, is_copied = rows_of(x)
        note("gather", x, choice, *_copied(is_copied))
        if choice.name == "triton":
            return gather_rows(rows, positions, _count(index, which))
        return rows.index_select(0, positions.clamp_min(0))


def scatter_add(
    rows: Tensor,
    index: SparseIndex,
    out: Tensor,
    *,
    which: Which = "active",
    implementation: Requested = "auto",
) -> Tensor:
    """Adds rows to the listed pixels of `out`, in place.

    Args:
        rows: (P, C) for "active", (Q, C) for "dilated".
        index: of the mask.
        out: (B, C, Ho, Wo) for "active", (B, C, H, W) for "dilated"; any layout, channels_last
            without a copy.
        which: list.
        implementation: "auto", "torch" or "triton".

    Returns:
        `out`.

    Raises:
        ValueError: as `gather`, or there are not as many rows as the list has.
    """
    positions = _positions(out, index, which)
    check_like("rows", rows, (len(positions), out.shape[1]), out)
    choice = _without_cpp("scatter_add", implementation, out)
    with torch.no_grad():
        out_rows, is_copied = rows_of(out)
        note("scatter_add", out, choice, *_copied(is_copied))
        if choice.name == "triton":
            scatter_rows(rows, positions, _count(index, which), out_rows)
        else:
            count = int(_count(index, which))
            out_rows.index_add_(0, positions[:count].long(), rows[:count])
        if is_copied:
            batch, channels, height, width = out.shape
            out.copy_(out_rows.view(batch, height, width, channels).permute(0, 3, 1, 2))
    return out


def pointwise(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: Activation = "none",
    implementation: Requested = "auto",
) -> Tensor:
    """A 1x1 convolution of rows: (N, C) with weights (O, C) and bias (O,) to (N, O).

    Raises:
        ValueError: the parts do not fit together, or the implementation cannot run.
    """
    _check_rows(rows, "pointwise", (len(rows), weight.shape[-1]), weight, weight.ndim == 2)
    layer = Layer("pointwise", weight[:, :, None, None], bias, activation)
    return _run(layer, rows, None, implementation)


def depthwise3x3(
    rows: Tensor,
    index: SparseIndex,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: Activation = "none",
    implementation: Requested = "auto",
) -> Tensor:
    """A depthwise 3x3 convolution at the active pixels, from the rows of the dilated ones.

    Args:
        rows: (Q, E).
        index: of the mask; gives the stride.
        weight: (E, 3, 3).
        bias: (E,).
        activation: follows.
        implementation: "auto", "cpu", "torch" or "triton".

    Returns:
        (P, E).

    Raises:
        ValueError: the parts do not fit together, a list is too short, or the implementation
            cannot run.
    """
    shape = (len(index.dilated), len(weight))
    fits = weight.ndim == 3 and weight.shape[1:] == (3, 3)
    _check_rows(rows, "depthwise3x3", shape, weight, fits)
    _check_index(index, rows.device)
    layer = Layer("depthwise3x3", weight[:, None], bias, activation, index.stride, True)
    return _run(layer, rows, index, implementation)


def conv3x3(
    x: Tensor,
    index: SparseIndex,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: Activation = "none",
    implementation: Requested = "auto",
) -> Tensor:
    """A 3x3 convolution of padding 1 at the active pixels.

    Args:
        x: (B, C, H, W) on the index's input grid.
        index: of the mask; gives the stride.
        weight: (O, C, 3, 3).
        bias: (O,).
        activation: follows.
        implementation: "auto", "cpu", "torch" or "triton".

    Returns:
        (P, O).

    Raises:
        ValueError: the parts do not fit together, a list is too short, or the implementation
            cannot run.
    """
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"conv3x3 takes weights (O, C, 3, 3); got {tuple(weight.shape)}.")
    check_pixels(x, weight.shape[1], weight)
    _positions(x, index, "dilated")
    layer = Layer("conv3x3", weight, bias, activation, index.stride)
    rows, is_copied = rows_of(x.detach())
    return _run(layer, rows, index, implementation, *_copied(is_copied))


def _run(
    layer: Layer, rows: Tensor, index: SparseIndex | None, requested: Requested, *notes: str
) -> Tensor:
    if tuple(layer.bias.shape) != (len(layer.weight),) or layer.bias.device != rows.device:
        raise ValueError(
            f"The bias of {layer.name} is ({len(layer.weight)},) on {rows.device}, one value an "
            f"output; got {tuple(layer.bias.shape)} on {layer.bias.device}."
        )
    check_activation(layer.activation)
    choice = _sparse(layer.name, requested, rows)
    with torch.no_grad():
        note(layer.name, rows, choice, *notes)
        if choice.name == "triton":
            return convolve_rows(layer, rows, index)
        table = None
        if index is not None:
            table = neighbours(index) if layer.is_depthwise else taps(index, index.active)
        return operators_for(choice.name, layer).rows(rows, table)


def _sparse(operator: str, requested: Requested, x: Tensor) -> Choice:
    if requested == "dense":
        raise ValueError(
            f"{operator} works on lists of pixels and has no dense form; ask for it on a block, "
            'or take "torch".'
        )
    choice = choose(requested, x.dtype, x.device)
    return Choice("torch", choice.why) if choice.name == "dense" else choice


def _without_cpp(operator: str, requested: Requested, x: Tensor) -> Choice:
    if requested == "cpu":
        raise ValueError(
            f'{operator} has no C++ form, torch\'s own copies rows as fast; take "torch".'
        )
    if requested == "auto" and x.device.type == "cpu":
        return Choice("torch", "on CPU torch's own copies rows as fast as any")
    return _sparse(operator, requested, x)


def _positions(x: Tensor, index: SparseIndex, which: Which) -> Tensor:
    if which not in ("active", "dilated"):
        raise ValueError(f'A list is "active" or "dilated"; got {which!r}.')
    size = (index.out_height, index.out_width) if which == "active" else (index.height, index.width)
    if x.ndim != 4 or (x.shape[0], *x.shape[2:]) != (index.batch, *size):
        raise ValueError(
            f"The index lists {which} pixels of ({index.batch}, channels, {size[0]}, {size[1]}); "
            f"got {tuple(x.shape)}. Build the index from this layer's mask."
        )
    _check_index(index, x.device)
    return index.active if which == "active" else index.dilated


def _count(index: SparseIndex, which: Which) -> Tensor:
    """int32 (1,), on the device."""
    return index.counts[:1] if which == "active" else index.counts[1:]


def _check_index(index: SparseIndex, device: torch.device) -> None:
    if index.counts.device != device:
        raise ValueError(
            f"The index and the activations are on one device: the index is on "
            f"{index.counts.device}, the activations on {device}. Build it from a mask there."
        )
    if device.type == "cpu":
        index.check()


def _check_rows(
    rows: Tensor, operator: str, shape: tuple[int, ...], weight: Tensor, fits: bool
) -> None:
    if not fits:
        wanted = "(O, C)" if operator == "pointwise" else "(E, 3, 3)"
        raise ValueError(f"{operator} takes weights {wanted}; got {tuple(weight.shape)}.")
    check_like("rows", rows, shape, weight)
    if not rows.is_floating_point():
        raise ValueError(f"{operator} takes floating-point rows; got {rows.dtype}.")


def _copied(is_copied: bool) -> tuple[str, ...]:
    return ("x was copied to channels_last",) if is_copied else ()
