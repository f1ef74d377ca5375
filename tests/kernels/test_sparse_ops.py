"""Single sparse operators equal their dense twins at the listed pixels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flyball.kernels import (
    build_index,
    conv3x3,
    depthwise3x3,
    dispatch,
    explain,
    forget,
    gather,
    neighbours,
    pointwise,
    reference,
    scatter_add,
)
from flyball.kernels.sparse_index import taps

MaskOf = Callable[..., Tensor]
CPP = dispatch.choose("auto", torch.float32, torch.device("cpu")).name == "cpu"
needs_cpp = pytest.mark.skipif(not CPP, reason="no C++ compiler")
IMPLEMENTATIONS = ["auto", "torch", pytest.param("cpu", marks=needs_cpp)]
ACTIVATIONS: tuple[reference.Activation, ...] = ("none", "relu", "relu6")


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def pixels(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    x = drawn(batch, channels, height, width, seed=seed)
    return x.contiguous(memory_format=torch.channels_last)


def rows_at(x: Tensor, positions: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])[positions.long()]


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """To 1e-5 of the norm in float32, which sums in another order; 1e-12 in float64."""
    tolerance = 1e-12 if got.dtype == torch.float64 else 1e-5
    assert got.shape == wanted.shape
    error = torch.linalg.vector_norm(got.double() - wanted)
    assert error <= tolerance * torch.linalg.vector_norm(wanted)


def test_rows_come_and_go_by_the_list(family: str, mask_of: MaskOf, threads: int) -> None:
    for stride in (1, 2):
        index = build_index(mask_of(family, 3, 5, 7), stride=stride)
        near, far = pixels(3, 6, index.height, index.width), pixels(3, 6, 5, 7, seed=1)
        assert torch.equal(gather(near, index), rows_at(near, index.dilated))
        rows = gather(far, index, which="active")
        assert torch.equal(rows, rows_at(far, index.active))
        for layout in (torch.channels_last, torch.contiguous_format):
            out = far.clone(memory_format=layout)
            assert scatter_add(rows, index, out) is out
            mask = mask_of(family, 3, 5, 7)
            assert torch.equal(out, torch.where(mask, 2 * far, far))
        out = torch.zeros_like(near)
        scatter_add(gather(near, index), index, out, which="dilated")
        assert torch.equal(rows_at(out, index.dilated), rows_at(near, index.dilated))
        assert int(out.count_nonzero()) == 6 * len(index.dilated)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_pointwise_convolution_is_a_product_of_rows(
    activation: reference.Activation, implementation: dispatch.Requested
) -> None:
    for rows, inputs, outputs in ((0, 3, 4), (1, 1, 1), (37, 19, 33)):
        x, weight = drawn(rows, inputs), drawn(outputs, inputs, seed=1)
        bias = drawn(outputs, seed=2)
        wanted = reference.activate(x @ weight.t() + bias, activation)
        parts = (x.float(), weight.float(), bias.float())
        got = pointwise(*parts, activation=activation, implementation=implementation)
        assert_close(got, wanted)
    assert_close(pointwise(x, weight, bias, activation=activation), wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_windows_are_convolutions_at_the_active_pixels(
    stride: int, implementation: dispatch.Requested, family: str, mask_of: MaskOf
) -> None:
    for place, (height, width) in enumerate([(1, 1), (6, 9), (13, 8)]):
        activation = ACTIVATIONS[place]
        out = ((height - 1) // stride + 1, (width - 1) // stride + 1)
        index = build_index(mask_of(family, 2, *out), stride=stride, size=(height, width))
        x = pixels(2, 7, height, width)
        weight, bias = drawn(7, 3, 3, seed=1), drawn(7, seed=2)
        dense = F.conv2d(x, weight[:, None], bias, stride, 1, groups=7)
        wanted = reference.activate(rows_at(dense, index.active), activation)
        for dtype in (torch.float64, torch.float32):
            by_name = implementation if dtype == torch.float32 else "torch"
            rows = gather(x.to(dtype), index)
            parts = (weight.to(dtype), bias.to(dtype))
            got = depthwise3x3(rows, index, *parts, activation=activation, implementation=by_name)
            assert_close(got, wanted)
        wide, bias = drawn(10, 7, 3, 3, seed=3), drawn(10, seed=4)
        dense = F.conv2d(x, wide, bias, stride, 1)
        wanted = reference.activate(rows_at(dense, index.active), activation)
        for dtype in (torch.float64, torch.float32):
            by_name = implementation if dtype == torch.float32 else "torch"
            parts = (wide.to(dtype), bias.to(dtype))
            got = conv3x3(x.to(dtype), index, *parts, activation=activation, implementation=by_name)
            assert_close(got, wanted)


def test_the_row_forms_of_the_reference_make_its_masked_forms(family: str, mask_of: MaskOf) -> None:
    """Two specifications written apart agree, and so do their gradients."""
    mask = mask_of(family, 2, 4, 5)
    index = build_index(mask, stride=2, size=(7, 10))
    x = pixels(2, 3, 7, 10).requires_grad_()
    expand, middle, project = drawn(8, 3, seed=1), drawn(8, 3, 3, seed=2), drawn(4, 8, seed=3)
    biases = [drawn(8, seed=4), drawn(8, seed=5), drawn(4, seed=6)]
    identity = pixels(2, 4, 4, 5, seed=7)
    rows = reference.gather_gemm(
        x.permute(0, 2, 3, 1).reshape(-1, 3),
        index.dilated[:, None],
        expand.t()[None],
        biases[0],
        "relu6",
    )
    weight = middle.flatten(1).t()
    rows = reference.depthwise(rows, neighbours(index), weight, biases[1], "relu6")
    out = reference.gather_gemm_scatter(
        rows,
        None,
        project.t()[None],
        biases[2],
        identity.permute(0, 2, 3, 1).reshape(-1, 4),
        index.active,
    )
    masked = reference.masked_inverted_residual(
        x, mask, expand, biases[0], middle, biases[1], project, biases[2],
        stride=2, identity=identity,
    )  # fmt: skip
    listed = out.view(2, 4, 5, 4).permute(0, 3, 1, 2)
    assert_close(listed.detach(), masked.detach())
    upstream = drawn(2, 4, 4, 5, seed=8)
    (by_rows,) = torch.autograd.grad((listed * upstream).sum(), x)
    (by_mask,) = torch.autograd.grad((masked * upstream).sum(), x)
    assert torch.allclose(by_rows, by_mask, rtol=1e-12, atol=1e-12)


def test_a_convolution_of_rows_is_one_of_pixels() -> None:
    x, weight, bias = pixels(2, 3, 6, 5), drawn(4, 3, 3, 3, seed=1), drawn(4, seed=2)
    index = build_index(torch.ones(2, 6, 5, dtype=torch.bool))
    rows = x.permute(0, 2, 3, 1).reshape(-1, 3)
    by_tap = weight.flatten(2).permute(2, 1, 0)
    got = reference.gather_gemm(rows, taps(index, index.active), by_tap, bias)
    wanted = F.conv2d(x, weight, bias, 1, 1).permute(0, 2, 3, 1).reshape(-1, 4)
    assert_close(got, wanted)
    added = reference.scatter_add(rows[:2], torch.tensor([5, 0]), rows)
    assert torch.equal(added[0], rows[0] + rows[1])
    assert torch.equal(added[1:5], rows[1:5])


def test_lists_that_are_too_short_are_refused(mask_of: MaskOf) -> None:
    mask = mask_of("checkerboard", 1, 4, 4)
    x, weight, bias = pixels(1, 3, 4, 4), drawn(3, 3, 3), drawn(3)
    short = build_index(mask, capacity=7)
    near = build_index(mask, dilated_capacity=15)
    with pytest.raises(ValueError, match="room for 7; the mask has 8"):
        gather(x, short, which="active")
    with pytest.raises(ValueError, match="room for 7; the mask has 8"):
        scatter_add(torch.zeros(7, 3, dtype=x.dtype), short, x)
    with pytest.raises(ValueError, match="room for 15; the mask has 16"):
        depthwise3x3(torch.zeros(15, 3, dtype=x.dtype), near, weight, bias)
    with pytest.raises(ValueError, match="room for 7; the mask has 8"):
        conv3x3(x, short, drawn(2, 3, 3, 3), drawn(2))


def test_longer_lists_give_the_same_rows_and_add_nothing(mask_of: MaskOf) -> None:
    mask = mask_of("blobs", 2, 5, 6)
    index = build_index(mask)
    longer = build_index(mask, capacity=60, dilated_capacity=60)
    count, near = len(index.active), len(index.dilated)
    x, weight, bias = pixels(2, 3, 5, 6), drawn(3, 3, 3, seed=1), drawn(3, seed=2)
    rows = gather(x, longer)
    assert rows.shape == (60, 3)
    assert torch.equal(rows[:near], gather(x, index))
    filled = depthwise3x3(rows, longer, weight, bias)
    assert torch.equal(filled[:count], depthwise3x3(rows[:near], index, weight, bias))
    filled[count:] = torch.nan
    wanted = scatter_add(filled[:count], index, x.clone(memory_format=torch.channels_last))
    assert torch.equal(scatter_add(filled, longer, x), wanted)


def test_what_ran_is_said(mask_of: MaskOf) -> None:
    index = build_index(mask_of("blobs", 1, 6, 6))
    x = torch.zeros(1, 4, 6, 6)
    forget()
    gather(x, index)
    gather(x, index)
    gather(x.contiguous(memory_format=torch.channels_last), index, implementation="torch")
    first, second = explain()
    assert (first.operator, first.implementation, first.calls) == ("gather", "torch", 2)
    assert first.shape == (1, 4, 6, 6)
    assert "x was copied to channels_last" in first.why
    assert second.why == "asked for by name"


def test_what_does_not_fit_is_refused(mask_of: MaskOf) -> None:
    index = build_index(mask_of("full", 1, 4, 4))
    x, rows, weight, bias = pixels(1, 3, 4, 4), drawn(16, 3), drawn(3, 3, 3), drawn(3)
    with pytest.raises(ValueError, match="lists dilated pixels of"):
        gather(pixels(1, 3, 4, 5), index)
    with pytest.raises(ValueError, match="lists active pixels of"):
        scatter_add(rows, index, pixels(2, 3, 4, 4))
    with pytest.raises(ValueError, match="rows: the shape here is"):
        scatter_add(rows[:5], index, x)
    with pytest.raises(ValueError, match="rows: the packed weights are"):
        scatter_add(rows.float(), index, x)
    with pytest.raises(ValueError, match='"active" or "dilated"'):
        gather(x, index, which="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weights \(O, C\)"):
        pointwise(rows, weight, bias)
    with pytest.raises(ValueError, match="rows: the shape here is"):
        pointwise(rows, drawn(5, 4), drawn(5))
    with pytest.raises(ValueError, match="one value an output"):
        pointwise(rows, drawn(5, 3), bias)
    with pytest.raises(ValueError, match=r"weights \(E, 3, 3\)"):
        depthwise3x3(rows, index, drawn(3, 5, 5), bias)
    with pytest.raises(ValueError, match=r"weights \(O, C, 3, 3\)"):
        conv3x3(x, index, drawn(3, 3, 1, 1), bias)
    with pytest.raises(ValueError, match="take 4 channels"):
        conv3x3(x, index, drawn(3, 4, 3, 3), bias)
    with pytest.raises(ValueError, match="has no C\\+\\+ form"):
        gather(x, index, implementation="cpu")
    with pytest.raises(ValueError, match="no dense form"):
        pointwise(rows, drawn(5, 3), drawn(5), implementation="dense")
    with pytest.raises(ValueError, match="on one device"):
        gather(x.to("meta"), index)
    with pytest.raises(ValueError, match="floating-point rows"):
        pointwise(rows.long(), drawn(5, 3).long(), drawn(5))
    with pytest.raises(ValueError, match="An activation is one of"):
        pointwise(rows, drawn(5, 3), drawn(5), activation="gelu")  # type: ignore[arg-type]
